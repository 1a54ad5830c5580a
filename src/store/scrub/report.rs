//! What a scrub says, and what it remembers.

use serde::{Deserialize, Serialize};

use crate::root::Root;
use crate::store::Layout;

const VERSION: u32 = 1;

/// What one run saw.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Went on with a pass that had been ended.
    pub resumed: bool,
    /// The pass is at its end.
    pub complete: bool,
    pub blobs: u64,
    pub bytes: u64,
    pub links: u64,
    pub broken: Vec<Broken>,
}

impl Report {
    /// What is broken and still there.
    #[must_use]
    pub fn left(&self) -> usize {
        self.broken.iter().filter(|broken| !broken.removed).count()
    }
}

/// Something that was not what its name says.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    pub kind: Kind,
    /// A blob's or layer's digest, or a tag.
    pub name: String,
    /// `None` for a blob: it belongs to whoever asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    pub why: Why,
    pub removed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Blob,
    Layer,
    Revision,
    Tag,
    Manifest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// Nothing is in it.
    Empty,
    /// Its contents have another digest.
    Digest,
    /// It names no digest, or the wrong one.
    Link,
    /// It is no manifest, though its digest is right.
    Manifest,
    /// The disk does not give it back.
    Unreadable,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            Kind::Blob => "blob",
            Kind::Layer => "link of layer",
            Kind::Revision => "link of manifest",
            Kind::Tag => "link of tag",
            Kind::Manifest => "manifest",
        };
        let why = match self.why {
            Why::Empty => "empty",
            Why::Digest => "has another digest",
            Why::Link => "does not name what it has to",
            Why::Manifest => "is no manifest",
            Why::Unreadable => "cannot be read",
        };
        write!(f, "{kind} {}", self.name)?;
        if let Some(repository) = &self.repository {
            write!(f, " of {repository}")?;
        }
        write!(f, ": {why}, {}", if self.removed { "removed" } else { "still there" })
    }
}

/// `scrub.json`: where an unfinished pass goes on, and what the last whole one saw.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    pub(super) version: u32,
    pub(super) pass: Option<Pass>,
    pub last: Option<Ended>,
}

/// A pass that is under way: first the links of each repository, then the blobs, in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Pass {
    /// Seconds since 1970.
    pub(super) began: u64,
    /// The last one whose links are all looked at.
    pub(super) repository: Option<String>,
    pub(super) links_done: bool,
    /// The last one that is looked at.
    pub(super) blob: Option<String>,
    pub(super) sum: Sum,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sum {
    pub blobs: u64,
    pub bytes: u64,
    pub links: u64,
    pub broken: u64,
    pub removed: u64,
}

/// A pass over the whole store; times are seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ended {
    pub began: u64,
    pub ended: u64,
    #[serde(flatten)]
    pub sum: Sum,
}

impl State {
    /// A file that cannot be read is as good as none.
    #[must_use]
    pub fn read(root: &Root, layout: &Layout) -> Self {
        let bytes = root.read(&layout.scrub()).ok().flatten().unwrap_or_default();
        serde_json::from_slice(&bytes).ok().filter(|state: &Self| state.version == VERSION).unwrap_or(Self {
            version: VERSION,
            pass: None,
            last: None,
        })
    }
}
