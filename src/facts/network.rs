//! Who has the interface, what it has, and the files that say so.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::plan::network::link_of;
use crate::root::Root;

/// A program that configures links, each with its own files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// systemd-networkd (systemd.network(5)).
    Networkd,
    /// netplan(5), whichever of the two it renders for.
    Netplan,
    /// NetworkManager (nm-settings-keyfile(5)).
    NetworkManager,
    /// ifupdown (interfaces(5)).
    Ifupdown,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Networkd => "systemd-networkd",
            Self::Netplan => "netplan",
            Self::NetworkManager => "NetworkManager",
            Self::Ifupdown => "ifupdown",
        })
    }
}

/// A link whose manager has to read its files again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Link {
    pub backend: Backend,
    /// The interface's name.
    pub interface: String,
}

/// What the plan of the network depends on.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct NetworkState {
    /// The interface that the profile means, by its name here.
    pub interface: Option<String>,
    /// Its address on the link, where that is known.
    pub mac: Option<String>,
    /// It is a card's, and stays with it: a container's link has none such.
    pub has_card: bool,
    pub manager: Manager,
    /// How that is known, for the operator.
    pub evidence: String,
    /// Addresses, prefixes, routes and name servers are there for good already, by somebody else's file.
    pub already_right: bool,
    /// Addresses that are there for good, by somebody else's file, and are not the profile's.
    pub others: Vec<String>,
    pub cloud_init: bool,
    /// The other files that this manager reads, where ours has to be reconciled with them, in its own order.
    pub files: Vec<ManagerFile>,
    /// What our own file says now.
    pub current: Option<String>,
    /// The interface is not there, and files of ours are.
    pub absent: bool,
    /// A program that merges what each manager knows of name servers.
    pub resolvconf: bool,
    /// The file with the name servers is somebody's who keeps it elsewhere.
    pub resolv_conf_is_link: bool,
    /// Interfaces that could be meant, for a message.
    pub candidates: Vec<String>,
}

/// A file of the manager's that is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagerFile {
    /// Below the root.
    pub path: String,
    pub text: String,
}

/// What configures the interface.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub enum Manager {
    /// Nobody, or nobody that Larder writes for.
    #[default]
    Nobody,
    Is(Backend),
    /// networkd, with a file that sorts before ours: ours would be read and never used.
    Shadowed {
        file: String,
    },
    /// Only the running machine can tell.
    LaterAtBoot {
        reason: String,
    },
}

/// Where netplan reads; a file shadows those of the same name in the folders after it (netplan(5)).
pub const NETPLAN_FOLDERS: [&str; 3] = ["run/netplan", "etc/netplan", "lib/netplan"];
/// interfaces(5).
pub const INTERFACES: &str = "etc/network/interfaces";
pub(crate) const NETWORKD_FOLDER: &str = "etc/systemd/network";
/// `source` may nest; ifupdown itself has no bound.
const MOST_SOURCED: usize = 200;

/// The files of the manager's that ours has to be reconciled with.
///
/// # Errors
/// When one that is there cannot be read.
pub(super) fn read_files(root: &Root, backend: Backend) -> Result<Vec<ManagerFile>> {
    match backend {
        Backend::Networkd => folder(root, NETWORKD_FOLDER, ".network"),
        Backend::Netplan => netplan_files(root),
        Backend::NetworkManager => Ok(Vec::new()),
        Backend::Ifupdown => sourced(root),
    }
    .map(|files| files.into_iter().filter(|file| link_of(&file.path).is_none()).collect())
}

fn folder(root: &Root, folder: &str, end: &str) -> Result<Vec<ManagerFile>> {
    let mut files = Vec::new();
    // A link to /dev/null masks a packaged file; one that points elsewhere is none of ours to look through.
    for name in root.list(folder)?.into_iter().filter(|name| name.ends_with(end)) {
        files.extend(read_text(root, &format!("{folder}/{name}"))?);
    }
    files.sort_by(|a: &ManagerFile, b| a.path.cmp(&b.path));
    Ok(files)
}

