//! The same of a machine whose network does not run: who will configure it, by cloud-init's own order, since
//! that is who writes next (cloudinit/net/renderers.py).

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Deserialize;

use super::super::command;
use super::{backend_of, candidates, resolve};
use crate::facts::{Backend, INTERFACES, Manager, NetworkState, find_program};
use crate::node::{InterfaceMatch, Network};
use crate::root::{Entry, Root};

/// cloud-init's default (`DEFAULT_PRIORITY`), as far as there are programs that it looks for on such a machine.
const ORDER: [&str; 5] = ["eni", "sysconfig", "netplan", "network-manager", "networkd"];
const CLOUD_CONFIG: &str = "etc/cloud/cloud.cfg";
const WANTS: [&str; 2] = ["etc/systemd/system", "usr/lib/systemd/system"];
/// Until the kernel has told of every card; none comes after that but by a person's hand.
const SETTLE_LIMIT: Duration = Duration::from_secs(12);

/// Where interfaces can be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// Nowhere: this is a tree, and the interfaces here are another machine's.
    Elsewhere,
    /// On this machine, which is still booting.
    Here,
}

pub(in crate::host) fn find(root: &Root, wanted: &Network, devices: Devices) -> Result<NetworkState> {
    let mut state = NetworkState::default();
    match (&wanted.interface, devices) {
        // It may not be there yet.
        (InterfaceMatch::Name(name), devices) => {
            state.interface = Some(name.as_str().to_owned());
            if let Some(device) = resolve(&wanted.interface)?.filter(|_| devices == Devices::Here) {
                (state.mac, state.has_card) = (Some(device.mac), device.has_card);
            }
        }
        (_, Devices::Elsewhere) => {
            state.manager = Manager::LaterAtBoot {
                reason: "which interface is meant can only be told on the machine itself".to_owned(),
            };
            return Ok(state);
        }
        (wanted, Devices::Here) => {
            if command::find("udevadm").is_some() {
                // One that is late is the late unit's business.
                let _ = command::run("udevadm", &["settle", "--timeout=10"], Instant::now() + SETTLE_LIMIT);
            }
            state.candidates = candidates()?;
            let Some(device) = resolve(wanted)? else { return Ok(state) };
            (state.interface, state.mac) = (Some(device.name), Some(device.mac));
            state.has_card = device.has_card;
        }
    }
    let (manager, evidence) = match backend_of(wanted.renderer) {
        Some(backend) => (Manager::Is(backend), "network.renderer says so".to_owned()),
        None => manager(root)?,
    };
    (state.manager, state.evidence) = (manager, evidence);
    Ok(state)
}

fn manager(root: &Root) -> Result<(Manager, String)> {
    let (order, whose) = match renderers(root)? {
        Some((order, file)) => (order, format!("{file} lists it first")),
        None => (ORDER.map(str::to_owned).to_vec(), "cloud-init's order".to_owned()),
    };
    for name in &order {
        let found = match name.as_str() {
            "eni" => {
                let has = |program| find_program(root, program).is_some();
                (has("ifup") && has("ifdown") && has("ifquery") && root.exists(INTERFACES))
                    .then_some((Backend::Ifupdown, "ifup and /etc/network/interfaces are there"))
            }
            "netplan" => find_program(root, "netplan").map(|_| (Backend::Netplan, "netplan is installed")),
            "network-manager" => {
                let has =
                    find_program(root, "nmcli").is_some() && is_enabled(root, "NetworkManager.service")?;
                has.then_some((Backend::NetworkManager, "NetworkManager.service is enabled"))
            }
            "networkd" => is_enabled(root, "systemd-networkd.service")?
                .then_some((Backend::Networkd, "systemd-networkd.service is enabled")),
            "sysconfig" if is_sysconfig(root) => {
                return Ok((
                    Manager::Nobody,
                    "larder does not write for sysconfig's network-scripts".to_owned(),
                ));
            }
            _ => None,
        };
        if let Some((backend, evidence)) = found {
            return Ok((Manager::Is(backend), format!("{evidence}; {whose}")));
        }
    }
    Ok((
        Manager::Nobody,
        "neither ifupdown nor netplan is installed, and neither NetworkManager nor systemd-networkd is enabled"
            .to_owned(),
    ))
}

fn is_enabled(root: &Root, unit: &str) -> Result<bool> {
    for place in WANTS {
        // Such a link points to a unit of the image; its target need not be followed.
        if root.entry(&format!("{place}/multi-user.target.wants/{unit}"))? != Entry::Absent {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_sysconfig(root: &Root) -> bool {
    ["etc/sysconfig/network-scripts/network-functions", "etc/sysconfig/config"].iter().any(|p| root.exists(p))
}

#[derive(Deserialize)]
struct CloudConfig {
    system_info: Option<SystemInfo>,
}

#[derive(Deserialize)]
struct SystemInfo {
    network: Option<Renderers>,
}

#[derive(Deserialize)]
struct Renderers {
    renderers: Option<Vec<String>>,
}

/// What cloud-init's own configuration says, and where: the last file that says it counts.
fn renderers(root: &Root) -> Result<Option<(Vec<String>, String)>> {
    let mut paths: Vec<String> = root
        .list("etc/cloud/cloud.cfg.d")?
        .into_iter()
        .filter(|name| name.ends_with(".cfg"))
        .map(|name| format!("etc/cloud/cloud.cfg.d/{name}"))
        .collect();
    paths.reverse();
    paths.push(CLOUD_CONFIG.to_owned());
    for path in paths {
        let Some(bytes) = root.read(&path)? else { continue };
        // What cloud-init cannot read either says nothing.
        let Ok(config) = serde_yaml::from_slice::<CloudConfig>(&bytes) else { continue };
        if let Some(order) = config.system_info.and_then(|info| info.network?.renderers) {
            return Ok(Some((order, format!("/{path}"))));
        }
    }
    Ok(None)
}
