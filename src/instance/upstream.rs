//! Whether the upstream answers, asked as the registry will ask it when it starts.

use std::io::ErrorKind;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ureq::{Agent, Error};

use crate::node::RemoteUrl;

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// It speaks: an HTTP status, where one was asked for.
    Answered(Option<u16>),
    /// No, and at once: refused, no such name, a broken certificate.
    Failed(String),
    /// Nothing within the limit.
    Silent(Duration),
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Answered(Some(status)) => write!(f, "status {status}"),
            Self::Answered(None) => f.write_str("a connection"),
            Self::Failed(why) => f.write_str(why),
            Self::Silent(limit) => write!(f, "no answer within {} s", limit.as_secs()),
        }
    }
}

/// `GET /v2/`, which is what Distribution asks before it listens.
pub(super) fn ask(remote: &RemoteUrl, limit: Duration) -> Answer {
    if remote.is_https() { connect(remote, limit) } else { get(remote, limit) }
}

fn get(remote: &RemoteUrl, limit: Duration) -> Answer {
    let config = Agent::config_builder()
        .max_redirects(0)
        .http_status_as_error(false)
        .timeout_global(Some(limit))
        .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
        .build();
    let url = format!("{}/v2/", remote.as_str().trim_end_matches('/'));
    match Agent::new_with_config(config).get(&url).call() {
        Ok(response) => Answer::Answered(Some(response.status().as_u16())),
        Err(Error::Timeout(_)) => Answer::Silent(limit),
        Err(Error::Io(error)) if error.kind() == ErrorKind::ConnectionRefused => {
            Answer::Failed("connection refused".to_owned())
        }
        Err(error) => Answer::Failed(error.to_string()),
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one connection that is opened to look, not to ask")]
fn connect(remote: &RemoteUrl, limit: Duration) -> Answer {
    let (host, port) = remote.host_and_port();
    let host = host.trim_matches(['[', ']']).to_owned();
    let (tell, told) = mpsc::channel();
    // The resolver has no time-out of its own to set.
    thread::spawn(move || {
        let found = (host.as_str(), port).to_socket_addrs().and_then(|addresses| {
            let mut last = std::io::Error::from(ErrorKind::NotFound);
            for address in addresses {
                match TcpStream::connect_timeout(&address, limit) {
                    Ok(_) => return Ok(()),
                    Err(error) => last = error,
                }
            }
            Err(last)
        });
        let _ = tell.send(found);
    });
    match told.recv_timeout(limit) {
        Ok(Ok(())) => Answer::Answered(None),
        Ok(Err(error)) if error.kind() == ErrorKind::TimedOut => Answer::Silent(limit),
        Ok(Err(error)) => Answer::Failed(error.to_string()),
        Err(_) => Answer::Silent(limit),
    }
}
