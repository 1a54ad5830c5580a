//! Addresses: what only shows when two of them meet.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::build::Build;
use super::form;
use super::{DomainName, InterfaceMatch, Listen, Mtu, Network, Renderer, Route};
use crate::profile::decode::{At, List};
use crate::profile::{Place, Problem};

/// Each is compared with each router.
const MAX_ADDRESSES: usize = 100;

/// A network block whose addresses the other blocks are checked against before it is finished.
pub(super) struct Draft {
    pub(super) addresses: List<At<IpNetwork>>,
    interface: InterfaceMatch,
    routes: Vec<Route>,
    nameservers: Vec<IpAddr>,
    search: Vec<DomainName>,
    mtu: Option<Mtu>,
    renderer: Renderer,
}

impl Draft {
    /// `None`: an address is missing, and that has been reported.
    pub(super) fn finish(self) -> Option<Network> {
        let addresses: Vec<IpNetwork> =
            self.addresses.items.into_iter().map(|address| address.value).collect();
        (!addresses.is_empty()).then_some(Network {
            interface: self.interface,
            addresses,
            routes: self.routes,
            nameservers: self.nameservers,
            search: self.search,
            mtu: self.mtu,
            renderer: self.renderer,
        })
    }
}

/// Which of its network's addresses this is, if it is not a machine's.
fn not_a_host(ip: IpAddr, network: IpNetwork) -> Option<String> {
    let (bits, of) = if network.is_ipv4() { (32, "network") } else { (128, "subnet-router anycast") };
    // RFC 3021 and RFC 6164: with two addresses, both are machines'.
    if network.prefix() >= bits - 1 {
        return None;
    }
    let net = format!("{}/{}", network.network(), network.prefix());
    if ip == network.network() {
        Some(format!("the {of} address of {net}"))
    } else if ip == network.broadcast() && network.is_ipv4() {
        Some(format!("the broadcast address of {net}"))
    } else {
        None
    }
}

/// An address that no interface can have, whatever its prefix length.
fn is_special(ip: IpAddr) -> Option<&'static str> {
    if ip.is_unspecified() {
        Some("the address of none")
    } else if ip.is_loopback() {
        Some("a loopback address")
    } else if ip.is_multicast() {
        Some("a multicast address")
    } else if matches!(ip, IpAddr::V4(v4) if v4.octets().first().is_some_and(|first| *first >= 240 || *first == 0))
    {
        Some("a reserved address")
    } else {
        None
    }
}