fn read_text(root: &Root, path: &str) -> Result<Option<ManagerFile>> {
    let Some(bytes) = root.read(path)? else { return Ok(None) };
    let text =
        String::from_utf8(bytes).ok().with_context(|| format!("read {}: not UTF-8", root.show(path)))?;
    Ok(Some(ManagerFile { path: path.to_owned(), text }))
}

/// In the order of their names, wherever they are.
fn netplan_files(root: &Root) -> Result<Vec<ManagerFile>> {
    let mut by_name = BTreeMap::new();
    for place in NETPLAN_FOLDERS {
        for file in folder(root, place, ".yaml")? {
            let name = file.path.rsplit('/').next().unwrap_or_default().to_owned();
            by_name.entry(name).or_insert(file);
        }
    }
    Ok(by_name.into_values().collect())
}

/// `etc/network/interfaces` and what it sources, as ifupdown reads them.
fn sourced(root: &Root) -> Result<Vec<ManagerFile>> {
    let mut files: Vec<ManagerFile> = Vec::new();
    let mut wanted = vec![INTERFACES.to_owned()];
    while let Some(path) = wanted.pop() {
        if files.len() >= MOST_SOURCED || files.iter().any(|file| file.path == path) {
            continue;
        }
        let Some(file) = read_text(root, &path)? else { continue };
        for source in sources(&file.text) {
            let mut names = root.list(source.folder())?;
            names.sort();
            let paths = names.into_iter().filter(|name| source.takes(name));
            wanted.extend(paths.map(|name| format!("{}/{name}", source.folder())).rev());
        }
        files.push(file);
    }
    Ok(files)
}

/// Which of ifupdown's files has a stanza of the interface's.
///
/// # Errors
/// When one that is there cannot be read.
pub fn stanza(root: &Root, interface: &str) -> Result<Option<String>> {
    let is_of = |line: &str| {
        let mut words = line.split_whitespace();
        words.next() == Some("iface") && words.next() == Some(interface)
    };
    Ok(sourced(root)?.into_iter().find(|file| file.text.lines().any(is_of)).map(|file| file.path))
}

/// A `source` or `source-directory` line (interfaces(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A folder and a name with at most one `*` in it.
    Files {
        folder: String,
        name: String,
    },
    Directory {
        folder: String,
    },
}

impl Source {
    #[must_use]
    pub fn folder(&self) -> &str {
        match self {
            Self::Files { folder, .. } | Self::Directory { folder } => folder,
        }
    }

    /// Whether a file of that folder is read.
    #[must_use]
    pub fn takes(&self, file: &str) -> bool {
        match self {
            Self::Files { name, .. } => match name.split_once('*') {
                // As a shell does: no hidden file.
                Some((start, end)) => {
                    !file.starts_with('.')
                        && file.len() >= start.len() + end.len()
                        && file.starts_with(start)
                        && file.ends_with(end)
                }
                None => file == name,
            },
            // "only files with names matching ^[a-zA-Z0-9_-]+$"
            Self::Directory { .. } => {
                !file.is_empty() && file.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
            }
        }
    }
}

/// What a file of ifupdown's sources, in its order.
#[must_use]
pub fn sources(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(word), Some(path)) = (words.next(), words.next()) else { continue };
        let path = match path.strip_prefix('/') {
            Some(path) => path.trim_end_matches('/').to_owned(),
            // Relative to the file's own folder; that of those it sources is the same nearly always.
            None => format!("etc/network/{}", path.trim_end_matches('/')),
        };
        match (word, path.rsplit_once('/')) {
            ("source", Some((folder, name))) => {
                sources.push(Source::Files { folder: folder.to_owned(), name: name.to_owned() });
            }
            ("source-directory", _) => sources.push(Source::Directory { folder: path }),
            _ => {}
        }
    }
    sources
}
