//! Changes what links carry, each through its manager, and proves it: managers report success where there is none, so
//! the kernel and the link itself are asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tracing::{info, warn};

use super::arp::{Link, Mac, Mute, PROBES};
use super::link::{self, Doubt, LinkState, same};
use super::{command, nd, session};
use crate::facts::{Backend, Link as Managed};
use crate::host::{Aim, NetworkWanted};

/// For one call of a manager. NetworkManager and dhclient wait for what they bring up.
const MANAGER_LIMIT: Duration = Duration::from_secs(25);
/// networkd needs a tenth of a second, duplicate address detection for IPv6 two.
const ADDRESS_LIMIT: Duration = Duration::from_secs(15);
/// A gateway answers within milliseconds; a switch port that comes up may eat the first seconds.
const GATEWAY_LIMIT: Duration = Duration::from_secs(5);
/// A lease that is asked for again is there within one second, or two.
const BACK_LIMIT: Duration = Duration::from_secs(20);
/// The kernel says with a delay that a link is up.
const UP_LIMIT: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(100);

/// Takes links down whose manager finds out from its files what it once did: they must be the old ones still.
///
/// # Errors
/// When a manager refuses.
pub fn release(links: &BTreeSet<Managed>) -> Result<()> {
    for link in links.iter().filter(|link| link.backend == Backend::Ifupdown) {
        // Also what an `ifup` that failed half-way has left, and does not count as up.
        manager("ifdown", &["--force", &link.interface])?;
        // dhcpcd leaves its lease on the link, and `ifup` fails to set an address that is there.
        let left = link::state(&link.interface)?.addresses;
        for held in left.iter().filter(|held| held.dynamic && held.address.is_ipv4()) {
            manager("ip", &["address", "del", &held.address.to_string(), "dev", &link.interface])?;
        }
    }
    Ok(())
}

/// Has each manager read its files, and sees to it that `aim` is reached. Returns what the links carry then.
///
/// # Errors
/// With what was tried, and what is not as it shall be.
pub fn wake(links: &BTreeSet<Managed>, aim: &Aim) -> Result<String> {
    let tried = || match aim {
        Aim::Wanted(wanted) => describe(wanted, links),
        Aim::Others(_) => "leave the network to the files of others".to_owned(),
        Aim::Before(_) => "go back to the network as it was".to_owned(),
    };
    let told = tell_managers(links, aim).with_context(tried);
    if let Aim::Before(before) = aim {
        // A manager may have complained then, too: what counts is what the link carries.
        match (told, come_back(links, before).with_context(tried)) {
            (Ok(()), proven) => proven?,
            (Err(error), Ok(())) => warn!("{error:#}"),
            (Err(error), Err(missing)) => return Err(error.context(format!("{missing:#}"))),
        }
    } else {
        told?;
    }
    match aim {
        Aim::Before(_) => {}
        Aim::Wanted(wanted) if link::index(&wanted.interface).is_none() => {
            return Ok(format!("{} is not there yet", wanted.interface));
        }
        Aim::Wanted(wanted) => prove(wanted, ADDRESS_LIMIT).with_context(tried)?,
        Aim::Others(before) => {
            wait_for(before, LinkState::is_on_the_network_like).with_context(tried)?;
            way_back(None, &BTreeSet::new()).with_context(tried)?;
        }
    }
    let names: BTreeSet<&str> = links.iter().map(|link| link.interface.as_str()).collect();
    let mut carried = Vec::new();
    for name in names {
        carried.push(format!("{name} has {}", link::state(name)?));
    }
    let carried = carried.join("; ");
    info!("{carried}");
    Ok(carried)
}

/// A link of which nothing is known, since it was changed before it was up, has to get some address.
fn come_back(links: &BTreeSet<Managed>, before: &BTreeMap<String, LinkState>) -> Result<()> {
    wait_for(before, LinkState::covers)?;
    let unknown = links.iter().map(|link| link.interface.clone()).filter(|name| !before.contains_key(name));
    wait_for(&unknown.map(|name| (name, LinkState::default())).collect(), |now, _| now.is_usable())
}

fn wait_for(before: &BTreeMap<String, LinkState>, enough: fn(&LinkState, &LinkState) -> bool) -> Result<()> {
    let deadline = Instant::now() + BACK_LIMIT;
    for (interface, before) in before {
        loop {
            let now = link::state(interface)?;
            if enough(&now, before) {
                break;
            }
            if Instant::now() >= deadline {
                bail!("{interface} had {before}, and has {now} now");
            }
            sleep(POLL);
        }
    }
    Ok(())
}

/// What links carry.
///
/// # Errors
/// When `ip` cannot be asked.
pub fn states(links: &BTreeSet<Managed>) -> Result<BTreeMap<String, LinkState>> {
    links.iter().map(|link| Ok((link.interface.clone(), link::state(&link.interface)?))).collect()
}

