//! `larder status`, as a table, for one upstream, as JSON, as metrics, once or again and again.

use std::io::{IsTerminal, Write as _, stdout};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Output, code, print, print_json, refused};
use crate::diff::plain;
use crate::drift::{Drift, What};
use crate::root::{Access, Root};
use crate::status::{Cache, Endpoint, Place, Status, Time, Upstream, metrics, read};

mod table;
use table::{Table, bytes, percent, since, until};

const REFRESH: Duration = Duration::from_secs(2);
/// Of one file that was edited.
const DIFF_LINES: usize = 40;
/// Of a table.
const WIDTH: usize = 100;

#[derive(Debug, clap::Args)]
pub struct StatusInput {
    /// One upstream in full [default: all of them in a table]
    host: Option<String>,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
    /// Show it again every two seconds, until Ctrl-C
    #[arg(long, conflicts_with_all = ["output", "metrics"])]
    watch: bool,
    /// As OpenMetrics text, for node_exporter's textfile collector; to FILE, which appears whole and ends in .prom,
    /// or to standard output. 0 is returned however things are
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-", conflicts_with_all = ["output", "host"])]
    metrics: Option<String>,
}

pub(super) fn status_command(input: &StatusInput) -> Result<u8> {
    let root = Root::open(Path::new("/"))?;
    if let Some(file) = &input.metrics {
        return write_metrics(&root, file);
    }
    loop {
        let mut status = read(&root)?;
        if !input.watch && input.host.is_none() {
            explain_drift(&root, &mut status);
        }
        let one = input.host.as_ref().map(|host| one(&status, host)).transpose()?;
        if input.watch {
            let text = one.map_or_else(|| table(&status), |one| detail(&status, one));
            let head = if stdout().is_terminal() { "\x1b[2J\x1b[H" } else { "" };
            print(&format!("{head}{text}"))?;
            stdout().flush().context("write to standard output")?;
            sleep(REFRESH);
            continue;
        }
        match (input.output, one) {
            (Output::Text, None) => print(&table(&status))?,
            (Output::Text, Some(one)) => print(&detail(&status, one))?,
            (Output::Json, None) => print_json(&serde_json::to_value(&status)?)?,
            (Output::Json, Some(one)) => {
                let upstreams = vec![one.clone()];
                print_json(&serde_json::to_value(Status { upstreams, ..status.clone() })?)?
            }
        };
        return Ok(if status.well { code::CONVERGED } else { code::DOWN });
    }
}

/// Only the plan knows what was written: it is made where there is something to explain, and nowhere else.
fn explain_drift(root: &Root, status: &mut Status) {
    let Some(drifts) = status.drift.as_mut().filter(|drifts| !drifts.is_empty()) else { return };
    let explained = super::run::planned(root)
        .and_then(|(manifest, plan)| crate::drift::explain(drifts, root, &manifest, &plan));
    if let Err(error) = explained {
        let edited =
            |drift: &&mut Drift| matches!(drift.what, What::Edited | What::Others) && drift.diff.is_none();
        for drift in drifts.iter_mut().filter(edited) {
            drift.note = Some(format!("what larder wrote is not known without a plan: {error:#}"));
        }
    }
}

fn one<'s>(status: &'s Status, host: &str) -> Result<&'s Upstream> {
    let found = status.upstreams.iter().find(|upstream| upstream.host == host);
    found.ok_or_else(|| {
        let known: Vec<&str> = status.upstreams.iter().map(|upstream| upstream.host.as_str()).collect();
        refused(format!("status {host}: there is no such upstream here, but for {}", known.join(", "))).into()
    })
}

fn write_metrics(root: &Root, file: &str) -> Result<u8> {
    let text = metrics::text(&read(root)?);
    if file == "-" {
        return print(&text);
    }
    let Some(path) = file.strip_prefix('/').filter(|path| path.ends_with(".prom")) else {
        bail!(refused(format!("status --metrics {file}: wanted an absolute path that ends in .prom")));
    };
    if let Some((folder, _)) = path.rsplit_once('/') {
        root.sweep(folder)?;
    }
    root.write(path, text.as_bytes(), Access::root(0o644))?;
    Ok(code::CONVERGED)
}

