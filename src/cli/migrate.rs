//! `larder migrate`: containerd's older mirror settings become a hosts.toml tree, as one transaction.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use super::run::lock;
use super::{Input, Output, code, machine, print, print_json, refused};
use crate::apply::{Applied, apply};
use crate::containerd::Version;
use crate::containerd::config::{Effective, Setting};
use crate::containerd::legacy::Legacy;
use crate::diff::{Diff, additions};
use crate::facts::{self, Containerd};
use crate::journal::{Manifest, make_state_folder};
use crate::plan::migration::{Comparison, Migration, Present, migration};
use crate::plan::{Plan, Refused, STATE};
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

impl Present for Root {
    fn has_pem(&self, path: &str, what: &str) -> bool {
        let bytes = self.read(path.trim_start_matches('/')).ok().flatten().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        text.lines()
            .any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&format!("{what}-----")))
    }

    fn hosts(&self, certs_dir: &str) -> BTreeMap<String, bool> {
        let folder = certs_dir.trim_start_matches('/');
        let mut found = BTreeMap::new();
        // A folder that cannot be listed holds nothing that containerd reads either.
        for name in self.list(folder).unwrap_or_default() {
            let inside = format!("{folder}/{name}");
            if self.exists(&format!("{inside}/.")) {
                let full = self.list(&inside).is_ok_and(|names| !names.is_empty());
                found.insert(name, full);
            }
        }
        found
    }
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
    let found = migration(&installed, version, root).map_err(Refused)?;
    if let Some(found) = &found {
        agree(&found.legacy, &effective)?;
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

/// What containerd itself makes of these files must be what was migrated.
fn agree(legacy: &Legacy, effective: &Effective) -> Result<()> {
    let mut reasons: Vec<String> =
        effective.fatal.iter().chain(&effective.cri_down).map(ToString::to_string).collect();
    let mirrors = |(host, set): (&String, &Setting<Vec<String>>)| (host.clone(), set.value.clone());
    let theirs: BTreeMap<_, _> = effective.mirrors.iter().map(mirrors).collect();
    let ours: BTreeMap<_, _> = legacy.mirrors.clone().into_iter().collect();
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
    if !root.exists(STATE) {
        if prepare(&root)?.is_none() {
            tell(given.output, &Migration::default(), &Diff::default(), None, false)?;
            return Ok(code::CONVERGED);
        }
        make_state_folder(&root)?;
    }
    let _lock = lock(&root)?;
    let manifest = Manifest::read(&root)?;
    let unfinished = manifest.unfinished.as_ref().is_some_and(|left| left.containerd);
    let found = match prepare(&root)? {
        Some(found) => found,
        None => nothing(&root)?,
    };
    let diff = additions(&found.plan, &root, &manifest)?;
    if diff.is_empty() && !unfinished {
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
    for host in &found.hosts {
        text.push_str(&comparison(host));
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
    print(&text)
}

/// Before and after of one host, a line for each endpoint.
fn comparison(host: &Comparison) -> String {
    let word = if host.same { "same" } else { "differs" };
    let mut text = match host.host.as_str() {
        "HOST" => format!("images of every other HOST: {word}\n"),
        name => format!("images of {name}: {word}\n"),
    };
    let width = host.before.iter().map(String::len).max().unwrap_or(0).max("before".len());
    let rows = host.before.len().max(host.after.len());
    text.push_str(&format!("    {:width$}  after\n", "before"));
    for row in 0..rows {
        let side = |list: &[String]| list.get(row).cloned().unwrap_or_default();
        text.push_str(format!("    {:width$}  {}", side(&host.before), side(&host.after)).trim_end());
        text.push('\n');
    }
    for why in &host.why {
        text.push_str(&format!("    {why}\n"));
    }
    text
}
