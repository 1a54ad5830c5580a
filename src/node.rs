//! The validated model: what this node shall be. A [`Node`] cannot be built wrong; everything in it is a
//! type that can only be made from valid text.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use zeroize::Zeroizing;

pub use crate::containerd::hosts::Capability;

mod build;
mod check;
mod choices;
mod client;
mod engine;
mod face;
mod form;
mod mirror;
mod storage;
mod text;
mod upstream;
mod values;
pub use build::schema;
pub use client::remote_of;
pub use engine::{ContainerRuntime, Engine, ImageSource};
pub use storage::{Driver, ObjectStore};
pub use text::*;

/// What a profile asks of one machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// In the profile's order; hosts and ports are each unique.
    pub upstreams: Vec<Upstream>,
    /// Absent: the address stays as it is.
    pub network: Option<Network>,
    /// Present: this node runs one registry per upstream.
    pub cache: Option<Cache>,
    /// Present: this node's containerd pulls through the caches.
    pub containerd: Option<Containerd>,
    pub verify: Verify,
}

impl Node {
    /// Whether there is something for `larder watch` to look after.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.cache.is_some() || self.asks_caches()
    }

    /// Whether this node's containerd pulls through caches.
    #[must_use]
    pub fn asks_caches(&self) -> bool {
        self.containerd.as_ref().is_some_and(|client| !client.caches.is_empty() || self.cache.is_some())
    }
}

/// One upstream registry and the port every cache of the fleet serves it on.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    pub host: UpstreamHost,
    pub port: Port,
    pub remote: RemoteUrl,
    pub credentials: Option<Credentials>,
    /// Trusted for this upstream only, besides what the system trusts.
    pub ca: Option<Trust>,
    /// What the verification asks the upstream for; `None` where no public repository is known.
    pub probe: Option<Repository>,
    /// Already resolved against `cache.gc`.
    pub gc: Schedule,
    /// Already resolved against `cache.scrub`.
    pub scrub: Schedule,
    /// Already resolved against `cache.restart`.
    pub restart: Schedule,
    /// Also where it is small and well. Already resolved against `cache.restart`.
    pub restart_always: bool,
    /// Who knows the credentials, where the profile does not.
    pub credential_helper: Option<HelperName>,
    /// Bytes on disk that its data may take.
    pub max_size: Option<Size>,
}

/// For the cache's own pulls.
#[derive(Debug, Clone, PartialEq)]
pub struct Credentials {
    pub username: String,
    pub password: SecretSource,
}

/// Where a secret's bytes are; the bytes are read only when files are rendered.
#[derive(Clone, PartialEq)]
pub enum SecretSource {
    /// Written in the profile itself.
    Literal(Zeroizing<String>),
    /// Absolute path; one trailing newline is not part of the secret.
    File(PathBuf),
    /// A systemd credential.
    Credential(String),
    /// An environment variable of `larder apply`.
    Env(String),
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(_) => f.write_str("Literal(hidden)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Credential(name) => f.debug_tuple("Credential").field(name).finish(),
            Self::Env(name) => f.debug_tuple("Env").field(name).finish(),
        }
    }
}

/// When a timer elapses.
#[derive(Debug, Clone, PartialEq)]
pub enum Schedule {
    Never,
    /// `hourly`, `daily`, `weekly`, `monthly`: the instant within the period is ours to choose.
    Every(Period),
    /// Written for this one upstream: taken to the letter.
    At(Calendar),
    /// Written for all upstreams of the node: systemd delays each by its own fixed share of an hour.
    AllAt(Calendar),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    Hourly,
    Daily,
    Weekly,
    Monthly,
}

/// The static address, in netplan's words.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    pub interface: InterfaceMatch,
    /// At least one; each with its prefix length; host parts are kept.
    pub addresses: Vec<IpNetwork>,
    pub routes: Vec<Route>,
    pub nameservers: Vec<IpAddr>,
    pub search: Vec<DomainName>,
    pub mtu: Option<Mtu>,
    pub renderer: Renderer,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterfaceMatch {
    /// The one with the default route, else the only physical one.
    Auto,
    Name(InterfaceName),
    Mac(MacAddress),
}

/// `to` is `None` for the default route of `via`'s family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub to: Option<IpNetwork>,
    pub via: IpAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renderer {
    Auto,
    Networkd,
    Netplan,
    NetworkManager,
    Ifupdown,
}

/// This node as a cache.
#[derive(Debug, Clone, PartialEq)]
pub struct Cache {
    pub listen: Listen,
    pub engine: Engine,
    /// Absolute; each upstream has a folder of its name in it.
    pub storage: AbsolutePath,
    /// Bytes on disk that all upstreams together may take.
    pub max_size: Option<Size>,
    /// Present: the data is there, and nothing of it in `storage`.
    pub objects: Option<ObjectStore>,
    /// Of each registry.
    pub memory: Memory,
    /// Present: https.
    pub tls: Option<Tls>,
    pub metrics: Metrics,
    pub access: Access,
}

/// What the registries show their clients: PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// With the chain that leads to its authority.
    pub certificate: AbsolutePath,
    pub key: AbsolutePath,
}

/// What the node tells Prometheus.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metrics {
    /// The folder of node_exporter's textfile collector; `None`: the one that is found.
    pub textfile: Option<AbsolutePath>,
    /// Distribution's own metrics: a loopback address, and the first registry's port.
    pub registries: Option<SocketAddr>,
}

/// Who may ask the registries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Whoever reaches them.
    Open,
    /// These, and the node itself; each is there once, without host bits.
    Networks(Vec<IpNetwork>),
}

/// Bounds on the memory of one registry; `high` is at most `max`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    pub high: Option<Size>,
    pub max: Option<Size>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// Every address of the node.
    Any,
    Address(IpAddr),
}

/// This node's containerd as a client.
#[derive(Debug, Clone, PartialEq)]
pub struct Containerd {
    /// Caches in the order in which they are written; empty: this node itself.
    pub caches: Vec<CacheHost>,
    pub order: Order,
    /// Whether the upstream itself is asked last.
    pub fallback: bool,
    pub certs_dir: AbsolutePath,
    /// More endpoints, after the caches; each host is there once, with one at least.
    pub mirrors: Vec<(MirrorHost, Vec<Mirror>)>,
    pub max_concurrent_downloads: Option<u32>,
    pub image_pull_progress_timeout: Option<Duration>,
    /// For this node's own pulls, by registry host.
    pub auth: Vec<(UpstreamHost, Credentials)>,
}

/// In which order caches are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As they are written.
    Listed,
    /// Each node has a fixed one of its own, another for each upstream.
    Spread,
}

/// One endpoint and what goes with it. What does not go together is not in it: TLS settings on `http`, for
/// one.
#[derive(Debug, Clone, PartialEq)]
pub struct Mirror {
    pub url: RemoteUrl,
    pub override_path: bool,
    /// `pull` or `resolve` is among them.
    pub capabilities: Vec<Capability>,
    pub ca: Option<Trust>,
    /// A certificate and its key.
    pub client: Option<(AbsolutePath, AbsolutePath)>,
    pub skip_verify: bool,
    pub headers: Vec<(HeaderName, SecretSource)>,
    pub dial_timeout: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verify {
    /// For all checks together.
    pub timeout: Duration,
    pub upstreams: UpstreamPolicy,
}

/// What an unreachable upstream means for the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamPolicy {
    Warn,
    Require,
}

#[cfg(test)]
mod tests;
