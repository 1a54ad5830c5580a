//! containerd's older mirror settings → hosts.toml: a plan whose files are the operator's afterwards, with the
//! endpoints before and after beside each other. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use toml_edit::{Document, Item};

use beside::Beside;

use super::containerd::config::{self, CRI_V1, CRI_V2, CRI_V3};
use super::{Content, Plan};
use crate::containerd::Version;
use crate::containerd::config::DOCKER_TOO;
use crate::containerd::edit::{self, Found};
use crate::containerd::hosts::HEADER;
use crate::containerd::legacy::{self, DEFAULT, Key, Legacy, Tree};
use crate::facts::{CONTAINERD_CONFIG, Containerd};

mod beside;

/// Where the tree goes when nothing says another place: containerd's own choice since 2.2.
const CERTS_DIR: &str = "/etc/containerd/certs.d";
/// The other one of containerd's own choice.
const DOCKERS: &str = "/etc/docker/certs.d";
const FILE_HEADER: &str = "# Made by `larder migrate` from the mirrors that config.toml named. It is yours: change it as you like.\n";
/// Stands for every host that nothing names.
pub const ANY_OTHER: &str = "HOST";

/// What a machine has besides its config.toml.
pub trait Present {
    /// Whether there is such a block in the PEM file, by its absolute path on that machine.
    fn has_pem(&self, path: &str, what: &str) -> bool;
    /// The folders below `certs_dir`, each with whether anything is in it.
    fn hosts(&self, certs_dir: &str) -> BTreeMap<String, bool>;
    /// What this containerd takes from the registry host's own folder in `certs_dir`, where it has one; from
    /// `_default` for the host `HOST`.
    ///
    /// # Errors
    /// When that is no folder, or cannot be read.
    fn held(&self, certs_dir: &str, host: &str) -> Result<Option<Held>, String>;
}

/// What a registry host's folder holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// A hosts.toml: whom it asks, as [`Comparison`] writes that, or why every pull fails.
    Hosts { asked: Vec<String>, fails: Option<String> },
    /// Certificates alone, and who is asked with them.
    Certificates(Vec<String>),
    /// Nothing that containerd takes; why, where there is something.
    Nothing(Option<String>),
}

/// A migration, whole.
#[derive(Debug, Default)]
pub struct Migration {
    pub plan: Plan,
    /// What it is made from.
    pub legacy: Legacy,
    /// Why no image could be pulled before, so that what is written counts.
    pub down: Option<String>,
    pub hosts: Vec<Comparison>,
    /// What stays in config.toml and goes on working.
    pub stays: Vec<String>,
    /// What is not the same, or had no effect before.
    pub notes: Vec<String>,
}

/// Whom containerd asks for the images of one host.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub host: String,
    /// Nobody, while CRI is down.
    pub before: Vec<String>,
    /// Whom the older settings mean, where they had no effect.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub written: Vec<String>,
    pub after: Vec<String>,
    pub same: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
}

/// One file of containerd's configuration.
struct Source<'a> {
    path: &'a str,
    text: &'a str,
    document: Document<String>,
    /// CRI's table in a file of this version.
    section: &'static [&'static str],
    found: Found,
}

impl Source<'_> {
    fn at(&self, line: usize) -> String {
        format!("/{}:{line}", self.path)
    }

    fn has_cri(&self) -> bool {
        config::find(self.document.as_table(), self.section).is_some()
    }

    fn config_path(&self) -> Option<&Item> {
        config::find(self.document.as_table(), self.section)?
            .get("registry")?
            .as_table_like()?
            .get("config_path")
    }

    fn line_of_config_path(&self) -> String {
        config::place(self.path, self.text, self.config_path().and_then(Item::span))
    }

    fn first_line(&self) -> usize {
        self.found.cuts.iter().map(|cut| cut.place.line).min().unwrap_or(1)
    }
}

