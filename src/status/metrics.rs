//! The status as OpenMetrics text, for node_exporter's textfile collector.
//!
//! That collector reads Prometheus' older text format. Gauges and counters without timestamps are the same in both, so
//! there is nothing else here.

use std::fmt::Write;

use crate::drift::What;

use super::{Endpoint, Health, Place, Registry, Status, Time, Upstream};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gauge,
    /// Its sample ends in `_total`.
    Counter,
}

use Kind::{Counter, Gauge};

/// Name, kind, unit and help of each family, in the order in which they are written. A name ends in its unit.
const FAMILIES: &[(&str, Kind, &str, &str)] = &[
    ("larder_status_timestamp_seconds", Gauge, "seconds", "When this was written."),
    ("larder_version", Gauge, "", "Always 1; the version is a label."),
    ("larder_well", Gauge, "", "Whether nothing is out or down."),
    ("larder_budget_bytes", Gauge, "bytes", "What all stores together may take."),
    ("larder_file_system_bytes", Gauge, "bytes", "The size of the file system that stores are on."),
    ("larder_file_system_free_bytes", Gauge, "bytes", "What is left of it for others than root."),
    (
        "larder_certificate_expiry_timestamp_seconds",
        Gauge,
        "seconds",
        "Until when the registries' certificate is good.",
    ),
    ("larder_unit_up", Gauge, "", "Whether a unit that stands beside the registries is well."),
    ("larder_registry_up", Gauge, "", "Whether a registry answers."),
    ("larder_registry_offline", Gauge, "", "Whether it serves only what it has, for its upstream was away."),
    ("larder_registry_start_timestamp_seconds", Gauge, "seconds", "Since when it runs."),
    ("larder_registry_memory_bytes", Gauge, "bytes", "What its processes take."),
    (
        "larder_registry_automatic_restarts",
        Gauge,
        "",
        "How often systemd restarted it since somebody started it.",
    ),
    ("larder_store_bytes", Gauge, "bytes", "What its data takes, as of the last scan."),
    ("larder_store_budget_bytes", Gauge, "bytes", "What its data may take."),
    ("larder_store_images", Gauge, "", "Images that are on the disk."),
    ("larder_store_blobs", Gauge, "", "Blobs that are on the disk."),
    ("larder_store_scan_timestamp_seconds", Gauge, "seconds", "When its data was last counted."),
    (
        "larder_store_oldest_use_timestamp_seconds",
        Gauge,
        "seconds",
        "When what was used longest ago was used.",
    ),
    ("larder_hits", Counter, "", "Blobs and manifests that were asked for and there."),
    ("larder_misses", Counter, "", "Blobs and manifests that had to be fetched first."),
    ("larder_hit_bytes", Counter, "bytes", "Bytes that were sent from the disk."),
    ("larder_miss_bytes", Counter, "bytes", "Bytes that were sent while they were fetched."),
    ("larder_last_pull_timestamp_seconds", Gauge, "seconds", "When something was last asked for and served."),
    ("larder_evicted_images", Counter, "", "Images that had to go for the budget."),
    ("larder_evicted_bytes", Counter, "bytes", "What they took."),
    ("larder_scrub_timestamp_seconds", Gauge, "seconds", "When the last whole pass over the data ended."),
    ("larder_scrub_broken", Gauge, "", "What that pass found broken."),
    ("larder_scrub_removed", Gauge, "", "What it removed, to be fetched again."),
    ("larder_job_last_timestamp_seconds", Gauge, "seconds", "When a timer last elapsed."),
    ("larder_job_next_timestamp_seconds", Gauge, "seconds", "When it elapses next."),
    ("larder_job_armed", Gauge, "", "Whether a timer will elapse again."),
    ("larder_job_success", Gauge, "", "Whether what it started last ended well."),
    ("larder_watch_up", Gauge, "", "Whether somebody watches over the caches that containerd asks."),
    ("larder_endpoint_up", Gauge, "", "Whether an endpoint that containerd asks answers."),
    ("larder_endpoint_in_use", Gauge, "", "Whether containerd is told to ask it."),
    ("larder_drift_files", Gauge, "", "Files of larder's that somebody changed, by what was done to them."),
    ("larder_files_left_alone", Gauge, "", "Files that the operator keeps as they are."),
    ("larder_verification_timestamp_seconds", Gauge, "seconds", "When larder last proved this node."),
    ("larder_verification_checks", Gauge, "", "What it saw, by how it was."),
];

