//! What the fuzzers feed, by target: every reader of what others write. Each takes any bytes; what it says against
//! them is a property of ours that does not hold. `tests/corpus.rs` feeds what was once found, without a fuzzer.

use std::net::IpAddr;

use anyhow::Result;

use crate::caches::Caches;
use crate::containerd::config::{Effective, Files};
use crate::containerd::{Version, document, edit, resolve};
use crate::facts::network::{ManagerFile, NetworkState};
use crate::facts::{self, Backend, Facts, Manager, Registry};
use crate::guard::Record;
use crate::host;
use crate::journal::Manifest;
use crate::node::no_registry;
use crate::plan::{Content, Resource, network_only, plan};
use crate::profile::{self, Source};
use crate::store::accesslog::{Request, is_repository, is_tag};
use crate::store::scan;
use crate::template::RegistryConfig;
use crate::verify;
use crate::watch;

type Verdict = Result<(), String>;
/// Err: what does not hold.
pub type Target = fn(&[u8]) -> Verdict;

/// Each target by its name.
pub const TARGETS: [(&str, Target); 7] = [
    ("profile", profile),
    ("hosts", hosts),
    ("config", config),
    ("accesslog", accesslog),
    ("records", records),
    ("network", network),
    ("answers", answers),
];

const VERSIONS: [Version; 4] = [
    Version { major: 1, minor: 6, patch: 20 },
    Version { major: 1, minor: 7, patch: 24 },
    Version { major: 2, minor: 1, patch: 4 },
    Version { major: 2, minor: 4, patch: 0 },
];

/// From the text to every file that it is made into, on a machine that has all that may be asked for.
fn profile(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(()) };
    let source = Source::Text { name: "profile.yaml".to_owned(), text: text.to_owned() };
    let loaded = match profile::load(&source) {
        Ok(loaded) => loaded,
        Err(problems) => return shown(&problems.to_string()),
    };
    let _ = loaded.config_json();
    shown(&loaded.config())?;
    let (node, warnings) = match loaded.node() {
        Ok(made) => made,
        Err(problems) => return shown(&problems.to_string()),
    };
    shown(&warnings.to_string())?;
    for upstream in &node.upstreams {
        let (host, _) = upstream.remote.host_and_port();
        if host.parse::<IpAddr>().is_ok_and(|ip| no_registry(ip).is_err()) {
            return Err(format!("{} is an upstream", upstream.remote));
        }
    }
    for major in [2, 3] {
        let program = "/usr/bin/registry".to_owned();
        let facts =
            Facts { registry: Some(Registry { program, major, container: None }), ..Facts::default() };
        // Refusals are of the machine's.
        let Ok(made) = plan(&node, &facts) else { continue };
        for (path, resource) in &made.resources {
            below(path)?;
            if let Resource::File { bytes, content, .. } = resource
                && *content != Content::Secret
            {
                parses(path, bytes)?;
            }
        }
    }
    Ok(())
}

/// Nothing in a report moves a cursor.
fn shown(report: &str) -> Verdict {
    match report.chars().find(|c| c.is_control() && *c != '\n') {
        None => Ok(()),
        Some(c) => Err(format!("{c:?} in a report")),
    }
}

/// A path of a plan is below the root, whoever reads it.
fn below(path: &str) -> Verdict {
    let bad = |part: &str| matches!(part, "" | "." | "..") || part.chars().any(char::is_control);
    if path.split('/').any(bad) { Err(format!("{path:?} in a plan")) } else { Ok(()) }
}

/// What is rendered is what its reader takes.
fn parses(path: &str, bytes: &[u8]) -> Verdict {
    let text = std::str::from_utf8(bytes).map_err(|_| format!("{path}: no text"))?;
    let said = |error: &dyn std::fmt::Display| format!("{path}: {error}\n{text}");
    if path.starts_with("etc/larder/registry/") && path.ends_with(".yml") {
        RegistryConfig::parse(text).map_err(|error| said(&error))?;
    } else if path.ends_with(".yaml") {
        serde_yaml::from_str::<serde_yaml::Value>(text).map_err(|error| said(&error))?;
    } else if path.ends_with(".toml") {
        toml::from_str::<toml::Table>(text).map_err(|error| said(&error))?;
    } else if path.ends_with(".json") {
        serde_json::from_str::<serde_json::Value>(text).map_err(|error| said(&error))?;
    } else if path.ends_with(".conf") || path.ends_with(".network") {
        let plain = |line: &str| {
            line.is_empty() || line.starts_with(['#', '[', ' ', '\t']) || line.contains(['=', ' '])
        };
        if let Some(line) = text.lines().find(|line| !plain(line)) {
            return Err(said(&line));
        }
    }
    Ok(())
}

fn hosts(bytes: &[u8]) -> Verdict {
    for version in VERSIONS {
        let _ = resolve::read::read("hosts.toml", bytes, version);
    }
    Ok(())
}

