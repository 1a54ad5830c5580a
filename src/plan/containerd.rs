//! containerd as a client of the caches: one `hosts.toml` per upstream, and the one `config_path` setting.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::{Content, Plan, local_address};
use crate::facts::{CONTAINERD_CONFIG, Containerd as Installed};
use crate::node::{CacheHost, Containerd, Node, Upstream};

pub mod config;

/// The file that tells containerd where to pull one registry host's images from (containerd's docs,
/// `hosts.md`). Only what every version from 1.6 on reads the same way: `server` first, then one table per
/// host, in the order in which they are tried; containerd itself appends `server` last.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
struct Hosts {
    server: String,
    host: IndexMap<String, Mirror>,
}

#[derive(Debug, Serialize, Deserialize, PartialEq)]
struct Mirror {
    capabilities: Vec<String>,
}

pub(super) fn plan(
    node: &Node,
    client: &Containerd,
    installed: &Installed,
    plan: &mut Plan,
    refused: &mut Vec<String>,
) -> Result<()> {
    let certs_dir = client.certs_dir.as_str();
    match config::set_config_path(installed, certs_dir) {
        Ok(edit) => {
            let path = CONTAINERD_CONFIG.to_owned();
            plan.warnings.extend(edit.warnings.into_iter().map(|warning| (path.clone(), warning)));
            plan.file(path, edit.text, 0o644, Content::Edited);
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
    for upstream in &node.upstreams {
        let text = hosts_toml(upstream, &endpoints(node, client, upstream))?;
        plan.file(
            format!("{}/{}/hosts.toml", certs_dir.trim_start_matches('/'), upstream.host),
            text,
            0o644,
            Content::Ours,
        );
    }
    Ok(())
}

/// The caches that serve `upstream`, in the order in which containerd tries them.
fn endpoints(node: &Node, client: &Containerd, upstream: &Upstream) -> Vec<String> {
    if client.caches.is_empty() {
        return node.cache.iter().map(|cache| format!("http://{}", local_address(cache, upstream))).collect();
    }
    let port = upstream.port.get();
    client
        .caches
        .iter()
        .map(|cache| match cache {
            CacheHost::Address(ip) => format!("http://{}", SocketAddr::new(*ip, port)),
            CacheHost::Name(name) => format!("http://{name}:{port}"),
        })
        .collect()
}

fn hosts_toml(upstream: &Upstream, endpoints: &[String]) -> Result<String> {
    let context = || format!("render hosts.toml of {}", upstream.host);
    // Push would go to the cache with all capabilities; a cache takes none.
    let mirror = || Mirror { capabilities: vec!["pull".to_owned(), "resolve".to_owned()] };
    let hosts = Hosts {
        server: upstream.remote.as_str().to_owned(),
        host: endpoints.iter().map(|url| (url.clone(), mirror())).collect(),
    };
    let body = toml::to_string(&hosts).with_context(context)?;
    let back: Hosts = toml::from_str(&body).with_context(context)?;
    ensure!(back == hosts, "{}: it reads back differently", context());
    Ok(format!(
        "# Made by larder from the node profile. Change the profile, then run `larder apply`.\n{body}"
    ))
}
