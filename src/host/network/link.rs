//! What a link carries, by iproute2: the kernel's own words, whoever manages the link.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::command;

const IP_LIMIT: Duration = Duration::from_secs(10);

/// What has to come back when a link is put back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkState {
    pub addresses: Vec<Held>,
    /// Of its default routes.
    pub gateways: BTreeSet<IpAddr>,
    /// NetworkManager's connection (its UUID), where that manages the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
}

/// An address that others can reach it by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub address: IpNetwork,
    /// It expires, unless whoever gave it says so again.
    pub dynamic: bool,
    /// Not to be used yet, or never: the kernel asks, or was answered, that another has it (DAD).
    #[serde(skip)]
    pub doubt: Option<Doubt>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    Tentative,
    Duplicate,
}

impl LinkState {
    /// Whether the link is as well off as it was: every address that stays is there, and one that is given where
    /// such a one was, whichever; and there is a default route where there was one.
    #[must_use]
    pub fn covers(&self, before: &Self) -> bool {
        let has = |wanted: &Held| {
            self.addresses.iter().any(|held| {
                held.doubt.is_none()
                    && if wanted.dynamic {
                        held.dynamic && held.address.is_ipv4() == wanted.address.is_ipv4()
                    } else {
                        same(held.address, wanted.address)
                    }
            })
        };
        // What routers advertise takes its time, and comes by itself.
        let waited_for = |held: &&Held| !(held.dynamic && held.address.is_ipv6());
        let routed = |state: &Self| state.gateways.iter().any(IpAddr::is_ipv4);
        before.addresses.iter().filter(waited_for).all(has) && (routed(self) || !routed(before))
    }

    /// Whether it has an address that others can reach it by.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.addresses.iter().any(|held| held.doubt.is_none())
    }

    /// Whether it has such an address, and a way out, where it had them.
    #[must_use]
    pub fn is_on_the_network_like(&self, before: &Self) -> bool {
        (self.is_usable() || !before.is_usable()) && (!self.gateways.is_empty() || before.gateways.is_empty())
    }
}

/// Address and prefix length: what is compared of two.
#[must_use]
pub fn same(a: IpNetwork, b: IpNetwork) -> bool {
    a.ip() == b.ip() && a.prefix() == b.prefix()
}