/// One file of containerd's, which names others.
struct Alone<'b>(&'b [u8]);

impl Files for Alone<'_> {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        Ok((path == "etc/containerd/config.toml").then(|| self.0.to_vec()))
    }

    fn exists(&self, path: &str) -> bool {
        path == "etc/containerd/config.toml"
    }

    fn list(&self, _: &str) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// What is there is read, and what is taken out is gone after once.
fn config(bytes: &[u8]) -> Verdict {
    for version in VERSIONS {
        let _ = document::parse("config.toml", bytes, version);
        let _ = Effective::read(&Alone(bytes), version);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(()) };
    for section in [&["plugins", "io.containerd.grpc.v1.cri"][..], &["plugins", "cri"]] {
        let Ok(found) = edit::find(text, section) else { continue };
        let paths: Vec<Vec<String>> = found.cuts.iter().map(|cut| cut.path.clone()).collect();
        if paths.is_empty() {
            continue;
        }
        // It refuses what is better edited by hand.
        let Ok(once) = edit::take_out(text, &paths) else { continue };
        let again = edit::find(&once, section).map_err(|error| format!("what is left: {error:#}\n{once}"))?;
        if let Some(left) = again.cuts.first() {
            return Err(format!("{:?} is still there:\n{once}", left.path));
        }
    }
    Ok(())
}

fn accesslog(bytes: &[u8]) -> Verdict {
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Some(request) = Request::parse(line)
            && !is_repository(request.repository)
        {
            return Err(format!("{:?} is no repository", request.repository));
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(()) };
    if (is_repository(text) || is_tag(text)) && text.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(format!("{text:?} leads out of a store"));
    }
    Ok(())
}

/// What we wrote ourselves, and somebody may have written over.
fn records(bytes: &[u8]) -> Verdict {
    let _ = serde_json::from_slice::<Manifest>(bytes);
    let _ = serde_json::from_slice::<Record>(bytes);
    let _ = serde_json::from_slice::<watch::Watched>(bytes);
    let _ = serde_json::from_slice::<crate::status::Verification>(bytes);
    if let Ok(caches) = serde_json::from_slice::<Caches>(bytes) {
        for cache in &caches.upstreams {
            let _ = cache.layout();
        }
    }
    let _ = RegistryConfig::parse(&String::from_utf8_lossy(bytes));
    Ok(())
}

/// Files of the managers of the network, and what is made of them for an address of ours: where something is taken out
/// of one, nothing more is to be taken out of what is left.
fn network(bytes: &[u8]) -> Verdict {
    const PROFILE: &str = "version: 1\nnetwork: { interface: eth0, addresses: [10.0.20.10/24, 'fd00:20::10/64'], \
                           gateway: 10.0.20.1, nameservers: { addresses: [10.0.20.1], search: [a.test] }, mtu: 1400 }\n";
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(()) };
    for source in facts::network::sources(text) {
        let _ = source.takes("larder-eth0");
    }
    let source = Source::Text { name: String::new(), text: PROFILE.to_owned() };
    let made = profile::load(&source).and_then(|loaded| loaded.node());
    let (node, _) = made.map_err(|problems| problems.to_string())?;
    for (backend, path) in [
        (Backend::Networkd, "etc/systemd/network/10-a.network"),
        (Backend::Netplan, "etc/netplan/50-a.yaml"),
        (Backend::NetworkManager, "etc/NetworkManager/system-connections/a.nmconnection"),
        (Backend::Ifupdown, "etc/network/interfaces"),
    ] {
        let edited = |text: &str| -> Option<String> {
            let state = NetworkState {
                interface: Some("eth0".to_owned()),
                mac: Some("52:54:00:12:34:56".to_owned()),
                manager: Manager::Is(backend),
                files: vec![ManagerFile { path: path.to_owned(), text: text.to_owned() }],
                current: Some(text.to_owned()),
                ..NetworkState::default()
            };
            let made = network_only(&node, &Facts { network: state, ..Facts::default() }).ok()?;
            match made.resources.get(path)? {
                Resource::File { bytes, .. } => String::from_utf8(bytes.clone()).ok(),
                _ => None,
            }
        };
        let Some(once) = edited(text) else { continue };
        parses(path, once.as_bytes())?;
        if let Some(twice) = edited(&once).filter(|twice| *twice != once) {
            return Err(format!("{path}: edited once:\n{once}\ntwice:\n{twice}"));
        }
    }
    Ok(())
}

/// What programs print and registries answer.
fn answers(bytes: &[u8]) -> Verdict {
    let text = String::from_utf8_lossy(bytes);
    verify::direct::read_any(&text);
    host::read_any(bytes);
    let _ = facts::image::major_of(&text, "registry:3");
    let _ = scan::parse(bytes);
    Ok(())
}
