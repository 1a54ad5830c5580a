//! The collector of a store that is no folder.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use nix::unistd::geteuid;
use zeroize::Zeroizing;

use crate::caches::Caches;
use crate::host::command;
use crate::node::UpstreamHost;
use crate::plan::REGISTRY_FOLDER;
use crate::root::Root;

/// What Distribution's 2.x says of a store in which there is nothing yet.
const NOTHING_YET: &str = "Path not found: /docker/registry/v2/repositories";

/// Variables by name.
pub type Environment = Vec<(String, Zeroizing<String>)>;

/// The [`environment`] of each registry that `is_meant`, of this machine.
///
/// # Errors
/// When a file that is there cannot be read.
pub fn environments(
    elsewhere: Option<&Path>,
    is_meant: impl Fn(&UpstreamHost) -> bool,
) -> Result<BTreeMap<UpstreamHost, Environment>> {
    let mut all = BTreeMap::new();
    if elsewhere.is_some() {
        return Ok(all);
    }
    let root = Root::open(Path::new("/"))?;
    for cache in Caches::read(&root)?.iter().flat_map(|caches| &caches.upstreams) {
        let host = UpstreamHost::parse(&cache.host).map_err(anyhow::Error::msg)?;
        if cache.store.is_none() && is_meant(&host) {
            let environment = environment(&root, &host)?;
            all.insert(host, environment);
        }
    }
    Ok(all)
}

/// What the registry's unit hands it, secrets among it: the collector's unit gets the same, and by hand, as root, it
/// is read where the units read it.
///
/// # Errors
/// When the file is there and cannot be read.
fn environment(root: &Root, host: &UpstreamHost) -> Result<Environment> {
    let wanted =
        |name: &str| ["REGISTRY_", "SSL_CERT_", "AWS_", "AZURE_"].iter().any(|start| name.starts_with(start));
    let own = std::env::vars().filter(|(name, _)| wanted(name));
    let mut all: Vec<_> = own.map(|(name, value)| (name, Zeroizing::new(value))).collect();
    if geteuid().is_root()
        && let Some(bytes) = root.read(&format!("{REGISTRY_FOLDER}/{host}.env"))?
    {
        let bytes = Zeroizing::new(bytes);
        let text = Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
        all.extend(text.lines().filter_map(variable));
    }
    Ok(all)
}

/// A line as [`crate::template::registry_env`] writes it.
fn variable(line: &str) -> Option<(String, Zeroizing<String>)> {
    let (name, value) = line.split_once("='")?;
    Some((name.to_owned(), Zeroizing::new(value.strip_suffix('\'')?.to_owned())))
}

/// Whether a collector only found that there is nothing to collect.
pub(super) fn is_empty(error: &command::Error) -> bool {
    matches!(error, command::Error::Failed { said, .. } if said.contains(NOTHING_YET))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::{Json, registry_env};

    #[test]
    fn what_was_written_for_the_unit_is_read_back() {
        let secret = "it's #1: \"quoted\"";
        let text = registry_env(&[("REGISTRY_STORAGE_S3_SECRETKEY", Json::Text(secret))]);
        let all: Vec<_> = text.lines().filter_map(variable).collect();
        assert_eq!(all.len(), 1);
        assert_eq!(all.first().unwrap().0, "REGISTRY_STORAGE_S3_SECRETKEY");
        assert_eq!(serde_yaml::from_str::<String>(&all.first().unwrap().1).unwrap(), secret);
    }
}
