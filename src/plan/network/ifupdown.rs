//! ifupdown: stanzas for one interface add up, so every other of it is taken out of the files that have one.

use anyhow::Result;

use super::super::{Content, Plan};
use super::Request;
use crate::facts::network::sources;
use crate::facts::{Backend, INTERFACES, RESOLV_CONF};
use crate::template::network::{Interfaces, ResolvConf, Stanza};
use crate::template::render;

/// What begins a stanza (interfaces(5)); a line that begins otherwise belongs to the one before it.
const WORDS: [&str; 10] = [
    "iface",
    "auto",
    "mapping",
    "template",
    "rename",
    "no-auto-down",
    "no-scripts",
    "source",
    "source-directory",
    "source-dir",
];

pub(super) fn plan(request: &Request, plan: &mut Plan, refused: &mut Vec<String>) -> Result<()> {
    let path = request.path(Backend::Ifupdown);
    let mut is_sourced = false;
    let mut main = None;
    for file in &request.state.files {
        is_sourced |= sources(&file.text).iter().any(|source| {
            path.strip_prefix(source.folder())
                .and_then(|rest| rest.strip_prefix('/'))
                .is_some_and(|name| source.takes(name))
        });
        let edited = match without(&file.text, request.interface, &path) {
            Ok(edited) => edited,
            Err(reason) => {
                refused.push(format!("network: /{} {reason}", file.path));
                continue;
            }
        };
        if file.path == INTERFACES {
            main = Some((file, edited));
        } else if let Some(text) = edited {
            plan.file(file.path.clone(), text, 0o644, Content::Edited);
        }
    }
    let (before, edited) = main.map_or(("", None), |(file, edited)| (file.text.as_str(), edited));
    if !is_sourced {
        let mut text = edited.unwrap_or_else(|| before.to_owned());
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&format!("source /{path}\n"));
        plan.file(INTERFACES.to_owned(), text, 0o644, Content::Edited);
    } else if let Some(text) = edited {
        plan.file(INTERFACES.to_owned(), text, 0o644, Content::Edited);
    }

    let template = Interfaces { interface: request.interface, stanzas: stanzas(request) };
    plan.file(path, render("ifupdown's file", &template)?, 0o644, Content::Ours);

    // Without resolvconf it has nobody who would read its dns- lines. A link is somebody's who does.
    let state = request.state;
    let has_names = !request.wanted.nameservers.is_empty() || !request.wanted.search.is_empty();
    if has_names && !state.resolvconf && !state.resolv_conf_is_link {
        let names = ResolvConf { nameservers: request.nameservers(), search: request.search().join(" ") };
        plan.file(RESOLV_CONF.to_owned(), render("resolv.conf", &names)?, 0o644, Content::Ours);
    }
    Ok(())
}

/// What is not an address's own stands with the first of its family.
fn stanzas(request: &Request) -> Vec<Stanza> {
    let wanted = request.wanted;
    let mut stanzas: Vec<Stanza> = Vec::new();
    for address in &wanted.addresses {
        let v4 = address.is_ipv4();
        let family = if v4 { "inet" } else { "inet6" };
        let is_first = stanzas.is_empty();
        let is_first_of_family = stanzas.iter().all(|stanza| stanza.family != family);
        let routes = || wanted.routes.iter().filter(|r| is_first_of_family && r.via.is_ipv4() == v4);
        let first = |words: Vec<String>| if is_first { words.join(" ") } else { String::new() };
        stanzas.push(Stanza {
            family,
            address: address.to_string(),
            gateway: routes().find(|route| route.to.is_none()).map(|route| route.via.to_string()),
            mtu: request.mtu().filter(|_| is_first),
            nameservers: first(request.nameservers()),
            search: first(request.search()),
            routes: routes()
                .filter_map(|route| Some((route.to?.to_string(), route.via.to_string())))
                .collect(),
        });
    }
    stanzas
}

/// The text without what it says of the interface; `None` where it says nothing.
fn without(text: &str, interface: &str, path: &str) -> Result<Option<String>, String> {
    let mut out = Vec::new();
    let (mut changed, mut gone, mut goes_on) = (false, false, false);
    for line in text.lines() {
        let continued = std::mem::replace(&mut goes_on, line.ends_with('\\'));
        let words: Vec<&str> = line.split_whitespace().collect();
        let first = words.first().copied().unwrap_or_default();
        let is_comment = first.is_empty() || first.starts_with('#');
        let begins = !continued && (WORDS.contains(&first) || first.starts_with("allow-"));
        if !begins {
            // A comment at the margin is about what comes next as often as not.
            let at_margin = is_comment && !line.starts_with([' ', '\t']);
            if !gone || (at_margin && !continued) {
                out.push(line.to_owned());
            }
            continue;
        }
        gone = false;
        let about = words.get(1..).unwrap_or_default();
        match first {
            "iface" if about.first() == Some(&interface) => {
                (changed, gone) = (true, true);
            }
            "mapping" if about.contains(&interface) => {
                return Err(format!(
                    "has a mapping for {interface}: larder cannot tell what that means; take it out"
                ));
            }
            "auto" | "no-auto-down" | "no-scripts" => {
                keep_others(line, about, interface, &mut out, &mut changed)
            }
            word if word.starts_with("allow-") => keep_others(line, about, interface, &mut out, &mut changed),
            _ => out.push(line.to_owned()),
        }
    }
    if !changed {
        return Ok(None);
    }
    let mut text = format!("# larder has {interface} in /{path}\n");
    text.push_str(&out.join("\n"));
    text.push('\n');
    Ok(Some(text))
}

/// Such a line names any number of interfaces.
fn keep_others(line: &str, names: &[&str], interface: &str, out: &mut Vec<String>, changed: &mut bool) {
    if !names.contains(&interface) {
        out.push(line.to_owned());
        return;
    }
    *changed = true;
    let others: Vec<&str> = names.iter().copied().filter(|name| *name != interface).collect();
    if !others.is_empty() {
        let word = line.split_whitespace().next().unwrap_or_default();
        out.push(format!("{word} {}", others.join(" ")));
    }
}
