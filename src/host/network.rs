//! Which interface is meant, who manages it, and what it has: read from where each manager itself keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{command, live::read};
use crate::facts::{Manager, NetworkState};
use crate::node::{InterfaceMatch, Network};
use crate::plan::network::file_name;
use crate::root::Root;

const IP_LIMIT: Duration = Duration::from_secs(10);
/// /proc/net/tcp's word for a listening socket.
const LISTEN: &str = "0A";
const DEVICES: &str = "/sys/class/net";

/// An address as `ip -j addr` shows it.
#[derive(Debug, Deserialize)]
struct Shown {
    ifname: String,
    #[serde(default)]
    addr_info: Vec<ShownAddress>,
}

#[derive(Debug, Deserialize)]
struct ShownAddress {
    local: Option<IpAddr>,
    prefixlen: Option<u8>,
    /// Absent for an address that does not expire.
    #[serde(default)]
    dynamic: bool,
}

/// A route as `ip -j route` shows it.
#[derive(Debug, Deserialize)]
struct ShownRoute {
    dst: String,
    gateway: Option<IpAddr>,
    dev: Option<String>,
}

pub(super) fn find(root: &Root, wanted: &Network, ours: bool) -> Result<NetworkState> {
    let interface = match &wanted.interface {
        InterfaceMatch::Name(name) => Some(name.as_str().to_owned()),
        InterfaceMatch::Mac(mac) => by_mac(mac.as_str())?,
        InterfaceMatch::Auto => the_only_one()?,
    };
    let Some(interface) = interface else { return Ok(NetworkState::default()) };
    let Some(index) = read(&format!("{DEVICES}/{interface}/ifindex")) else {
        // The plan names a missing interface; a late one is the manager's business.
        return Ok(NetworkState { interface: None, ..NetworkState::default() });
    };
    let manager = manager(root, index.trim(), &interface)?;
    let already_right = !ours && is_right(&interface, wanted)?;
    Ok(NetworkState { interface: Some(interface), manager, already_right, cloud_init: false })
}

/// First match wins: what `systemctl is-active` says would not tell, both daemons may run.
fn manager(root: &Root, index: &str, interface: &str) -> Result<Manager> {
    let networkd = read(&format!("/run/systemd/netif/links/{index}")).unwrap_or_default();
    let value = |key: &str| networkd.lines().find_map(|line| line.strip_prefix(key));
    if let Some("configured" | "configuring") = value("ADMIN_STATE=") {
        let file = value("NETWORK_FILE=").unwrap_or_default();
        if file.contains("-netplan-") {
            return Ok(Manager::Other { name: "netplan", evidence: format!("networkd took {file}") });
        }
        let ours = file_name(interface);
        return Ok(match file.rsplit('/').next() {
            Some(name) if !name.is_empty() && name < ours.as_str() => {
                Manager::Shadowed { file: file.to_owned() }
            }
            _ => Manager::Networkd,
        });
    }
    let device = read(&format!("/run/NetworkManager/devices/{index}")).unwrap_or_default();
    if device.lines().any(|line| line == "managed=true") && device.contains("connection-uuid=") {
        let evidence = format!("/run/NetworkManager/devices/{index} says managed=true");
        return Ok(Manager::Other { name: "NetworkManager", evidence });
    }
    let ifstate = read("/run/network/ifstate").unwrap_or_default();
    if ifstate.lines().any(|line| line == format!("{interface}={interface}")) {
        return Ok(Manager::Other {
            name: "ifupdown",
            evidence: "/run/network/ifstate has it up".to_owned(),
        });
    }
    // networkd runs and has no file for this link yet: ours will be its first.
    if !networkd.is_empty() && root.exists("run/systemd/netif/state") {
        return Ok(Manager::Networkd);
    }
    Ok(Manager::Nobody { evidence: "neither networkd, NetworkManager nor ifupdown has it".to_owned() })
}