impl Build<'_> {
    pub(super) fn network(&mut self, form: form::Network) -> Draft {
        let (place, mut addresses) = match form.addresses {
            Some(addresses) => (Some(addresses.place), addresses.value),
            None => (None, List { items: Vec::new(), whole: false }),
        };
        if let Some(place) = place.filter(|_| addresses.items.is_empty() && addresses.whole) {
            let help = "write `addresses: [10.0.20.10/24]`, or leave the `network` block out to keep the address as it is";
            self.error(place, "network.addresses: there is none", help);
        }
        if let Some(more) = addresses.items.get(MAX_ADDRESSES) {
            let message = format!("network.addresses: more than {MAX_ADDRESSES}");
            self.error(more.place, message, "leave those out that this node does not need");
            addresses.items.truncate(MAX_ADDRESSES);
            addresses.whole = false;
        }
        self.addresses(&addresses.items);
        let routes = self.routes(form.gateway, form.routes.unwrap_or_default(), &addresses);
        let (nameservers, search) = match form.nameservers {
            None => (Vec::new(), Vec::new()),
            Some(form) => (form.addresses.unwrap_or_default(), form.search.unwrap_or_default()),
        };
        for server in &nameservers {
            let is_none = server.value.is_unspecified() || server.value.is_multicast();
            if is_none {
                let message = format!("network.nameservers: {} is no machine's address", server.value);
                self.error(server.place, message, "write the address of a DNS server");
            }
        }
        if let Some(mtu) = form.mtu.filter(|mtu| mtu.value.get() < 1280)
            && let Some(v6) = addresses.items.iter().find(|address| address.value.is_ipv6())
        {
            let message = format!("network.mtu: IPv6 needs 1280 bytes at least, got {}", mtu.value);
            let problem = Problem::error(mtu.place, message).related(v6.place, "an IPv6 address");
            self.report(problem.help("write 1280 or more, or take the IPv6 addresses out"));
        }
        Draft {
            addresses,
            interface: form.interface.map_or(InterfaceMatch::Auto, |interface| interface.value.0),
            routes,
            nameservers: nameservers.into_iter().map(|server| server.value).collect(),
            search,
            mtu: form.mtu.map(|mtu| mtu.value),
            renderer: form.renderer.map_or(Renderer::Auto, |renderer| renderer.value),
        }
    }

    fn addresses(&mut self, addresses: &[At<IpNetwork>]) {
        let mut seen: HashMap<IpAddr, Place> = HashMap::new();
        for At { value, place } in addresses {
            let ip = value.ip();
            if let Some(special) = is_special(ip) {
                let message = format!("network.addresses: {ip} is {special}");
                self.error(*place, message, "write an address of this machine's own");
            } else if let Some(what) = not_a_host(ip, *value) {
                let message = format!("network.addresses: {ip} is {what}, not a machine's");
                self.error(*place, message, "write an address between the first and the last of the network");
            } else if value.prefix() == 0 {
                let message = format!("network.addresses: {value} says that every address is on this link");
                self.error(
                    *place,
                    message,
                    format!("write the network's prefix length, `{ip}/24` for example"),
                );
            }
            if let Some(first) = seen.insert(ip, *place) {
                let problem = Problem::error(*place, format!("network.addresses: {ip} is here twice"));
                self.report(problem.related(first, "first here").help("keep one of them"));
            }
        }
    }

    fn routes(
        &mut self,
        gateway: Option<At<IpAddr>>,
        forms: Vec<At<form::Route>>,
        addresses: &List<At<IpNetwork>>,
    ) -> Vec<Route> {
        let mut routes = Vec::new();
        // By target, and by family for the default routes.
        let mut seen: HashMap<(Option<IpNetwork>, bool), Place> = HashMap::new();
        if let Some(At { value: via, place }) = gateway {
            self.router("network.gateway", via, place, addresses);
            seen.insert((None, via.is_ipv4()), place);
            routes.push(Route { to: None, via });
        }
        for At { value: form, .. } in forms {
            let form::Route { to: Some(to), via: Some(At { value: via, place }) } = form else { continue };
            self.router("network.routes", via, place, addresses);
            if let Some(network) = to.value.0.filter(|network| network.is_ipv4() != via.is_ipv4()) {
                let message = format!("network.routes: {network} and {via} are of two families");
                let problem = Problem::error(place, message).related(to.place, "this network");
                self.report(problem.help("write a router of the network's own family"));
            }
            // `0.0.0.0/0` is `default` in other words.
            let target = to.value.0.filter(|network| network.prefix() > 0);
            if let Some(first) = seen.insert((target, via.is_ipv4()), to.place) {
                let what = match target {
                    Some(network) => format!("a second route to {network}"),
                    None if via.is_ipv4() => "a second default route for IPv4".to_owned(),
                    None => "a second default route for IPv6".to_owned(),
                };
                let problem = Problem::error(to.place, format!("network.routes: {what}"));
                self.report(problem.related(first, "first here").help("keep one of them"));
            }
            routes.push(Route { to: target, via });
        }
        routes
    }

    /// Can this node reach the router `via`?
    fn router(&mut self, path: &str, via: IpAddr, place: Place, addresses: &List<At<IpNetwork>>) {
        let family = if via.is_ipv4() { "IPv4" } else { "IPv6" };
        let mine: Vec<&At<IpNetwork>> =
            addresses.items.iter().filter(|address| address.value.is_ipv4() == via.is_ipv4()).collect();
        if let Some(own) = mine.iter().find(|address| address.value.ip() == via) {
            let problem = Problem::error(place, format!("{path}: {via} is this node's own address"));
            self.report(problem.related(own.place, "here").help("write the router's address"));
            return;
        }
        if let Some(special) = is_special(via) {
            self.error(place, format!("{path}: {via} is {special}"), "write the router's address");
            return;
        }
        let is_link_local = matches!(via, IpAddr::V6(v6) if v6.is_unicast_link_local());
        match mine.iter().find(|address| address.value.contains(via)) {
            Some(address) => {
                // A router may have the anycast address: it is its very purpose.
                if let Some(what) = not_a_host(via, address.value).filter(|_| via.is_ipv4()) {
                    let problem = Problem::error(place, format!("{path}: {via} is {what}, not a router's"));
                    self.report(
                        problem.related(address.place, "by this address").help("write the router's address"),
                    );
                }
            }
            None if is_link_local || !addresses.whole => {}
            None => {
                let mut problem = Problem::error(place, format!("{path}: no address here reaches {via}"));
                let mut networks = Vec::new();
                for address in mine {
                    let network = format!("{}/{}", address.value.network(), address.value.prefix());
                    problem = problem.related(address.place, format!("reaches {network}"));
                    networks.push(network);
                }
                self.report(match networks.as_slice() {
                    [] => problem.help(format!("there is no {family} address: add one to `addresses`")),
                    _ => problem.help(format!("write a router in {}", networks.join(" or "))),
                });
            }
        }
    }

    /// Where the registries listen. `own`: the addresses that the node is going to have, where all are known.
    pub(super) fn listen(
        &mut self,
        cache: &form::Cache,
        has_network: bool,
        own: Option<&[At<IpNetwork>]>,
    ) -> Listen {
        let Some(At { value: listen, place }) = cache.listen else {
            let first = own.unwrap_or_default().iter().find(|address| address.value.is_ipv4());
            return first.map_or(Listen::Any, |address| Listen::Address(address.value.ip()));
        };
        if listen.is_unspecified() {
            return Listen::Any;
        }
        if listen.is_multicast() {
            self.error(
                place,
                format!("cache.listen: {listen} is a multicast address"),
                "write an address of this node",
            );
        } else if !listen.is_loopback() && !has_network {
            let message = format!("cache.listen: nothing here says that this node has {listen}");
            let help = "the registries do not start without it; take `listen` out to listen on every address, or name \
                        the address under `network.addresses`";
            self.report(Problem::warning(place, message).help(help));
        } else if let Some(own) = own.filter(|_| !listen.is_loopback())
            && !own.iter().any(|address| address.value.ip() == listen)
        {
            let mut problem =
                Problem::error(place, format!("cache.listen: this node will not have {listen}"));
            for address in own {
                problem = problem.related(address.place, "it will have this one");
            }
            self.report(match own.first() {
                Some(address) => problem.help(format!("write {}, or take `listen` out", address.value.ip())),
                None => problem.help("take `listen` out"),
            });
        }
        Listen::Address(listen)
    }
}