/// The migration of what is installed, `None` where nothing is to be migrated.
///
/// # Errors
/// Every reason against it, each with its file and line.
pub fn migration(
    installed: &Containerd,
    version: Version,
    present: &dyn Present,
) -> Result<Option<Migration>, Vec<String>> {
    let Some(sources) = read(installed, version)? else { return Ok(None) };
    let mut reasons = dead_settings(&sources, version);
    let (legacy, double) = merge(&sources);
    reasons.extend(double);
    let place = match place(&sources, &legacy, version, present) {
        Ok(place) => place,
        Err(reason) => {
            reasons.push(reason);
            Place { dir: CERTS_DIR.to_owned(), ..Place::default() }
        }
    };
    let beside = match place.down.as_ref().map(|_| Beside::read(&legacy, &place.dir, present)).transpose() {
        Ok(beside) => beside,
        Err(wrong) => {
            reasons.extend(wrong.into_iter().map(|(key, reason)| match key {
                Some(key) => located(&sources, &key, &reason),
                None => reason,
            }));
            None
        }
    };
    reasons.extend(missing_files(&sources, &legacy, present));
    let tree = match beside.as_ref().map_or_else(|| legacy.tree(version), |beside| beside.tree(version)) {
        Ok(tree) => tree,
        Err(wrong) => {
            reasons.extend(wrong.into_iter().map(|(key, reason)| located(&sources, &key, &reason)));
            Tree::default()
        }
    };
    if !reasons.is_empty() {
        return Err(reasons);
    }
    let mut migration = Migration::default();
    migration.plan.handed_over = true;
    migration.plan.certs_dir = Some(place.dir.clone());
    write_configs(installed, &sources, &place.dir, version, &mut migration)?;
    let tree = write_tree(tree, &place, present, &mut migration).map_err(|reason| vec![reason])?;
    migration.notes.extend(place.note.clone());
    for source in &sources {
        let name = |place: &edit::Place| format!("{}: {}", source.at(place.line), place.name);
        migration.stays.extend(source.found.stays.iter().map(name));
        let ignored = source.found.ignored.iter();
        migration
            .notes
            .extend(ignored.map(|place| format!("{}: containerd reads nothing of it", name(place))));
    }
    migration.notes.extend(tree.notes.iter().cloned());
    match beside {
        Some(beside) => {
            migration.hosts = beside.compare(&legacy, &tree, &place.dir);
            migration.notes.extend(beside.notes);
        }
        None => {
            for revived in &mut migration.hosts {
                let before = legacy.endpoints(&revived.host, version).map_err(|reason| vec![reason])?;
                revived.before = shown(&before);
            }
            let compared =
                compare(&legacy, &tree, place.in_effect, version).map_err(|reason| vec![reason])?;
            migration.hosts.splice(..0, compared);
        }
    }
    migration.down = place.down;
    migration.legacy = legacy;
    Ok(Some(migration))
}

/// The files, if any of them holds one of the older settings.
fn read(installed: &Containerd, version: Version) -> Result<Option<Vec<Source<'_>>>, Vec<String>> {
    let Some(main) = &installed.config else { return Ok(None) };
    let mut files = vec![(CONTAINERD_CONFIG, main.as_str())];
    for (path, text) in &installed.imports {
        if !files.iter().any(|(other, _)| other == path) {
            files.push((path, text));
        }
    }
    let mut reasons = Vec::new();
    let mut sources: Vec<Source> = Vec::new();
    let mut any = false;
    let mut main_section = CRI_V2;
    for (path, text) in files {
        let document = match config::parse(path, text) {
            Ok(document) => document,
            Err(reason) => {
                reasons.push(reason);
                continue;
            }
        };
        let section = match document.get("version").map(Item::as_integer) {
            _ if path == CONTAINERD_CONFIG => {
                match config::section(&document, text, Some(version.major)) {
                    Ok(section) => main_section = section,
                    Err(reason) => reasons.push(reason),
                }
                main_section
            }
            Some(Some(1)) => CRI_V1,
            Some(Some(2)) => CRI_V2,
            Some(Some(3 | 4)) => CRI_V3,
            _ => main_section,
        };
        let mut own = Found::default();
        for other in [CRI_V1, CRI_V2, CRI_V3] {
            let found = edit::find(text, other).map_err(|error| vec![format!("/{path}: {error}")])?;
            let set = !found.legacy.is_empty() || !found.wrong.is_empty();
            any |= set;
            for wrong in &found.wrong {
                reasons.push(format!(
                    "/{path}:{}: {} is of a kind that containerd does not take: correct it, or take it out",
                    wrong.line, wrong.name
                ));
            }
            if other == section {
                own = found;
            } else if set && reasons.is_empty() {
                reasons.push(format!(
                    "/{path}:{}: containerd {version} reads nothing of {} in a file of this version: take it \
                     out, or write it below [plugins.{}]",
                    found.cuts.first().map_or(1, |cut| cut.place.line),
                    other.join("."),
                    section.last().map_or(String::new(), |id| format!("{id:?}"))
                ));
            }
        }
        sources.push(Source { path, text, document, section, found: own });
    }
    // Without any, what else is wrong with these files is another command's business.
    match (any, reasons.is_empty()) {
        (false, _) => Ok(None),
        (true, true) => Ok(Some(sources)),
        (true, false) => Err(reasons),
    }
}

