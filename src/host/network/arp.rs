//! Asks an Ethernet link who has an IPv4 address, by ARP (RFC 826) from a packet socket of our own: no other program
//! has to be there, and the kernel's own tables are neither asked nor changed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::net::if_::InterfaceFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, bind, recv, send, socket,
};

/// Three, as RFC 5227, 1.1 has it; closer together, since a switch port that is up already loses none.
pub const PROBES: u32 = 3;
/// Until the next probe, and after the last one. Whoever holds an address answers within milliseconds.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// Between two questions to one that has not answered.
const ASK_INTERVAL: Duration = Duration::from_millis(250);

const ETHERNET: u16 = 1;
const IPV4: u16 = 0x0800;
const ETHERTYPE: u16 = 0x0806;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
const FRAME: usize = 42;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    const BROADCAST: Self = Self([0xff; 6]);
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An Ethernet interface that ARP is spoken on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub name: String,
    index: i32,
    mac: Mac,
    /// Of all of this machine's interfaces: their answers are our own.
    ours: Vec<Mac>,
}

/// Why a link cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mute {
    Absent,
    Down,
    /// No Ethernet, or one without ARP.
    NoArp,
}

impl fmt::Display for Mute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "it is not there",
            Self::Down => "it is down, or has no carrier",
            Self::NoArp => "ARP is not spoken there",
        })
    }
}

impl Link {
    /// The interface of this name, as far as it can be asked now.
    ///
    /// # Errors
    /// When the kernel does not list its interfaces.
    pub fn find(name: &str) -> Result<Result<Self, Mute>> {
        let mut found = Err(Mute::Absent);
        let mut ours = Vec::new();
        for interface in getifaddrs().context("list the network interfaces")? {
            let Some(address) = interface.address.as_ref().and_then(|address| address.as_link_addr()) else {
                continue;
            };
            let mac = address.addr().map(Mac).filter(|_| address.halen() == 6);
            ours.extend(mac);
            if interface.interface_name != name {
                continue;
            }
            found = match (mac, i32::try_from(address.ifindex())) {
                (Some(mac), Ok(index))
                    if address.hatype() == ETHERNET
                        && !interface.flags.contains(InterfaceFlags::IFF_NOARP) =>
                {
                    if interface.flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING) {
                        Ok(Self { name: name.to_owned(), index, mac, ours: Vec::new() })
                    } else {
                        Err(Mute::Down)
                    }
                }
                _ => Err(Mute::NoArp),
            };
        }
        Ok(found.map(|link| Self { ours, ..link }))
    }

    /// Of the interface, as the kernel counts them.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index.unsigned_abs()
    }

    /// Our own.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Whether somebody else has, or is about to take, one of `addresses`: address probes of RFC 5227, 2.1.1. Ends
    /// as soon as each has a holder, half a second after the last of the `probes` at the latest.
    ///
    /// # Errors
    /// When nothing can be sent or received.
    pub fn holders(&self, addresses: &[Ipv4Addr], probes: u32) -> Result<BTreeMap<Ipv4Addr, Mac>> {
        let mut holders = BTreeMap::new();
        let socket = self.socket()?;
        for _ in 0..probes {
            for address in addresses.iter().filter(|address| !holders.contains_key(*address)) {
                self.send(&socket, Ipv4Addr::UNSPECIFIED, *address)?;
            }
            self.listen(&socket, Instant::now() + PROBE_INTERVAL, |packet| {
                let address =
                    if packet.sender_ip.is_unspecified() { packet.target_ip } else { packet.sender_ip };
                if addresses.contains(&address) {
                    holders.entry(address).or_insert(packet.sender);
                }
                holders.len() == addresses.len()
            })?;
            if holders.len() == addresses.len() {
                break;
            }
        }
        Ok(holders)
    }

    /// Asks `target` until it answers, or the deadline comes; who answered. `from` is an address of ours on the
    /// link: some routers answer none that they have no route to.
    ///
    /// # Errors
    /// When nothing can be sent or received.
    pub fn ask(&self, from: Option<Ipv4Addr>, target: Ipv4Addr, deadline: Instant) -> Result<Option<Mac>> {
        let socket = self.socket()?;
        let mut answer = None;
        while answer.is_none() && Instant::now() < deadline {
            self.send(&socket, from.unwrap_or(Ipv4Addr::UNSPECIFIED), target)?;
            self.listen(&socket, deadline.min(Instant::now() + ASK_INTERVAL), |packet| {
                if packet.operation == REPLY && packet.sender_ip == target {
                    answer = Some(packet.sender);
                }
                answer.is_some()
            })?;
        }
        Ok(answer)
    }

    fn socket(&self) -> Result<OwnedFd> {
        let context = || format!("open a packet socket on {}", self.name);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // No protocol, so that it hears nothing until it is bound to one link and to ARP alone.
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None).with_context(context)?;
        let address = link_address(self.index).with_context(context)?;
        bind(socket.as_raw_fd(), &address).with_context(context)?;
        Ok(socket)
    }

    fn send(&self, socket: &OwnedFd, from: Ipv4Addr, target: Ipv4Addr) -> Result<()> {
        let packet = Packet {
            operation: REQUEST,
            sender: self.mac,
            sender_ip: from,
            target: Mac([0; 6]),
            target_ip: target,
        };
        match send(socket.as_raw_fd(), &packet.frame(), MsgFlags::empty()) {
            // A full queue loses one of several.
            Ok(_) | Err(Errno::ENOBUFS | Errno::EAGAIN) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("ask {} for {target} by ARP", self.name)),
        }
    }

    /// Hands what others send to `enough` until that says so, or `until` comes.
    fn listen(
        &self,
        socket: &OwnedFd,
        until: Instant,
        mut enough: impl FnMut(&Packet) -> bool,
    ) -> Result<()> {
        let mut frame = [0; 128];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Rounded up: a wait of zero would spin until the last millisecond is over.
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO);
            let mut files = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut files, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("wait for ARP"),
            }
            match recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(length) => {
                    let packet = frame.get(..length).and_then(Packet::parse);
                    if packet.is_some_and(|packet| !self.ours.contains(&packet.sender) && enough(&packet)) {
                        return Ok(());
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                // Said once to whoever reads next; the link may be back already.
                Err(Errno::ENETDOWN) => bail!("listen on {}: the link went down", self.name),
                Err(error) => return Err(error).with_context(|| format!("listen on {}", self.name)),
            }
            if Instant::now() >= until {
                return Ok(());
            }
        }
    }
}

