//! `larder watch`: takes caches that do not answer out of containerd's `hosts.toml` files, and puts them back. On a
//! cache it also restarts registries that are stuck ([`guard`]).
//!
//! `larder-watch.timer` sees to it that there is a round every three seconds. A round begins with what is on disk:
//! it asks each cache the cheap question, works out who is out ([`step`]), and makes the files say so; while all
//! is well it writes nothing. What it needs of the
//! profile, `apply` leaves in [`CONFIG`]. It may be killed between any two steps: what is out is written down
//! before the first file is touched, each round compares every file with what it has to be, and the manifest
//! knows new bytes as ours before they are there.
//!
//! What it cannot see: a cache that answers `/v2/` and stalls in the middle of a blob, or fails blobs only. The
//! latter costs nothing, containerd asks the next endpoint at once; nothing but containerd itself can notice
//! the former.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

pub mod ask;
pub mod guard;
pub mod step;
pub mod wedge;

use crate::containerd::hosts::{HEADER, Hosts};
use crate::journal::{Manifest, digest, keep_aside};
use crate::plan;
use crate::root::{Access, Entry, Root, folder_of};
use ask::Question;
use step::{Change, Group, Memory, Now};

/// What `apply` leaves for the rounds.
pub const CONFIG: &str = "etc/larder/watch.json";
/// What the rounds remember; a boot forgets it.
pub const FOLDER: &str = "run/larder/watch";
const STATE: &str = "run/larder/watch/state.json";
/// Writing a file takes no longer.
const ABANDONED: Duration = Duration::from_secs(60);
const VERSION: u32 = 1;

/// The files that are watched over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watched {
    version: u32,
    pub files: Vec<WatchedFile>,
}

/// One `hosts.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchedFile {
    /// The registry host that it is for.
    pub host: String,
    /// Below the root.
    pub path: String,
    /// Whether the registry itself may be asked.
    pub fallback: bool,
    /// The endpoints that are asked; the others always stay.
    pub caches: Vec<String>,
    /// With nothing out.
    pub hosts: Hosts,
}

impl Watched {
    /// Absent where nothing is to be watched.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(root: &Root) -> Result<Option<Self>> {
        let Some(bytes) = root.read(CONFIG)? else { return Ok(None) };
        Self::parse(&bytes)
            .map(Some)
            .with_context(|| format!("read {}: run `larder apply`", root.show(CONFIG)))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let watched: Self = serde_json::from_slice(bytes)?;
        anyhow::ensure!(watched.version == VERSION, "version {} is of a later larder", watched.version);
        Ok(watched)
    }

    fn groups(&self) -> Vec<Group<'_>> {
        let group = |file: &'_ WatchedFile| {
            let others = file.hosts.hosts.iter().any(|endpoint| !file.caches.contains(&endpoint.url));
            !file.fallback && !others
        };
        self.files.iter().map(|file| Group { caches: &file.caches, keep_one: group(file) }).collect()
    }
}

/// The configuration that has these [`WatchedFile::line`]s.
#[must_use]
pub fn config(lines: &[String]) -> String {
    format!("{{\"version\":{VERSION},\"files\":[\n{}\n]}}\n", lines.join(",\n"))
}

impl WatchedFile {
    /// Its line in [`CONFIG`]: a difference shows what it concerns.
    ///
    /// # Errors
    /// When it does not read back as what was written.
    pub fn line(&self) -> Result<String> {
        let context = || format!("render {} of {CONFIG}", self.host);
        let line = serde_json::to_string(self).with_context(context)?;
        let back: Self = serde_json::from_str(&line).with_context(context)?;
        anyhow::ensure!(back == *self, "{}: it reads back differently", context());
        Ok(line)
    }

