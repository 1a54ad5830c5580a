//! How the registries face the outside: https, the networks that may ask, and what is told to Prometheus.

use anyhow::Result;

use super::registry::enable;
use super::{Content, Plan, UNIT_FOLDER};
use crate::certificate::Certificate;
use crate::facts::Facts;
use crate::node::{Access, Cache, Listen, Node};
use crate::template::{AccessDropIn, AccessTable, Metrics, TlsDropIn, TlsPath, render};

/// The table of [`Access::Networks`].
pub const ACCESS: &str = "etc/larder/access.nft";
/// Where the static unit writes.
const STATIC_TEXTFILE: &str = "/var/lib/prometheus/node-exporter";

/// Whether a unit of the static ones is needed.
pub(super) fn needs(unit: &str, node: &Node, facts: &Facts) -> bool {
    let cache = node.cache.as_ref();
    if unit.starts_with("larder-access.") {
        return cache.is_some_and(|cache| cache.access != Access::Open);
    }
    if unit.starts_with("larder-tls.") {
        return cache.is_some_and(|cache| cache.tls.is_some());
    }
    facts.textfile.is_some()
}

pub(super) fn plan(node: &Node, facts: &Facts, plan: &mut Plan, refused: &mut Vec<String>) -> Result<()> {
    if let Some(cache) = &node.cache {
        tls(node, cache, facts, plan, refused)?;
        access(node, cache, facts, plan)?;
    }
    let Some(textfile) = &facts.textfile else { return Ok(()) };
    enable(plan, facts, "timers.target", "larder-metrics.timer", "larder-metrics.timer");
    if textfile != STATIC_TEXTFILE {
        let text = render("the metrics drop-in", &Metrics { textfile })?;
        let path = format!("{UNIT_FOLDER}/larder-metrics.service.d/50-textfile.conf");
        plan.file(path, text, 0o644, Content::Ours);
    }
    Ok(())
}

fn tls(node: &Node, cache: &Cache, facts: &Facts, plan: &mut Plan, refused: &mut Vec<String>) -> Result<()> {
    let Some(tls) = &cache.tls else { return Ok(()) };
    let (certificate, key) = (tls.certificate.as_str(), tls.key.as_str());
    let path = format!("{UNIT_FOLDER}/larder-registry@.service.d/50-tls.conf");
    // Absence is a problem that the facts have told already.
    if let Some(read) = &facts.certificate {
        name(node, cache, read, certificate, &path, plan, refused);
    }
    plan.file(path, render("the TLS drop-in", &TlsDropIn { certificate, key })?, 0o644, Content::Ours);
    let path = format!("{UNIT_FOLDER}/larder-tls.path.d/50-larder.conf");
    plan.file(path, render("the path drop-in", &TlsPath { certificate, key })?, 0o644, Content::Ours);
    enable(plan, facts, "multi-user.target", "larder-tls.path", "larder-tls.path");
    enable(plan, facts, "timers.target", "larder-tls.timer", "larder-tls.timer");
    Ok(())
}

/// Whether the certificate is for the address at which the registries are asked.
fn name(
    node: &Node,
    cache: &Cache,
    read: &Certificate,
    certificate: &str,
    path: &str,
    plan: &mut Plan,
    refused: &mut Vec<String>,
) {
    let asks_itself = node.containerd.as_ref().is_some_and(|client| client.caches.is_empty());
    let address = match cache.listen {
        Listen::Address(ip) => ip.to_string(),
        Listen::Any if asks_itself => "127.0.0.1".to_owned(),
        Listen::Any => return,
    };
    if read.names(&address) {
        return;
    }
    if asks_itself {
        refused.push(format!(
            "cache.tls: {certificate} is not for {address}, where this node's containerd asks: have that address \
             put in it, or write the cache's name under `containerd.caches`, as `https://cache.example.com`"
        ));
    } else {
        plan.warnings.push((
            path.to_owned(),
            format!(
                "cache.tls: {certificate} is not for {address}: clients have to ask by a name that is in it \
                 (`containerd.caches: [https://cache.example.com]`)"
            ),
        ));
    }
}

fn access(node: &Node, cache: &Cache, facts: &Facts, plan: &mut Plan) -> Result<()> {
    let Access::Networks(networks) = &cache.access else { return Ok(()) };
    let ports: Vec<String> = node.upstreams.iter().map(|upstream| upstream.port.get().to_string()).collect();
    if ports.is_empty() {
        return Ok(());
    }
    let rule = |network: &ipnetwork::IpNetwork| {
        let family = if network.is_ipv4() { "ip" } else { "ip6" };
        format!("{family} saddr {}/{}", network.network(), network.prefix())
    };
    let table = AccessTable { ports: ports.join(", "), networks: networks.iter().map(rule).collect() };
    plan.file(ACCESS.to_owned(), render("the table of networks", &table)?, 0o644, Content::Ours);
    let path = format!("{UNIT_FOLDER}/larder-registry@.service.d/50-access.conf");
    plan.file(path, render("the access drop-in", &AccessDropIn)?, 0o644, Content::Ours);
    for target in ["multi-user.target", "nftables.service"] {
        enable(plan, facts, target, "larder-access.service", "larder-access.service");
    }
    Ok(())
}
