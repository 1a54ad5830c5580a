//! What somebody changed of ours by hand: which file, since when, and what of it the operator keeps.
//!
//! The manifest knows digests only. So what is told here costs one look at each of our paths, and no plan.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::diff::{Wanted, compare, registry_ids, resolve};
use crate::journal::{EDITED_BY_HAND, KEPT, Kind, Manifest, Owned, keep_aside};
use crate::plan::{Content, Plan, REGISTRY_FOLDER, Refused, Resource, User};
use crate::profile::suggest::nearest;
use crate::root::{Access, Entry, Owner, Root, folder_of};
use crate::status::Time;
use crate::template::RegistryConfig;

/// Of one file, so many versions that were edited by hand are kept: the newest.
const VERSIONS: usize = 8;
/// So many names of files tell an operator what was meant.
const NEAR: usize = 6;

/// One path of ours that is not as we left it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drift {
    pub path: String,
    #[serde(flatten)]
    pub what: What,
    /// When it last changed in any way: its contents, its name, its mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// From what we wrote to what is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
    /// Why there is no `diff`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "lowercase")]
pub enum What {
    /// A file of ours has other contents.
    Edited,
    /// `since` is the latest that it can have been.
    Gone,
    /// Something else is in its place.
    Replaced { by: String },
    /// A link of ours leads elsewhere.
    Link { was: String, is: String },
    /// Its contents are ours.
    Access { was: String, is: String },
    /// Somebody else's file with our setting in it, changed by somebody since.
    Others,
}

impl What {
    pub const WORDS: [&str; 6] = ["edited", "gone", "replaced", "link", "access", "others"];

    /// As it is serialised.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Edited => "edited",
            Self::Gone => "gone",
            Self::Replaced { .. } => "replaced",
            Self::Link { .. } => "link",
            Self::Access { .. } => "access",
            Self::Others => "others",
        }
    }
}

impl Drift {
    /// As a person reads it: `edited by hand since 2026-11-21T18:30:00Z`.
    #[must_use]
    pub fn words(&self) -> String {
        let since = self.since.map_or_else(String::new, |at| format!(" since {at}"));
        match &self.what {
            What::Edited => format!("edited by hand{since}"),
            What::Gone => {
                let before = self.since.map_or_else(String::new, |at| format!(" at {at} or before"));
                format!("deleted by hand{before}")
            }
            What::Replaced { by } => format!("replaced by {by} by hand{since}"),
            What::Link { was, is } => format!("link changed by hand{since}, from {was} to {is}"),
            What::Access { was, is } => format!("mode changed by hand{since}, from {was} to {is}"),
            What::Others => format!("changed by others{since}"),
        }
    }
}

/// All that is not as we left it, and is not left alone.
///
/// # Errors
/// When the manifest or a path cannot be read; only root can.
pub fn read(root: &Root, manifest: &Manifest) -> Result<Vec<Drift>> {
    let ids = registry_ids(root)?;
    let mut found = Vec::new();
    for (path, owned) in manifest.entries.iter().filter(|(_, owned)| !owned.left_alone) {
        found.extend(of(root, path, manifest, owned, &root.entry(path)?, ids)?);
    }
    Ok(found)
}

/// What became of one path that is ours.
///
/// # Errors
/// On I/O errors.
pub fn of(
    root: &Root,
    path: &str,
    manifest: &Manifest,
    owned: &Owned,
    entry: &Entry,
    ids: Option<Owner>,
) -> Result<Option<Drift>> {
    let is_folder = matches!(owned.kind, Kind::Directory | Kind::Data);
    let what = match entry {
        // A run that died may not have come to it.
        Entry::Absent if manifest.unfinished.is_some() => return Ok(None),
        // The data of an upstream that has left is the operator's to delete.
        Entry::Absent if owned.kind == Kind::Data && owned.access.is_none() => return Ok(None),
        Entry::Absent => What::Gone,
        Entry::Directory { access } if is_folder => match access_drift(owned, *access, ids) {
            Some(what) => what,
            None => return Ok(None),
        },
        // The operator keeps such a folder elsewhere.
        Entry::Link { .. } if is_folder && root.exists(&format!("{path}/.")) => return Ok(None),
        Entry::Directory { .. } => What::Replaced { by: "a folder".to_owned() },
        Entry::Other => What::Replaced { by: "a device, pipe or socket".to_owned() },
        Entry::File { .. } if is_folder => What::Replaced { by: "a file".to_owned() },
        Entry::Link { target } if owned.kind != Kind::Link => {
            What::Replaced { by: format!("a link to {target}") }
        }
        Entry::File { .. } if owned.kind == Kind::Link => What::Replaced { by: "a file".to_owned() },
        Entry::Link { target } if !owned.wrote.contains(target) => {
            What::Link { was: owned.wrote.last().cloned().unwrap_or_default(), is: target.clone() }
        }
        Entry::File { .. } if !manifest.wrote(path, entry) => {
            if owned.kind == Kind::Edited {
                What::Others
            } else {
                What::Edited
            }
        }
        Entry::File { access, .. } => match access_drift(owned, *access, ids) {
            Some(what) => what,
            None => return Ok(None),
        },
        Entry::Link { .. } => return Ok(None),
    };
    let since = root.last_change(path)?.map(Time);
    Ok(Some(Drift { path: path.to_owned(), what, since, diff: None, note: None }))
}

