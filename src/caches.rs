//! What `apply` leaves for the programs that look after this node's registries: collection, scrub, refresh, watch,
//! status and the units' own steps. The profile may be gone, or another one, by the time they run.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::node;
use crate::root::Root;
use crate::store::Layout;

/// Below the root.
pub const CACHES: &str = "etc/larder/caches.json";
const VERSION: u32 = 1;

/// The registries of this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caches {
    version: u32,
    /// Bytes that all of them together may take; `None`: no bound.
    pub max_size: Option<u64>,
    /// What all of them show: they serve https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    pub upstreams: Vec<CacheOf>,
}

/// PEM files, absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    pub certificate: String,
    pub key: String,
}

/// One registry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheOf {
    /// The registry host that it caches: the instance of all its units.
    pub host: String,
    /// Where this node itself reaches it.
    pub address: SocketAddr,
    pub remote: String,
    /// The engine's major version.
    pub major: u32,
    /// What runs it, as the units' commands spell it ([`crate::node::Engine`]).
    #[serde(default)]
    pub engine: Option<String>,
    /// The folder of its data, absolute; `None`: it is in an object store, where only the engine looks.
    pub store: Option<String>,
    /// Bytes; `None`: its share of the whole is by need.
    pub max_size: Option<u64>,
    /// A repository that the upstream is known to have.
    pub probe: Option<String>,
    /// Who knows the credentials for it: `docker-credential-NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_helper: Option<String>,
    /// The restart timer restarts it however well it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restart_always: bool,
    /// Bytes of memory above which it is slowed down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_high: Option<u64>,
    /// The file of the certificates that are trusted for this upstream besides the system's; absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

impl CacheOf {
    /// Its store.
    ///
    /// # Errors
    /// When its data is in no folder of this machine.
    pub fn layout(&self) -> Result<Layout> {
        let store = self.store.as_deref();
        let store = store.with_context(|| {
            format!("{}: its data is in an object store, whose own rules bound and check it", self.host)
        })?;
        Ok(Layout::new(store))
    }
}

impl Caches {
    /// Absent where this node is no cache.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(root: &Root) -> Result<Option<Self>> {
        let Some(bytes) = root.read(CACHES)? else { return Ok(None) };
        Self::parse(&bytes)
            .map(Some)
            .with_context(|| format!("read {}: run `larder apply`", root.show(CACHES)))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let caches: Self = serde_json::from_slice(bytes)?;
        ensure!(caches.version == VERSION, "version {} is of a later larder", caches.version);
        Ok(caches)
    }

    /// Whether the data is on this machine.
    #[must_use]
    pub fn in_folders(&self) -> bool {
        self.upstreams.iter().all(|cache| cache.store.is_some())
    }

    /// The registry of one upstream.
    #[must_use]
    pub fn of(&self, host: &str) -> Option<&CacheOf> {
        self.upstreams.iter().find(|cache| cache.host == host)
    }
}

/// The text of [`CACHES`]: a line for each registry, so that a difference shows what it concerns.
///
/// # Errors
/// When it does not read back as what was written.
pub fn render(max_size: Option<u64>, tls: Option<&node::Tls>, upstreams: &[CacheOf]) -> Result<String> {
    let context = || format!("render {CACHES}");
    let lines: Vec<String> =
        upstreams.iter().map(serde_json::to_string).collect::<Result<_, _>>().with_context(context)?;
    let max_size = serde_json::to_string(&max_size).with_context(context)?;
    let tls = match tls {
        None => String::new(),
        Some(tls) => {
            let tls = Tls { certificate: tls.certificate.to_string(), key: tls.key.to_string() };
            format!("\"tls\":{},", serde_json::to_string(&tls).with_context(context)?)
        }
    };
    let text = format!(
        "{{\"version\":{VERSION},\"max_size\":{max_size},{tls}\"upstreams\":[\n{}\n]}}\n",
        lines.join(",\n")
    );
    let back = Caches::parse(text.as_bytes()).with_context(context)?;
    ensure!(back.upstreams == upstreams, "{}: it reads back differently", context());
    Ok(text)
}
