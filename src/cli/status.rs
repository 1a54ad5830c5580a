//! `larder status`: what runs here, as the machine itself says it; the profile is not asked.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use serde::Serialize;

use super::run::STATUS;
use super::{Output, code, print, print_json};
use crate::host::state::{UnitState, unit_states};
use crate::plan::UNIT_FOLDER;
use crate::root::Root;
use crate::watch::{self, Watched, step::Memory};

const LIMIT: Duration = Duration::from_secs(10);

/// Version 1 of `larder status --output json`; a field that goes or changes its meaning raises `version`.
#[derive(Debug, Serialize)]
struct Status {
    version: u32,
    /// Nothing is out or down.
    well: bool,
    /// The timer that watches over the caches, where this node pulls through some.
    watch: Option<Unit>,
    upstreams: Vec<Upstream>,
    /// The last verification: the report's own words, without its rows.
    verification: Option<Verification>,
}

/// One upstream, by its registry host. Size and hit rate have their place here, beside `registry`.
#[derive(Debug, Default, Serialize)]
struct Upstream {
    host: String,
    /// Where this node caches it.
    registry: Option<Unit>,
    gc: Option<Unit>,
    restart: Option<Unit>,
    /// Where this node's containerd asks for it, in order; empty where it does not pull through caches.
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Serialize)]
struct Unit {
    unit: String,
    /// systemd's own words.
    state: String,
    well: bool,
    /// Of a timer.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

#[derive(Debug, Serialize)]
struct Endpoint {
    url: String,
    #[serde(flatten)]
    place: Place,
}

#[derive(Debug, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
enum Place {
    /// `since` is given where it was out before.
    In {
        #[serde(skip_serializing_if = "Option::is_none")]
        since: Option<String>,
    },
    Out {
        since: String,
        why: String,
        /// It answers again, and will be back.
        answering: bool,
    },
    /// It does not answer, and stays in because it is the last one.
    Kept { since: String, why: String },
}

#[derive(Debug, Serialize, serde::Deserialize)]
struct Verification {
    at: String,
    ok: usize,
    skipped: usize,
    warned: usize,
    down: usize,
}

pub(super) fn status_command(output: Output) -> Result<u8> {
    let status = read(&Root::open(Path::new("/"))?)?;
    match output {
        Output::Text => print(&status.to_string())?,
        Output::Json => print_json(&serde_json::to_value(&status)?)?,
    };
    Ok(if status.well { code::CONVERGED } else { code::DOWN })
}

/// The units that are enabled below a target, by kind and instance.
fn enabled(root: &Root) -> Result<Vec<String>> {
    let mut units = Vec::new();
    for target in ["multi-user.target", "timers.target"] {
        units.extend(root.list(&format!("{UNIT_FOLDER}/{target}.wants"))?);
    }
    units.retain(|unit| unit.starts_with("larder-"));
    Ok(units)
}

fn read(root: &Root) -> Result<Status> {
    let names = enabled(root)?;
    let states = unit_states(&names, Instant::now() + LIMIT)?;
    let watched = Watched::read(root)?;
    let memory = watch::memory(root)?;
    let mut upstreams: BTreeMap<String, Upstream> = BTreeMap::new();
    let mut watch = None;
    for state in &states {
        let Some((kind, instance)) = state.name.split_once('@') else {
            if state.name == "larder-watch.timer" {
                watch = Some(Unit::timer(state));
            }
            continue;
        };
        let Some((host, _)) = instance.rsplit_once('.') else { continue };
        let upstream = upstreams.entry(host.to_owned()).or_default();
        match kind {
            "larder-registry" => upstream.registry = Some(Unit::service(state)),
            "larder-gc" => upstream.gc = Some(Unit::timer(state)),
            "larder-restart" => upstream.restart = Some(Unit::timer(state)),
            _ => {}
        }
    }
    for file in watched.iter().flat_map(|watched| &watched.files) {
        let upstream = upstreams.entry(file.host.clone()).or_default();
        upstream.endpoints = file.hosts.hosts.iter().map(|one| endpoint(&one.url, &memory)).collect();
    }
    let upstreams: Vec<Upstream> =
        upstreams.into_iter().map(|(host, upstream)| Upstream { host, ..upstream }).collect();
    let verified = root.read(STATUS)?;
    let verification: Option<Verification> = verified.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let well = upstreams.iter().all(Upstream::is_well) && watch.as_ref().is_none_or(|unit| unit.well);
    Ok(Status { version: 1, well, watch, upstreams, verification })
}

fn endpoint(url: &str, memory: &Memory) -> Endpoint {
    let health = memory.endpoints.get(url);
    let since = |at: u64| {
        humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(at)).to_string()
    };
    let place = match health {
        None => Place::In { since: None },
        Some(health) => match &health.why {
            why if health.out => Place::Out {
                since: since(health.at),
                why: why.clone().unwrap_or_default(),
                answering: health.answering.is_some(),
            },
            Some(why) => Place::Kept { since: since(health.at), why: why.clone() },
            None => Place::In { since: Some(since(health.at)) },
        },
    };
    Endpoint { url: url.to_owned(), place }
}

impl Unit {
    fn service(state: &UnitState) -> Self {
        Self { unit: state.name.clone(), state: state.to_string(), well: state.is_active(), next: None }
    }

    fn timer(state: &UnitState) -> Self {
        let well = state.is_armed() || (state.is_active() && state.sub == "running");
        Self { unit: state.name.clone(), state: state.to_string(), well, next: state.next_elapse.clone() }
    }
}

impl Upstream {
    fn is_well(&self) -> bool {
        let units = self.registry.iter().chain(&self.gc).chain(&self.restart);
        let mut endpoints = self.endpoints.iter();
        units.into_iter().all(|unit| unit.well)
            && endpoints.all(|endpoint| matches!(endpoint.place, Place::In { .. }))
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.upstreams.is_empty() {
            return writeln!(f, "nothing of larder's runs here: see `larder apply`");
        }
        for upstream in &self.upstreams {
            writeln!(f, "{}", upstream.host)?;
            for (what, unit) in
                [("registry", &upstream.registry), ("gc", &upstream.gc), ("restart", &upstream.restart)]
            {
                match unit {
                    Some(Unit { well: true, next: Some(next), .. }) => {
                        writeln!(f, "  {what:<9} next {next}")?
                    }
                    Some(unit) => {
                        writeln!(f, "  {what:<9} {}{}", if unit.well { "" } else { "DOWN  " }, unit.state)?
                    }
                    None => {}
                }
            }
            for endpoint in &upstream.endpoints {
                writeln!(f, "  endpoint  {endpoint}")?;
            }
        }
        if let Some(unit) = self.watch.as_ref().filter(|unit| !unit.well) {
            writeln!(f, "DOWN  {}: {}: dead caches stay in use", unit.unit, unit.state)?;
        }
        if let Some(Verification { at, ok, skipped, warned, down }) = &self.verification {
            writeln!(f, "last verification {at}: {ok} ok, {skipped} skipped, {warned} warned, {down} down")?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let url = &self.url;
        match &self.place {
            Place::In { since: None } => write!(f, "{url} in"),
            Place::In { since: Some(since) } => write!(f, "{url} in again since {since}"),
            Place::Out { since, why, answering } => {
                write!(f, "{url} OUT since {since} ({why})")?;
                if *answering { f.write_str(", answers again") } else { Ok(()) }
            }
            Place::Kept { since, why } => {
                write!(f, "{url} DOWN since {since} ({why}), stays in as the last one")
            }
        }
    }
}