fn access_drift(owned: &Owned, now: Access, ids: Option<Owner>) -> Option<What> {
    let wrote = owned.access?;
    // Until the user is there, what shall be his is root's.
    let wanted = resolve(wrote, ids).unwrap_or_else(|| Access::root(wrote.mode));
    (now != wanted).then(|| What::Access { was: wrote.to_string(), is: spell(now, ids) })
}

fn spell(access: Access, ids: Option<Owner>) -> String {
    match access.owner {
        Owner::Root => Wanted { mode: access.mode, user: User::Root }.to_string(),
        owner if Some(owner) == ids => Wanted { mode: access.mode, user: User::Registry }.to_string(),
        Owner::Id { uid, gid } => format!("{:04o} {uid}:{gid}", access.mode),
    }
}

/// Says what was changed in each file, as far as the plan still has the bytes that we wrote there.
///
/// # Errors
/// On I/O errors.
pub fn explain(drifts: &mut [Drift], root: &Root, manifest: &Manifest, plan: &Plan) -> Result<()> {
    for drift in drifts.iter_mut().filter(|drift| matches!(drift.what, What::Edited | What::Others)) {
        let Some(owned) = manifest.entries.get(&drift.path) else { continue };
        let Some(Resource::File { bytes, content, .. }) = plan.resources.get(&drift.path) else {
            drift.note = Some("the profile no longer has this file: it goes with the next apply".to_owned());
            continue;
        };
        if matches!(content, Content::Secret | Content::Login) {
            drift.note = Some("a secret: not shown".to_owned());
        } else if !owned.wrote.contains(&crate::journal::digest(bytes)) {
            drift.note = Some(
                "what larder wrote is not known any more, since it would write something else by now: see `larder plan`"
                    .to_owned(),
            );
        } else if let Entry::File { bytes: now, access } = root.entry(&drift.path)? {
            if *content == Content::Ours && access.mode & 0o077 == 0 {
                drift.note = Some("for root alone, so it may hold a secret: not shown".to_owned());
            } else {
                drift.diff = Some(compare(bytes, &now, content.is_edit()));
            }
        }
    }
    Ok(())
}

/// Copies what somebody made of a file of ours to where nothing reads it, under a name that says what it is and when
/// it was set aside; the newest such copies of a file stay. Returns the copy's path.
///
/// # Errors
/// On I/O errors.
pub fn keep_edit(root: &Root, path: &str) -> Result<Option<String>> {
    let entry = root.entry(path)?;
    let (base, folder) = (format!("{KEPT}/{path}{EDITED_BY_HAND}"), format!("{KEPT}/{}", folder_of(path)));
    let prefix = base.rsplit('/').next().unwrap_or(&base).to_owned();
    let mut copies: Vec<String> = root.list(&folder)?;
    copies.retain(|name| name.starts_with(&prefix));
    for copy in copies.iter().map(|name| format!("{folder}/{name}")) {
        if root.entry(&copy)? == entry {
            return Ok(Some(copy));
        }
    }
    // No colons: a name that each tool takes.
    let suffix = format!("{EDITED_BY_HAND}.{}", Time::now().to_string().replace(':', "-"));
    let Some(made) = keep_aside(root, path, &suffix)? else { return Ok(None) };
    // Their names are in the order of their time.
    for old in copies.iter().rev().skip(VERSIONS - 1) {
        root.remove(&format!("{folder}/{old}"))?;
    }
    root.sync_folder(&made)?;
    Ok(Some(made))
}

