//! netplan: one whole definition of the interface. netplan merges definitions of one id, lists and all, and of two
//! ids for one interface the first in name order wins: so every other definition of it is taken out.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_yaml::{Mapping, Value};

use super::super::{Content, Plan};
use super::Request;
use crate::facts::{Backend, ManagerFile};
use crate::template::network::Netplan;
use crate::template::render;

/// What a definition says that the profile says now; all else (a renderer, wake on LAN) is kept.
const REPLACED: [&str; 14] = [
    "addresses",
    "critical",
    "dhcp-identifier",
    "dhcp4",
    "dhcp4-overrides",
    "dhcp6",
    "dhcp6-overrides",
    "gateway4",
    "gateway6",
    "match",
    "mtu",
    "nameservers",
    "routes",
    "set-name",
];
const ETHERNETS: &str = "ethernets";
/// Interfaces that are made of others.
const MADE: [&str; 5] = ["bonds", "bridges", "vlans", "wifis", "modems"];
const FOLDER: &str = "etc/netplan/";

pub(super) fn plan(request: &Request, plan: &mut Plan, refused: &mut Vec<String>) -> Result<()> {
    let mut documents = Vec::new();
    for file in &request.state.files {
        match serde_yaml::from_str::<Value>(&file.text) {
            Ok(document) => documents.push((file, document)),
            Err(error) => {
                refused.push(format!("network: /{} is no YAML, for netplan neither: {error}", file.path));
            }
        }
    }
    if let Some(reason) = in_the_way(request.interface, &documents) {
        refused.push(reason);
        return Ok(());
    }
    let definitions = definitions(&documents);
    let of = |kind: Fit| {
        definitions.iter().filter(move |(id, d)| fit(id, d, request) == kind).map(|(id, _)| id.as_str())
    };
    let exact: Vec<&str> = of(Fit::Exact).collect();
    let first = exact.first().and_then(|id| definitions.get(*id));
    // A pattern is for other interfaces, too: it stays, and ours sorts before it.
    let beside = of(Fit::Pattern).next().is_some();
    let ahead = format!("05-larder-{}", request.interface);
    let id = if beside { ahead.as_str() } else { exact.first().copied().unwrap_or(request.interface) };

    for (file, document) in &documents {
        let here: Vec<&str> = exact.iter().copied().filter(|id| has(document, id)).collect();
        if here.is_empty() {
            continue;
        }
        if !file.path.starts_with(FOLDER) {
            refused.push(format!(
                "network: /{} configures {}, and is not for larder to change: take it out there",
                file.path, request.interface
            ));
            continue;
        }
        let text = without(&file.text, document, &here, request)?;
        plan.file(file.path.clone(), text, 0o600, Content::Edited);
    }
    let text = render(
        "netplan's file",
        &Netplan {
            id,
            kept: kept(id, first, request)?,
            mtu: request.mtu(),
            addresses: request.addresses(),
            nameservers: request.nameservers(),
            search: request.search(),
            routes: request.routes(),
        },
    )?;
    serde_yaml::from_str::<Value>(&text).context("read back netplan's file")?;
    // netplan warns of one that others may read.
    plan.file(request.path(Backend::Netplan), text, 0o600, Content::Ours);
    Ok(())
}

fn ethernets(document: &Value) -> Option<&Mapping> {
    document.get("network")?.get(ETHERNETS)?.as_mapping()
}

fn has(document: &Value, id: &str) -> bool {
    ethernets(document).is_some_and(|all| all.contains_key(id))
}

/// By id, each merged of all files as far as we look at it: a later file's key replaces an earlier one's.
fn definitions(documents: &[(&ManagerFile, Value)]) -> BTreeMap<String, Mapping> {
    let mut all: BTreeMap<String, Mapping> = BTreeMap::new();
    for (_, document) in documents {
        for (id, definition) in ethernets(document).into_iter().flatten() {
            let Some(id) = id.as_str() else { continue };
            let merged = all.entry(id.to_owned()).or_default();
            for (key, value) in definition.as_mapping().into_iter().flatten() {
                merged.insert(key.clone(), value.clone());
            }
        }
    }
    all
}

/// A bond's port, or no Ethernet interface at all.
fn in_the_way(interface: &str, documents: &[(&ManagerFile, Value)]) -> Option<String> {
    for (file, document) in documents {
        let network = document.get("network");
        for kind in MADE {
            for (id, definition) in network.and_then(|n| n.get(kind)?.as_mapping()).into_iter().flatten() {
                let id = id.as_str().unwrap_or_default();
                let ports = definition.get("interfaces").and_then(Value::as_sequence);
                let is_port = ports.is_some_and(|ports| ports.iter().any(|p| p.as_str() == Some(interface)));
                if id == interface || is_port {
                    return Some(format!(
                        "network: {interface} is in `{kind}` of /{}: larder sets addresses of single Ethernet \
                         interfaces only; set it there, and take the network block out",
                        file.path
                    ));
                }
            }
        }
    }
    None
}

/// How a definition means the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    No,
    Exact,
    /// Perhaps among others.
    Pattern,
}

fn text<'v>(definition: &'v Mapping, key: &str) -> Option<&'v str> {
    definition.get(key)?.as_str()
}

