//! Node × Facts → Plan: every file, folder and link that shall be there, rendered whole. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;

use crate::facts::{Facts, Link};
use crate::node::{Cache, Listen, Node, Upstream};

pub mod containerd;
pub mod face;
pub mod migration;
pub mod network;
pub mod registry;
pub mod timers;

/// Where Larder keeps its manifest and what it set aside.
pub const STATE: &str = "var/lib/larder/state";
/// Units of the operator and of programs that run on the machine.
pub const UNIT_FOLDER: &str = "etc/systemd/system";
/// One registry config per upstream.
pub const REGISTRY_FOLDER: &str = "etc/larder/registry";

/// The desired state below the root.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// By path; a parent comes before what is in it.
    pub resources: BTreeMap<String, Resource>,
    /// Whether registries run here, so that their user must be there.
    pub needs_user: bool,
    /// What of it the operator keeps as it is: planned, and no part of what is done.
    pub left_alone: BTreeMap<String, Resource>,
    /// What a careful colleague would say when a path changes, by that path.
    pub warnings: Vec<(String, String)>,
    /// What only the running machine can do.
    pub left: Vec<String>,
    /// Not all that there shall be: the rest stays as it is.
    pub part: bool,
    /// What is written is the operator's from then on: the manifest does not record it.
    pub handed_over: bool,
    /// The link that is configured here, by whom.
    pub link: Option<Link>,
    /// Units that shall not run, whoever started them.
    pub stop: BTreeSet<String>,
    /// The folder that containerd shall read, absolute.
    pub certs_dir: Option<String>,
}

/// One thing that shall be there.
#[derive(Debug, Clone, PartialEq)]
pub enum Resource {
    Directory { mode: u32, owner: User, purpose: Purpose },
    File { bytes: Vec<u8>, mode: u32, content: Content },
    Link { target: String },
}

/// An owner by role; ids are the machine's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    Root,
    Registry,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Taken away when empty and no longer wanted.
    Settings,
    /// Taken away only when the operator says so.
    Data,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Ours,
    /// Never shown.
    Secret,
    /// The same, for the registries' own user.
    Login,
    /// Somebody else's file with some settings of ours in it.
    Edited,
    /// The same, with a secret among them: for its owner alone.
    EditedSecret,
}

impl Content {
    /// Whether the file stays somebody else's.
    #[must_use]
    pub fn is_edit(self) -> bool {
        matches!(self, Self::Edited | Self::EditedSecret)
    }
}

/// Why a plan cannot be made; the run ends with exit code 2 and nothing touched.
#[derive(Debug)]
pub struct Refused(pub Vec<String>);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\nerror: "))
    }
}

impl std::error::Error for Refused {}

impl Plan {
    fn folder(&mut self, path: &str) {
        self.directory(path, 0o755, User::Root, Purpose::Settings);
    }

    /// A directory with every parent that a bare machine may lack.
    fn directory(&mut self, path: &str, mode: u32, owner: User, purpose: Purpose) {
        for parent in path.match_indices('/').filter_map(|(end, _)| path.get(..end)) {
            self.resources.entry(parent.to_owned()).or_insert(Resource::Directory {
                mode: 0o755,
                owner: User::Root,
                purpose: Purpose::Settings,
            });
        }
        self.resources.insert(path.to_owned(), Resource::Directory { mode, owner, purpose });
    }

    /// Where a file or link goes, unless it has a folder of a certain kind already.
    fn folder_for(&mut self, path: &str) {
        if let Some((folder, _)) = path.rsplit_once('/')
            && !self.resources.contains_key(folder)
        {
            self.folder(folder);
        }
    }

    fn file(&mut self, path: String, bytes: impl Into<Vec<u8>>, mode: u32, content: Content) {
        self.folder_for(&path);
        let mut bytes = bytes.into();
        // What a text has grown to is up to twice what it holds, and with a thousand upstreams all are in memory.
        bytes.shrink_to_fit();
        self.resources.insert(path, Resource::File { bytes, mode, content });
    }

    /// Takes out what the operator keeps: nobody writes it, wakes anything for it or starts a unit by it.
    pub fn leave_alone<'a>(&mut self, paths: impl Iterator<Item = &'a str>) {
        for path in paths {
            self.left_alone.extend(self.resources.remove_entry(path));
        }
    }

    fn link(&mut self, path: String, target: impl Into<String>) {
        self.folder_for(&path);
        self.resources.insert(path, Resource::Link { target: target.into() });
    }
}

/// Renders everything that `node` asks for on the machine that `facts` describe.
///
/// # Errors
/// [`Refused`] with every reason at once, and rendering errors.
pub fn plan(node: &Node, facts: &Facts) -> Result<Plan> {
    let mut plan = Plan::default();
    let mut refused = facts.problems.clone();
    if let Some(network) = &node.network {
        network::plan(network, &facts.network, &mut plan, &mut refused)?;
    }
    if let Some(cache) = &node.cache {
        registry::plan(node, cache, facts, &mut plan, &mut refused)?;
    }
    timers::plan(node, facts, &mut plan)?;
    face::plan(node, facts, &mut plan, &mut refused)?;
    if let Some(client) = &node.containerd {
        containerd::plan(node, client, facts, &mut plan, &mut refused)?;
    }
    if refused.is_empty() { Ok(plan) } else { Err(Refused(refused).into()) }
}

/// The part of [`plan`] that has to be written before the network is up.
///
/// # Errors
/// As [`plan`].
pub fn network_only(node: &Node, facts: &Facts) -> Result<Plan> {
    let mut plan = Plan { part: true, ..Plan::default() };
    let mut refused = Vec::new();
    if let Some(network) = &node.network {
        network::plan(network, &facts.network, &mut plan, &mut refused)?;
    }
    if refused.is_empty() { Ok(plan) } else { Err(Refused(refused).into()) }
}

/// Where this node's own registry for `upstream` listens; an unspecified address for "everywhere".
#[must_use]
pub fn listen_address(cache: &Cache, upstream: &Upstream) -> SocketAddr {
    let ip = match cache.listen {
        Listen::Any => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Listen::Address(ip) => ip,
    };
    SocketAddr::new(ip, upstream.port.get())
}

/// The URL of that registry on this node itself.
#[must_use]
pub fn local_url(cache: &Cache, upstream: &Upstream) -> String {
    let scheme = if cache.tls.is_some() { "https" } else { "http" };
    format!("{scheme}://{}", local_address(cache, upstream))
}

/// Where this node itself reaches that registry.
#[must_use]
pub fn local_address(cache: &Cache, upstream: &Upstream) -> SocketAddr {
    let mut address = listen_address(cache, upstream);
    if address.ip().is_unspecified() {
        address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    address
}