/// What the operator says of single files.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Choices {
    /// Leave this file of larder's as it is, for good: it is yours from then on (repeatable)
    #[arg(long, value_name = "FILE")]
    keep: Vec<String>,
    /// Give a file that was kept back to larder (repeatable)
    #[arg(long, value_name = "FILE")]
    take: Vec<String>,
}

impl Choices {
    /// Notes them in `manifest`. `plan` says which files larder is about to write besides.
    ///
    /// # Errors
    /// [`Refused`], with what is near, where one of them is none of larder's.
    pub fn note(&self, root: &Root, manifest: &mut Manifest, plan: &Plan) -> Result<()> {
        let mut refused = Vec::new();
        let mut seen = BTreeSet::new();
        for given in &self.keep {
            match self.keep_one(root, manifest, plan, given) {
                Ok(path) => drop(seen.insert(path)),
                Err(reason) => refused.push(reason),
            }
        }
        for given in &self.take {
            let path = below(root, given);
            match path.as_ref().and_then(|path| manifest.entries.get_mut(path)) {
                _ if path.as_ref().is_some_and(|path| seen.contains(path)) => {
                    refused.push(format!("take {given}: it is to be kept, too: leave one of both out"));
                }
                Some(owned) if owned.left_alone => owned.left_alone = false,
                _ => {
                    let kept = left_alone(manifest).map(|path| root.show(path)).collect::<Vec<_>>();
                    let kept = if kept.is_empty() { "nothing".to_owned() } else { kept.join(", ") };
                    refused.push(format!("take {given}: it is not left alone; what is: {kept}"));
                }
            }
        }
        if refused.is_empty() { Ok(()) } else { Err(Refused(refused).into()) }
    }

    /// # Errors
    /// On I/O errors.
    pub fn write(&self, root: &Root, manifest: &Manifest) -> Result<()> {
        if self.keep.is_empty() && self.take.is_empty() { Ok(()) } else { manifest.write(root) }
    }

    fn keep_one(
        &self,
        root: &Root,
        manifest: &mut Manifest,
        plan: &Plan,
        given: &str,
    ) -> Result<String, String> {
        let Some(path) = below(root, given) else {
            return Err(format!(
                "keep {given}: wanted an absolute path without `..`, as `larder plan` shows it"
            ));
        };
        let folder = |kind: Kind| matches!(kind, Kind::Directory | Kind::Data);
        if let Some(owned) = manifest.entries.get_mut(&path) {
            if folder(owned.kind) {
                return Err(format!("keep {given}: a folder: name the files in it"));
            }
            owned.left_alone = true;
            return Ok(path);
        }
        let kind = match plan.resources.get(&path) {
            Some(Resource::File { content, .. }) if content.is_edit() => Kind::Edited,
            Some(Resource::File { .. }) => Kind::File,
            Some(Resource::Link { .. }) => Kind::Link,
            Some(Resource::Directory { .. }) => {
                return Err(format!("keep {given}: a folder: name the files in it"));
            }
            None => {
                let known = manifest.entries.keys().chain(plan.resources.keys()).map(String::as_str);
                let near = near(&path, known);
                let near: Vec<String> = near.into_iter().map(|path| root.show(path)).collect();
                let near = if near.is_empty() {
                    "`larder plan` shows what is".to_owned()
                } else {
                    format!("near it are {}", near.join(", "))
                };
                return Err(format!("keep {given}: no file of larder's; {near}"));
            }
        };
        // Never ours, and it stays the operator's when larder goes.
        let owned = Owned { found: true, left_alone: true, ..Owned::new(kind, Vec::new()) };
        manifest.entries.insert(path.clone(), owned);
        Ok(path)
    }
}

/// What the operator keeps.
pub fn left_alone(manifest: &Manifest) -> impl Iterator<Item = &str> {
    manifest.entries.iter().filter(|(_, owned)| owned.left_alone).map(|(path, _)| path.as_str())
}

