//! The static address, as a systemd-networkd file.

use anyhow::Result;

use super::{Content, Plan};
use crate::facts::{Manager, NetworkState};
use crate::node::{InterfaceMatch, Network, Renderer};
use crate::template::{CloudInit, Link, LinkRoute, render};

/// networkd takes the first file that matches in name order: before cloud-init's and netplan's `10-…`.
const FOLDER: &str = "etc/systemd/network/";
/// cloud-init writes its own network file again for each new instance id, unless told not to.
const CLOUD_INIT: &str = "etc/cloud/cloud.cfg.d/99-larder-network.cfg";

pub(super) fn plan(
    wanted: &Network,
    state: &NetworkState,
    plan: &mut Plan,
    refused: &mut Vec<String>,
) -> Result<()> {
    if state.already_right && !matches!(state.manager, Manager::Nobody { .. }) {
        return Ok(());
    }
    match &state.manager {
        Manager::Networkd => {}
        Manager::Shadowed { file } => {
            refused.push(format!(
                "network: {file} sorts before larder's own file, so systemd-networkd would not look at that one: \
                 take it away, or give it a name from 10- on"
            ));
            return Ok(());
        }
        Manager::Other { name, evidence } => {
            refused.push(format!(
                "network: {name} has {} ({evidence}), and writing for it is not supported yet: \
                 set the address there and take the network block out",
                state.interface.as_deref().unwrap_or("the interface")
            ));
            return Ok(());
        }
        Manager::Nobody { evidence } => {
            refused.push(format!(
                "network: nothing manages {} ({evidence}): enable systemd-networkd, or take the network block out",
                state.interface.as_deref().unwrap_or("the interface")
            ));
            return Ok(());
        }
        Manager::LaterAtBoot { reason } => {
            plan.left.push(format!("network: {reason}; larder.service sets the address at the first boot"));
            return Ok(());
        }
    }
    let Some(interface) = &state.interface else {
        refused.push(match &wanted.interface {
            InterfaceMatch::Name(name) => format!("network.interface: there is no {name} on this machine"),
            InterfaceMatch::Mac(mac) => format!("network.interface: nothing here has the address {mac}"),
            InterfaceMatch::Auto => {
                "network.interface: there is no default route and more than one interface: \
                                     name the one that is meant"
                    .to_owned()
            }
        });
        return Ok(());
    };
    if wanted.renderer == Renderer::Auto || wanted.renderer == Renderer::Networkd {
        // systemd-networkd runs as its own user and silently skips a file that it cannot read.
        plan.file(
            format!("{FOLDER}{}", file_name(interface)),
            render_link(interface, wanted)?,
            0o644,
            Content::Ours,
        );
        if state.cloud_init {
            plan.file(
                CLOUD_INIT.to_owned(),
                render("cloud-init's settings", &CloudInit)?,
                0o644,
                Content::Ours,
            );
        }
    }
    Ok(())
}

/// The name of the file for an interface.
#[must_use]
pub fn file_name(interface: &str) -> String {
    format!("05-larder-{interface}.network")
}

/// Whether a path is the network file of ours.
#[must_use]
pub fn is_network_file(path: &str) -> bool {
    path.strip_prefix(FOLDER).is_some_and(|name| name.starts_with("05-larder-"))
}

fn render_link(interface: &str, wanted: &Network) -> Result<String> {
    render(
        "the network file",
        &Link {
            interface,
            mtu: wanted.mtu.map(crate::node::Mtu::get),
            addresses: wanted.addresses.iter().map(ToString::to_string).collect(),
            nameservers: wanted.nameservers.iter().map(ToString::to_string).collect(),
            search: wanted.search.iter().map(|d| d.as_str()).collect::<Vec<_>>().join(" "),
            routes: wanted
                .routes
                .iter()
                .map(|route| LinkRoute { to: route.to.map(|to| to.to_string()), via: route.via.to_string() })
                .collect(),
        },
    )
}
