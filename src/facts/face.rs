//! What the machine has for the registries' outside: the certificate, the packet filter, the folder for metrics.

use std::time::SystemTime;

use anyhow::Result;
use zeroize::Zeroizing;

use super::{Facts, find_program};
use crate::certificate::Certificate;
use crate::node::{Access, Cache, Node, Tls};
use crate::root::{Entry, Root};

/// Where packages of node_exporter look for files: Debian's, and the one that its own documentation uses.
const TEXTFILES: [&str; 2] = ["var/lib/prometheus/node-exporter", "var/lib/node_exporter/textfile_collector"];

pub(super) fn read(root: &Root, cache: &Cache, facts: &mut Facts) -> Result<()> {
    if let Some(tls) = &cache.tls {
        read_certificate(root, tls, facts)?;
    }
    if cache.access != Access::Open && find_program(root, "nft").is_none() {
        facts.problems.push(
            "cache.access: there is no nft program here: install nftables, or write `access: open` and let \
             another firewall decide"
                .to_owned(),
        );
    }
    Ok(())
}

fn read_certificate(root: &Root, tls: &Tls, facts: &mut Facts) -> Result<()> {
    let below = |path: &str| path.trim_start_matches('/').to_owned();
    let (certificate, key) = (below(tls.certificate.as_str()), below(tls.key.as_str()));
    let pem = root.read(&certificate)?;
    let secret = root.read(&key)?.map(Zeroizing::new);
    for (name, path, is_there) in
        [("certificate", &certificate, pem.is_some()), ("key", &key, secret.is_some())]
    {
        if !is_there {
            facts.problems.push(format!("cache.tls.{name}: {} is not there", root.show(path)));
        }
    }
    let (Some(pem), Some(secret)) = (pem, secret) else { return Ok(()) };
    let read = match Certificate::parse(&pem) {
        Ok(read) => read,
        Err(error) => {
            facts.problems.push(format!("cache.tls.certificate: {}: {error:#}", root.show(&certificate)));
            return Ok(());
        }
    };
    if let Err(error) = read.fits(&secret) {
        facts.problems.push(format!("cache.tls.key: {}: {error:#}", root.show(&key)));
    }
    let now = SystemTime::now();
    let at = |time| humantime::format_rfc3339_seconds(time);
    if now >= read.not_after {
        facts.problems.push(format!(
            "cache.tls.certificate: {} was good until {}: renew it",
            root.show(&certificate),
            at(read.not_after)
        ));
    }
    if now < read.not_before {
        facts.problems.push(format!(
            "cache.tls.certificate: {} is not good before {}: is the clock right?",
            root.show(&certificate),
            at(read.not_before)
        ));
    }
    facts.certificate = Some(read);
    Ok(())
}

pub(super) fn read_textfile(root: &Root, node: &Node, facts: &mut Facts) -> Result<()> {
    let is_folder = |path: &str| Ok::<_, anyhow::Error>(matches!(root.entry(path)?, Entry::Directory { .. }));
    if let Some(path) = node.cache.as_ref().and_then(|cache| cache.metrics.textfile.as_ref()) {
        if is_folder(path.as_str().trim_start_matches('/'))? {
            facts.textfile = Some(path.to_string());
        } else {
            facts.problems.push(format!(
                "cache.metrics.textfile: {path} is no folder here: install node_exporter, or make it"
            ));
        }
        return Ok(());
    }
    if node.cache.is_none() && !node.asks_caches() {
        return Ok(());
    }
    for path in TEXTFILES {
        if is_folder(path)? {
            facts.textfile = Some(format!("/{path}"));
            return Ok(());
        }
    }
    Ok(())
}
