//! `larder gc`: keep stores within their budget, then let the engine collect.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::scrub::{cached, caches, open};
use super::{Output, code, print, print_json, refused, tell_error, tell_warning};
use crate::instance;
use crate::log;
use crate::node::{Engine, UpstreamHost};
use crate::root::Root;
use crate::store::budget::{self, Kept, Report, StoreReport, Wanted};
use crate::store::size::shown as bytes;

/// Another eviction is over by then.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, clap::Args)]
pub(super) struct GcInput {
    /// The upstreams, as the profile names them
    #[arg(value_name = "HOST", required_unless_present = "all")]
    hosts: Vec<String>,
    /// Every upstream of this node
    #[arg(long, conflicts_with = "hosts")]
    all: bool,
    /// Only say what is there, and what would be evicted
    #[arg(long)]
    dry_run: bool,
    /// The registry binary, or `podman:IMAGE` [default: what `apply` has found]
    #[arg(long, value_name = "ENGINE")]
    engine: Option<String>,
    /// Another machine's files: no engine is run
    #[arg(long, hide = true, value_name = "DIR")]
    root: Option<std::path::PathBuf>,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

pub(super) fn gc_command(input: &GcInput) -> Result<u8> {
    let engine = input.engine.as_deref().map(Engine::parse).transpose().map_err(refused)?;
    let hosts: Vec<UpstreamHost> = input
        .hosts
        .iter()
        .map(|host| UpstreamHost::parse(host))
        .collect::<Result<_, _>>()
        .map_err(refused)?;
    // What only root can read, before this is the registries' user.
    let environments =
        instance::environments(input.root.as_deref(), |host| input.all || hosts.contains(host))?;
    let root = match input.root.as_deref() {
        None if instance::needs_root(engine.as_ref())? => {
            log::init();
            let root = Root::open(Path::new("/"))?;
            instance::act_as_registry_user(&root)?;
            root
        }
        elsewhere => open(elsewhere)?,
    };
    let caches = caches(&root)?;
    for host in &hosts {
        cached(&caches, host.as_str())?;
    }
    let is_meant = |host: &str| input.all || hosts.iter().any(|one| one.as_str() == host);
    let mut wanted = Wanted {
        may_change: &is_meant,
        dry_run: input.dry_run,
        free: 0,
        early: 0,
        patience: PATIENCE,
        step: &mut |_| {},
    };
    let mut failed = false;
    // In an object store there is nothing to evict from.
    let kept = if caches.in_folders() { Some(budget::keep(&root, &caches, &mut wanted)?) } else { None };
    match kept {
        None if input.dry_run => {
            return Err(refused("gc: the data is in an object store: its own rules bound it").into());
        }
        None => {}
        Some(Kept::Busy) => {
            // The engine's collector has nothing to do with that one.
            tell_warning("evict: something else has been changing a store for five minutes");
            failed = true;
        }
        Some(Kept::Done(report)) => {
            failed |= report.upstreams.iter().any(|one| is_meant(&one.host) && one.failed.is_some());
            match input.output {
                // The journal gets what went, below.
                Output::Text if log::stderr_is_journal() => {}
                Output::Text => {
                    print(&text(&report, input.dry_run, &is_meant))?;
                }
                Output::Json => {
                    let mut shown = json!({ "version": 1, "dry_run": input.dry_run });
                    if let (Some(all), Ok(serde_json::Value::Object(report))) =
                        (shown.as_object_mut(), serde_json::to_value(&report))
                    {
                        all.extend(report);
                    }
                    print_json(&shown)?;
                }
            }
            if !input.dry_run {
                budget::tell(&report);
            }
        }
    }
    if !input.dry_run && input.root.is_none() {
        for cache in caches.upstreams.iter().filter(|cache| is_meant(&cache.host)) {
            let host = UpstreamHost::parse(&cache.host).map_err(refused)?;
            if let Err(error) = instance::gc(&root, &host, engine.as_ref(), environments.get(&host)) {
                failed = true;
                tell_error(&error);
            }
        }
    }
    Ok(if failed { code::FAILED } else { code::CONVERGED })
}

fn text(report: &Report, dry_run: bool, is_meant: &dyn Fn(&str) -> bool) -> String {
    let mut text = String::new();
    for one in report.upstreams.iter().filter(|one| is_meant(&one.host)) {
        text += &store(one, report.at, dry_run);
    }
    let budget = report.max_size.map_or(String::new(), |size| format!(" of {}", bytes(size)));
    text += &format!("all: {}{budget}\n", bytes(report.bytes));
    text
}

fn store(one: &StoreReport, now: u64, dry_run: bool) -> String {
    let StoreReport { host, .. } = one;
    let mut text = format!("{host}: {} in {} images", bytes(one.bytes), one.images);
    if let Some(share) = one.share {
        text += &format!(", share {}", bytes(share));
    }
    if let Some(size) = one.max_size {
        text += &format!(", at most {}", bytes(size));
    }
    if let Some(oldest) = one.oldest_use {
        text += &format!(", the oldest used {} ago", age(now, oldest));
    }
    text.push('\n');
    let verb = if dry_run { "would evict" } else { "evicted" };
    for gone in &one.evicted {
        text +=
            &format!("  {verb} {} ({}, used {} ago)\n", gone.name, bytes(gone.bytes), age(now, gone.used));
    }
    if one.loose_bytes > 0 {
        let verb = if dry_run { "would delete" } else { "deleted" };
        text += &format!("  {verb} {} that no image needs\n", bytes(one.loose_bytes));
    }
    for broken in &one.broken {
        text += &format!("  not understood: {broken}\n");
    }
    if let Some(failed) = &one.failed {
        text += &format!("  failed: {failed}\n");
    }
    text
}

/// The largest unit alone: a plan for the night needs no seconds.
fn age(now: u64, then: u64) -> String {
    let seconds = now.saturating_sub(then);
    let (count, unit) = match seconds {
        0..60 => (seconds, "s"),
        60..3600 => (seconds / 60, "min"),
        3600..86400 => (seconds / 3600, "h"),
        _ => (seconds / 86400, "d"),
    };
    format!("{count} {unit}")
}
