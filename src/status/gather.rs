//! Puts the status together.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::Result;

use super::{
    Cache, CertificateState, Endpoint, FileSystem, Health, Job, LIMIT, Names, Place, Pulls, Registry, Scrub,
    Status, Store, Time, Unit, Upstream, Verification, deadline, share,
};
use crate::caches::{CacheOf, Caches};
use crate::certificate::{self, SOON};
use crate::drift::{self, Drift};
use crate::host::state::{self, Properties};
use crate::journal::Manifest;
use crate::plan::UNIT_FOLDER;
use crate::root::Root;
use crate::store::{scrub, size::SizeFile, usage::Usage};
use crate::verify::pinned;
use crate::watch::{self, Watched, ask, step::Memory};

/// The last verification, as `apply` and `verify` leave it.
pub const VERIFIED: &str = "run/larder/status.json";
/// A registry's own answer is a constant: one that takes longer does not answer.
const ANSWER: Duration = Duration::from_secs(2);
/// At once.
const ASKED: usize = 16;

/// # Errors
/// When files that are there cannot be read, or systemd cannot be asked.
pub fn read(root: &Root) -> Result<Status> {
    let caches = Caches::read(root)?;
    let units = units(root)?;
    let certificate = caches.as_ref().and_then(|caches| caches.tls.as_ref());
    let certificate = certificate.map(|tls| (tls.certificate.clone(), certificate::read(&tls.certificate)));
    let answers = answers(caches.as_ref(), certificate.as_ref().map(|(_, read)| read));

    let mut upstreams: BTreeMap<String, Upstream> = BTreeMap::new();
    for (name, properties) in &units {
        let Some((kind, host, timer)) = instance(name) else { continue };
        match (kind, timer) {
            ("registry", false) => {
                let cache = caches.as_ref().and_then(|caches| caches.of(host));
                let registry = registry(name, properties, cache, answers.get(host));
                upstreams.entry(host.to_owned()).or_default().registry = Some(registry);
            }
            (_, true) => {
                let service = units.get(&name.replace(".timer", ".service"));
                let job = job(name, properties, service);
                upstreams.entry(host.to_owned()).or_default().jobs.insert(kind.to_owned(), job);
            }
            _ => {}
        }
    }
    let mut bytes = 0_u64;
    for cache in caches.iter().flat_map(|caches| &caches.upstreams) {
        let whole = caches.as_ref().and_then(|caches| caches.max_size);
        let upstream = upstreams.entry(cache.host.clone()).or_default();
        fill(root, cache, whole, upstream);
        bytes += upstream.store.as_ref().map_or(0, |store| store.bytes);
    }
    let memory = watch::memory(root)?;
    for file in Watched::read(root)?.iter().flat_map(|watched| &watched.files) {
        let upstream = upstreams.entry(file.host.clone()).or_default();
        upstream.endpoints = file.hosts.hosts.iter().map(|one| endpoint(&one.url, &memory)).collect();
    }
    let upstreams: Vec<Upstream> =
        upstreams.into_iter().map(|(host, upstream)| Upstream { host, ..upstream }).collect();
    let others = |name: &&String| !name.contains('@') && !name.starts_with("larder-watch.");
    let cache = caches.map(|caches| Cache {
        bytes,
        budget: caches.max_size,
        share: caches.max_size.and_then(|budget| share(bytes, budget)),
        file_systems: file_systems(root, &caches),
        certificate: certificate.map(|(path, read)| certificate_state(path, read)),
        units: units
            .keys()
            .filter(others)
            .filter_map(|name| units.get(name).map(|properties| unit(name, properties)))
            .filter(|unit| !unit.unit.ends_with(".service") || unit.unit == "larder-access.service")
            .collect(),
    });
    let watch = units.get("larder-watch.timer").map(|properties| unit("larder-watch.timer", properties));
    let verification: Option<Verification> =
        root.read(VERIFIED)?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let mut unwell: Vec<String> = upstreams.iter().flat_map(Upstream::unwell).collect();
    if let Some(unit) = watch.as_ref().filter(|unit| !unit.well) {
        unwell.push(format!("{}: {}: dead caches stay in use", unit.unit, unit.state));
    }
    if let Some(cache) = &cache {
        unwell.extend(
            cache.units.iter().filter(|unit| !unit.well).map(|unit| format!("{}: {}", unit.unit, unit.state)),
        );
        let why = cache.certificate.as_ref().and_then(|certificate| certificate.why.as_ref());
        unwell.extend(why.cloned());
    }
    let (drift, drift_unknown, left_alone) = match drifts(root) {
        Ok((drift, left_alone)) => (Some(drift), None, left_alone),
        Err(error) => (None, Some(format!("{error:#}")), Vec::new()),
    };
    Ok(Status {
        version: 2,
        at: Time::now(),
        well: unwell.is_empty(),
        unwell,
        cache,
        watch,
        upstreams,
        drift,
        drift_unknown,
        left_alone,
        verification,
    })
}

