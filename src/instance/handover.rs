//! How a registry gets its secrets: within its configuration, in memory that has no name, and not in its environment,
//! which every other process of its user can read.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::objects::Environment;

/// What Distribution would read a secret from; the rest of a name leads to its place in the configuration.
const SECRETS: [&str; 5] = [
    "REGISTRY_PROXY_USERNAME",
    "REGISTRY_PROXY_PASSWORD",
    "REGISTRY_STORAGE_S3_",
    "REGISTRY_STORAGE_AZURE_",
    "REGISTRY_STORAGE_GCS_",
];

/// Whether it goes into the configuration.
pub(super) fn is_secret(name: &str) -> bool {
    SECRETS
        .iter()
        .any(|secret| if secret.ends_with('_') { name.starts_with(secret) } else { name == *secret })
}

/// What of this process's environment goes into the configuration.
pub(super) fn own() -> Environment {
    let all = std::env::vars().filter(|(name, _)| is_secret(name));
    all.map(|(name, value)| (name, Zeroizing::new(value))).collect()
}

pub(super) fn pairs(environment: &[(String, Zeroizing<String>)]) -> impl Iterator<Item = (&str, &str)> {
    environment
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|(name, _)| is_secret(name))
}

/// The configuration `text` with `secrets`, each by its variable's name and with its value as YAML, in an open file
/// that whatever is started inherits. It has to stay open until then.
///
/// # Errors
/// When the configuration is none, or the kernel has no such file.
pub(super) fn with_secrets<'s>(
    text: &[u8],
    secrets: impl Iterator<Item = (&'s str, &'s str)>,
) -> Result<OwnedFd> {
    let merged = merge(text, secrets)?;
    let fd = memfd_create("registry.yml", MFdFlags::empty()).context("make a file in memory")?;
    let mut rest = merged.as_bytes();
    while !rest.is_empty() {
        let written = nix::unistd::write(&fd, rest).context("write to a file in memory")?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(fd)
}

/// Where the program that inherits it finds it.
pub(super) fn path_of(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// As JSON, which every reader of YAML takes for the same.
fn merge<'s>(text: &[u8], secrets: impl Iterator<Item = (&'s str, &'s str)>) -> Result<Zeroizing<String>> {
    // The error of a parser may show what it read.
    let mut config: Value = serde_yaml::from_slice(text).ok().context("it is no YAML")?;
    for (name, value) in secrets {
        let value: Value = serde_yaml::from_str(value).ok().with_context(|| format!("{name}: no YAML"))?;
        let mut place = &mut config;
        for step in name.trim_start_matches("REGISTRY_").to_lowercase().splitn(3, '_') {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            let Value::Object(map) = place else { continue };
            place = map.entry(step).or_insert(Value::Null);
        }
        *place = value;
    }
    Ok(Zeroizing::new(config.to_string()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn secrets_are_where_distribution_looks_for_them() {
        let text =
            "version: 0.1\nproxy:\n  remoteurl: \"https://x\"\n  ttl: 168h\nstorage:\n  s3: { bucket: b }\n";
        let secrets = [
            ("REGISTRY_PROXY_USERNAME", "\"bot\""),
            ("REGISTRY_PROXY_PASSWORD", "\"no: 22:22 #\\u0027\""),
            ("REGISTRY_STORAGE_S3_SECRETKEY", "\"0123\""),
            ("REGISTRY_STORAGE_GCS_CREDENTIALS", "{\"private_key\": \"k\"}"),
        ];
        assert!(secrets.iter().all(|(name, _)| is_secret(name)));
        assert!(!is_secret("REGISTRY_PROXY_REMOTEURL") && !is_secret("REGISTRY_STORAGE_DELETE_ENABLED"));
        let merged: Value =
            serde_json::from_str(&merge(text.as_bytes(), secrets.into_iter()).unwrap()).unwrap();
        let wanted = serde_json::json!({
            "version": 0.1,
            "proxy": { "remoteurl": "https://x", "ttl": "168h", "username": "bot", "password": "no: 22:22 #'" },
            "storage": { "s3": { "bucket": "b", "secretkey": "0123" }, "gcs": { "credentials": { "private_key": "k" } } },
        });
        assert_eq!(merged, wanted);
    }

    #[test]
    fn what_is_started_reads_it_by_its_path() {
        let fd = with_secrets(b"a: 1", [("REGISTRY_PROXY_PASSWORD", "x")].into_iter()).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let output = crate::host::command::run("cat", &[&path_of(&fd)], deadline).unwrap();
        assert_eq!(output.stdout, r#"{"a":1,"proxy":{"password":"x"}}"#);
        let mut file = std::fs::File::from(fd);
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text.len(), output.stdout.len());
    }
}