/// The address of a link in the eyes of a packet socket (packet(7)).
#[expect(
    unsafe_code,
    reason = "nix makes no LinkAddr of an index, and a socket without one hears every frame of every \
    link: on a busy machine it would lose the one that counts"
)]
fn link_address(index: i32) -> Option<LinkAddr> {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).ok()?,
        sll_protocol: ETHERTYPE.to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).ok()?;
    // SAFETY: the pointer is to a whole and initialised sockaddr_ll of that length, which says itself that it is one;
    // from_raw copies it before this function returns.
    unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) }
}

/// One ARP packet for IPv4 on Ethernet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Packet {
    operation: u16,
    sender: Mac,
    sender_ip: Ipv4Addr,
    target: Mac,
    target_ip: Ipv4Addr,
}

impl Packet {
    /// With its Ethernet header, to everybody.
    fn frame(&self) -> Vec<u8> {
        let mut frame = Vec::with_capacity(FRAME);
        frame.extend(Mac::BROADCAST.0);
        frame.extend(self.sender.0);
        for field in [ETHERTYPE, ETHERNET, IPV4] {
            frame.extend(field.to_be_bytes());
        }
        frame.extend([6, 4]);
        frame.extend(self.operation.to_be_bytes());
        frame.extend(self.sender.0);
        frame.extend(self.sender_ip.octets());
        frame.extend(self.target.0);
        frame.extend(self.target_ip.octets());
        frame
    }

    /// `None` for anything else than ARP for IPv4 on Ethernet. A link may pad.
    fn parse(frame: &[u8]) -> Option<Self> {
        let (header, arp) = frame.get(..FRAME)?.split_at_checked(14)?;
        let number = |bytes: Option<&[u8]>| bytes?.try_into().ok().map(u16::from_be_bytes);
        let mac = |at: usize| Some(Mac(arp.get(at..at + 6)?.try_into().ok()?));
        let ip = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(arp.get(at..at + 4)?).ok()?));
        let fits = number(header.get(12..14))? == ETHERTYPE
            && number(arp.get(..2))? == ETHERNET
            && number(arp.get(2..4))? == IPV4
            && arp.get(4..6)? == [6, 4];
        fits.then_some(())?;
        Some(Self {
            operation: number(arp.get(6..8)).filter(|operation| [REQUEST, REPLY].contains(operation))?,
            sender: mac(8)?,
            sender_ip: ip(14)?,
            target: mac(18)?,
            target_ip: ip(24)?,
        })
    }
}

#[cfg(test)]
mod tests;