/// `10.0.20.87/24 (dynamic), gateway 10.0.20.1`.
impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.addresses.is_empty() {
            return f.write_str("no address");
        }
        for (n, held) in self.addresses.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            let dynamic = if held.dynamic { " (dynamic)" } else { "" };
            write!(f, "{comma}{}{dynamic}", held.address)?;
        }
        for gateway in &self.gateways {
            write!(f, ", gateway {gateway}")?;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct ShownLink {
    #[serde(default)]
    addr_info: Vec<ShownAddress>,
}

/// An address as `ip -j addr` shows it.
#[derive(Debug, Deserialize)]
pub(super) struct ShownAddress {
    pub(super) local: Option<IpAddr>,
    pub(super) prefixlen: Option<u8>,
    #[serde(default)]
    pub(super) scope: String,
    /// Absent for an address that does not expire.
    #[serde(default)]
    pub(super) dynamic: bool,
    #[serde(default)]
    tentative: bool,
    #[serde(default)]
    dadfailed: bool,
}

#[derive(Deserialize)]
struct ShownRoute {
    gateway: Option<IpAddr>,
    dev: Option<String>,
}

/// The kernel's number of an interface, where that is there.
pub fn index(interface: &str) -> Option<String> {
    super::read(&format!("{}/{interface}/ifindex", super::DEVICES)).map(|index| index.trim().to_owned())
}

/// What `interface` carries now; nothing, where it is not there.
///
/// # Errors
/// When `ip` cannot be asked.
pub fn state(interface: &str) -> Result<LinkState> {
    let Some(index) = index(interface) else { return Ok(LinkState::default()) };
    let deadline = Instant::now() + IP_LIMIT;
    let addresses = addresses(interface, deadline)?;
    let addresses = addresses.iter().filter_map(|shown| {
        let address = IpNetwork::new(shown.local?, shown.prefixlen?).ok()?;
        let doubt = if shown.dadfailed {
            Some(Doubt::Duplicate)
        } else {
            shown.tentative.then_some(Doubt::Tentative)
        };
        (shown.scope != "link").then_some(Held { address, dynamic: shown.dynamic, doubt })
    });
    let device = super::read(&format!("/run/NetworkManager/devices/{index}")).unwrap_or_default();
    let connection = device.lines().find_map(|line| line.strip_prefix("connection-uuid=")).map(str::to_owned);
    let mut state = LinkState { addresses: addresses.collect(), connection, ..LinkState::default() };
    for family in ["-4", "-6"] {
        let routes: Vec<ShownRoute> =
            ip(&[family, "-j", "route", "show", "default", "dev", interface], deadline)?;
        state.gateways.extend(routes.iter().filter_map(|route| route.gateway));
    }
    Ok(state)
}

/// The way to `peer`: the interface, and the router on it where there is one. `None`: there is no way.
///
/// # Errors
/// When `ip` cannot be asked.
pub fn route_to(peer: IpAddr) -> Result<Option<(String, Option<IpAddr>)>> {
    let text = peer.to_string();
    let deadline = Instant::now() + IP_LIMIT;
    // Its exit status says that there is none.
    let output = command::Invocation::new("ip", &["-j", "route", "get", &text]).output(deadline)?;
    if !output.status.success() {
        return Ok(None);
    }
    let routes: Vec<ShownRoute> =
        serde_json::from_str(&output.stdout).context("read what `ip -j route get` says")?;
    Ok(routes.into_iter().find_map(|route| Some((route.dev?, route.gateway))))
}

/// # Errors
/// When `ip` cannot be asked.
pub(super) fn addresses(interface: &str, deadline: Instant) -> Result<Vec<ShownAddress>> {
    let links: Vec<ShownLink> = ip(&["-j", "addr", "show", "dev", interface], deadline)?;
    Ok(links.into_iter().flat_map(|link| link.addr_info).collect())
}

pub(super) fn ip<T: for<'de> Deserialize<'de>>(args: &[&str], deadline: Instant) -> Result<Vec<T>> {
    let output = command::run("ip", args, deadline)?;
    // Where nothing is to be said, old ones say nothing at all.
    let text = if output.stdout.trim().is_empty() { "[]" } else { &output.stdout };
    serde_json::from_str(text).with_context(|| format!("read what `ip {}` says", args.join(" ")))
}

/// For `crate::fuzz`.
pub(in crate::host) fn read_any(text: &str) {
    let _ = serde_json::from_str::<Vec<ShownLink>>(text);
    let _ = serde_json::from_str::<Vec<ShownRoute>>(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carries(addresses: &[(&str, bool)], gateways: &[&str]) -> LinkState {
        let held = |(address, dynamic): &(&str, bool)| Held {
            address: address.parse().unwrap(),
            dynamic: *dynamic,
            doubt: None,
        };
        LinkState {
            addresses: addresses.iter().map(held).collect(),
            gateways: gateways.iter().map(|gateway| gateway.parse().unwrap()).collect(),
            connection: None,
        }
    }

    #[test]
    fn a_lease_is_back_whatever_its_address_and_a_static_address_only_itself() {
        let lease = carries(&[("10.0.20.87/24", true)], &["10.0.20.1"]);
        let other = carries(&[("10.0.20.99/24", true)], &["10.0.20.1"]);
        let fixed = carries(&[("10.0.20.10/24", false)], &["10.0.20.1"]);
        assert!(lease.covers(&lease) && other.covers(&lease) && fixed.covers(&fixed));
        assert!(!lease.covers(&fixed), "another address");
        assert!(!LinkState::default().covers(&lease), "no address");
        assert!(!fixed.covers(&lease), "the manager has not looked yet");
        assert!(!carries(&[("10.0.20.10/25", false)], &["10.0.20.1"]).covers(&fixed), "another prefix");
        assert!(!carries(&[("10.0.20.10/24", false)], &[]).covers(&fixed), "no route");
    }

    #[test]
    fn what_routers_advertise_is_not_waited_for() {
        let before = carries(&[("10.0.20.10/24", false), ("fd00:20::aa/64", true)], &["fe80::1"]);
        assert!(carries(&[("10.0.20.10/24", false)], &[]).covers(&before));
        let fixed = carries(&[("fd00:20::10/64", false)], &[]);
        assert!(!LinkState::default().covers(&fixed));
    }

    #[test]
    fn an_address_in_doubt_is_not_there() {
        let fixed = carries(&[("fd00:20::10/64", false)], &[]);
        let mut now = fixed.clone();
        now.addresses[0].doubt = Some(Doubt::Tentative);
        assert!(!now.covers(&fixed));
    }
}