/// One line for each upstream, and what is not well.
fn table(status: &Status) -> String {
    let mut text = String::new();
    if let Some(cache) = &status.cache {
        text += &heading(cache, &status.upstreams);
    }
    let now = status.at;
    let mut registries =
        Table::new(&["UPSTREAM", "HEALTH", "PORT", "SIZE", "SHARE", "HITS", "PULLED", "GC", "RESTART"]);
    for upstream in &status.upstreams {
        let Some(registry) = &upstream.registry else { continue };
        let port =
            registry.address.as_ref().and_then(|address| address.rsplit_once(':')).map(|(_, port)| port);
        let job = |name: &str| match upstream.jobs.get(name) {
            Some(job) => format!(
                "{}/{}",
                job.last.map_or("-".to_owned(), |at| span(now, at)),
                job.next.map_or("-".to_owned(), |at| span(at, now))
            ),
            None => "never".to_owned(),
        };
        let store = upstream.store.as_ref();
        registries.row(&[
            upstream.host.clone(),
            registry.health.as_str().to_owned(),
            port.unwrap_or("-").to_owned(),
            store.map_or("-".to_owned(), |store| bytes(store.bytes)),
            percent(store.and_then(|store| store.share)),
            percent(upstream.pulls.as_ref().and_then(|pulls| pulls.hit_rate)),
            upstream.pulls.as_ref().and_then(|pulls| pulls.last).map_or("-".to_owned(), |at| span(now, at)),
            job("gc"),
            job("restart"),
        ]);
    }
    text += &registries.text(WIDTH);
    if !registries.is_empty() {
        text += "GC, RESTART: how long ago, and in how long\n";
    }
    let mut endpoints = Table::new(&["UPSTREAM", "CONTAINERD ASKS"]);
    for upstream in status.upstreams.iter().filter(|upstream| !upstream.endpoints.is_empty()) {
        let all: Vec<String> = upstream.endpoints.iter().map(short).collect();
        endpoints.row(&[upstream.host.clone(), all.join(", ")]);
    }
    if !endpoints.is_empty() && !registries.is_empty() {
        text.push('\n');
    }
    text += &endpoints.text(WIDTH);
    if status.upstreams.is_empty() {
        text += "nothing of larder's runs here: see `larder apply`\n";
    }
    text + &foot(status)
}

fn span(later: Time, earlier: Time) -> String {
    table::span(later.0.saturating_sub(earlier.0))
}

/// `http://10.0.20.10:5000 in`, in short.
fn short(endpoint: &Endpoint) -> String {
    let word = match endpoint.place {
        Place::In { .. } => "",
        Place::Out { .. } => " OUT",
        Place::Kept { .. } => " DOWN",
    };
    format!("{}{word}", endpoint.url)
}

/// What the registries have in common.
fn heading(cache: &Cache, upstreams: &[Upstream]) -> String {
    let mut parts = Vec::new();
    let of = match cache.budget {
        Some(budget) => format!(" of {} ({})", bytes(budget), percent(cache.share)),
        None => String::new(),
    };
    if upstreams.iter().any(|upstream| upstream.store.is_some()) || cache.budget.is_some() {
        parts.push(format!("cached {}{of}", bytes(cache.bytes)));
    }
    for one in &cache.file_systems {
        parts.push(format!("{} of {} free on {}", bytes(one.free), bytes(one.bytes), one.path));
    }
    let (images, gone) = upstreams
        .iter()
        .filter_map(|upstream| upstream.evicted.as_ref())
        .fold((0_u64, 0_u64), |(images, bytes), evicted| (images + evicted.images, bytes + evicted.bytes));
    if images > 0 {
        parts.push(format!("evicted {images} images, {}", bytes(gone)));
    }
    if cache.certificate.is_some() {
        parts.push("https".to_owned());
    }
    if parts.is_empty() { String::new() } else { format!("{}\n\n", parts.join(" · ")) }
}

/// What is not well, and the last verification.
fn foot(status: &Status) -> String {
    let mut text = String::new();
    if !status.unwell.is_empty() {
        text.push('\n');
    }
    for line in &status.unwell {
        text += &format!("! {line}\n");
    }
    text += &drift(status);
    if let Some(seen) = &status.verification {
        let (at, ok, skipped, warned, down) = (&seen.at, seen.ok, seen.skipped, seen.warned, seen.down);
        text +=
            &format!("last verification {at}: {ok} ok, {skipped} skipped, {warned} warned, {down} down\n");
    }
    text
}