/// As the manifest writes it; of an image, paths with and without its folder before them are taken.
fn below(root: &Root, given: &str) -> Option<String> {
    let is_image = root.directory() != Path::new("/");
    let rest = match Path::new(given).strip_prefix(root.directory()) {
        Ok(rest) => rest,
        Err(_) if is_image => Path::new(given.trim_start_matches('/')),
        Err(_) => return None,
    };
    let parts: Option<Vec<&str>> = rest
        .components()
        .map(|part| match part {
            std::path::Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    parts.filter(|parts| !parts.is_empty()).map(|parts| parts.join("/"))
}

/// The paths that may have been meant: of the same name, of a name like it, or in the same folder.
fn near<'a>(path: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let mut found: Vec<(u8, &str)> = known
        .filter_map(|known| {
            let its = known.rsplit('/').next().unwrap_or(known);
            let rank = if its == name {
                0
            } else if nearest(name, [its]).is_some() {
                1
            } else if folder_of(known) == folder_of(path) {
                2
            } else {
                return None;
            };
            Some((rank, known))
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found.into_iter().map(|(_, known)| known).take(NEAR).collect()
}

/// Each path that is left alone, and how it is at odds with the profile.
///
/// # Errors
/// On I/O errors.
pub fn at_odds(root: &Root, plan: &Plan) -> Result<Vec<(String, Option<String>)>> {
    let odds = |path: &String, resource: &Resource| {
        let entry = root.entry(path)?;
        let odds = match (resource, &entry) {
            (Resource::File { bytes, .. }, Entry::File { bytes: now, .. }) if bytes == now => None,
            (Resource::Link { target }, Entry::Link { target: now }) if target == now => None,
            (_, Entry::Absent) => Some("it is not there".to_owned()),
            (Resource::File { bytes, .. }, Entry::File { bytes: now, .. }) => {
                Some(config_odds(path, bytes, now))
            }
            _ => Some("it is not what the profile wants".to_owned()),
        };
        Ok((path.clone(), odds))
    };
    plan.left_alone.iter().map(|(path, resource)| odds(path, resource)).collect()
}

/// What others go by in a registry's configuration.
fn config_odds(path: &str, wanted: &[u8], now: &[u8]) -> String {
    let mut text = "it is not what the profile wants".to_owned();
    if folder_of(path) != REGISTRY_FOLDER || !path.ends_with(".yml") {
        return text;
    }
    let parse = |bytes: &[u8]| RegistryConfig::parse(&String::from_utf8_lossy(bytes));
    match (parse(wanted), parse(now)) {
        (Ok(wanted), Ok(now)) if wanted.http.addr != now.http.addr => {
            let (now, wanted) = (now.http.addr, wanted.http.addr);
            let _ = write!(
                text,
                ": that registry listens on {now}, and all else looks for it on {wanted}, as the profile says"
            );
        }
        (Ok(_), Err(_)) => text.push_str(": that registry cannot read it"),
        _ => {}
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_as_the_plan_shows_it() {
        let root = Root::open(Path::new("/")).unwrap();
        for (given, wanted) in [
            ("/etc/larder/a.yml", Some("etc/larder/a.yml")),
            ("//etc/./larder/a.yml", Some("etc/larder/a.yml")),
            ("etc/larder/a.yml", None),
            ("/etc/../a", None),
            ("/", None),
        ] {
            assert_eq!(below(&root, given).as_deref(), wanted, "{given}");
        }
        let dir = tempfile::tempdir().unwrap();
        let image = Root::open(dir.path()).unwrap();
        let inside = dir.path().join("etc/a");
        for given in ["etc/a", "/etc/a", inside.to_str().unwrap()] {
            assert_eq!(below(&image, given).as_deref(), Some("etc/a"), "{given}");
        }
    }

    #[test]
    fn names_that_may_have_been_meant_come_first() {
        let known = ["etc/larder/registry/a.io.yml", "etc/larder/registry/ghcr.io.yml", "etc/x/other"];
        assert_eq!(near("etc/ghcr.io.yml", known.into_iter()), ["etc/larder/registry/ghcr.io.yml"]);
        let found = near("etc/larder/registry/ghcr.io.yaml", known.into_iter());
        assert_eq!(found, ["etc/larder/registry/ghcr.io.yml", "etc/larder/registry/a.io.yml"]);
        assert_eq!(near("etc/nothing", known.into_iter()), [""; 0]);
    }
}
