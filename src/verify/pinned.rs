//! Asks a registry of this node that serves https. Who it is does not hang on an authority: the certificate that it
//! shows has to be the one that the profile names, so that a registry that still shows the one before is found out.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::http::Fault;
use crate::certificate::{Certificate, witness};

/// A status line.
const LONGEST_HEAD: usize = 4096;

/// The status of `path`, asked with `method`, of a registry that shows `certificate`.
///
/// # Errors
/// When there is no answer within `limit`, or another certificate is shown.
pub fn status(
    address: SocketAddr,
    method: &str,
    path: &str,
    limit: Duration,
    certificate: &Certificate,
) -> Result<u16, Fault> {
    let (status, shown) = ask(address, method, path, limit)?;
    match certificate.is(&shown) {
        true => Ok(status),
        false => Err(Fault::Broken("it shows another certificate than the profile's".to_owned())),
    }
}

/// [`status`], whatever certificate is shown.
///
/// # Errors
/// When there is no answer within `limit`.
pub fn any_status(address: SocketAddr, method: &str, path: &str, limit: Duration) -> Result<u16, Fault> {
    ask(address, method, path, limit).map(|(status, _)| status)
}

/// The certificate that a registry shows.
///
/// # Errors
/// When there is no answer within `limit`.
pub fn shown(address: SocketAddr, limit: Duration) -> Result<Vec<u8>, Fault> {
    ask(address, "GET", "/", limit).map(|(_, shown)| shown)
}

fn ask(address: SocketAddr, method: &str, path: &str, limit: Duration) -> Result<(u16, Vec<u8>), Fault> {
    let deadline = Instant::now() + limit;
    let fault = |error: std::io::Error| match error.kind() {
        ErrorKind::ConnectionRefused => Fault::Connect("connection refused".to_owned()),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Fault::Silent(limit),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => {
            Fault::Broken("connection closed without an answer".to_owned())
        }
        _ => Fault::Broken(error.to_string()),
    };
    let broken = |error: &dyn std::fmt::Display| Fault::Broken(error.to_string());
    let (config, witness) = witness().map_err(|error| broken(&error))?;
    let name = ServerName::IpAddress(address.ip().into());
    let session = ClientConnection::new(std::sync::Arc::new(config), name).map_err(|error| broken(&error))?;
    #[expect(clippy::disallowed_methods, reason = "part of the one client")]
    let stream = TcpStream::connect_timeout(&address, limit).map_err(fault)?;
    let mut stream = StreamOwned::new(session, stream);
    let patience = |stream: &TcpStream| {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left)).and_then(|()| stream.set_write_timeout(Some(left)))
    };
    patience(&stream.sock).map_err(fault)?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: larder/{}\r\nConnection: close\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    );
    stream.write_all(request.as_bytes()).map_err(fault)?;
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while !head.windows(2).any(|two| two == b"\r\n") {
        if Instant::now() >= deadline {
            return Err(Fault::Silent(limit));
        }
        patience(&stream.sock).map_err(fault)?;
        let read = stream.read(&mut chunk).map_err(fault)?;
        if read == 0 || head.len() > LONGEST_HEAD {
            return Err(Fault::Broken("connection closed without an answer".to_owned()));
        }
        head.extend_from_slice(chunk.get(..read).unwrap_or_default());
    }
    let line = String::from_utf8_lossy(&head);
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
    match (status, witness.shown()) {
        (Some(status), Some(shown)) => Ok((status, shown)),
        _ => Err(Fault::Broken("what it said is not HTTP".to_owned())),
    }
}
