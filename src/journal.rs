//! What Larder owns on this machine, and what an interrupted run left to do.
//!
//! One file, written whole before the first change and again after the last: whoever dies in between leaves
//! a manifest that knows both the old and the new bytes as ours, and the units that are still to be woken.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write as _};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::diff::Wanted;
use crate::plan::STATE;
use crate::root::{Access, Entry, Root, folder_of};
use crate::wake::Wakes;

const MANIFEST: &str = "var/lib/larder/state/manifest.json";
/// What was in our way, each at its own path below.
pub const KEPT: &str = "var/lib/larder/state/kept";
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
    pub fn new(kind: Kind) -> Self {
        Self { kind, wrote: Vec::new(), kept: None, found: false, access: None, left_alone: false }
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
        Self { version: VERSION, entries: BTreeMap::new(), unfinished: None }
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

/// Makes the folders that the manifest lives in, for root alone: what is kept aside may hold secrets.
///
/// # Errors
/// On I/O errors.
pub fn make_state_folder(root: &Root) -> Result<()> {
    root.make_directories(folder_of(STATE), Access::root(0o755))?;
    root.make_directories(STATE, Access::root(0o700))
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

/// Copies what is at `path` below the state folder, where nothing reads it, and returns the copy's path.
/// `suffix` tells copies of one path apart; a copy with the same bytes is used again.
///
/// # Errors
/// On I/O errors.
pub fn keep_aside(root: &Root, path: &str, suffix: &str) -> Result<Option<String>> {
    let entry = root.entry(path)?;
    let base = format!("{KEPT}/{path}{suffix}");
    root.make_directories(folder_of(&base), Access::root(0o700))?;
    for n in 0_u32.. {
        let copy = if n == 0 { base.clone() } else { format!("{base}.{n}") };
        match (root.entry(&copy)?, &entry) {
            (_, Entry::Absent | Entry::Directory { .. } | Entry::Other) => return Ok(None),
            (there, wanted) if there == *wanted => return Ok(Some(copy)),
            (Entry::Absent, Entry::File { bytes, access }) => {
                root.write(&copy, bytes, *access)?;
                return Ok(Some(copy));
            }
            (Entry::Absent, Entry::Link { target }) => {
                root.link(&copy, target)?;
                root.sync_folder(&copy)?;
                return Ok(Some(copy));
            }
            _ => {}
        }
    }
    Ok(None)
}

/// Makes what is at `path` what it was.
///
/// # Errors
/// On I/O errors.
pub fn put_back(root: &Root, path: &str, before: &Entry) -> Result<()> {
    if root.entry(path)? == *before {
        return Ok(());
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
