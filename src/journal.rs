//! What Larder owns on this machine, and what an interrupted run left to do or to undo.
//!
//! One file, written whole before the first change and again after the last: whoever dies in between leaves
//! a manifest that knows both the old and the new bytes as ours, the units that are still to be woken, and how
//! everything was before. The next run finishes that, or `recover` undoes it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Write as _};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::account::Account;
use crate::diff::Wanted;
use crate::guard::Record;
use crate::host::Runtime;
use crate::plan::STATE;
use crate::root::{Access, Entry, Owner, Root, folder_of, is_temporary};
use crate::wake::Wakes;

pub const MANIFEST: &str = "var/lib/larder/state/manifest.json";
/// What was in our way, each at its own path below.
pub const KEPT: &str = "var/lib/larder/state/kept";
/// How the paths were that the run at work changes, by number.
pub const UNDO: &str = "var/lib/larder/state/undo";
/// Of a file of ours that somebody changed, in the folder of what is kept.
pub const EDITED_BY_HAND: &str = ".edited-by-hand";
/// Of a configuration that was migrated, there too.
pub const BEFORE_MIGRATION: &str = ".before-migration";
const VERSION: u32 = 1;

/// The paths that are ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub version: u32,
    pub entries: BTreeMap<String, Owned>,
    /// Not empty only while a run is at work, or after one that died.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<Wakes>,
    /// How everything was before the run that is at work, or that died.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<Journal>,
    /// The registries' user, where we made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<Account>,
    /// Files that programs of ours have written beside all this, to go with `larder remove`, which has begun.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub leavings: BTreeSet<String>,
}

/// One path of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owned {
    pub kind: Kind,
    /// Digests of the bytes, or the targets of the link, that we wrote; two while a run is at work.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wrote: Vec<String>,
    /// Where the bytes are that were there before us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
    /// The file was there before us with the very same bytes: it stays when we go.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub found: bool,
    /// The mode and the owner of a folder that was there before us, where we had to change them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<Ids>,
    /// What we gave it, where that is not others' to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Wanted>,
    /// The operator's own for good: nothing here touches it, nor takes it away.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left_alone: bool,
}

impl Owned {
    /// A path of which nothing more is known.
    #[must_use]
    pub fn new(kind: Kind, wrote: Vec<String>) -> Self {
        Self { kind, wrote, kept: None, found: false, was: None, access: None, left_alone: false }
    }
}

/// An [`Access`] in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ids {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl From<Access> for Ids {
    fn from(access: Access) -> Self {
        let (uid, gid) = match access.owner {
            Owner::Root => (0, 0),
            Owner::Id { uid, gid } => (uid, gid),
        };
        Self { mode: access.mode, uid, gid }
    }
}

impl From<Ids> for Access {
    fn from(ids: Ids) -> Self {
        let owner = match (ids.uid, ids.gid) {
            (0, 0) => Owner::Root,
            (uid, gid) => Owner::Id { uid, gid },
        };
        Self { mode: ids.mode, owner }
    }
}

/// What takes the machine back to where it was before a run, whoever is there to do it. A run that goes on where one
/// died goes on with its journal, too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    /// Every path that may change.
    pub before: BTreeMap<String, Before>,
    /// What the manifest said of paths of which it says something else now.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub owned: BTreeMap<String, Option<Owned>>,
    /// Digests of what is written and is not ours afterwards.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub wrote: BTreeMap<String, String>,
    /// Of migrations alone: one that comes to its end leaves nothing of the others to be done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub migration: bool,
    /// What was left to do already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<Wakes>,
    /// Everything that may be woken.
    pub wakes: Wakes,
    /// What of it may have been.
    #[serde(default, skip_serializing_if = "Wakes::is_empty")]
    pub begun: Wakes,
    /// Of the units to be stopped, those that ran.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub stopped: BTreeSet<String>,
    /// Where the network changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Record>,
    /// How well containerd was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
}

/// What was at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Before {
    Absent,
    File {
        /// Where it is now.
        kept: String,
        access: Ids,
    },
    Link {
        kept: String,
        target: String,
    },
    Directory(Ids),
}

impl Journal {
    /// Adds a path, unless it is in already: how it was first is how it was. Durable with [`Journal::sync`].
    ///
    /// # Errors
    /// On I/O errors.
    pub fn keep(&mut self, root: &Root, path: &str, entry: &Entry) -> Result<()> {
        if self.before.contains_key(path) {
            return Ok(());
        }
        let before = match entry {
            Entry::Absent => Before::Absent,
            Entry::Directory { access } => Before::Directory((*access).into()),
            Entry::File { access, .. } => {
                Before::File { kept: self.copy(root, path)?, access: (*access).into() }
            }
            Entry::Link { target } => Before::Link { kept: self.copy(root, path)?, target: target.clone() },
            // Nothing of ours ever takes its place.
            Entry::Other => return Ok(()),
        };
        self.before.insert(path.to_owned(), before);
        Ok(())
    }

