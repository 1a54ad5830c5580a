//! NetworkManager: one connection that goes before every other of this interface.

use std::net::IpAddr;

use anyhow::Result;
use sha2::{Digest, Sha256};

use super::super::{Content, Plan};
use super::Request;
use crate::facts::Backend;
use crate::node::Route;
use crate::template::network::{Keyfile, KeyfileFamily};
use crate::template::render;

pub(super) fn plan(request: &Request, plan: &mut Plan) -> Result<()> {
    let text = render(
        "NetworkManager's connection",
        &Keyfile {
            interface: request.interface,
            uuid: uuid(request.interface),
            mtu: request.mtu(),
            families: vec![family(request, "ipv4", true), family(request, "ipv6", false)],
        },
    )?;
    // It drops a file that others may read.
    plan.file(request.path(Backend::NetworkManager), text, 0o600, Content::Ours);
    Ok(())
}

fn family(request: &Request, name: &'static str, v4: bool) -> KeyfileFamily {
    let wanted = request.wanted;
    let of = |ip: IpAddr| ip.is_ipv4() == v4;
    let addresses: Vec<String> =
        wanted.addresses.iter().filter(|a| of(a.ip())).map(ToString::to_string).collect();
    let method = match (addresses.is_empty(), v4) {
        (false, _) => "manual",
        (true, true) => "disabled",
        // As the other managers do, unless told.
        (true, false) => "auto",
    };
    // With no address of the family there is no way to such a server, and it refuses a file that has one.
    let has_names = method != "disabled";
    let routes = || wanted.routes.iter().filter(|route| of(route.via));
    let search = if has_names && (v4 || !wanted.addresses.iter().any(ipnetwork::IpNetwork::is_ipv4)) {
        request.search()
    } else {
        Vec::new()
    };
    KeyfileFamily {
        name,
        method,
        addresses,
        gateway: routes().find(|route| route.to.is_none()).map(|route| route.via.to_string()),
        routes: routes()
            .filter_map(|Route { to, via }| Some(((*to)?.to_string(), via.to_string())))
            .collect(),
        dns: wanted.nameservers.iter().filter(|ip| has_names && of(**ip)).map(ToString::to_string).collect(),
        search,
    }
}

/// Its own for each interface, and the same in every run.
fn uuid(interface: &str) -> String {
    let digest = Sha256::digest(format!("larder network {interface}"));
    let mut number = digest.iter().take(16).fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
    // Version 8 of RFC 9562: made by a way of one's own.
    number = number & !(0xf << 76) | 0x8 << 76;
    number = number & !(0x3 << 62) | 0x2 << 62;
    let hex = format!("{number:032x}");
    let mut text = String::with_capacity(36);
    for (n, digit) in hex.chars().enumerate() {
        if matches!(n, 8 | 12 | 16 | 20) {
            text.push('-');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::uuid;

    #[test]
    fn a_uuid_is_one_and_stays_the_same() {
        let one = uuid("eth0");
        assert_eq!(one, uuid("eth0"));
        assert_ne!(one, uuid("eth1"));
        let parts: Vec<usize> = one.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12], "{one}");
        assert_eq!(one.chars().nth(14), Some('8'), "{one}");
        assert!(one.chars().nth(19).is_some_and(|c| "89ab".contains(c)), "{one}");
    }
}
