//! Asks a link for an IPv6 neighbour (RFC 4861, 7.2): a solicitation of our own, so that an answer from before says
//! nothing. Whether an address of ours is another's is the kernel's to find out (DAD).

use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::{BindToDevice, Ipv6MulticastHops};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, recv, sendto, setsockopt, socket,
};

use super::arp::{Link, Mac};

const ASK_INTERVAL: Duration = Duration::from_millis(250);
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_ADDRESS: u8 = 1;
const TARGET_ADDRESS: u8 = 2;
/// Nothing that came through a router is believed.
const HOPS: i32 = 255;

/// Asks `target` until it answers, or the deadline comes; who answered.
///
/// # Errors
/// When there is no way to ask.
pub fn ask(link: &Link, target: Ipv6Addr, deadline: Instant) -> Result<Option<Mac>> {
    let context = || format!("ask {} for {target} by neighbour discovery", link.name);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket =
        socket(AddressFamily::Inet6, SockType::Raw, flags, SockProtocol::IcmpV6).with_context(context)?;
    setsockopt(&socket, BindToDevice, &link.name.clone().into()).with_context(context)?;
    setsockopt(&socket, Ipv6MulticastHops, &HOPS).with_context(context)?;
    let to = SockaddrIn6::from(SocketAddrV6::new(solicited_node(target), 0, 0, link.index()));
    while Instant::now() < deadline {
        match sendto(socket.as_raw_fd(), &solicitation(target, link.mac()), &to, MsgFlags::empty()) {
            // Not an address of our own yet, or a full queue: the next one may go.
            Ok(_) | Err(Errno::EADDRNOTAVAIL | Errno::ENETUNREACH | Errno::ENOBUFS | Errno::EAGAIN) => {}
            Err(error) => return Err(error).with_context(context),
        }
        let until = deadline.min(Instant::now() + ASK_INTERVAL);
        if let Some(mac) = listen(&socket, target, until).with_context(context)? {
            return Ok(Some(mac));
        }
    }
    Ok(None)
}

fn listen(socket: &OwnedFd, target: Ipv6Addr, until: Instant) -> nix::Result<Option<Mac>> {
    let mut buffer = [0; 256];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => {
                if let Some(mac) = buffer.get(..length).and_then(|bytes| advertised(bytes, target)) {
                    return Ok(Some(mac));
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
        if Instant::now() >= until {
            return Ok(None);
        }
    }
}

/// The group that whoever has `target` listens to (RFC 4291, 2.7.1).
fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// The kernel fills in the checksum.
fn solicitation(target: Ipv6Addr, from: Mac) -> Vec<u8> {
    let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    message.extend([SOURCE_ADDRESS, 1]);
    message.extend(from.0);
    message
}

/// Who says in this message that it has `target`.
fn advertised(message: &[u8], target: Ipv6Addr) -> Option<Mac> {
    let fits = message.first() == Some(&ADVERTISEMENT) && message.get(8..24)? == target.octets();
    fits.then_some(())?;
    let mut options = message.get(24..)?;
    while let [kind, length, ..] = options {
        // In units of eight bytes; an option of none would never end.
        let length = usize::from(*length).checked_mul(8).filter(|length| *length > 0)?;
        if *kind == TARGET_ADDRESS {
            return Some(Mac(options.get(2..8)?.try_into().ok()?));
        }
        options = options.get(length..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::network::testing::with_peer;

    const TARGET: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, 1);

    #[test]
    fn an_advertisement_names_who_sent_it() {
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        let mut message = solicitation(TARGET, mac);
        message[0] = ADVERTISEMENT;
        assert_eq!(advertised(&message, TARGET), None, "the option of a solicitation");
        message[24] = TARGET_ADDRESS;
        assert_eq!(advertised(&message, TARGET), Some(mac));
        assert_eq!(advertised(&message, Ipv6Addr::LOCALHOST), None);
        let mut with_another_first = message[..24].to_vec();
        with_another_first.extend([14, 1, 0, 0, 0, 0, 0, 0]);
        with_another_first.extend(&message[24..]);
        assert_eq!(advertised(&with_another_first, TARGET), Some(mac));
        for length in 0..message.len() {
            assert_eq!(advertised(&message[..length], TARGET), None, "{length} bytes");
        }
        // An option of no length must not keep us.
        message[25] = 0;
        assert_eq!(advertised(&message, TARGET), None);
    }

    #[test]
    fn a_gateway_answers_and_nobody_does_not() {
        with_peer("neighbour", |peer| {
            peer.run("ip addr add fd00:20::1/64 dev peer nodad");
            peer.here("ip addr add fd00:20::2/64 dev eth0 nodad");
            let link = Link::find("eth0").unwrap().unwrap();
            let soon = Instant::now() + Duration::from_secs(20);
            assert_eq!(ask(&link, TARGET, soon).unwrap(), Some(Mac(peer.mac)));
            let nobody = Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, 7);
            assert_eq!(ask(&link, nobody, Instant::now() + 2 * ASK_INTERVAL).unwrap(), None);
        });
    }
}