    fn copy(&self, root: &Root, path: &str) -> Result<String> {
        // Numbers only grow: each path is added once.
        let kept = format!("{UNDO}/{}", self.before.len());
        let there = root.keep(path, &kept)?;
        ensure!(there, "keep {}: it is gone since it was read", root.show(path));
        Ok(kept)
    }

    /// Makes the folder of what is kept. It is there while a run is at work, and after one that died: `larder.service`
    /// starts for it.
    ///
    /// # Errors
    /// On I/O errors.
    pub fn open(root: &Root) -> Result<()> {
        root.make_directories(UNDO, Access::root(0o700))
    }

    /// # Errors
    /// On I/O errors.
    pub fn sync(&self, root: &Root) -> Result<()> {
        root.sync_folders(&BTreeSet::from([UNDO]))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Directory,
    Data,
    File,
    /// Somebody else's file with one setting of ours.
    Edited,
    Link,
}

impl Default for Manifest {
    fn default() -> Self {
        Self {
            version: VERSION,
            entries: BTreeMap::new(),
            unfinished: None,
            journal: None,
            account: None,
            leavings: BTreeSet::new(),
        }
    }
}

impl Manifest {
    /// Reads the machine's manifest; an untouched machine has an empty one.
    ///
    /// # Errors
    /// When it cannot be read or is of a later version.
    pub fn read(root: &Root) -> Result<Self> {
        let Some(bytes) = root.read(MANIFEST)? else { return Ok(Self::default()) };
        let context = || format!("read {}", root.show(MANIFEST));
        let manifest: Self = serde_json::from_slice(&bytes).with_context(context)?;
        ensure!(
            manifest.version == VERSION,
            "{}: version {} is of a later larder: use that one",
            context(),
            manifest.version
        );
        Ok(manifest)
    }

    /// # Errors
    /// On I/O errors; the old manifest is still there then.
    pub fn write(&self, root: &Root) -> Result<()> {
        // Not as one text: with a thousand upstreams that would be the largest thing in memory.
        root.write_with(MANIFEST, Access::root(0o600), |file| {
            let mut buffer = BufWriter::new(file);
            serde_json::to_writer(&mut buffer, self)?;
            buffer.flush()
        })
    }

    /// The bytes that were at `path` before our first edit, while what is there now is what we made of them:
    /// the next edit starts from them, so that a setting that leaves the profile leaves the file. `None` in
    /// all other cases; `Some(None)` where nothing was there.
    ///
    /// # Errors
    /// When the kept copy cannot be read.
    #[allow(clippy::option_option, reason = "nothing known is not nothing there")]
    pub fn original(&self, root: &Root, path: &str) -> Result<Option<Option<Vec<u8>>>> {
        let Some(owned) = self.entries.get(path).filter(|owned| owned.kind == Kind::Edited && !owned.found)
        else {
            return Ok(None);
        };
        if !self.wrote(path, &root.entry(path)?) {
            return Ok(None);
        }
        match &owned.kept {
            None => Ok(Some(None)),
            Some(kept) => Ok(root.read(kept)?.map(Some)),
        }
    }

    /// Whether a folder is above data that stays, or above this manifest.
    #[must_use]
    pub fn holds_data(&self, path: &str) -> bool {
        let below = format!("{path}/");
        let mut entries =
            self.entries.range(below.clone()..).take_while(|(path, _)| path.starts_with(&below));
        is_above_state(path) || entries.any(|(_, owned)| owned.kind == Kind::Data)
    }