fn manager(program: &str, args: &[&str]) -> Result<()> {
    let invocation = command::Invocation::new(program, args);
    // These run what the operator has put into their folders, and start programs that stay.
    let foreign = matches!(program, "ifup" | "ifdown" | "netplan");
    let invocation = if foreign { invocation.outside() } else { invocation };
    invocation.run(Instant::now() + MANAGER_LIMIT)?;
    Ok(())
}

fn tell_managers(links: &BTreeSet<Managed>, aim: &Aim) -> Result<()> {
    let backends: BTreeSet<Backend> = links.iter().map(|link| link.backend).collect();
    for backend in backends {
        let here =
            links.iter().filter(|link| link.backend == backend && link::index(&link.interface).is_some());
        let mut here = here.map(|link| link.interface.as_str());
        match backend {
            // It configures again what changed, and only that.
            Backend::Networkd => manager("networkctl", &["reload"])?,
            Backend::Netplan => netplan()?,
            Backend::NetworkManager => {
                // All of them: a file of ours that went is gone then, too.
                manager("nmcli", &["connection", "reload"])?;
                here.try_for_each(|interface| activate(interface, aim))?;
            }
            Backend::Ifupdown => here.try_for_each(|interface| manager("ifup", &[interface]))?,
        }
    }
    Ok(())
}

/// `netplan apply` has udev look at every card again, and takes down what it thinks has to be renamed. For networkd
/// its two halves that are needed here do.
fn netplan() -> Result<()> {
    manager("netplan", &["generate"])?;
    let for_networkmanager = fs::read_dir("/run/NetworkManager/system-connections").is_ok_and(|files| {
        files.flatten().any(|file| file.file_name().as_encoded_bytes().starts_with(b"netplan-"))
    });
    if for_networkmanager { manager("netplan", &["apply"]) } else { manager("networkctl", &["reload"]) }
}

/// A connection that is loaded is not up yet. What `nmcli` says of its success is not what the kernel says.
fn activate(interface: &str, aim: &Aim) -> Result<()> {
    const WAIT: [&str; 3] = ["--wait", "20", "connection"];
    let ours = format!("larder-{interface}");
    let which = match aim {
        Aim::Wanted(_) => Some(["id", &ours]),
        Aim::Before(before) => {
            let before = before.get(interface).and_then(|before| before.connection.as_deref());
            before.map(|connection| ["uuid", connection])
        }
        Aim::Others(_) => None,
    };
    match which {
        Some([kind, name]) => {
            manager("nmcli", &[&WAIT[..], &["up", kind, name, "ifname", interface]].concat())
        }
        // The best that there is.
        None => manager("nmcli", &["--wait", "20", "device", "connect", interface]),
    }
}

/// `set 10.0.20.10/24 via 10.0.20.1 on eth0 by systemd-networkd`.
fn describe(wanted: &NetworkWanted, links: &BTreeSet<Managed>) -> String {
    let mut text = String::from("set");
    for (n, address) in wanted.addresses.iter().enumerate() {
        let _ = write!(text, "{} {address}", if n == 0 { "" } else { "," });
    }
    for gateway in gateways(wanted) {
        let _ = write!(text, " via {gateway}");
    }
    let _ = write!(text, " on {}", wanted.interface);
    if let Some(link) = links.iter().find(|link| link.interface == wanted.interface) {
        let _ = write!(text, " by {}", link.backend);
    }
    text
}

fn gateways(wanted: &NetworkWanted) -> impl Iterator<Item = IpAddr> {
    wanted.routes.iter().filter(|route| route.to.is_none()).map(|route| route.via)
}

/// Whether `wanted` is there, works, and the operator's session with it. Each in its turn: the first that fails is
/// what there is to say.
///
/// # Errors
/// With what is not so.
pub fn prove(wanted: &NetworkWanted, patience: Duration) -> Result<()> {
    let name = &wanted.interface;
    let deadline = Instant::now() + patience;
    while let Some(missing) = missing(wanted, &link::state(name)?)? {
        if Instant::now() >= deadline {
            bail!("{missing}");
        }
        sleep(POLL);
    }
    nobody_else(wanted)?;
    let mut asked = BTreeSet::new();
    for gateway in gateways(wanted) {
        answers(wanted, gateway).with_context(|| format!("ask the gateway {gateway}"))?;
        asked.insert(gateway);
    }
    way_back(Some(wanted), &asked)
}

