//! A tree of files as a value: read from disk, made again elsewhere, compared.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

/// Of an interrupted run.
pub const TEMPORARY: &str = ".larder-new.";

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    Folder,
    File(Vec<u8>),
    Link(String),
    /// Nothing that larder makes.
    Other,
}

/// One path. Times are nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub what: What,
    pub mode: u32,
    pub owner: (u32, u32),
    pub modified: i128,
}

impl Node {
    /// All but the time.
    pub fn is(&self, other: &Self) -> bool {
        let mode = |node: &Self| if matches!(node.what, What::Link(_)) { 0 } else { node.mode };
        self.what == other.what && mode(self) == mode(other) && self.owner == other.owner
    }

    fn shown(&self) -> String {
        let what = match &self.what {
            What::Folder => "folder".to_owned(),
            What::File(bytes) => {
                let mut hasher = DefaultHasher::new();
                bytes.hash(&mut hasher);
                format!("file of {} bytes ({:08x})", bytes.len(), hasher.finish() & 0xffff_ffff)
            }
            What::Link(target) => format!("link to {target}"),
            What::Other => "something else".to_owned(),
        };
        format!("{what} {:04o} {}:{}", self.mode, self.owner.0, self.owner.1)
    }
}

pub fn shown(node: Option<&Node>) -> String {
    node.map_or("nothing".to_owned(), Node::shown)
}

/// By path below the root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<String, Node>);

impl Tree {
    pub fn read(root: &Path) -> Self {
        let mut tree = Self::default();
        tree.add(root, root);
        tree
    }

    fn add(&mut self, base: &Path, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let what = if meta.is_symlink() {
                What::Link(fs::read_link(&path).unwrap().to_str().unwrap().to_owned())
            } else if meta.is_dir() {
                self.add(base, &path);
                What::Folder
            } else if meta.is_file() {
                What::File(fs::read(&path).unwrap())
            } else {
                What::Other
            };
            let node = Node {
                what,
                mode: meta.mode() & 0o7777,
                owner: (meta.uid(), meta.gid()),
                modified: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
            };
            self.0.insert(path.strip_prefix(base).unwrap().to_str().unwrap().to_owned(), node);
        }
    }

    /// Makes it below `root`, which is empty.
    pub fn make(&self, root: &Path) {
        for (path, node) in &self.0 {
            let path = root.join(path);
            match &node.what {
                What::Folder => fs::create_dir(&path).unwrap(),
                What::Link(target) => {
                    symlink(target, &path).unwrap();
                    lchown(&path, Some(node.owner.0), Some(node.owner.1)).unwrap();
                    let nanoseconds = u64::try_from(node.modified).unwrap();
                    let time = TimeSpec::from_duration(Duration::from_nanos(nanoseconds));
                    utimensat(AT_FDCWD, &path, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
                    continue;
                }
                What::File(bytes) => {
                    let mut file =
                        File::options().write(true).create_new(true).mode(0o600).open(&path).unwrap();
                    file.write_all(bytes).unwrap();
                    let nanoseconds = u64::try_from(node.modified).unwrap();
                    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds)).unwrap();
                }
                What::Other => panic!("{}: cannot be made", path.display()),
            }
            chown(&path, Some(node.owner.0), Some(node.owner.1)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(node.mode)).unwrap();
        }
    }

    pub fn get(&self, path: &str) -> Option<&Node> {
        self.0.get(path)
    }

    pub fn bytes(&self, path: &str) -> Option<&[u8]> {
        match &self.get(path)?.what {
            What::File(bytes) => Some(bytes),
            _ => None,
        }
    }

    pub fn without(&self, is_left_out: impl Fn(&str) -> bool) -> Self {
        let stays = |(path, _): &(&String, &Node)| !is_left_out(path);
        Self(self.0.iter().filter(stays).map(|(path, node)| (path.clone(), node.clone())).collect())
    }

    /// The same for trees on which the next run does the same: names of temporary files do not count, nor do times.
    pub fn state(&self) -> u64 {
        let mut lines: Vec<_> = self
            .0
            .iter()
            .map(|(path, node)| {
                let name = path.find(TEMPORARY).map_or(path.as_str(), |at| &path[..at + TEMPORARY.len()]);
                (name, &node.what, node.mode, node.owner)
            })
            .collect();
        lines.sort_by_key(|(name, what, ..)| (*name, format!("{what:?}")));
        let mut hasher = DefaultHasher::new();
        lines.hash(&mut hasher);
        hasher.finish()
    }
}

/// The paths that differ, each with both sides. Times are left out.
pub fn differences(wanted: &Tree, got: &Tree) -> Vec<String> {
    let paths: std::collections::BTreeSet<_> = wanted.0.keys().chain(got.0.keys()).collect();
    let differs = |path: &&&String| match (wanted.get(path), got.get(path)) {
        (Some(one), Some(other)) => !one.is(other),
        _ => true,
    };
    let line =
        |path: &String| format!("{path}: wanted {}, got {}", shown(wanted.get(path)), shown(got.get(path)));
    paths.iter().filter(differs).map(|path| line(path)).collect()
}