/// The manifest is root's, and so is much of what it lists: others learn why they do not learn it.
fn drifts(root: &Root) -> Result<(Vec<Drift>, Vec<String>)> {
    let manifest = Manifest::read(root)?;
    let left_alone = drift::left_alone(&manifest).map(|path| root.show(path)).collect();
    Ok((drift::read(root, &manifest)?, left_alone))
}

/// `larder-gc@ghcr.io.timer` is `gc` of `ghcr.io`, and a timer.
fn instance(name: &str) -> Option<(&str, &str, bool)> {
    let (kind, rest) = name.strip_prefix("larder-")?.split_once('@')?;
    let (host, suffix) = rest.rsplit_once('.')?;
    (!host.is_empty()).then_some((kind, host, suffix == "timer"))
}

/// The units of ours that are enabled below a target, and what their timers start.
fn units(root: &Root) -> Result<BTreeMap<String, Properties>> {
    let mut names = Names::new();
    for target in ["multi-user.target", "timers.target", "sockets.target"] {
        names.extend(root.list(&format!("{UNIT_FOLDER}/{target}.wants"))?);
    }
    names.retain(|unit| unit.starts_with("larder-") && !unit.ends_with(".socket"));
    let services: Vec<String> = names
        .iter()
        .filter(|name| name.ends_with(".timer"))
        .map(|timer| timer.replace(".timer", ".service"))
        .collect();
    names.extend(services);
    let names: Vec<String> = names.into_iter().collect();
    let found = state::properties(&names, deadline())?;
    Ok(names.into_iter().zip(found).collect())
}

#[derive(Clone, Copy)]
enum Said {
    Alive,
    /// With a certificate that the profile does not name.
    Stranger,
}

/// The error is why there is none.
type Answer = Result<Said, String>;

/// Who answers of the registries, by host; why the others do not.
fn answers(
    caches: Option<&Caches>,
    certificate: Option<&Result<certificate::Certificate>>,
) -> BTreeMap<String, Answer> {
    let Some(caches) = caches else { return BTreeMap::new() };
    let Some(certificate) = certificate else {
        let urls: Vec<String> =
            caches.upstreams.iter().map(|cache| format!("http://{}", cache.address)).collect();
        let questions: Vec<ask::Question> =
            urls.iter().map(|url| ask::Question { url, patient: false }).collect();
        let answers = ask::ask(&questions);
        let of = |cache: &CacheOf| {
            let answer = answers.get(&format!("http://{}", cache.address)).cloned();
            answer.map(|answer| answer.map(|()| Said::Alive))
        };
        return caches.upstreams.iter().filter_map(|cache| Some((cache.host.clone(), of(cache)?))).collect();
    };
    let ask = |cache: &CacheOf| {
        let answer = match certificate {
            Ok(certificate) => pinned::shown(cache.address, ANSWER)
                .map(|shown| if certificate.is(&shown) { Said::Alive } else { Said::Stranger }),
            // What is wrong with that file is told elsewhere.
            Err(_) => pinned::shown(cache.address, ANSWER).map(|_| Said::Alive),
        };
        (cache.host.clone(), answer.map_err(|fault| fault.to_string()))
    };
    let chunk = caches.upstreams.len().div_ceil(ASKED).max(1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = caches
            .upstreams
            .chunks(chunk)
            .map(|some| scope.spawn(move || some.iter().map(ask).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).flatten().collect()
    })
}

fn registry(
    name: &str,
    properties: &Properties,
    cache: Option<&CacheOf>,
    answer: Option<&Answer>,
) -> Registry {
    let unit = unit(name, properties);
    let is_active = properties.get("ActiveState") == "active";
    let is_starting = matches!(properties.get("ActiveState"), "activating" | "reloading");
    let pid = properties.number("MainPID").filter(|pid| *pid != 0);
    let (health, why) = match answer {
        // Until its upstream answers, `larder unit run` itself is the unit's process.
        Some(Ok(Said::Stranger)) if is_active => {
            (Health::Up, Some("it shows another certificate than the profile's".to_owned()))
        }
        Some(Ok(_))
            if pid.and_then(state::program_of).is_some_and(|program| program.starts_with("larder")) =>
        {
            (Health::Offline, Some("its upstream does not answer: it serves what it has".to_owned()))
        }
        Some(Ok(_)) if is_active || is_starting => (Health::Up, None),
        Some(Ok(_)) => (Health::Down, Some(format!("{}, somebody else answers on its port", unit.state))),
        Some(Err(why)) if is_active => (Health::Silent, Some(why.clone())),
        None if is_active => (Health::Up, None),
        _ if is_starting => (Health::Starting, Some(unit.state.clone())),
        _ => (Health::Down, Some(unit.state.clone())),
    };
    Registry {
        health,
        why,
        address: cache.map(|cache| cache.address.to_string()),
        remote: cache.map(|cache| cache.remote.clone()),
        since: properties.time("ActiveEnterTimestamp").filter(|_| is_active),
        restarts: properties.number("NRestarts").unwrap_or(0),
        memory: properties.number("MemoryCurrent").filter(|bytes| *bytes != u64::MAX),
        unit,
    }
}