/// Whether packets would reach the operator: who is next on the way answers, but for those who were `asked`.
fn way_back(wanted: Option<&NetworkWanted>, asked: &BTreeSet<IpAddr>) -> Result<()> {
    let Some(session) = session::find() else { return Ok(()) };
    let peer = session.peer;
    let Some((way, router)) = link::route_to(peer)? else {
        bail!("there is no way back to {peer}, where this ssh session comes from");
    };
    let next = router.unwrap_or(peer);
    match wanted.filter(|wanted| wanted.interface == way) {
        Some(wanted) if !asked.contains(&next) => answers(wanted, next)
            .with_context(|| format!("find the way back to {peer}, where this ssh session comes from")),
        _ => Ok(()),
    }
}

/// Once more: before the network was up nobody could be asked, and somebody may have been quicker since. IPv6 the kernel
/// has asked for itself.
fn nobody_else(wanted: &NetworkWanted) -> Result<()> {
    let ours: Vec<Ipv4Addr> = wanted.addresses.iter().filter_map(v4).collect();
    let Ok(link) = find_up(&wanted.interface)? else { return Ok(()) };
    match link.holders(&ours, 1)?.first_key_value() {
        Some((ip, mac)) => bail!("{ip} is taken: {mac} answers for it on {}", link.name),
        None => Ok(()),
    }
}

fn v4(address: &ipnetwork::IpNetwork) -> Option<Ipv4Addr> {
    match address.ip() {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    }
}

/// What of `wanted` is not there yet.
fn missing(wanted: &NetworkWanted, now: &LinkState) -> Result<Option<String>> {
    let name = &wanted.interface;
    for address in &wanted.addresses {
        let held = now.addresses.iter().find(|held| same(held.address, *address));
        match held {
            None => return Ok(Some(format!("{name} has not got {address}: it has {now}"))),
            Some(held) if held.doubt == Some(Doubt::Duplicate) => {
                bail!("somebody else on the link of {name} has {}", address.ip())
            }
            Some(held) if held.doubt == Some(Doubt::Tentative) => {
                return Ok(Some(format!("the kernel still asks whether somebody else has {}", address.ip())));
            }
            Some(held) if held.dynamic => {
                return Ok(Some(format!("{address} on {name} is still a lease, which ends")));
            }
            Some(_) => {}
        }
    }
    Ok(gateways(wanted)
        .find(|gateway| !now.gateways.contains(gateway))
        .map(|gateway| format!("{name} has no default route via {gateway}: it has {now}")))
}

/// Has a neighbour answer on the link, where that is how neighbours are found there.
fn answers(wanted: &NetworkWanted, target: IpAddr) -> Result<()> {
    let link = match find_up(&wanted.interface)? {
        Ok(link) => link,
        Err(Mute::NoArp) => return Ok(()),
        Err(mute) => bail!("{} cannot be asked: {mute}", wanted.interface),
    };
    let deadline = Instant::now() + GATEWAY_LIMIT;
    let (how, answer) = match target {
        IpAddr::V4(target) => ("ARP", link.ask(near(wanted, target), target, deadline)?),
        IpAddr::V6(target) => ("neighbour discovery", nd::ask(&link, target, deadline)?),
    };
    match answer {
        Some(mac) => info!(%mac, "{target} answers {how} on {}", link.name),
        None => bail!("{target} does not answer {how} on {} (asked for {GATEWAY_LIMIT:?})", link.name),
    }
    Ok(())
}

/// The address that the kernel asks from.
fn near(wanted: &NetworkWanted, target: Ipv4Addr) -> Option<Ipv4Addr> {
    let on_link = wanted.addresses.iter().filter(|address| address.contains(target.into()));
    on_link.chain(&wanted.addresses).find_map(v4)
}

/// The link once it is up, or why it cannot be asked.
fn find_up(interface: &str) -> Result<Result<Link, Mute>> {
    let deadline = Instant::now() + UP_LIMIT;
    loop {
        match Link::find(interface)? {
            Err(Mute::Down) if Instant::now() < deadline => sleep(POLL),
            found => return Ok(found),
        }
    }
}

/// Who on the link has one of the addresses that `interface` has not got itself yet, or why that could not be asked.
///
/// # Errors
/// When the machine does not let us ask.
pub fn holders(
    interface: &str,
    addresses: &[ipnetwork::IpNetwork],
) -> Result<Result<BTreeMap<Ipv4Addr, Mac>, Mute>> {
    let now = link::state(interface)?;
    let ours = |ip: &Ipv4Addr| now.addresses.iter().any(|held| held.address.ip() == IpAddr::V4(*ip));
    let wanted: Vec<Ipv4Addr> = addresses.iter().filter_map(v4).filter(|ip| !ours(ip)).collect();
    if wanted.is_empty() {
        return Ok(Ok(BTreeMap::new()));
    }
    Ok(match find_up(interface)? {
        Ok(link) => Ok(link.holders(&wanted, PROBES)?),
        // One that comes late is told of elsewhere.
        Err(Mute::NoArp | Mute::Absent) => Ok(BTreeMap::new()),
        Err(mute) => Err(mute),
    })
}