/// What is not as larder left it. Nothing of it is down for that: it is none of what is not well.
fn drift(status: &Status) -> String {
    let mut text = String::new();
    for one in status.drift.iter().flatten() {
        text += &format!("~ /{}: {}\n", one.path, plain(&one.words()));
        for line in one.diff.iter().flat_map(|diff| diff.lines()).take(DIFF_LINES) {
            text += &format!("    {}\n", plain(line));
        }
        if one.diff.as_ref().is_some_and(|diff| diff.lines().count() > DIFF_LINES) {
            text += "    ... the whole of it is in `larder status --output json`\n";
        }
        text += &one.note.as_ref().map_or_else(String::new, |note| format!("    ({})\n", plain(note)));
    }
    if !text.is_empty() {
        text += "`larder apply` puts these right and keeps what was edited; with `--keep FILE` it leaves one alone\n";
    }
    if let Some(why) = &status.drift_unknown {
        text += &format!("whether files were changed by hand is not known: {why} (run it as root)\n");
    }
    for path in &status.left_alone {
        text += &format!("left alone: {path}\n");
    }
    if text.is_empty() { text } else { format!("\n{text}") }
}

/// Everything of one upstream.
fn detail(status: &Status, upstream: &Upstream) -> String {
    let now = status.at;
    let mut lines: Vec<(&str, String)> = Vec::new();
    if let Some(registry) = &upstream.registry {
        let why = registry.why.as_ref().map_or_else(String::new, |why| format!(": {why}"));
        lines.push(("health", format!("{}{why}", registry.health.as_str())));
        lines.push(("unit", format!("{}: {}", registry.unit.unit, registry.unit.state)));
        lines.extend(registry.since.map(|at| ("runs", since(now, at))));
        lines.extend(registry.memory.map(|memory| ("memory", bytes(memory))));
        lines.extend(registry.address.clone().map(|address| ("address", address)));
        lines.extend(registry.remote.clone().map(|remote| ("upstream", remote)));
    }
    if let Some(store) = &upstream.store {
        let of = store
            .budget
            .map_or_else(String::new, |budget| format!(" of {} ({})", bytes(budget), percent(store.share)));
        let scanned = store.scanned.map_or_else(String::new, |at| format!(", counted {}", since(now, at)));
        let (images, blobs) = (store.images, store.blobs);
        lines.push(("size", format!("{}{of}, {images} images, {blobs} blobs{scanned}", bytes(store.bytes))));
        lines.extend(store.oldest_use.map(|at| ("oldest", format!("last used {}", since(now, at)))));
    }
    if let Some(pulls) = &upstream.pulls {
        let from = pulls.since.map_or_else(String::new, |at| format!(", since {at}"));
        lines.push((
            "hits",
            format!(
                "{}: {} of {} ({} of {}){from}",
                percent(pulls.hit_rate),
                pulls.hits,
                pulls.hits.saturating_add(pulls.misses),
                bytes(pulls.hit_bytes),
                bytes(pulls.hit_bytes.saturating_add(pulls.miss_bytes))
            ),
        ));
        lines.extend(pulls.last.map(|at| ("last pull", since(now, at))));
    }
    for (name, job) in &upstream.jobs {
        let last = job.last.map_or("not yet".to_owned(), |at| since(now, at));
        let next = job.next.map_or_else(|| job.unit.state.clone(), |at| format!("next {}", until(now, at)));
        let failed = if job.succeeded { "" } else { " (FAILED)" };
        lines.push((name.as_str(), format!("last {last}{failed}, {next}")));
    }
    if let Some(scrub) = &upstream.scrub {
        let (ended, blobs) = (since(now, scrub.ended), scrub.blobs);
        let (broken, removed) = (scrub.broken, scrub.removed);
        lines.push(("scrubbed", format!("{ended}: {blobs} blobs, {broken} broken, {removed} removed")));
    }
    if let Some(evicted) = &upstream.evicted {
        lines.push(("evicted", format!("{} images, {}", evicted.images, bytes(evicted.bytes))));
        for gone in &evicted.last {
            let idle = table::span(gone.idle);
            lines.push((
                "",
                format!("{} {}, idle for {idle}, {}", gone.name, bytes(gone.bytes), since(now, gone.at)),
            ));
        }
    }
    lines.extend(upstream.endpoints.iter().map(|endpoint| ("endpoint", whole(endpoint))));
    let mut text = format!("{}\n", upstream.host);
    for (name, line) in lines {
        text += &format!("  {name:<9}  {line}\n");
    }
    text
}

fn whole(Endpoint { url, place }: &Endpoint) -> String {
    match place {
        Place::In { since: None } => format!("{url} in"),
        Place::In { since: Some(since) } => format!("{url} in again since {since}"),
        Place::Out { since, why, answering } => {
            let again = if *answering { ", answers again" } else { "" };
            format!("{url} OUT since {since} ({why}){again}")
        }
        Place::Kept { since, why } => format!("{url} DOWN since {since} ({why}), stays in as the last one"),
    }
}

#[cfg(test)]
mod tests;
