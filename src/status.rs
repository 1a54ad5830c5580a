//! What runs here, as the machine itself says it: units, stores, endpoints and the last verification. The profile is
//! not asked. `larder status` prints it; [`metrics`] tells it to Prometheus.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;

use crate::drift::Drift;
use serde::{Deserialize, Serialize};

mod gather;
pub mod metrics;
mod size;

pub use gather::{VERIFIED, read};
pub use size::Evicted;

/// Version 2 of `larder status --output json`; a field that goes or changes its meaning raises `version`. Times are
/// RFC 3339 in UTC, sizes bytes, shares and rates parts of one. What is not known is left out.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    pub version: u32,
    pub at: Time,
    /// Nothing is out or down.
    pub well: bool,
    /// Each thing that is not, in a line.
    pub unwell: Vec<String>,
    /// Where this node runs registries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// The timer that watches over the caches, where this node pulls through some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watch: Option<Unit>,
    pub upstreams: Vec<Upstream>,
    /// What somebody changed of larder's files; absent where that cannot be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<Vec<Drift>>,
    /// Why it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift_unknown: Option<String>,
    /// What of larder's files the operator keeps as it is.
    pub left_alone: Vec<String>,
    /// The last verification: the report's own words, without its rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
}

/// What the registries have in common.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Cache {
    /// All stores together, as of each one's last scan.
    pub bytes: u64,
    /// What they may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<u64>,
    /// Of the budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Those that the stores are on.
    pub file_systems: Vec<FileSystem>,
    /// Present: https.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateState>,
    /// What stands beside the registries: the table of networks, the timers for all.
    pub units: Vec<Unit>,
}

#[derive(Debug, Clone, Serialize)]
pub struct FileSystem {
    /// The folder of the stores.
    pub path: String,
    pub bytes: u64,
    pub free: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct CertificateState {
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Time>,
    /// Why it is not good, or not for long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// One upstream, by its registry host.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Upstream {
    pub host: String,
    /// Where this node caches it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry: Option<Registry>,
    /// By what they do: `gc`, `restart`, `scrub`…
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub jobs: BTreeMap<String, Job>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<Store>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulls: Option<Pulls>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evicted: Option<Evicted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scrub: Option<Scrub>,
    /// Where this node's containerd asks for it, in order; empty where it does not pull through caches.
    pub endpoints: Vec<Endpoint>,
}

/// How well a registry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It answers.
    Up,
    /// It answers with what it has: its upstream was away when it started.
    Offline,
    /// It has not answered yet.
    Starting,
    /// It runs, and does not answer.
    Silent,
    Down,
}

impl Health {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Offline => "offline",
            Self::Starting => "starting",
            Self::Silent => "SILENT",
            Self::Down => "DOWN",
        }
    }

    #[must_use]
    pub fn is_well(self) -> bool {
        matches!(self, Self::Up | Self::Offline)
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Registry {
    #[serde(flatten)]
    pub unit: Unit,
    pub health: Health,
    /// Why it is not well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// `address:port` on this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// Since when it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Automatic restarts since somebody last started it.
    pub restarts: u64,
    /// Bytes, of all its processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
}

impl Registry {
    /// It answers, and not as it should.
    fn is_odd(&self) -> bool {
        self.health == Health::Up && self.why.is_some()
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Unit {
    pub unit: String,
    /// systemd's own words.
    pub state: String,
    pub well: bool,
}

/// What a timer starts.
#[derive(Debug, Clone, Serialize)]
pub struct Job {
    #[serde(flatten)]
    pub unit: Unit,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Time>,
    /// Whether the last run ended well; systemd forgets it at a boot.
    pub succeeded: bool,
}

/// What is on the disk, as of the last scan.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Store {
    pub bytes: u64,
    pub blobs: u64,
    pub images: u64,
    /// What it may take: its own bound, or the whole of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// When what is used least was last used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_use: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scanned: Option<Time>,
}

/// What was asked for, since it is counted.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Pulls {
    /// Blobs and manifests that were there.
    pub hits: u64,
    pub misses: u64,
    pub hit_bytes: u64,
    pub miss_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hit_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}

/// The last whole pass over the store.
#[derive(Debug, Clone, Serialize)]
pub struct Scrub {
    pub ended: Time,
    pub blobs: u64,
    pub bytes: u64,
    pub broken: u64,
    pub removed: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Endpoint {
    pub url: String,
    #[serde(flatten)]
    pub place: Place,
}

#[derive(Debug, Clone, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Place {
    /// `since` is given where it was out before.
    In {
        #[serde(skip_serializing_if = "Option::is_none")]
        since: Option<Time>,
    },
    Out {
        since: Time,
        why: String,
        /// It answers again, and will be back.
        answering: bool,
    },
    /// It does not answer, and stays in because it is the last one.
    Kept { since: Time, why: String },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verification {
    pub at: String,
    pub ok: usize,
    pub skipped: usize,
    pub warned: usize,
    pub down: usize,
}

/// Seconds since 1970; RFC 3339 where it is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

impl Time {
    #[must_use]
    pub fn now() -> Self {
        Self::of(SystemTime::now())
    }

    #[must_use]
    pub fn of(time: SystemTime) -> Self {
        Self(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs())
    }
}

/// The year 9999, beyond which RFC 3339 has no words.
const LAST: u64 = 253_402_300_799;

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(self.0.min(LAST));
        humantime::format_rfc3339_seconds(at).fmt(f)
    }
}

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A part of one; nothing of nothing.
fn share(part: u64, whole: u64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "two figures of it are shown")]
    (whole > 0).then(|| part as f64 / whole as f64)
}

impl Upstream {
    /// What is not well of it, in lines.
    fn unwell(&self) -> Vec<String> {
        let host = &self.host;
        let mut lines = Vec::new();
        let unwell = |registry: &&Registry| !registry.health.is_well() || registry.is_odd();
        if let Some(registry) = self.registry.as_ref().filter(unwell) {
            let why = registry.why.as_deref().unwrap_or(&registry.unit.state);
            lines.push(format!(
                "{host}: {} {}: {why}",
                registry.unit.unit,
                registry.health.as_str().to_lowercase()
            ));
        }
        for job in self.jobs.values() {
            if !job.unit.well {
                lines.push(format!("{host}: {}: {}", job.unit.unit, job.unit.state));
            } else if !job.succeeded {
                let unit = job.unit.unit.replace(".timer", ".service");
                lines.push(format!("{host}: {unit} failed: see `journalctl -u {unit}`"));
            }
        }
        for endpoint in &self.endpoints {
            match &endpoint.place {
                Place::In { .. } => {}
                Place::Out { since, why, answering } => {
                    let again = if *answering { ", answers again" } else { "" };
                    lines.push(format!("{host}: {} is OUT since {since} ({why}){again}", endpoint.url));
                }
                Place::Kept { since, why } => lines.push(format!(
                    "{host}: {} is DOWN since {since} ({why}), stays in as the last one",
                    endpoint.url
                )),
            }
        }
        lines
    }
}

/// How long a call of systemctl may take.
const LIMIT: Duration = Duration::from_secs(10);

fn deadline() -> Instant {
    Instant::now() + LIMIT
}

/// Names of units, each once.
type Names = BTreeSet<String>;
