//! Which interface is meant, who manages it, and what it has: read from where each manager itself keeps it.

use std::collections::BTreeSet;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::live::{read, read_bytes};
use super::{command, state};
use crate::facts::network::stanza;
use crate::facts::{Backend, Link, Manager, NetworkState, find_program};
use crate::node::{InterfaceMatch, Network, Renderer};
use crate::plan::network::file_name;
use crate::root::Root;

pub mod arp;
pub(super) mod change;
pub mod link;
pub mod nd;
pub(super) mod offline;
mod right;
pub mod session;
#[cfg(test)]
mod testing;

const DEVICES: &str = "/sys/class/net";
/// A card that the kernel is still finding when we run at boot.
const APPEARANCE_LIMIT: Duration = Duration::from_secs(10);
const APPEARANCE_POLL: Duration = Duration::from_millis(200);
/// For one that only asks.
const ASK_LIMIT: Duration = Duration::from_secs(10);
const NETWORKD: &str = "systemd-networkd.service";

/// `ours` is the link that files of ours are for already.
pub(super) fn find(root: &Root, wanted: &Network, ours: Option<&Link>) -> Result<NetworkState> {
    let deadline = Instant::now() + APPEARANCE_LIMIT;
    let mut found = resolve(&wanted.interface)?;
    while found.is_none() && !is_ours(&wanted.interface, ours) && Instant::now() < deadline {
        sleep(APPEARANCE_POLL);
        found = resolve(&wanted.interface)?;
    }
    let candidates = candidates()?;
    let Some(Device { name, index, mac, has_card }) = found else {
        let mut state = NetworkState { candidates, ..NetworkState::default() };
        // Its manager waits for it with what we wrote.
        if let Some(link) = ours.filter(|_| is_ours(&wanted.interface, ours)) {
            state.interface = Some(link.interface.clone());
            state.manager = Manager::Is(link.backend);
            state.evidence = "its file is there, and the interface is not".to_owned();
            state.absent = true;
        }
        return Ok(state);
    };
    let (mut manager, mut evidence) = manager(root, &index, &name)?;
    if manager == Manager::Nobody
        && let Some(link) = ours.filter(|link| link.interface == name)
    {
        (manager, evidence) = (Manager::Is(link.backend), "larder wrote for it".to_owned());
    }
    if manager == Manager::Nobody
        && let Some(backend) = backend_of(wanted.renderer)
    {
        (manager, evidence) = (Manager::Is(backend), "network.renderer says so".to_owned());
    }
    let (already_right, others) = match ours {
        None => right::compare(&name, &index, wanted)?,
        Some(_) => (false, Vec::new()),
    };
    Ok(NetworkState {
        interface: Some(name),
        mac: Some(mac),
        has_card,
        manager,
        evidence,
        already_right,
        others,
        candidates,
        ..NetworkState::default()
    })
}

fn is_ours(wanted: &InterfaceMatch, ours: Option<&Link>) -> bool {
    matches!((wanted, ours), (InterfaceMatch::Name(name), Some(link)) if link.interface == name.as_str())
}

/// The manager that the profile names.
fn backend_of(renderer: Renderer) -> Option<Backend> {
    match renderer {
        Renderer::Auto => None,
        Renderer::Networkd => Some(Backend::Networkd),
        Renderer::Netplan => Some(Backend::Netplan),
        Renderer::NetworkManager => Some(Backend::NetworkManager),
        Renderer::Ifupdown => Some(Backend::Ifupdown),
    }
}

/// First match wins: what `systemctl is-active` says would not tell, both daemons may run.
fn manager(root: &Root, index: &str, interface: &str) -> Result<(Manager, String)> {
    let links = format!("/run/systemd/netif/links/{index}");
    let networkd = read(&links).unwrap_or_default();
    let value = |key: &str| networkd.lines().find_map(|line| line.strip_prefix(key));
    // What one that was stopped has left says nothing.
    let networkd_runs = !networkd.is_empty() && is_active(NETWORKD)?;
    if let (true, Some(state @ ("configured" | "configuring"))) = (networkd_runs, value("ADMIN_STATE=")) {
        let file = value("NETWORK_FILE=").unwrap_or_default();
        if file.contains("-netplan-") {
            return Ok((Manager::Is(Backend::Netplan), format!("systemd-networkd took {file}")));
        }
        let ours = file_name(interface);
        return Ok(match file.rsplit('/').next() {
            Some(name) if !name.is_empty() && name < ours.as_str() => {
                (Manager::Shadowed { file: file.to_owned() }, format!("systemd-networkd took {file}"))
            }
            _ => (Manager::Is(Backend::Networkd), format!("{links} says {state}")),
        });
    }
    let device = format!("/run/NetworkManager/devices/{index}");
    let text = read(&device).unwrap_or_default();
    let uuid = text.lines().find_map(|line| line.strip_prefix("connection-uuid="));
    if let (true, Some(uuid)) = (text.lines().any(|line| line == "managed=true"), uuid)
        && let Some(file) = connection_file(uuid)
    {
        let from_netplan = file.rsplit('/').next().is_some_and(|name| name.starts_with("netplan-"));
        let backend = if from_netplan { Backend::Netplan } else { Backend::NetworkManager };
        return Ok((Manager::Is(backend), format!("NetworkManager took {file}")));
    }
    let ifstate = read("/run/network/ifstate").unwrap_or_default();
    if ifstate.lines().any(|line| line.split('=').next() == Some(interface)) {
        return Ok((Manager::Is(Backend::Ifupdown), "/run/network/ifstate has it up".to_owned()));
    }
    // It does not count one that came up in part only: with an IPv4 address, and no answer for IPv6.
    if find_program(root, "ifup").is_some()
        && let Some(file) = stanza(root, interface)?
    {
        return Ok((
            Manager::Is(Backend::Ifupdown),
            format!("/{file} has a stanza for it, and nobody else has it"),
        ));
    }
    // networkd runs and has no file for this link yet: ours will be its first.
    if networkd_runs && root.exists("run/systemd/netif/state") {
        return Ok((
            Manager::Is(Backend::Networkd),
            "systemd-networkd runs, and nobody else has it".to_owned(),
        ));
    }
    Ok((Manager::Nobody, "neither systemd-networkd, NetworkManager nor ifupdown has it".to_owned()))
}