fn unit(name: &str, properties: &Properties) -> Unit {
    let state = properties.state();
    let is_active = properties.get("ActiveState") == "active";
    let well = if name.ends_with(".timer") {
        // It will elapse again, or what it starts runs right now.
        is_active
            && (properties.get("SubState") == "running"
                || properties.time("NextElapseUSecRealtime").is_some()
                || !matches!(properties.get("NextElapseUSecMonotonic"), "" | "0" | "infinity"))
    } else {
        is_active
    };
    Unit { unit: name.to_owned(), state, well }
}

fn job(name: &str, properties: &Properties, service: Option<&Properties>) -> Job {
    Job {
        unit: unit(name, properties),
        last: properties.time("LastTriggerUSec"),
        next: properties.time("NextElapseUSecRealtime"),
        succeeded: service.is_none_or(|service| matches!(service.get("Result"), "success" | "")),
    }
}

fn fill(root: &Root, cache: &CacheOf, whole: Option<u64>, upstream: &mut Upstream) {
    // In an object store there is nothing that this machine could look at.
    let Ok(layout) = cache.layout() else { return };
    if let Some(size) = SizeFile::read(root, &layout) {
        let budget = cache.max_size.or(whole);
        upstream.store = Some(Store {
            bytes: size.bytes,
            blobs: size.blobs as u64,
            images: size.images as u64,
            budget,
            share: budget.and_then(|budget| share(size.bytes, budget)),
            oldest_use: size.oldest_use.map(Time),
            scanned: (size.at > 0).then_some(Time(size.at)),
        });
        upstream.evicted = Some((&size.evicted).into());
    }
    let usage = Usage::read(root, &layout);
    if usage.counted_since > 0 {
        upstream.pulls = Some(Pulls {
            hits: usage.hits,
            misses: usage.misses,
            hit_bytes: usage.hit_bytes,
            miss_bytes: usage.miss_bytes,
            hit_rate: usage.hit_rate(),
            last: usage.last_pull.map(Time),
            since: Some(Time(usage.counted_since)),
        });
    }
    upstream.scrub = scrub::State::read(root, &layout).last.map(|last| Scrub {
        ended: Time(last.ended),
        blobs: last.sum.blobs,
        bytes: last.sum.bytes,
        broken: last.sum.broken,
        removed: last.sum.removed,
    });
}

fn file_systems(root: &Root, caches: &Caches) -> Vec<FileSystem> {
    let mut found: Vec<FileSystem> = Vec::new();
    for cache in &caches.upstreams {
        let Some((folder, _)) = cache.store.as_ref().and_then(|store| store.rsplit_once('/')) else {
            continue;
        };
        if found.iter().any(|one| one.path == folder) {
            continue;
        }
        let below = folder.trim_start_matches('/');
        let space = root.exists(below).then(|| root.space(below).ok()).flatten();
        found.extend(space.map(|space| FileSystem {
            path: folder.to_owned(),
            bytes: space.size,
            free: space.available,
        }));
    }
    found
}

fn certificate_state(path: String, read: Result<certificate::Certificate>) -> CertificateState {
    match read {
        Err(error) => CertificateState { path, not_after: None, why: Some(format!("{error:#}")) },
        Ok(read) => {
            let not_after = Time::of(read.not_after);
            let why = match read.not_after.duration_since(SystemTime::now()) {
                Err(_) => Some(format!("{path} was good until {not_after}: renew it")),
                Ok(left) if left < SOON => {
                    Some(format!("{path} is good for {} days more: renew it", left.as_secs() / 86_400))
                }
                Ok(_) => None,
            };
            CertificateState { path, not_after: Some(not_after), why }
        }
    }
}

fn endpoint(url: &str, memory: &Memory) -> Endpoint {
    let place = match memory.endpoints.get(url) {
        None => Place::In { since: None },
        Some(health) => match &health.why {
            why if health.out => Place::Out {
                since: Time(health.at),
                why: why.clone().unwrap_or_default(),
                answering: health.answering.is_some(),
            },
            Some(why) => Place::Kept { since: Time(health.at), why: why.clone() },
            None => Place::In { since: Some(Time(health.at)) },
        },
    };
    Endpoint { url: url.to_owned(), place }
}

const _: () = assert!(LIMIT.as_secs() > ANSWER.as_secs());
