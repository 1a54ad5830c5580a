//! Whether a link has all that the profile asks for already, and will have it after the next boot.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use ipnetwork::IpNetwork;
use serde::Deserialize;

use super::link::{ShownAddress, addresses, ip};
use super::{DEVICES, read};
use crate::node::Network;

const IP_LIMIT: Duration = Duration::from_secs(10);
/// Where name servers are told, by whoever sets them. The stub of systemd-resolved tells nothing.
const RESOLV_CONFS: [&str; 4] = [
    "/etc/resolv.conf",
    "/run/systemd/resolve/resolv.conf",
    "/run/NetworkManager/resolv.conf",
    "/run/NetworkManager/no-stub-resolv.conf",
];

/// A route as `ip -j route` shows it.
#[derive(Debug, Deserialize)]
struct ShownRoute {
    dst: String,
    gateway: Option<IpAddr>,
    dev: Option<String>,
}

/// Whether it is right, and the addresses that are there for good and are not the profile's.
pub(super) fn compare(interface: &str, index: &str, wanted: &Network) -> Result<(bool, Vec<String>)> {
    let deadline = Instant::now() + IP_LIMIT;
    let on_link = addresses(interface, deadline)?;
    let is_wanted = |address: &&ShownAddress| {
        let of = |wanted: &IpNetwork| Some(wanted.ip()) == address.local;
        wanted.addresses.iter().any(of)
    };
    let others = on_link
        .iter()
        .filter(|address| address.scope == "global" && !address.dynamic && !is_wanted(address))
        .filter_map(|address| Some(format!("{}/{}", address.local?, address.prefixlen?)))
        .collect();
    Ok((is_right(interface, index, wanted, &on_link, deadline)?, others))
}

/// An address that expires is DHCP's, and one beside such a one was set by hand: neither is there after a boot.
fn is_right(
    interface: &str,
    index: &str,
    wanted: &Network,
    on_link: &[ShownAddress],
    deadline: Instant,
) -> Result<bool> {
    let has = |ip: IpAddr, prefix: u8| {
        on_link.iter().any(|a| a.local == Some(ip) && a.prefixlen == Some(prefix) && !a.dynamic)
    };
    let has_lease = on_link.iter().any(|a| a.dynamic && a.local.is_some_and(|ip| ip.is_ipv4()));
    let addresses = wanted.addresses.iter().all(|address| has(address.ip(), address.prefix()));
    if !addresses || (has_lease && wanted.addresses.iter().any(IpNetwork::is_ipv4)) {
        return Ok(false);
    }
    for (family, v4) in [("-4", true), ("-6", false)] {
        let mut routes = wanted.routes.iter().filter(|r| r.via.is_ipv4() == v4).peekable();
        if routes.peek().is_none() {
            continue;
        }
        let shown: Vec<ShownRoute> = ip(&[family, "-j", "route", "show"], deadline)?;
        let is_there = |wanted: &crate::node::Route| {
            shown.iter().any(|route| {
                let target = match wanted.to {
                    None => route.dst == "default",
                    // A host's route is shown without its length.
                    Some(to) => route.dst == to.to_string() || route.dst.parse() == Ok(to),
                };
                target && route.gateway == Some(wanted.via) && route.dev.as_deref() == Some(interface)
            })
        };
        if !routes.all(is_there) {
            return Ok(false);
        }
    }
    let mtu = read(&format!("{DEVICES}/{interface}/mtu"));
    let mtu = mtu.and_then(|mtu| mtu.trim().parse().ok());
    Ok(wanted.mtu.is_none_or(|wanted| mtu == Some(wanted.get())) && names_are_right(index, wanted))
}

fn names_are_right(index: &str, wanted: &Network) -> bool {
    let (mut servers, mut domains) = (BTreeSet::new(), BTreeSet::new());
    let mut add = |word: &str, values: &str| {
        let values = values.split_whitespace();
        match word {
            "nameserver" => servers.extend(values.filter_map(|value| value.parse::<IpAddr>().ok())),
            "search" => domains.extend(values.map(str::to_owned)),
            _ => {}
        }
    };
    for line in RESOLV_CONFS.iter().filter_map(|path| read(path)).collect::<String>().lines() {
        if let Some((word, values)) = line.split_once(char::is_whitespace) {
            add(word, values);
        }
    }
    for line in read(&format!("/run/systemd/netif/links/{index}")).unwrap_or_default().lines() {
        match line.split_once('=') {
            Some(("DNS", values)) => add("nameserver", values),
            Some(("DOMAINS", values)) => add("search", values),
            _ => {}
        }
    }
    wanted.nameservers.iter().all(|server| servers.contains(server))
        && wanted.search.iter().all(|domain| domains.contains(domain.as_str()))
}
