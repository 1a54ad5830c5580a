//! `larder migrate`: containerd's older mirror settings become a hosts.toml tree, as one transaction.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use super::run::make_and_lock;
use super::{Input, Output, code, machine, print, print_json, refused};
use crate::apply::{Applied, apply};
use crate::containerd::Version;
use crate::containerd::config::{Effective, MAIN, Planned, Setting};
use crate::containerd::resolve;
use crate::diff::{Diff, additions};
use crate::facts::{self, Containerd};
use crate::journal::Manifest;
use crate::plan::migration::{ANY_OTHER, Comparison, Held, Migration, Present, migration};
use crate::plan::{Plan, Refused, Resource, STATE};
use crate::root::Root;

#[derive(Debug, clap::Args)]
pub(super) struct MigrateInput {
    /// Do it; without this it is only shown
    #[arg(long)]
    write: bool,
    /// Work on the image unpacked in DIR, not on the running machine
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// The machine, as its containerd sees it.
struct There<'r> {
    root: &'r Root,
    version: Version,
}

impl Present for There<'_> {
    fn has_pem(&self, path: &str, what: &str) -> bool {
        let bytes = self.root.read(path.trim_start_matches('/')).ok().flatten().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        text.lines()
            .any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&format!("{what}-----")))
    }

    fn hosts(&self, certs_dir: &str) -> BTreeMap<String, bool> {
        let folder = certs_dir.trim_start_matches('/');
        let mut found = BTreeMap::new();
        // A folder that cannot be listed holds nothing that containerd reads either.
        for name in self.root.list(folder).unwrap_or_default() {
            let inside = format!("{folder}/{name}");
            if self.root.exists(&format!("{inside}/.")) {
                let full = self.root.list(&inside).is_ok_and(|names| !names.is_empty());
                found.insert(name, full);
            }
        }
        found
    }

    fn held(&self, certs_dir: &str, host: &str) -> Result<Option<Held>, String> {
        let wrong = |error: anyhow::Error| format!("{error:#}");
        let config = format!(
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = {}\n",
            toml_edit::Value::from(certs_dir)
        );
        let files = Planned { root: self.root, files: [(MAIN, config.as_bytes())].into() };
        let effective = Effective::read(&files, self.version).map_err(wrong)?;
        let found = resolve::endpoints(&effective, self.root, host).map_err(wrong)?;
        let fails = found.fails.as_ref().map(ToString::to_string);
        let Some(directory) = found.directory else { return fails.map_or(Ok(None), Err) };
        if directory.ends_with("/_default") != (host == ANY_OTHER) {
            return Ok(None);
        }
        let asked = found.endpoints.iter().map(shown).collect();
        let trusts = found.endpoints.iter().any(|one| !one.ca.is_empty() || !one.client.is_empty());
        Ok(Some(match found.file {
            Some(_) => Held::Hosts { asked, fails },
            None if trusts => Held::Certificates(asked),
            None => {
                let file = format!("{directory}/hosts.toml");
                let full = self.root.read(&file).map_err(wrong)?.is_some_and(|bytes| !bytes.is_empty());
                let why = fails.or_else(|| found.traps.first().map(ToString::to_string));
                Held::Nothing(why.filter(|_| full))
            }
        }))
    }
}

/// An endpoint in the words of the older settings' ones, with what those cannot say.
fn shown(asked: &resolve::Asked) -> String {
    let mut text = asked.url.clone();
    if text.starts_with("https://") {
        asked.ca.iter().for_each(|file| text.push_str(&format!(", ca {file}")));
        for (certificate, key) in &asked.client {
            text.push_str(&format!(", client {certificate} {}", key.as_deref().unwrap_or_default()));
        }
        if asked.skip_verify {
            text.push_str(", not verified");
        }
    }
    if asked.then_http {
        text.push_str(", then by http");
    }
    if !asked.resolves() {
        text.push_str(", not for tags");
    }
    asked.headers.iter().for_each(|name| text.push_str(&format!(", header {name}")));
    text
}

