//! Names to addresses, as the machine's other programs find them.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use super::command;

/// The addresses of a name, in the machine's own order of preference.
///
/// The C library of a static binary gives up where a server refuses to say whether there is an IPv6 address, and
/// knows nothing of nsswitch.conf(5). The machine's own does better, and `getent` is its voice.
///
/// # Errors
/// One line: there is no such name, or no answer before the deadline.
pub fn lookup(name: &str, port: u16, deadline: Instant) -> Result<Vec<SocketAddr>, String> {
    if let Ok(ip) = name.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let found = match command::run("getent", &["ahosts", "--", name], deadline) {
        Ok(output) => parse(&output.stdout, port),
        Err(command::Error::NotFound { .. }) => by_library(name, port, deadline)?,
        Err(command::Error::TimedOut { .. }) => return Err("no answer from the name servers".to_owned()),
        Err(_) => Vec::new(),
    };
    if found.is_empty() { Err("no such name".to_owned()) } else { Ok(found) }
}

/// A line for each address and kind of socket: `192.0.2.1 STREAM name`.
fn parse(text: &str, port: u16) -> Vec<SocketAddr> {
    let stream = |line: &str| {
        let mut words = line.split_whitespace();
        let ip = words.next()?.parse().ok()?;
        (words.next() == Some("STREAM")).then(|| SocketAddr::new(ip, port))
    };
    text.lines().filter_map(stream).collect()
}

fn by_library(name: &str, port: u16, deadline: Instant) -> Result<Vec<SocketAddr>, String> {
    let (tell, told) = mpsc::channel();
    let asked = (name.to_owned(), port);
    // Where no thread is to be had, nobody answers.
    let _ = thread::Builder::new().spawn(move || {
        let found: io::Result<Vec<SocketAddr>> = asked.to_socket_addrs().map(Iterator::collect);
        let _ = tell.send(found);
    });
    match told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(found) => found.map_err(|error| error.to_string()),
        Err(_) => Err("no answer from the name servers".to_owned()),
    }
}

/// For `crate::fuzz`.
pub(super) fn read_any(text: &str) {
    let _ = parse(text, 443);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn addresses_need_nobody() {
        let v6 = lookup("[fd00::1]", 443, soon()).unwrap();
        assert_eq!(v6, ["[fd00::1]:443".parse().unwrap()]);
    }

    #[test]
    fn one_address_counts_once() {
        let text = "192.0.2.1      STREAM a.example\n192.0.2.1      DGRAM  \n2001:db8::1 STREAM \n";
        assert_eq!(parse(text, 80), ["192.0.2.1:80".parse().unwrap(), "[2001:db8::1]:80".parse().unwrap()]);
    }

    #[test]
    fn this_machine_has_a_name() {
        let found = lookup("localhost", 5000, soon()).unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
    }
}
