//! The static address, in the files of whoever manages the interface.

use anyhow::Result;

use super::{Content, Plan};
use crate::facts::{Backend, Link, Manager, NetworkState, RESOLV_CONF};
use crate::node::{InterfaceMatch, Network, Renderer};
use crate::root::folder_of;
use crate::template::network::{CloudInit, LinkRoute};
use crate::template::render;

mod ifupdown;
mod netplan;
mod networkd;
mod networkmanager;

/// What comes before and after the interface's name in the path of each manager's file.
const OURS: [(Backend, &str, &str); 4] = [
    // The first file that matches is taken, in name order: before cloud-init's and netplan's `10-…`.
    (Backend::Networkd, "etc/systemd/network/05-larder-", ".network"),
    (Backend::Netplan, "etc/netplan/90-larder-", ".yaml"),
    (Backend::NetworkManager, "etc/NetworkManager/system-connections/larder-", ".nmconnection"),
    (Backend::Ifupdown, "etc/network/interfaces.d/larder-", ""),
];
/// cloud-init writes its own network file again for each new instance id, unless told not to.
const CLOUD_INIT: &str = "etc/cloud/cloud.cfg.d/99-larder-network.cfg";

pub(super) fn plan(
    wanted: &Network,
    state: &NetworkState,
    plan: &mut Plan,
    refused: &mut Vec<String>,
) -> Result<()> {
    if state.already_right && state.manager != Manager::Nobody {
        return Ok(());
    }
    let Some((backend, interface)) = owner(wanted, state, plan, refused) else { return Ok(()) };
    if let Err(reason) = agrees(wanted.renderer, backend, interface, &state.evidence) {
        refused.push(reason);
        return Ok(());
    }
    let request = Request { interface, wanted, state };
    let before = refused.len();
    match backend {
        Backend::Networkd => networkd::plan(&request, plan, refused)?,
        Backend::Netplan => netplan::plan(&request, plan, refused)?,
        Backend::NetworkManager => networkmanager::plan(&request, plan)?,
        Backend::Ifupdown => ifupdown::plan(&request, plan, refused)?,
    }
    if refused.len() > before {
        return Ok(());
    }
    plan.link = Some(Link { backend, interface: interface.to_owned() });
    // Never alone: with nobody to configure it, the link would stay down.
    if state.cloud_init {
        plan.file(CLOUD_INIT.to_owned(), render("cloud-init's settings", &CloudInit)?, 0o644, Content::Ours);
    }
    if !state.others.is_empty() {
        plan.warnings.push((
            path_of(backend, interface),
            format!(
                "network: {} on {interface} is not the profile's, and goes; what set it (the hypervisor's form, \
                 perhaps) still says so",
                state.others.join(" ")
            ),
        ));
    }
    if state.absent {
        plan.left.push(format!(
            "network: there is no {interface} on this machine now{}; {backend} takes up its file when it comes",
            here(&state.candidates)
        ));
    }
    Ok(())
}

/// What the four renderers get.
struct Request<'a> {
    interface: &'a str,
    wanted: &'a Network,
    state: &'a NetworkState,
}

impl Request<'_> {
    fn routes(&self) -> Vec<LinkRoute> {
        let shown = |route: &crate::node::Route| LinkRoute {
            to: route.to.map(|to| to.to_string()),
            via: route.via.to_string(),
        };
        self.wanted.routes.iter().map(shown).collect()
    }

    fn addresses(&self) -> Vec<String> {
        self.wanted.addresses.iter().map(ToString::to_string).collect()
    }

    fn nameservers(&self) -> Vec<String> {
        self.wanted.nameservers.iter().map(ToString::to_string).collect()
    }

    fn search(&self) -> Vec<String> {
        self.wanted.search.iter().map(|domain| domain.as_str().to_owned()).collect()
    }

    fn mtu(&self) -> Option<u32> {
        self.wanted.mtu.map(crate::node::Mtu::get)
    }

    fn path(&self, backend: Backend) -> String {
        path_of(backend, self.interface)
    }
}