fn is_active(unit: &str) -> Result<bool> {
    let units = state::unit_states(&[unit.to_owned()], Instant::now() + ASK_LIMIT)?;
    Ok(units.iter().any(state::UnitState::is_active))
}

/// Where NetworkManager has a connection from; `None` where it does not run: what it left says nothing then.
fn connection_file(uuid: &str) -> Option<String> {
    let shown = command::run(
        "nmcli",
        &["-t", "-e", "no", "-f", "UUID,FILENAME", "connection", "show"],
        Instant::now() + ASK_LIMIT,
    );
    let shown = shown.ok()?.stdout;
    shown.lines().find_map(|line| line.strip_prefix(uuid)?.strip_prefix(':').map(str::to_owned))
}

struct Device {
    name: String,
    index: String,
    mac: String,
    has_card: bool,
}

fn device(name: String) -> Option<Device> {
    let value = |file: &str| read(&format!("{DEVICES}/{name}/{file}")).map(|text| text.trim().to_owned());
    let (index, mac) = (value("ifindex")?, value("address").unwrap_or_default().to_ascii_lowercase());
    let has_card = fs::exists(format!("{DEVICES}/{name}/device")).unwrap_or(false);
    Some(Device { name, index, mac, has_card })
}

fn resolve(wanted: &InterfaceMatch) -> Result<Option<Device>> {
    Ok(match wanted {
        InterfaceMatch::Name(name) => device(name.as_str().to_owned()),
        InterfaceMatch::Mac(mac) => {
            // A bridge or a bond has the address of one of its ports.
            let mut same: Vec<Device> = devices()?.into_iter().filter(|d| d.mac == mac.as_str()).collect();
            if same.len() > 1 {
                same.retain(|device| is_candidate(&device.name));
            }
            if same.len() == 1 { same.pop() } else { None }
        }
        InterfaceMatch::Auto => the_only_one()?,
    })
}

fn devices() -> Result<Vec<Device>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(DEVICES).context("list the network interfaces")? {
        names.extend(entry.context("list the network interfaces")?.file_name().into_string());
    }
    Ok(names.into_iter().filter_map(device).collect())
}

/// An Ethernet card, or what stands for one.
fn is_candidate(name: &str) -> bool {
    let has = |file: &str| fs::exists(format!("{DEVICES}/{name}/{file}")).unwrap_or(false);
    read(&format!("{DEVICES}/{name}/type")).is_some_and(|kind| kind.trim() == "1")
        && !["bridge", "bonding", "wireless", "tun_flags"].iter().any(|kind| has(kind))
}

/// Those that an address could be for.
fn ethernet() -> Result<Vec<Device>> {
    let mut ethernet: Vec<Device> = devices()?.into_iter().filter(|d| is_candidate(&d.name)).collect();
    // A container's veth has no device.
    if ethernet.iter().any(|device| device.has_card) {
        ethernet.retain(|device| device.has_card);
    }
    Ok(ethernet)
}

/// For a message.
fn candidates() -> Result<Vec<String>> {
    Ok(ethernet()?.into_iter().map(|device| format!("{} ({})", device.name, device.mac)).collect())
}

/// The interface with the IPv4 default route, else the only Ethernet one.
fn the_only_one() -> Result<Option<Device>> {
    let routes = read("/proc/net/route").unwrap_or_default();
    let with_default = routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let name = fields.next()?;
        (fields.next()? == "00000000").then(|| name.to_owned())
    });
    let mut ethernet = ethernet()?;
    if let Some(name) = with_default {
        // A bridge or a bond is configured with its ports, by a person.
        return Ok(is_candidate(&name).then(|| device(name)).flatten());
    }
    Ok(if ethernet.len() == 1 { ethernet.pop() } else { None })
}