fn fit(id: &str, definition: &Mapping, request: &Request) -> Fit {
    let interface = request.interface;
    if text(definition, "set-name") == Some(interface) || id == interface {
        return Fit::Exact;
    }
    let Some(wanted) = definition.get("match").and_then(Value::as_mapping) else { return Fit::No };
    let (mac, name, driver) =
        (text(wanted, "macaddress"), text(wanted, "name"), wanted.get("driver").is_some());
    let is_mac = |mac: &str| request.state.mac.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(mac));
    match (mac, name) {
        (Some(mac), _) if is_mac(mac) => Fit::Exact,
        (Some(_), _) => Fit::No,
        (None, Some(name)) if name == interface => Fit::Exact,
        (None, Some(name)) if super::fits(name, interface) => Fit::Pattern,
        (None, None) if driver || wanted.is_empty() => Fit::Pattern,
        _ => Fit::No,
    }
}

/// What stays of the definition that ours takes the place of. One that matches by the address of another
/// machine's card is a clone's: by name it is right on both.
fn kept(id: &str, definition: Option<&Mapping>, request: &Request) -> Result<Vec<(String, String)>> {
    let mut kept = Vec::new();
    let mut add = |key: &str, value: &Value| -> Result<()> {
        let json = serde_json::to_string(value).with_context(|| format!("render {key} of netplan's {id}"))?;
        kept.push((key.to_owned(), json));
        Ok(())
    };
    let state = request.state;
    // While it is away, what was found when it was here holds.
    let current = state.current.as_ref().filter(|_| state.absent);
    let current: Option<Value> = current.and_then(|text| serde_yaml::from_str(text).ok());
    let mac = definition.and_then(|d| text(d.get("match")?.as_mapping()?, "macaddress"));
    let is_own = state.has_card
        && mac.zip(state.mac.as_deref()).is_some_and(|(mac, own)| own.eq_ignore_ascii_case(mac));
    let matching = match &current {
        Some(document) => ethernets(document).and_then(|all| all.get(id)?.as_mapping()),
        None => definition.filter(|_| is_own),
    };
    for key in ["match", "set-name"] {
        if let Some(value) = matching.and_then(|definition| definition.get(key)) {
            add(key, value)?;
        }
    }
    if matching.is_none() && id != request.interface {
        add("match", &Value::Mapping([("name".into(), request.interface.into())].into_iter().collect()))?;
    }
    for (key, value) in definition.into_iter().flatten() {
        if let Some(key) = key.as_str().filter(|key| !REPLACED.contains(key)) {
            add(key, value)?;
        }
    }
    Ok(kept)
}

/// The file without these definitions. Lines are taken out where that does it; else it is written anew.
fn without(text: &str, document: &Value, ids: &[&str], request: &Request) -> Result<String> {
    let mut wanted = document.clone();
    if let Some(Value::Mapping(network)) = wanted.get_mut("network") {
        let mut is_empty = false;
        if let Some(Value::Mapping(all)) = network.get_mut(ETHERNETS) {
            ids.iter().for_each(|id| drop(all.remove(*id)));
            is_empty = all.is_empty();
        }
        if is_empty {
            network.remove(ETHERNETS);
        }
        if network.is_empty() {
            network.insert("version".into(), 2.into());
        }
    }
    let note = format!("# larder has {} in /{}", request.interface, request.path(Backend::Netplan));
    let cut = cut(text, ids, &note);
    if serde_yaml::from_str::<Value>(&cut).is_ok_and(|made| made == wanted) {
        return Ok(cut);
    }
    let whole = serde_json::to_string_pretty(&wanted).context("render the rest of a file of netplan's")?;
    Ok(format!("{note}\n{whole}\n"))
}

/// Takes blocks of lines out of the usual form: a key to a line, and what belongs to it deeper.
fn cut(text: &str, ids: &[&str], note: &str) -> String {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let is_blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    let key = |line: &str| line.trim().strip_suffix(':').map(|key| key.trim_matches(['"', '\'']).to_owned());
    let lines: Vec<&str> = text.lines().collect();
    let mut out: Vec<&str> = vec![note];
    let (mut section, mut gone) = (None, None);
    for line in &lines {
        let depth = indent(line);
        if is_blank(line) {
            if gone.is_none_or(|gone| depth <= gone) {
                out.push(line);
            }
            continue;
        }
        if gone.is_some_and(|gone| depth > gone) {
            continue;
        }
        gone = None;
        if section.is_some_and(|section| depth <= section) {
            section = None;
        }
        match key(line) {
            Some(key) if key == ETHERNETS => section = Some(depth),
            Some(key) if section.is_some() && ids.contains(&key.as_str()) => {
                gone = Some(depth);
                continue;
            }
            _ => {}
        }
        out.push(line);
    }
    drop_empty(&mut out);
    let mut text = out.join("\n");
    text.push('\n');
    text
}

/// A section without anything in it is an error of netplan's.
fn drop_empty(lines: &mut Vec<&str>) {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let Some(at) = lines.iter().position(|line| line.trim() == "ethernets:") else { return };
    let depth = lines.get(at).map_or(0, |line| indent(line));
    let next = lines.iter().skip(at + 1).find(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#'));
    if next.is_none_or(|next| indent(next) <= depth) {
        lines.remove(at);
    }
}