/// The names of all samples that there can be.
#[must_use]
pub fn names() -> Vec<String> {
    FAMILIES.iter().map(|(name, kind, ..)| sample_name(name, *kind)).collect()
}

fn sample_name(name: &str, kind: Kind) -> String {
    match kind {
        Gauge => name.to_owned(),
        Counter => format!("{name}_total"),
    }
}

/// One number with its labels.
struct Sample {
    labels: String,
    value: u64,
}

/// The samples of each family, in the order of [`FAMILIES`].
struct Text(Vec<Vec<Sample>>);

impl Text {
    fn put(&mut self, family: &str, labels: &[(&str, &str)], value: impl Into<u64>) {
        let index = FAMILIES.iter().position(|(name, ..)| *name == family);
        debug_assert!(index.is_some(), "{family} is no family");
        if let Some(samples) = index.and_then(|index| self.0.get_mut(index)) {
            samples.push(Sample { labels: spell(labels), value: value.into() });
        }
    }

    fn time(&mut self, family: &str, labels: &[(&str, &str)], at: Option<Time>) {
        if let Some(Time(at)) = at {
            self.put(family, labels, at);
        }
    }

    fn maybe(&mut self, family: &str, labels: &[(&str, &str)], value: Option<u64>) {
        if let Some(value) = value {
            self.put(family, labels, value);
        }
    }
}