/// containerd 1 takes CRI's section whole from the last file that has one.
fn dead_settings(sources: &[Source], version: Version) -> Vec<String> {
    if version.major >= 2 {
        return Vec::new();
    }
    let Some(winner) = sources.iter().rposition(Source::has_cri) else { return Vec::new() };
    let Some(by) = sources.get(winner) else { return Vec::new() };
    sources
        .iter()
        .take(winner)
        .filter(|source| !source.found.cuts.is_empty())
        .map(|source| {
            format!(
                "{}: {} has no effect: containerd 1 takes CRI's section of /{} in place of this one: bring \
                 the two together in one file",
                source.at(source.first_line()),
                source.found.cuts.first().map_or("registry", |cut| cut.place.name.as_str()),
                by.path
            )
        })
        .collect()
}

fn merge(sources: &[Source]) -> (Legacy, Vec<String>) {
    let mut legacy = Legacy::default();
    let mut reasons = Vec::new();
    let mut seen: BTreeMap<&Key, String> = BTreeMap::new();
    for source in sources {
        for (key, line) in &source.found.lines {
            if let Some(other) = seen.insert(key, source.at(*line)) {
                let name = name_of(key);
                reasons.push(format!("{}: {name} is in {other} too: keep one of them", source.at(*line)));
            }
        }
        legacy.mirrors.extend(source.found.legacy.mirrors.clone());
        legacy.tls.extend(source.found.legacy.tls.clone());
    }
    (legacy, reasons)
}

fn name_of(key: &Key) -> String {
    match key {
        Key::Mirror(host) => format!("registry.mirrors.{host:?}"),
        Key::Tls(host) => format!("registry.configs.{host:?}.tls"),
    }
}

fn located(sources: &[Source], key: &Key, reason: &str) -> String {
    let at = sources.iter().find_map(|source| Some(source.at(*source.found.lines.get(key)?)));
    format!("{}: {}: {reason}", at.unwrap_or_else(|| format!("/{CONTAINERD_CONFIG}")), name_of(key))
}

/// Where hosts.toml files are looked for already, or shall be.
#[derive(Debug, Default)]
struct Place {
    dir: String,
    /// What is in there decides before the older settings do.
    in_effect: bool,
    /// Why CRI is down.
    down: Option<String>,
    note: Option<String>,
}

fn place(
    sources: &[Source],
    legacy: &Legacy,
    version: Version,
    present: &dyn Present,
) -> Result<Place, String> {
    let last = if version.major >= 2 {
        sources.iter().rfind(|source| source.config_path().is_some())
    } else {
        sources.iter().rfind(|source| source.has_cri())
    };
    let set = last.and_then(|source| source.config_path()?.as_str()).unwrap_or_default();
    let mirrors = !legacy.mirrors.is_empty();
    let built_in = match version {
        _ if !set.is_empty() || version < Version::new(2, 2, 0) => false,
        // They had it as a default below the file, beside the file's mirrors.
        _ if version < Version::new(2, 2, 2) => !sources.iter().any(|source| source.config_path().is_some()),
        _ => !mirrors,
    };
    let tls = version.major < 2 && !legacy.tls.is_empty();
    let down = (!set.is_empty() || built_in) && (mirrors || tls);
    if set.is_empty() && !down {
        return Ok(Place { dir: CERTS_DIR.to_owned(), in_effect: built_in, ..Place::default() });
    }
    let (set, at) = match last {
        Some(source) if !set.is_empty() => (set, source.line_of_config_path()),
        _ => (DOCKER_TOO, format!("built into containerd {version}")),
    };
    let folders: Vec<&str> = set
        .split(':')
        .map(|folder| folder.trim_end_matches('/'))
        .filter(|folder| !folder.is_empty())
        .collect();
    if folders.is_empty() || folders.iter().any(|folder| !folder.starts_with('/')) {
        return Err(format!("{at}: config_path = {set:?} is not a folder by its whole path: name one"));
    }
    let dir = one_of(&folders, present).map_err(|lost| {
        format!(
            "{at}: config_path = {set:?} has to become one folder, as containerd's transfer service wants it, and \
             {lost}"
        )
    })?;
    let more = folders.len() > 1;
    Ok(Place {
        note: more.then(|| {
            format!("{at}: config_path = {set:?} becomes {dir} alone: no hosts.toml is lost by that")
        }),
        dir,
        in_effect: true,
        down: down.then(|| {
            let one = |source: &Source| {
                let cuts = source.found.cuts.iter();
                let cut = cuts.clone().find(|cut| !mirrors || cut.place.name == "registry.mirrors")?;
                Some(format!("{} ({})", cut.place.name, source.at(cut.place.line)))
            };
            let older = sources.iter().find_map(one).unwrap_or_else(|| "registry.mirrors".to_owned());
            format!("config_path ({at}) and {older} beside each other")
        }),
    })
}

