//! The ssh session that this process was started in, found where `sudo` and scripts leave it: in the environment of
//! the processes above.

use std::net::IpAddr;

use super::read;

/// A process tree is not deeper; a loop of parents would be the kernel's error.
const MOST_PARENTS: u32 = 64;
const VARIABLE: &str = "SSH_CONNECTION=";
/// /proc/net/tcp's word for a connection that stands.
const ESTABLISHED: &str = "01";

/// Its two ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Where the operator sits, or the last host on the way.
    pub peer: IpAddr,
    /// The address of this machine that it came to.
    pub ours: IpAddr,
}

/// The innermost session above this process whose connection stands still: `tmux` remembers those that are over.
pub fn find() -> Option<Session> {
    let tables = read("/proc/net/tcp").unwrap_or_default() + &read("/proc/net/tcp6").unwrap_or_default();
    let mut pid = std::process::id();
    for _ in 0..MOST_PARENTS {
        let environment = super::read_bytes(&format!("/proc/{pid}/environ")).unwrap_or_default();
        if let Some((session, ports)) = session(&environment)
            && stands(&tables, &session, ports)
        {
            return Some(session);
        }
        pid = parent(&read(&format!("/proc/{pid}/stat"))?)?;
    }
    None
}

/// Its ends and their ports, as sshd writes them: client, its port, server, its port.
fn session(environment: &[u8]) -> Option<(Session, (u16, u16))> {
    let variables = environment.split(|byte| *byte == 0).filter_map(|text| std::str::from_utf8(text).ok());
    let text = variables.filter_map(|text| text.strip_prefix(VARIABLE)).next()?;
    let [peer, peer_port, ours, port] = text.split(' ').collect::<Vec<_>>().try_into().ok()?;
    let session = Session { peer: address(peer)?, ours: address(ours)? };
    Some((session, (peer_port.parse().ok()?, port.parse().ok()?)))
}

/// Without the zone that a link-local address has.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.split_once('%').map_or(text, |(address, _)| address);
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// The fourth field of proc_pid_stat(5). The second is a name that may hold anything.
fn parent(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok().filter(|pid| *pid != 0)
}

fn stands(tables: &str, session: &Session, (peer_port, port): (u16, u16)) -> bool {
    tables.lines().any(|line| {
        let mut fields = line.split_whitespace();
        let (Some(ours), Some(peer), Some(state)) = (fields.nth(1), fields.next(), fields.next()) else {
            return false;
        };
        state == ESTABLISHED
            && socket(ours) == Some((session.ours, port))
            && socket(peer) == Some((session.peer, peer_port))
    })
}

/// `0A14000A:0016`: the address in words as this machine's processor has them, the port as people do.
fn socket(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let mut words = Vec::new();
    for at in (0..address.len()).step_by(8) {
        words.push(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let bytes = words.concat();
    let address = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
    };
    Some((address, u16::from_str_radix(port, 16).ok()?))
}

/// For `crate::fuzz`.
pub(in crate::host) fn read_any(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = parent(&text);
    if let Some((session, ports)) = session(bytes) {
        let _ = stands(&text, &session, ports);
    }
    let _ = text.split_whitespace().filter_map(socket).count();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_session_is_read_from_an_environment() {
        let environment = b"HOME=/root\0SSH_CONNECTION=192.0.2.7 50022 10.0.20.10 22\0LANG=C\0";
        let wanted = Session { peer: ip("192.0.2.7"), ours: ip("10.0.20.10") };
        assert_eq!(session(environment), Some((wanted, (50022, 22))));
        let linklocal = b"SSH_CONNECTION=fe80::1%eth0 50022 ::ffff:10.0.20.10 22\0";
        let wanted = Session { peer: ip("fe80::1"), ours: ip("10.0.20.10") };
        assert_eq!(session(linklocal), Some((wanted, (50022, 22))));
        for other in [&b"HOME=/root\0"[..], b"SSH_CONNECTION=\0", b"SSH_CONNECTION=a 1 b 2\0", b"\xff\0"] {
            assert_eq!(session(other), None, "{}", String::from_utf8_lossy(other));
        }
    }

    #[test]
    fn a_parent_is_found_behind_any_name() {
        assert_eq!(parent("7 (a) S 1 (b) R 5 6) S 42 7 7 0"), Some(42));
        assert_eq!(parent("1 (init) S 0 1 1"), None);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn only_a_connection_that_stands_counts() {
        let session = Session { peer: ip("192.0.2.7"), ours: ip("10.0.20.10") };
        let v4 = "   3: 0A14000A:0016 070200C0:C366 01 00000000:00000000";
        let mapped = "   3: 0000000000000000FFFF00000A14000A:0016 0000000000000000FFFF0000070200C0:C366 01 0";
        for table in [v4, mapped] {
            assert!(stands(table, &session, (50022, 22)), "{table}");
            assert!(!stands(table, &session, (50023, 22)), "another port: {table}");
            assert!(!stands(&table.replace(" 01 ", " 08 "), &session, (50022, 22)), "closing: {table}");
        }
    }
}