/// `{upstream="ghcr.io"}`, with the three characters escaped that have to be.
fn spell(labels: &[(&str, &str)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let pairs: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
    format!("{{{}}}", pairs.join(","))
}

/// The whole text, `# EOF` and all.
#[must_use]
pub fn text(status: &Status) -> String {
    let mut text = Text(FAMILIES.iter().map(|_| Vec::new()).collect());
    text.time("larder_status_timestamp_seconds", &[], Some(status.at));
    text.put("larder_version", &[("version", env!("CARGO_PKG_VERSION"))], 1_u8);
    text.put("larder_well", &[], status.well);
    if let Some(cache) = &status.cache {
        text.maybe("larder_budget_bytes", &[], cache.budget);
        for one in &cache.file_systems {
            let labels = [("path", one.path.as_str())];
            text.put("larder_file_system_bytes", &labels, one.bytes);
            text.put("larder_file_system_free_bytes", &labels, one.free);
        }
        if let Some(certificate) = &cache.certificate {
            let labels = [("path", certificate.path.as_str())];
            text.time("larder_certificate_expiry_timestamp_seconds", &labels, certificate.not_after);
        }
        for unit in &cache.units {
            text.put("larder_unit_up", &[("unit", &unit.unit)], unit.well);
        }
    }
    for upstream in &status.upstreams {
        of_upstream(&mut text, upstream);
    }
    if let Some(unit) = &status.watch {
        text.put("larder_watch_up", &[], unit.well);
    }
    if let Some(drift) = &status.drift {
        for what in What::WORDS {
            let count = drift.iter().filter(|one| one.what.word() == what).count();
            text.put("larder_drift_files", &[("what", what)], u64::try_from(count).unwrap_or(u64::MAX));
        }
        let left_alone = u64::try_from(status.left_alone.len()).unwrap_or(u64::MAX);
        text.put("larder_files_left_alone", &[], left_alone);
    }
    if let Some(seen) = &status.verification {
        let at = humantime::parse_rfc3339_weak(&seen.at).ok().map(Time::of);
        text.time("larder_verification_timestamp_seconds", &[], at);
        let counts =
            [("ok", seen.ok), ("skipped", seen.skipped), ("warned", seen.warned), ("down", seen.down)];
        for (result, count) in counts {
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            text.put("larder_verification_checks", &[("result", result)], count);
        }
    }
    write(&text)
}

fn of_upstream(text: &mut Text, upstream: &Upstream) {
    let host = ("upstream", upstream.host.as_str());
    let labels = [host];
    if let Some(registry) = &upstream.registry {
        of_registry(text, &labels, registry);
    }
    if let Some(store) = &upstream.store {
        text.put("larder_store_bytes", &labels, store.bytes);
        text.maybe("larder_store_budget_bytes", &labels, store.budget);
        text.put("larder_store_images", &labels, store.images);
        text.put("larder_store_blobs", &labels, store.blobs);
        text.time("larder_store_scan_timestamp_seconds", &labels, store.scanned);
        text.time("larder_store_oldest_use_timestamp_seconds", &labels, store.oldest_use);
    }
    if let Some(pulls) = &upstream.pulls {
        text.put("larder_hits", &labels, pulls.hits);
        text.put("larder_misses", &labels, pulls.misses);
        text.put("larder_hit_bytes", &labels, pulls.hit_bytes);
        text.put("larder_miss_bytes", &labels, pulls.miss_bytes);
        text.time("larder_last_pull_timestamp_seconds", &labels, pulls.last);
    }
    if let Some(evicted) = &upstream.evicted {
        text.put("larder_evicted_images", &labels, evicted.images);
        text.put("larder_evicted_bytes", &labels, evicted.bytes);
    }
    if let Some(scrub) = &upstream.scrub {
        text.time("larder_scrub_timestamp_seconds", &labels, Some(scrub.ended));
        text.put("larder_scrub_broken", &labels, scrub.broken);
        text.put("larder_scrub_removed", &labels, scrub.removed);
    }
    for (name, job) in &upstream.jobs {
        let labels = [host, ("task", name.as_str())];
        text.time("larder_job_last_timestamp_seconds", &labels, job.last);
        text.time("larder_job_next_timestamp_seconds", &labels, job.next);
        text.put("larder_job_armed", &labels, job.unit.well);
        text.put("larder_job_success", &labels, job.succeeded);
    }
    let mut seen = std::collections::BTreeSet::new();
    for Endpoint { url, place } in upstream.endpoints.iter().filter(|one| seen.insert(one.url.clone())) {
        let labels = [host, ("endpoint", url.as_str())];
        text.put("larder_endpoint_up", &labels, matches!(place, Place::In { .. }));
        text.put("larder_endpoint_in_use", &labels, !matches!(place, Place::Out { .. }));
    }
}

fn of_registry(text: &mut Text, labels: &[(&str, &str)], registry: &Registry) {
    text.put("larder_registry_up", labels, registry.health.is_well());
    text.put("larder_registry_offline", labels, registry.health == Health::Offline);
    text.time("larder_registry_start_timestamp_seconds", labels, registry.since);
    text.maybe("larder_registry_memory_bytes", labels, registry.memory);
    text.put("larder_registry_automatic_restarts", labels, registry.restarts);
}

fn write(text: &Text) -> String {
    let mut out = String::new();
    for ((name, kind, unit, help), samples) in FAMILIES.iter().zip(&text.0) {
        if samples.is_empty() {
            continue;
        }
        let word = if *kind == Gauge { "gauge" } else { "counter" };
        // Writing to a String does not fail.
        let _ = writeln!(out, "# TYPE {name} {word}");
        if !unit.is_empty() {
            let _ = writeln!(out, "# UNIT {name} {unit}");
        }
        let _ = writeln!(out, "# HELP {name} {help}");
        for Sample { labels, value } in samples {
            let _ = writeln!(out, "{}{labels} {value}", sample_name(name, *kind));
        }
    }
    out.push_str("# EOF\n");
    out
}

#[cfg(test)]
mod tests;