/// The migration of this machine, if there is anything to migrate.
fn prepare(root: &Root) -> Result<Option<Migration>> {
    let version = facts::containerd_version(root)?.unwrap_or(Version::OLDEST);
    let effective = Effective::read(root, version)?;
    let mut files = effective.files.iter();
    let installed = Containerd {
        major: Some(version.major),
        config: effective.main.as_ref().and(files.next()).map(|main| main.text.clone()),
        imports: files.map(|file| (file.path.clone(), file.text.clone())).collect(),
        ..Containerd::default()
    };
    let found = migration(&installed, version, &There { root, version }).map_err(Refused)?;
    if let Some(found) = &found {
        agree(found, &effective, root)?;
    }
    Ok(found)
}

/// No change, but what an interrupted run has left: containerd is to read what is configured by now.
fn nothing(root: &Root) -> Result<Migration> {
    let version = facts::containerd_version(root)?.unwrap_or(Version::OLDEST);
    let certs_dir = Effective::read(root, version)?.config_path.value;
    let certs_dir = Some(certs_dir).filter(|dir| dir.starts_with('/') && !dir.contains(':'));
    Ok(Migration { plan: Plan { handed_over: true, certs_dir, ..Plan::default() }, ..Migration::default() })
}

/// What containerd itself makes of these files must be what was migrated, and of the new ones what is wanted.
fn agree(found: &Migration, effective: &Effective, root: &Root) -> Result<()> {
    let edited = |(path, resource): (&'_ String, &'_ Resource)| match resource {
        Resource::File { bytes, content, .. } if content.is_edit() => Some((path.clone(), bytes.clone())),
        _ => None,
    };
    let edited: Vec<(String, Vec<u8>)> = found.plan.resources.iter().filter_map(edited).collect();
    let files = edited.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    let after = Effective::read(&Planned { root, files }, effective.version)?;
    // A CRI that is down for another reason than the one that goes is not ours to cure.
    let other = effective.cri_down.iter().filter(|_| found.down.is_none());
    let notes = effective.fatal.iter().chain(other).chain(&after.fatal).chain(&after.cri_down);
    let mut reasons: Vec<String> = Vec::new();
    for reason in notes.map(ToString::to_string) {
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    if reasons.is_empty() && Some(&after.config_path.value) != found.plan.certs_dir.as_ref() {
        reasons.push(format!(
            "containerd {} would look for hosts.toml files in {:?} then: set config_path in the main file alone",
            effective.version, after.config_path.value
        ));
    }
    let mirrors = |(host, set): (&String, &Setting<Vec<String>>)| (host.clone(), set.value.clone());
    let theirs: BTreeMap<_, _> = effective.mirrors.iter().map(mirrors).collect();
    let ours: BTreeMap<_, _> = found.legacy.mirrors.clone().into_iter().collect();
    if reasons.is_empty() && theirs != ours {
        reasons.extend(effective.ignored.iter().map(ToString::to_string));
        reasons.push(format!(
            "/{}: containerd {} takes other mirrors from this than are written in it: bring them together in \
             the main file",
            facts::CONTAINERD_CONFIG,
            effective.version
        ));
    }
    if reasons.is_empty() { Ok(()) } else { Err(Refused(reasons).into()) }
}

pub(super) fn migrate_command(given: &MigrateInput) -> Result<u8> {
    let input = Input { profile: None, root: given.root.clone(), output: given.output };
    let (root, host) = machine(&input)?;
    if !given.write {
        let manifest = Manifest::read(&root)?;
        let found = prepare(&root)?.unwrap_or_default();
        let diff = additions(&found.plan, &root, &manifest)?;
        let unfinished = manifest.unfinished.is_some_and(|left| left.containerd);
        tell(given.output, &found, &diff, None, unfinished)?;
        return Ok(if diff.is_empty() && !unfinished { code::CONVERGED } else { code::SOMETHING_TO_DO });
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(refused("migrate --write writes root's files: run it as root").into());
    }
    // Refuses before it touches anything, the folder of the lock among it.
    if !root.exists(STATE) && prepare(&root)?.is_none() {
        tell(given.output, &Migration::default(), &Diff::default(), None, false)?;
        return Ok(code::CONVERGED);
    }
    let _lock = make_and_lock(&root)?;
    let manifest = Manifest::read(&root)?;
    let unfinished = manifest.unfinished.as_ref().is_some_and(|left| left.containerd);
    let found = match prepare(&root)? {
        Some(found) => found,
        None => nothing(&root)?,
    };
    let diff = additions(&found.plan, &root, &manifest)?;
    if diff.is_empty() && !unfinished {
        crate::recover::clear_rest(&root, &manifest)?;
        tell(given.output, &found, &diff, None, false)?;
        return Ok(code::CONVERGED);
    }
    let applied = apply(&found.plan, &diff, &root, host.as_ref(), manifest, None)?;
    tell(given.output, &found, &diff, Some(&applied), unfinished)?;
    Ok(code::CONVERGED)
}

fn tell(
    output: Output,
    found: &Migration,
    diff: &Diff,
    applied: Option<&Applied>,
    unfinished: bool,
) -> Result<u8> {
    if output == Output::Json {
        let changes: Vec<_> = diff.changes.iter().map(crate::diff::Change::row).collect();
        return print_json(&json!({
            "version": 1,
            "written": applied.is_some(),
            "changes": changes,
            "cri_down": found.down,
            "hosts": found.hosts,
            "stays": found.stays,
            "notes": found.notes,
            "kept": applied.map(|applied| &applied.kept),
            "warnings": applied.map(|applied| &applied.warnings),
            "unfinished": unfinished,
        }));
    }
    let mut text = String::new();
    if diff.is_empty() {
        text.push_str(match (unfinished, applied) {
            (true, Some(_)) => "finished what an interrupted run had left\n",
            (true, None) => {
                "an interrupted run left containerd to be restarted: run `larder migrate --write`\n"
            }
            (false, _) => "nothing to migrate\n",
        });
        return print(&text);
    }
    match applied {
        None => text.push_str(&diff.to_string()),
        Some(_) => text.push_str(&format!("migrated: {}\n", diff.summary())),
    }
    if let Some(why) = &found.down {
        text.push_str(&format!(
            "before: CRI down: {why}; no image could be pulled, so what is written counts\n"
        ));
    }
    for host in &found.hosts {
        text.push_str(&comparison(host, found.down.is_some()));
    }
    let lists = [("stays", &found.stays), ("note", &found.notes)];
    for (word, lines) in lists {
        lines.iter().for_each(|line| text.push_str(&format!("{word}: {line}\n")));
    }
    match applied {
        Some(applied) => {
            applied.kept.iter().for_each(|line| text.push_str(&format!("kept aside: {line}\n")));
            applied.warnings.iter().for_each(|line| super::tell_warning(line));
        }
        None => text.push_str("nothing is changed yet: `larder migrate --write` does it\n"),
    }
    match print(&text) {
        // What is done is done, whoever listens.
        Err(error) if applied.is_some() => {
            super::tell_warning(&format!("{error:#}"));
            Ok(code::CONVERGED)
        }
        printed => printed,
    }
}

/// Before, or what is written while CRI is down, and after of one host, a line for each endpoint.
fn comparison(host: &Comparison, down: bool) -> String {
    let (head, before) = if down { ("written", &host.written) } else { ("before", &host.before) };
    let word = if host.same { "same" } else { "differs" };
    let mut text = match host.host.as_str() {
        ANY_OTHER => format!("images of every other HOST: {word}\n"),
        name => format!("images of {name}: {word}\n"),
    };
    let width = before.iter().map(String::len).max().unwrap_or(0).max(head.len());
    let rows = before.len().max(host.after.len());
    text.push_str(&format!("    {head:width$}  after\n"));
    for row in 0..rows {
        let side = |list: &[String]| list.get(row).cloned().unwrap_or_default();
        text.push_str(format!("    {:width$}  {}", side(before), side(&host.after)).trim_end());
        text.push('\n');
    }
    for why in &host.why {
        text.push_str(&format!("    {why}\n"));
    }
    text
}