/// The addresses, with their prefixes and for good, and the default routes: a restart keeps them.
fn is_right(interface: &str, wanted: &Network) -> Result<bool> {
    let deadline = Instant::now() + IP_LIMIT;
    let shown = command::run("ip", &["-j", "addr", "show", "dev", interface], deadline)?;
    let shown: Vec<Shown> = serde_json::from_str(&shown.stdout).context("read what `ip -j addr` says")?;
    let has =
        |ip: IpAddr, prefix: u8| {
            shown.iter().filter(|s| s.ifname == interface).flat_map(|s| &s.addr_info).any(|address| {
                address.local == Some(ip) && address.prefixlen == Some(prefix) && !address.dynamic
            })
        };
    if !wanted.addresses.iter().all(|address| has(address.ip(), address.prefix())) {
        return Ok(false);
    }
    for (family, v4) in [("-4", true), ("-6", false)] {
        let mut gateways = wanted
            .routes
            .iter()
            .filter(|r| r.to.is_none() && r.via.is_ipv4() == v4)
            .map(|r| r.via)
            .peekable();
        if gateways.peek().is_none() {
            continue;
        }
        let routes = command::run("ip", &[family, "-j", "route", "show", "default"], deadline)?;
        let routes: Vec<ShownRoute> =
            serde_json::from_str(&routes.stdout).context("read what `ip -j route` says")?;
        let right = gateways.all(|via| {
            routes
                .iter()
                .any(|r| r.dst == "default" && r.gateway == Some(via) && r.dev.as_deref() == Some(interface))
        });
        if !right {
            return Ok(false);
        }
    }
    // Other routes, servers and sizes are not compared: with any of those asked for, our file says so.
    Ok(wanted.routes.iter().all(|r| r.to.is_none()) && wanted.mtu.is_none())
}

fn devices() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(DEVICES).context("list the network interfaces")? {
        names.extend(entry.context("list the network interfaces")?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

fn by_mac(mac: &str) -> Result<Option<String>> {
    Ok(devices()?.into_iter().find(|name| {
        read(&format!("{DEVICES}/{name}/address"))
            .is_some_and(|address| address.trim().eq_ignore_ascii_case(mac))
    }))
}

/// The interface with the IPv4 default route, else the only Ethernet one.
fn the_only_one() -> Result<Option<String>> {
    let routes = read("/proc/net/route").unwrap_or_default();
    let with_default = routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let name = fields.next()?;
        (fields.next()? == "00000000").then(|| name.to_owned())
    });
    if with_default.is_some() {
        return Ok(with_default);
    }
    let flag = |name: &str, file: &str| fs::exists(format!("{DEVICES}/{name}/{file}")).unwrap_or(false);
    let ethernet: Vec<String> = devices()?
        .into_iter()
        .filter(|name| read(&format!("{DEVICES}/{name}/type")).is_some_and(|kind| kind.trim() == "1"))
        .filter(|name| !["bridge", "bonding", "wireless"].iter().any(|kind| flag(name, kind)))
        .collect();
    let mut physical: Vec<String> = ethernet.iter().filter(|name| flag(name, "device")).cloned().collect();
    // A container's veth has no device.
    if physical.is_empty() {
        physical = ethernet;
    }
    Ok(if physical.len() == 1 { physical.pop() } else { None })
}

/// Listening sockets on `ports` whose process is not in a registry unit of ours.
pub(super) fn port_holders(ports: &BTreeSet<u16>) -> Result<Vec<(u16, String)>> {
    let mut inodes = BTreeMap::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in read(table).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, state, _, _, _, _, _, inode, ..] = fields.as_slice() else { continue };
            let port = local.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
            if let (LISTEN, Some(port)) = (*state, port)
                && ports.contains(&port)
            {
                inodes.insert(format!("socket:[{inode}]"), port);
            }
        }
    }
    if inodes.is_empty() {
        return Ok(Vec::new());
    }
    let mut holders = Vec::new();
    for entry in fs::read_dir("/proc").context("list the processes")? {
        let Ok(pid) = entry.context("list the processes")?.file_name().into_string() else { continue };
        // A process may end meanwhile.
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for file in files.flatten() {
            let Ok(target) = fs::read_link(file.path()) else { continue };
            let Some(port) = target.to_str().and_then(|target| inodes.remove(target)) else { continue };
            let unit = read(&format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let unit = unit.trim().rsplit('/').next().unwrap_or_default().to_owned();
            let name = read(&format!("/proc/{pid}/comm")).unwrap_or_default();
            if !unit.starts_with("larder-registry@") {
                holders.push((port, format!("{} (pid {pid}, {unit})", name.trim())));
            }
        }
    }
    holders.extend(inodes.into_values().map(|port| (port, "a process that cannot be seen".to_owned())));
    Ok(holders)
}
