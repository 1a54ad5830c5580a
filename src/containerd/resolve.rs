//! Which endpoints one version of containerd asks for an image of one registry host, in order, and what stands
//! in the way.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

use super::Version;
use super::config::{Effective, Note, Origin, Pull};
use crate::root::Root;
use url::Url;

mod legacy;
mod lookup;
pub mod read;
pub mod url;

pub use legacy::legacy;
use lookup::Resolver;

/// Where people put them.
const CERTS_D: &str = "etc/containerd/certs.d";

/// What an endpoint may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Capability {
    Pull,
    Resolve,
    Push,
    /// 2.2 and later.
    Referrers,
}

impl Capability {
    /// All that this containerd knows.
    #[must_use]
    pub fn all(version: Version) -> Vec<Self> {
        let mut all = vec![Self::Pull, Self::Resolve, Self::Push];
        if version >= Version::new(2, 2, 0) {
            all.push(Self::Referrers);
        }
        all
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Resolve => "resolve",
            Self::Push => "push",
            Self::Referrers => "referrers",
        }
    }
}

/// One endpoint as written.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    pub url: Url,
    pub capabilities: Vec<Capability>,
    /// As written; `Some` of nothing also counts as TLS being configured.
    pub ca: Option<Vec<String>>,
    pub client: Vec<(String, Option<String>)>,
    pub skip_verify: Option<bool>,
    /// Names only: values may be secrets.
    pub headers: Vec<String>,
    pub override_path: bool,
    pub dial_timeout: Option<String>,
    pub origin: Option<Origin>,
    /// Where each of its keys stands.
    pub places: BTreeMap<&'static str, Origin>,
}

impl Entry {
    fn place(&self, key: &str) -> Option<&Origin> {
        self.places.get(key).or(self.origin.as_ref())
    }
}

/// What an endpoint is to the registry host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Mirror,
    /// `server`.
    Server,
    /// The registry host itself, where nothing says otherwise.
    Upstream,
}

/// One endpoint as it is asked.
#[derive(Debug, Clone, Serialize)]
pub struct Asked {
    /// `/v2` included, where it is asked.
    pub url: String,
    /// Plain http where no TLS answers.
    pub then_http: bool,
    pub role: Role,
    pub capabilities: Vec<Capability>,
    /// What is sent as `?ns=`.
    pub namespace: Option<String>,
    pub ca: Vec<String>,
    pub client: Vec<(String, Option<String>)>,
    pub skip_verify: bool,
    /// Names only.
    pub headers: Vec<String>,
    pub override_path: bool,
    pub dial_timeout: Option<String>,
    /// Where it is written; nowhere for the host itself.
    pub origin: Option<Origin>,
}

impl Asked {
    /// Whether it is asked what a tag means. Its blobs are asked for whatever it says.
    #[must_use]
    pub fn resolves(&self) -> bool {
        [Capability::Pull, Capability::Resolve].iter().all(|one| self.capabilities.contains(one))
    }
}

/// The whole answer for one registry host.
#[derive(Debug, Default)]
pub struct Resolution {
    /// What made containerd look there; `None` where it is built in.
    pub decided_by: Option<Origin>,
    /// Below the root.
    pub directory: Option<String>,
    /// The hosts.toml that is in effect, below the root.
    pub file: Option<String>,
    /// In order. Each step of a pull starts at the first again.
    pub endpoints: Vec<Asked>,
    /// Every pull fails, and no endpoint is asked.
    pub fails: Option<Note>,
    /// What is not as it seems.
    pub traps: Vec<Note>,
    /// Without effect on this containerd.
    pub ignored: Vec<Note>,
}

/// Resolves one registry host, with its port where it has one.
///
/// # Errors
/// When a file that is there cannot be read.
pub fn endpoints(effective: &Effective, root: &Root, host: &str) -> Result<Resolution> {
    let mut resolver = Resolver {
        effective,
        root,
        host,
        found: Resolution { decided_by: effective.config_path.origin.clone(), ..Resolution::default() },
    };
    if effective.directories().is_empty() {
        match (&effective.pull, legacy(effective, host)) {
            (Pull::Transfer, _) => resolver.finish(vec![Entry::default()])?,
            (Pull::Local(_), Ok((endpoints, decided_by))) => {
                resolver.found.endpoints = endpoints;
                resolver.found.decided_by = decided_by.or(resolver.found.decided_by);
                resolver.check_legacy_tls()?;
            }
            (Pull::Local(_), Err(note)) => resolver.found.fails = Some(note),
        }
        resolver.unread(&[]);
    } else {
        resolver.look_up()?;
    }
    if resolver.found.fails.is_some() {
        resolver.found.endpoints.clear();
    }
    Ok(resolver.found)
}

#[cfg(test)]
mod tests;
