//! `larder scrub`: are the stores of this node still what their names say?

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::{Output, code, print, print_json, refused, tell_error};
use crate::caches::{CacheOf, Caches};
use crate::instance;
use crate::log::{self, TOLD};
use crate::node::{Size, Text};
use crate::root::Root;
use crate::store::scrub::{Options, Report, scrub};

#[derive(Debug, clap::Args)]
pub(super) struct ScrubInput {
    /// The upstreams, as the profile names them [default: all]
    #[arg(value_name = "HOST")]
    hosts: Vec<String>,
    /// Read no more than this a second; `none` is as fast as it goes
    #[arg(long, default_value = "20MiB")]
    rate: String,
    /// Only say what is broken
    #[arg(long)]
    dry_run: bool,
    /// Begin again, also where the last pass was ended before it was through
    #[arg(long)]
    from_start: bool,
    /// Another machine's files
    #[arg(long, hide = true, value_name = "DIR")]
    root: Option<std::path::PathBuf>,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// One registry's part of the JSON report.
#[derive(Serialize)]
struct Row<'r> {
    host: &'r str,
    #[serde(flatten)]
    report: &'r Report,
}

pub(super) fn scrub_command(input: &ScrubInput) -> Result<u8> {
    let rate = match input.rate.as_str() {
        "none" => None,
        text => Some(rate(text).map_err(refused)?),
    };
    let root = open(input.root.as_deref())?;
    let caches = caches(&root)?;
    let wanted: Vec<&CacheOf> = match input.hosts.as_slice() {
        [] => caches.upstreams.iter().collect(),
        hosts => hosts.iter().map(|host| cached(&caches, host)).collect::<Result<_>>()?,
    };
    let options =
        Options { rate, dry_run: input.dry_run, from_start: input.from_start, ..Options::default() };
    let mut reports = Vec::new();
    let mut failed = false;
    for cache in wanted {
        match cache.layout().and_then(|layout| scrub(&root, &layout, &options)) {
            Ok(report) => reports.push((cache.host.as_str(), report)),
            Err(error) => {
                failed = true;
                tell_error(&error.context(cache.host.clone()));
            }
        }
    }
    for (host, report) in &reports {
        tell(host, report);
    }
    match input.output {
        // The journal has it already.
        Output::Text if log::stderr_is_journal() => code::CONVERGED,
        Output::Text => print(&reports.iter().map(|(host, report)| text(host, report)).collect::<String>())?,
        Output::Json => {
            let rows: Vec<Row> = reports.iter().map(|(host, report)| Row { host, report }).collect();
            print_json(&serde_json::json!({ "version": 1, "dry_run": input.dry_run, "stores": rows }))?
        }
    };
    let left = reports.iter().any(|(_, report)| report.left() > 0);
    Ok(match (failed, left, input.dry_run) {
        (true, ..) | (_, true, false) => code::FAILED,
        (_, true, true) => code::SOMETHING_TO_DO,
        _ => code::CONVERGED,
    })
}

/// The machine's own files are looked after as the registries' user.
pub(super) fn open(root: Option<&Path>) -> Result<Root> {
    let opened = Root::open(root.unwrap_or(Path::new("/")))?;
    if root.is_none() {
        log::init();
        instance::become_registry_user(&opened)?;
    }
    Ok(opened)
}

pub(super) fn caches(root: &Root) -> Result<Caches> {
    Caches::read(root)?.ok_or_else(|| {
        refused("this node caches nothing: run `larder apply` with a profile that has `cache:`").into()
    })
}

pub(super) fn cached<'c>(caches: &'c Caches, host: &str) -> Result<&'c CacheOf> {
    caches.of(host).ok_or_else(|| {
        let known: Vec<&str> = caches.upstreams.iter().map(|cache| cache.host.as_str()).collect();
        refused(format!("{host} is not cached here: this node has {}", known.join(", "))).into()
    })
}

fn rate(text: &str) -> Result<u64, String> {
    Size::parse(text).map(Size::get).map_err(|reason| format!("--rate: {reason}, or `none`"))
}

fn text(host: &str, report: &Report) -> String {
    let mut text = String::new();
    for broken in &report.broken {
        text.push_str(&format!("{host}: {broken}\n"));
    }
    text.push_str(&format!("{host}: {}\n", summary(report)));
    text
}

fn summary(report: &Report) -> String {
    let removed = report.broken.len() - report.left();
    let end = match (report.complete, report.resumed) {
        (false, _) => "; out of time: the next scrub goes on from here",
        (true, true) => "; the rest of a pass that was ended before",
        (true, false) => "",
    };
    format!(
        "{} blobs and {} links looked at, {} MiB read; {} broken, {removed} removed{end}",
        report.blobs,
        report.links,
        report.bytes >> 20,
        report.broken.len()
    )
}

/// `LARDER_SUBJECT` and the numbers in the journal.
fn tell(subject: &str, report: &Report) {
    if !log::stderr_is_journal() {
        return;
    }
    for broken in &report.broken {
        tracing::warn!(target: TOLD, subject, "{broken}");
    }
    tracing::info!(target: TOLD, subject, broken = report.broken.len(), "{}", summary(report));
}