/// The first folder that holds anything, if no host of the others is missed then.
fn one_of(folders: &[&str], present: &dyn Present) -> Result<String, String> {
    let full = folders.iter().copied().find(|folder| !present.hosts(folder).is_empty());
    let Some(dir) = full.or_else(|| folders.first().copied()) else { return Ok(CERTS_DIR.to_owned()) };
    let kept: BTreeSet<String> = present.hosts(dir).into_keys().map(|name| host_of(&name)).collect();
    let mut lost = Vec::new();
    // A `_default` answers for all that comes after it.
    for folder in folders.iter().filter(|folder| **folder != dir && !kept.contains(DEFAULT)) {
        let names = present.hosts(folder).into_iter();
        let missed = names.filter(|(name, full)| *full && !kept.contains(&host_of(name)));
        lost.extend(missed.map(|(name, _)| format!("{folder}/{name}")));
    }
    match lost.as_slice() {
        [] => Ok(dir.to_owned()),
        lost => Err(format!(
            "{} would no longer be read: move what you need to {dir}, and the rest away",
            lost.join(", ")
        )),
    }
}

fn missing_files(sources: &[Source], legacy: &Legacy, present: &dyn Present) -> Vec<String> {
    let mut reasons = Vec::new();
    for (host, tls) in &legacy.tls {
        // As hosts.toml wants them: the older way takes an authority's file without any, and trusts nobody more.
        for (file, what) in tls.files().filter(|(file, what)| !present.has_pem(file, what)) {
            let reason = format!(
                "{file}: there is no such file, or no {what} in it, and with hosts.toml no image could be \
                 pulled from {host} then: correct the file, or take the setting out"
            );
            reasons.push(located(sources, &Key::Tls(host.clone()), &reason));
        }
    }
    reasons
}

/// Each file that changes, the main one by the same edit that `apply` makes.
fn write_configs(
    installed: &Containerd,
    sources: &[Source],
    certs_dir: &str,
    version: Version,
    migration: &mut Migration,
) -> Result<(), Vec<String>> {
    let one = |reason: String| vec![reason];
    let mut edited =
        Containerd { major: Some(version.major), config: installed.config.clone(), ..Containerd::default() };
    let winner = sources.iter().rposition(Source::has_cri);
    for (n, source) in sources.iter().enumerate() {
        let paths: Vec<_> = source.found.cuts.iter().map(|cut| cut.path.clone()).collect();
        let mut text = source.text.to_owned();
        if !paths.is_empty() {
            text = edit::take_out(source.text, &paths)
                .map_err(|error| one(format!("/{}: {error:#}", source.path)))?;
        }
        if n == 0 {
            edited.config = Some(text);
            continue;
        }
        // The last word is an import's: on 1.x if it has CRI's section, on 2.x if it has the setting.
        let decides = if version.major < 2 { winner == Some(n) } else { source.config_path().is_some() };
        let document = config::parse(source.path, &text).map_err(one)?;
        let now = source.config_path().and_then(Item::as_str);
        if decides && now != Some(certs_dir) {
            text = config::write(&text, document, source.section, certs_dir)
                .ok_or_else(|| one(format!("/{}: CRI's section is not a table", source.path)))?;
        }
        if text != source.text {
            migration.plan.file(source.path.to_owned(), text.clone(), 0o644, Content::Edited);
        }
        edited.imports.push((source.path.to_owned(), text));
    }
    let main = config::set_config_path(&edited, certs_dir)?;
    migration.plan.file(CONTAINERD_CONFIG.to_owned(), main.text, 0o644, Content::Edited);
    Ok(())
}