/// Who configures which interface; or says why nobody can be asked to.
fn owner<'s>(
    wanted: &Network,
    state: &'s NetworkState,
    plan: &mut Plan,
    refused: &mut Vec<String>,
) -> Option<(Backend, &'s str)> {
    if let Manager::LaterAtBoot { reason } = &state.manager {
        plan.left
            .push(format!("network: {reason}; larder-network.service sets the address at the first boot"));
        return None;
    }
    let Some(interface) = state.interface.as_deref() else {
        let here = here(&state.candidates);
        refused.push(match &wanted.interface {
            InterfaceMatch::Name(name) => format!(
                "network.interface: there is no {name} on this machine{here}: is this profile another machine's?"
            ),
            InterfaceMatch::Mac(mac) => format!(
                "network.interface: nothing here has the address {mac}{here}: is this profile another machine's?"
            ),
            InterfaceMatch::Auto => format!(
                "network.interface: no Ethernet interface has the default route, and there is not just one{here}: \
                 name the one that is meant"
            ),
        });
        return None;
    };
    let evidence = &state.evidence;
    match &state.manager {
        Manager::Is(backend) => return Some((*backend, interface)),
        Manager::Shadowed { file } => refused.push(shadowed(file)),
        _ => refused.push(format!(
            "network: nothing manages {interface} ({evidence}): enable systemd-networkd, or say under \
             network.renderer who shall, or take the network block out"
        )),
    }
    None
}

fn shadowed(file: &str) -> String {
    format!(
        "network: {file} sorts before larder's own file, so systemd-networkd would not look at that one: \
         take it away, or give it a name from 10- on"
    )
}

fn here(candidates: &[String]) -> String {
    match candidates {
        [] => String::new(),
        some => format!(" (here: {})", some.join(", ")),
    }
}

/// Two managers on one link undo each other's work.
fn agrees(renderer: Renderer, backend: Backend, interface: &str, evidence: &str) -> Result<(), String> {
    let right = match renderer {
        Renderer::Auto => true,
        Renderer::Networkd => backend == Backend::Networkd,
        Renderer::Netplan => backend == Backend::Netplan,
        Renderer::NetworkManager => backend == Backend::NetworkManager,
        Renderer::Ifupdown => backend == Backend::Ifupdown,
    };
    if right {
        return Ok(());
    }
    Err(format!(
        "network.renderer: {backend} has {interface} ({evidence}): write `auto`, or take {interface} away from \
         {backend} first"
    ))
}

/// The name of networkd's file for an interface.
#[must_use]
pub fn file_name(interface: &str) -> String {
    format!("05-larder-{interface}.network")
}

/// Where a manager's file for an interface is.
#[must_use]
pub fn path_of(backend: Backend, interface: &str) -> String {
    let (_, start, end) = OURS.iter().find(|(one, _, _)| *one == backend).copied().unwrap_or(OURS[0]);
    format!("{start}{interface}{end}")
}

/// Which link a file of ours is for; the name says it, so that it is known for one that is gone, too.
#[must_use]
pub fn link_of(path: &str) -> Option<Link> {
    OURS.iter().find_map(|(backend, start, end)| {
        let interface = path.strip_prefix(start)?.strip_suffix(end)?;
        Some(Link { backend: *backend, interface: interface.to_owned() })
    })
}

/// Whether a path is in a folder of a network manager's.
#[must_use]
pub fn is_managers_file(path: &str) -> bool {
    OURS.iter().any(|(_, start, _)| path.starts_with(folder_of(start))) || path.starts_with("etc/network/")
}

/// Whether a change of this path is a change of the network: it is taken back with that, also when nobody is there
/// any more to take back the rest.
#[must_use]
pub fn belongs_to_network(path: &str) -> bool {
    is_managers_file(path) || path == CLOUD_INIT || path == RESOLV_CONF
}

/// Whether a shell pattern of a manager's takes a name.
fn fits(pattern: &str, name: &str) -> bool {
    crate::containerd::glob::fits(pattern, name).unwrap_or(false)
}