    /// The text of the file while `out` are out: the only place where it is made, for `apply` and for us.
    ///
    /// # Errors
    /// As [`Hosts::render`].
    pub fn text(&self, out: &BTreeSet<String>) -> Result<String> {
        let hosts = self.hosts.without(out, self.fallback);
        let text = hosts.render(&format!("hosts.toml of {}", self.host))?;
        let left: Vec<&str> = self
            .hosts
            .hosts
            .iter()
            .map(|endpoint| endpoint.url.as_str())
            .filter(|url| hosts.hosts.iter().all(|endpoint| endpoint.url != *url))
            .collect();
        match text.strip_prefix(HEADER) {
            Some(body) if !left.is_empty() => Ok(format!(
                "{HEADER}# Left out while `larder watch` gets no answer there: {}\n{body}",
                left.join(" ")
            )),
            _ => Ok(text),
        }
    }

    #[must_use]
    pub fn mode(&self) -> u32 {
        if self.hosts.is_secret() { 0o600 } else { 0o644 }
    }
}

/// The rounds' memory as it is on disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// A round is at work, or died.
    writing: bool,
    memory: Memory,
}

fn read_state(root: &Root) -> Result<Option<State>> {
    // What cannot be read is as good as none: it is worked out anew.
    Ok(root.read(STATE)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

fn write_state(root: &Root, state: &State) -> Result<()> {
    root.make_directories(FOLDER, Access::root(0o755))?;
    // Of a round that died. The guard writes here too, and waits for nobody.
    root.sweep_older(FOLDER, ABANDONED)?;
    let bytes = serde_json::to_vec(state).context("render the state")?;
    root.write(STATE, &bytes, Access::root(0o644))
}

/// What is known of the endpoints that have not always answered.
///
/// # Errors
/// When what is there cannot be read.
pub fn memory(root: &Root) -> Result<Memory> {
    Ok(read_state(root)?.unwrap_or_default().memory)
}

/// Forgets everything, where nothing is watched any more.
///
/// # Errors
/// On I/O errors.
pub fn forget(root: &Root) -> Result<()> {
    if root.exists(FOLDER) { root.remove_tree(FOLDER) } else { Ok(()) }
}

/// One thing that a round did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub url: String,
    /// The registry host that it is an endpoint of.
    pub host: String,
    pub change: Change,
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { url, host, change } = self;
        match change {
            Change::Out { why } => write!(f, "{host}: {url} is out, containerd no longer asks it: {why}"),
            Change::Kept { why } => {
                write!(f, "{host}: {url} does not answer, but stays in: it is the last one: {why}")
            }
            Change::Back { milliseconds } => {
                let seconds = Duration::from_secs(milliseconds / 1000);
                write!(f, "{host}: {url} is back after {}", humantime::format_duration(seconds))
            }
        }
    }
}

/// How a round ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Round {
    /// Nothing is watched here.
    Idle,
    /// `apply`, or another round, is at work: the next one looks again.
    Skipped,
    Done(Vec<Event>),
}

/// Asks everyone once and makes the files say who answers.
///
/// # Errors
/// When a file cannot be read or written; the next round tries again.
pub fn round(root: &Root) -> Result<Round> {
    let Some(bytes) = root.read(CONFIG)? else { return Ok(Round::Idle) };
    let watched =
        Watched::parse(&bytes).with_context(|| format!("read {}: run `larder apply`", root.show(CONFIG)))?;
    let state = read_state(root)?;
    let before = state.clone().unwrap_or_default().memory;
    let questions: BTreeMap<&str, Question> = watched
        .files
        .iter()
        .flat_map(|file| &file.caches)
        .map(|url| {
            let patient = before.endpoints.get(url).is_none_or(|health| !health.out && health.why.is_none());
            (url.as_str(), Question { url, patient })
        })
        .collect();
    let answers = ask::ask(&questions.into_values().collect::<Vec<_>>());
    let (memory, changes) = before.step(&watched.groups(), &answers, now()?);

    let differing = without_kept(root, differing(root, &watched, &memory.out())?)?;
    let settled = state.as_ref().is_some_and(|state| !state.writing);
    if settled && memory == before && differing.is_empty() {
        return Ok(Round::Done(Vec::new()));
    }
    let mut busy = false;
    let lock = root.lock(plan::STATE, || {
        busy = true;
        false
    });
    if busy {
        return Ok(Round::Skipped);
    }
    let _lock = lock?;
    if root.read(CONFIG)?.as_ref() != Some(&bytes) || read_state(root)? != state {
        return Ok(Round::Skipped);
    }
    if settled && differing.is_empty() {
        write_state(root, &State { writing: false, memory })?;
    } else {
        write_state(root, &State { writing: true, memory: memory.clone() })?;
        write(root, &watched, differing)?;
        write_state(root, &State { writing: false, memory })?;
    }
    let of = |url: &String| watched.files.iter().find(|file| file.caches.contains(url));
    let event = |(url, change): (String, Change)| {
        let host = of(&url).map(|file| file.host.clone()).unwrap_or_default();
        Event { url, host, change }
    };
    Ok(Round::Done(changes.into_iter().map(event).collect()))
}