fn write_tree(
    mut tree: Tree,
    place: &Place,
    present: &dyn Present,
    migration: &mut Migration,
) -> Result<Tree, String> {
    let (certs_dir, in_effect) = (place.dir.as_str(), place.in_effect);
    let folder = certs_dir.trim_start_matches('/');
    migration.plan.folder(folder);
    let there = present.hosts(certs_dir);
    let mut ours = BTreeSet::new();
    // Where the tree was read before, what is in it is in effect, and the older TLS settings are not.
    tree.hosts.retain(|host, _| {
        let decides = in_effect && place.down.is_none() && there.contains_key(&folder_name(host, &there));
        if decides {
            migration.notes.push(format!(
                "{certs_dir}/{} decides about {host} already: registry.configs.*.tls does not, and goes",
                folder_name(host, &there)
            ));
        }
        !decides
    });
    for (host, hosts) in &tree.hosts {
        let name = folder_name(host, &there);
        let path = format!("{folder}/{name}/hosts.toml");
        ours.insert(name.clone());
        let text = hosts.render(&format!("/{path}")).map_err(|error| format!("{error:#}"))?;
        let text = format!("{FILE_HEADER}{}", text.strip_prefix(HEADER).unwrap_or(&text));
        migration.plan.folder(&format!("{folder}/{name}"));
        migration.plan.file(path, text, 0o644, Content::Ours);
    }
    // An empty folder says nothing, but that it hides `_default`.
    let hides = tree.hosts.contains_key(DEFAULT);
    let new = there.iter().filter(|(name, full)| (**full || hides) && !in_effect && !ours.contains(*name));
    let revived = new.map(|(name, _)| Comparison {
        host: if name == DEFAULT { ANY_OTHER.to_owned() } else { host_of(name) },
        before: Vec::new(),
        written: Vec::new(),
        after: vec![format!("as {certs_dir}/{name} says")],
        same: false,
        why: vec![format!(
            "{certs_dir}/{name} was not read before, and comes into effect: move it away if it shall not"
        )],
    });
    migration.hosts.extend(revived);
    if in_effect && place.note.is_none() && certs_dir == CERTS_DIR && !present.hosts(DOCKERS).is_empty() {
        migration.notes.push(format!(
            "{DOCKERS} is no longer read: config_path names one folder, as the transfer service wants it"
        ));
    }
    Ok(tree)
}

/// containerd looks for `host_5000_` before `host:5000`.
fn folder_name(host: &str, there: &BTreeMap<String, bool>) -> String {
    let other = host.rsplit_once(':').map(|(name, port)| format!("{name}_{port}_"));
    other.filter(|name| there.contains_key(name)).unwrap_or_else(|| host.to_owned())
}

fn host_of(name: &str) -> String {
    let port = name.strip_suffix('_').and_then(|name| name.rsplit_once('_'));
    port.map_or_else(|| name.to_owned(), |(host, port)| format!("{host}:{port}"))
}

fn shown(asked: &[legacy::Asked]) -> Vec<String> {
    asked.iter().map(ToString::to_string).collect()
}

/// A question that is put again finds nothing new.
fn same_as(one: &[String], other: &[String]) -> bool {
    let distinct = |list: &[String]| {
        let mut seen: Vec<String> = Vec::new();
        for text in list.iter().map(|text| text.trim_end_matches('/').to_owned()) {
            if !seen.contains(&text) {
                seen.push(text);
            }
        }
        seen
    };
    distinct(one) == distinct(other)
}

fn compare(
    legacy: &Legacy,
    tree: &Tree,
    in_effect: bool,
    version: Version,
) -> Result<Vec<Comparison>, String> {
    let mut hosts: Vec<String> = legacy.named_hosts().into_iter().collect();
    if legacy.mirrors.contains_key("*") {
        hosts.push(ANY_OTHER.to_owned());
    }
    // Of a host that a file of the operator's decides about, nothing changes.
    hosts.retain(|host| !in_effect || tree.hosts.contains_key(host));
    hosts
        .into_iter()
        .map(|host| {
            let (before, after) = (legacy.endpoints(&host, version)?, tree.endpoints(&host));
            let (asked, asks) = (legacy::distinct(&before), legacy::distinct(&after));
            let same = asked == asks;
            let mut why = Vec::new();
            if !same {
                let urls = |list: &[&legacy::Asked]| list.iter().map(|one| one.url()).collect::<Vec<_>>();
                why.push(if urls(&asked) == urls(&asks) {
                    "containerd 2 ignores registry.configs.*.tls; hosts.toml makes it hold again".to_owned()
                } else {
                    "the endpoints differ".to_owned()
                });
            }
            if after.len() > before.len() {
                why.push(
                    "asked once more after a miss: containerd before 1.7.32 refuses a file without [host]"
                        .to_owned(),
                );
            }
            let (before, after) = (shown(&before), shown(&after));
            Ok(Comparison { before, written: Vec::new(), after, host, same, why })
        })
        .collect()
}

#[cfg(test)]
mod tests;
