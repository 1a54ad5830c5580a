//! What one version of containerd takes from its `config.toml` and from what that imports: the rules of
//! `LoadConfig` and of the CRI plugin's own checks, version by version.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use indexmap::IndexMap;

use super::Version;
pub use super::document::Origin;
use crate::root::{Root, folder_of};
use load::Loader;

mod load;
mod registry;
mod shape;

/// The main file.
pub const MAIN: &str = "etc/containerd/config.toml";
/// What containerd 2.2 and later look for where nothing is set.
pub const DOCKER_TOO: &str = "/etc/containerd/certs.d:/etc/docker/certs.d";

/// CRI's section in files without a version and of version 1, of version 2, and of 3 and later.
const V1: &str = "cri";
const V2: &str = "io.containerd.grpc.v1.cri";
const V3: &str = "io.containerd.cri.v1.images";
const SECTIONS: [&str; 3] = [V1, V2, V3];
const RUNTIME: &str = "io.containerd.cri.v1.runtime";
const TRANSFER: &str = "io.containerd.transfer.v1.local";

/// containerd's configuration as this version of it sees it.
#[derive(Debug)]
pub struct Effective {
    pub version: Version,
    /// `None`: containerd runs with what it was built with.
    pub main: Option<SourceFile>,
    /// The main file, then the imported ones, in the order in which they are merged.
    pub files: Vec<SourceFile>,
    /// The main file's `version`; `None` where it says nothing.
    pub header: Option<i64>,
    /// The CRI section that decides.
    pub section: &'static str,
    pub config_path: Setting<String>,
    /// In no order that containerd knows: by namespace.
    pub mirrors: IndexMap<String, Setting<Vec<String>>>,
    pub configs: IndexMap<String, HostConfig>,
    /// The keys of `registry.auths`.
    pub auths: IndexMap<String, Origin>,
    /// The names of `registry.headers`; values may be secrets.
    pub headers: IndexMap<String, Origin>,
    pub pull: Pull,
    /// containerd would not start.
    pub fatal: Vec<Note>,
    /// containerd starts, and no kubelet can pull.
    pub cri_down: Vec<Note>,
    /// Set, but without effect.
    pub ignored: Vec<Note>,
}

/// One file that was read.
pub struct SourceFile {
    /// Below the root.
    pub path: String,
    pub text: String,
    /// Its own `version`.
    pub version: Option<i64>,
}

impl std::fmt::Debug for SourceFile {
    /// The text may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceFile").field("path", &self.path).field("version", &self.version).finish()
    }
}

/// A value and who set it; no origin where it is built in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<T> {
    pub value: T,
    pub origin: Option<Origin>,
}

/// `registry.configs.HOST`.
#[derive(Debug, Default)]
pub struct HostConfig {
    /// containerd 1 only.
    pub tls: Option<Setting<Tls>>,
    pub auth: Option<Setting<()>>,
}

/// `registry.configs.HOST.tls`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tls {
    pub ca_file: String,
    pub cert_file: String,
    pub key_file: String,
    pub insecure_skip_verify: bool,
}

/// Who pulls for CRI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pull {
    /// CRI itself, for the reason given. It splits `config_path` at colons.
    Local(Option<Note>),
    /// The transfer service, which takes `config_path` for one directory.
    Transfer,
}

/// A line for the operator, with its place.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Note {
    #[serde(flatten)]
    pub origin: Origin,
    pub text: String,
}

impl Note {
    pub fn new(origin: &Origin, text: impl Into<String>) -> Self {
        Self { origin: origin.clone(), text: text.into() }
    }
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.origin, self.text)
    }
}

/// Where the files are.
pub trait Files {
    /// # Errors
    /// When it is there and cannot be read.
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>>;
    fn exists(&self, path: &str) -> bool;
    /// The names in a folder, sorted.
    ///
    /// # Errors
    /// When it is there and cannot be listed.
    fn list(&self, folder: &str) -> Result<Vec<String>>;
}

impl Files for Root {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        Self::read(self, path)
    }

    fn exists(&self, path: &str) -> bool {
        Self::exists(self, path)
    }

    fn list(&self, folder: &str) -> Result<Vec<String>> {
        Self::list(self, folder)
    }
}

/// A machine's files with some that are not written yet.
pub struct Planned<'p> {
    pub root: &'p Root,
    /// Below the root.
    pub files: BTreeMap<&'p str, &'p [u8]>,
}

impl Files for Planned<'_> {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        match self.files.get(path) {
            Some(bytes) => Ok(Some(bytes.to_vec())),
            None => self.root.read(path),
        }
    }

    fn exists(&self, path: &str) -> bool {
        let below = |file: &&str| file.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
        self.files.contains_key(path) || self.files.keys().any(below) || self.root.exists(path)
    }

    fn list(&self, folder: &str) -> Result<Vec<String>> {
        let planned = self.files.keys().filter(|path| folder_of(path) == folder);
        let planned = planned.filter_map(|path| Some(path.rsplit('/').next()?.to_owned()));
        let names: BTreeSet<String> = self.root.list(folder)?.into_iter().chain(planned).collect();
        Ok(names.into_iter().collect())
    }
}

impl Effective {
    /// Reads what containerd of this version would read.
    ///
    /// # Errors
    /// When a file that is there cannot be read. What containerd would refuse is no error: it is a note.
    pub fn read(root: &dyn Files, version: Version) -> Result<Self> {
        let mut loader = Loader::new(version);
        loader.load(root)?;
        Ok(loader.finish())
    }

    /// The directories in which this containerd looks for `HOST/hosts.toml`, as it spells them; none where the
    /// legacy settings decide.
    #[must_use]
    pub fn directories(&self) -> Vec<&str> {
        let path = self.config_path.value.as_str();
        match (&self.pull, path) {
            (_, "") => Vec::new(),
            (Pull::Local(_), path) => path.split(':').collect(),
            (Pull::Transfer, path) => vec![path],
        }
    }

    /// Whether an image can be pulled at all.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.fatal.is_empty() && self.cri_down.is_empty()
    }
}

#[cfg(test)]
mod tests;