    /// Whether what is at `path` is what we wrote there.
    #[must_use]
    pub fn wrote(&self, path: &str, entry: &Entry) -> bool {
        let Some(owned) = self.entries.get(path) else { return false };
        match entry {
            Entry::File { bytes, .. } => owned.wrote.contains(&digest(bytes)),
            Entry::Link { target } => owned.wrote.contains(target),
            Entry::Directory { .. } => matches!(owned.kind, Kind::Directory | Kind::Data),
            Entry::Absent | Entry::Other => false,
        }
    }
}

/// Whether the manifest is below this folder.
#[must_use]
pub fn is_above_state(path: &str) -> bool {
    STATE.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'))
}

/// Makes the folders that the manifest lives in, for root alone: what is kept aside may hold secrets. Those above it
/// that were not there are ours, and named.
///
/// # Errors
/// On I/O errors.
pub fn make_state_folder(root: &Root) -> Result<Vec<MadeFolder>> {
    let above = folder_of(STATE);
    let ends = above.match_indices('/').map(|(at, _)| at).chain([above.len()]);
    let mut before = Vec::new();
    for folder in ends.filter_map(|end| above.get(..end)) {
        before.push((folder, root.entry(folder)?));
    }
    root.make_directories(above, Access::root(0o755))?;
    root.make_directories(STATE, Access::root(0o700))?;
    let mut made = Vec::new();
    for (folder, before) in before {
        let was = match before {
            Entry::Absent => None,
            Entry::Directory { access } if root.entry(folder)? != before => Some(access.into()),
            _ => continue,
        };
        made.push(MadeFolder { path: folder.to_owned(), was });
    }
    Ok(made)
}

/// A folder above the manifest that was not there, or was not open.
#[derive(Debug)]
pub struct MadeFolder {
    pub path: String,
    was: Option<Ids>,
}

impl MadeFolder {
    #[must_use]
    pub fn owned(&self) -> Owned {
        Owned { was: self.was, found: self.was.is_some(), ..Owned::new(Kind::Directory, Vec::new()) }
    }
}

/// Notes that folders are ours. Under the lock: another run may be at work.
///
/// # Errors
/// On I/O errors.
pub fn own_folders(root: &Root, made: &[MadeFolder]) -> Result<()> {
    if made.is_empty() {
        return Ok(());
    }
    let mut manifest = Manifest::read(root)?;
    for folder in made {
        manifest.entries.entry(folder.path.clone()).or_insert_with(|| folder.owned());
    }
    manifest.write(root)
}

/// A digest as the manifest writes it.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold(String::from("sha256:"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Keeps what is at `path` below the state folder, where nothing reads it, and returns where. `suffix` tells several
/// of one path apart. An original (no suffix) is kept as what it is, so that it can be given back; of the others one
/// with the same bytes is enough.
///
/// # Errors
/// On I/O errors.
pub fn keep_aside(root: &Root, path: &str, suffix: &str) -> Result<Option<String>> {
    let entry = root.entry(path)?;
    if !matches!(entry, Entry::File { .. } | Entry::Link { .. }) {
        return Ok(None);
    }
    let base = format!("{KEPT}/{path}{suffix}");
    root.make_directories(folder_of(&base), Access::root(0o700))?;
    for n in 0_u32.. {
        let copy = if n == 0 { base.clone() } else { format!("{base}.{n}") };
        let there = root.entry(&copy)?;
        if root.is_same(path, &copy)? || (there == entry && !suffix.is_empty()) {
            return Ok(Some(copy));
        }
        if there == Entry::Absent {
            root.keep(path, &copy)?;
            root.sync_folder(&copy)?;
            return Ok(Some(copy));
        }
    }
    Ok(None)
}

/// Lets go of what is kept and is back where it was: one of two names would be left.
///
/// # Errors
/// On I/O errors.
pub fn tidy(root: &Root, manifest: &Manifest) -> Result<()> {
    let owned: BTreeSet<&str> = manifest.entries.values().filter_map(|owned| owned.kept.as_deref()).collect();
    for copy in root.files_below(KEPT)? {
        if is_temporary(&copy) {
            root.remove(&copy)?;
            continue;
        }
        if owned.contains(copy.as_str()) {
            continue;
        }
        if let Some(path) = copied_from(&copy)
            && root.is_same(&copy, path)?
        {
            root.remove(&copy)?;
        }
    }
    root.remove_empty_tree(KEPT)
}

/// Where what is kept there was.
#[must_use]
pub fn copied_from(copy: &str) -> Option<&str> {
    let path = copy.strip_prefix(KEPT)?.strip_prefix('/')?;
    let number = path.rsplit_once('.').filter(|(_, number)| number.bytes().all(|b| b.is_ascii_digit()));
    let path = number.map_or(path, |(path, _)| path);
    // After this the name says when.
    let edited = path.rsplit_once(EDITED_BY_HAND).map(|(path, _)| path);
    Some(edited.or_else(|| path.strip_suffix(BEFORE_MIGRATION)).unwrap_or(path))
}

/// Makes what is at `path` what it was.
///
/// # Errors
/// On I/O errors.
pub fn put_back(root: &Root, path: &str, before: &Entry, journal: Option<&Journal>) -> Result<()> {
    if root.entry(path)? == *before {
        return Ok(());
    }
    // The very file, where it is kept.
    if let Some(Before::File { kept, .. } | Before::Link { kept, .. }) =
        journal.and_then(|journal| journal.before.get(path))
        && root.entry(kept)? == *before
    {
        root.keep(kept, path)?;
        return root.sync_folder(path);
    }
    match before {
        Entry::Absent => match root.entry(path)? {
            Entry::Directory { .. } => root.remove_empty_directory(path),
            _ => root.remove(path),
        },
        Entry::File { bytes, access } => root.write(path, bytes, *access),
        Entry::Link { target } => {
            root.link(path, target)?;
            root.sync_folder(path)
        }
        Entry::Directory { access } => {
            if root.entry(path)? == Entry::Absent {
                root.make_directory(path, *access)?;
                root.sync_folder(path)
            } else {
                root.set_access(path, *access)
            }
        }
        Entry::Other => Ok(()),
    }
}