fn now() -> Result<Now> {
    let since_boot = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).context("read the clock")?);
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Now {
        since_boot: u64::try_from(since_boot.as_millis()).unwrap_or(u64::MAX),
        since_1970: since_1970.as_secs(),
    })
}

/// A file that does not say what it has to.
struct Differing<'w> {
    file: &'w WatchedFile,
    now: Vec<u8>,
    wanted: String,
}

/// One that is not there at all was taken away by somebody: that is for `apply`.
fn differing<'w>(root: &Root, watched: &'w Watched, out: &BTreeSet<String>) -> Result<Vec<Differing<'w>>> {
    let mut differing = Vec::new();
    for file in &watched.files {
        let wanted = file.text(out)?;
        if let Some(now) = root.read(&file.path)?
            && now != wanted.as_bytes()
        {
            differing.push(Differing { file, now, wanted });
        }
    }
    Ok(differing)
}

/// What the operator keeps is for nobody else to write.
fn without_kept<'w>(root: &Root, mut differing: Vec<Differing<'w>>) -> Result<Vec<Differing<'w>>> {
    if !differing.is_empty() {
        let manifest = Manifest::read(root)?;
        let kept = |path: &str| manifest.entries.get(path).is_some_and(|owned| owned.left_alone);
        differing.retain(|one| !kept(&one.file.path));
    }
    Ok(differing)
}

/// Replaces those of the files that are ours: the manifest first, then all of them at once.
fn write(root: &Root, watched: &Watched, differing: Vec<Differing>) -> Result<()> {
    let folders: BTreeSet<&str> = watched.files.iter().map(|file| folder_of(&file.path)).collect();
    root.sweep(plan::STATE)?;
    folders.iter().try_for_each(|folder| root.sweep(folder))?;
    let mut manifest = Manifest::read(root)?;
    let mut staged = Vec::new();
    for Differing { file, now, wanted } in differing {
        let entry = root.entry(&file.path)?;
        let is_same = matches!(&entry, Entry::File { bytes, .. } if *bytes == now);
        if !is_same || !manifest.wrote(&file.path, &entry) {
            continue;
        }
        staged.push(root.stage(&file.path, wanted.as_bytes(), Access::root(file.mode()))?);
        let unfinished = manifest.unfinished.is_some();
        let Some(owned) = manifest.entries.get_mut(&file.path) else { continue };
        if owned.found {
            owned.kept = keep_aside(root, &file.path, "")?;
            owned.found = false;
        }
        let (now, wanted) = (digest(&now), digest(wanted.as_bytes()));
        owned.wrote.retain(|one| *one != now && *one != wanted && unfinished);
        owned.wrote.extend([now, wanted]);
    }
    if staged.is_empty() {
        return Ok(());
    }
    root.sync(&staged)?;
    manifest.write(root)?;
    staged.into_iter().try_for_each(|one| root.commit(one))?;
    root.sync_folders(&folders)
}
