//! containerd as a client of the caches: one `hosts.toml` per registry host, and what `config.toml` has to say.

use std::collections::BTreeSet;

use anyhow::Result;

use super::{Content, Plan, UNIT_FOLDER};
use crate::facts::{CONTAINERD_CONFIG, Facts};
use crate::node::{Containerd, Node, Order, Trust};
use crate::template::{CertsDir, render};
use crate::watch::{self, WatchedFile};

pub mod config;
mod endpoints;
mod settings;
pub use endpoints::{all, hosts};

/// Where the units look for the files (`units/larder-watch.service`).
const STATIC_CERTS_DIR: &str = "/etc/containerd/certs.d";

pub(super) fn plan(
    node: &Node,
    client: &Containerd,
    facts: &Facts,
    plan: &mut Plan,
    refused: &mut Vec<String>,
) -> Result<()> {
    let installed = &facts.containerd;
    let certs_dir = client.certs_dir.as_str();
    plan.certs_dir = Some(certs_dir.to_owned());
    match settings::settings(node, client, installed) {
        Ok(settings) => {
            if let Some((path, text, mode, content)) = settings.file {
                let about = |warning| (path.clone(), warning);
                plan.warnings.extend(settings.warnings.into_iter().map(about));
                plan.file(path, text, mode, content);
            }
        }
        Err(reasons) => refused.extend(reasons),
    }
    if installed.major.is_none() {
        plan.warnings.push((
            CONTAINERD_CONFIG.to_owned(),
            "containerd is not installed: its configuration is written for the day it is".to_owned(),
        ));
    }
    plan.folder(certs_dir.trim_start_matches('/'));
    let mut ipv6 = BTreeSet::new();
    let mut watched = Watch::default();
    for (host, hosts) in all(node, client, installed, &BTreeSet::new()) {
        let path = format!("{}/{host}/hosts.toml", certs_dir.trim_start_matches('/'));
        let upstream = node.upstreams.iter().find(|upstream| upstream.host.as_str() == host);
        let caches = upstream.map(|upstream| endpoints::caches(node, client, upstream, installed));
        let caches = caches.into_iter().flatten().map(|cache| cache.url).collect();
        let file = WatchedFile { host, path, fallback: client.fallback, caches, hosts };
        let content = if file.hosts.is_secret() { Content::Secret } else { Content::Ours };
        plan.file(file.path.clone(), file.text(&facts.out)?, file.mode(), content);
        ipv6.extend(file.hosts.hosts.iter().map(|host| host.url.clone()).filter(|url| url.contains('[')));
        if !file.caches.is_empty() {
            watched.is_secret |= file.hosts.is_secret();
            watched.lines.push(file.line()?);
        }
    }
    watched.plan(certs_dir, plan)?;
    if !installed.version().takes_ipv6_hosts() {
        let who = match installed.version {
            Some(version) => format!("containerd {version}"),
            None => "no containerd is installed here, and one before 2.0".to_owned(),
        };
        refused.extend(ipv6.into_iter().map(|url| {
            format!(
                "{url}: {who} cannot read an IPv6 address in a hosts.toml, and would ignore the whole file: write \
                 a name that leads to it"
            )
        }));
    }
    for (host, mirrors) in &client.mirrors {
        for (mirror, number) in mirrors.iter().zip(1..) {
            if let Some(trust @ Trust::Pem(text)) = &mirror.ca {
                let path = endpoints::trust_path(client, host, trust, number);
                plan.file(path.trim_start_matches('/').to_owned(), text.as_str(), 0o644, Content::Ours);
            }
            if mirror.dial_timeout.is_some() && !endpoints::dials(installed.version(), mirror) {
                plan.warnings.push((
                    format!("{}/{host}/hosts.toml", certs_dir.trim_start_matches('/')),
                    format!(
                        "containerd.mirrors.{host}: containerd {} has no `dial_timeout` for {}: it waits 30s",
                        installed.version(),
                        mirror.url
                    ),
                ));
            }
        }
    }
    if client.order == Order::Spread && client.caches.len() > 1 && installed.machine_id.is_none() {
        plan.left.push(
            "the order of the caches is this machine's own, by its machine-id: until then they are as listed"
                .to_owned(),
        );
    }
    Ok(())
}

/// What `larder watch` has to know, a line for each file.
#[derive(Default)]
struct Watch {
    lines: Vec<String>,
    is_secret: bool,
}

impl Watch {
    fn plan(&self, certs_dir: &str, plan: &mut Plan) -> Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let (mode, content) = if self.is_secret { (0o600, Content::Secret) } else { (0o644, Content::Ours) };
        plan.file(watch::CONFIG.to_owned(), watch::config(&self.lines), mode, content);
        if certs_dir != STATIC_CERTS_DIR {
            let text = render("the certs-dir drop-in", &CertsDir { certs_dir })?;
            let path = format!("{UNIT_FOLDER}/larder-watch.service.d/50-certs-dir.conf");
            plan.file(path, text, 0o644, Content::Ours);
        }
        Ok(())
    }
}
