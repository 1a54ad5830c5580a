//! What `apply` leaves for the programs that look after this node's registries: collection, scrub, refresh, watch,
//! status and the units' own steps. The profile may be gone, or another one, by the time they run.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::root::Root;

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
    pub upstreams: Vec<CacheOf>,
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
    /// The folder of its data, absolute.
    pub store: String,
    /// Bytes; `None`: its share of the whole is by need.
    pub max_size: Option<u64>,
    /// A repository that the upstream is known to have.
    pub probe: Option<String>,
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
pub fn render(max_size: Option<u64>, upstreams: &[CacheOf]) -> Result<String> {
    let context = || format!("render {CACHES}");
    let lines: Vec<String> =
        upstreams.iter().map(serde_json::to_string).collect::<Result<_, _>>().with_context(context)?;
    let max_size = serde_json::to_string(&max_size).with_context(context)?;
    let text = format!(
        "{{\"version\":{VERSION},\"max_size\":{max_size},\"upstreams\":[\n{}\n]}}\n",
        lines.join(",\n")
    );
    let back = Caches::parse(text.as_bytes()).with_context(context)?;
    ensure!(back.upstreams == upstreams, "{}: it reads back differently", context());
    Ok(text)
}
