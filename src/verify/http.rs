//! The one HTTP client: asks an address for a status, in the clear, without proxy or redirect.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{NextTimeout, TcpConnector};
use ureq::{Agent, Error};

/// SHA-256 of nothing that exists.
pub(super) const ZERO_DIGEST: &str =
    "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// Our own caches are near: a connection that takes longer is a firewall's silence.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

pub(super) fn endpoint_url(address: SocketAddr, is_https: bool) -> String {
    format!("{}://{address}/v2/", scheme(is_https))
}

pub(super) fn probe_url(address: SocketAddr, is_https: bool, repository: &str) -> String {
    format!("{}://{address}{}", scheme(is_https), probe_path(repository))
}

fn probe_path(repository: &str) -> String {
    format!("/v2/{repository}/blobs/{ZERO_DIGEST}")
}

fn scheme(is_https: bool) -> &'static str {
    if is_https { "https" } else { "http" }
}

/// The URL as a report shows it.
pub(super) fn abbreviate(url: &str) -> String {
    url.replace(ZERO_DIGEST, "sha256:000...")
}

/// Why there is no status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// No connection.
    Connect(String),
    /// A connection, but nothing came for so long.
    Silent(Duration),
    /// Something came that is not HTTP, or it broke off.
    Broken(String),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect(why) | Self::Broken(why) => f.write_str(why),
            Self::Silent(limit) => write!(f, "no answer within {:.1} s", limit.as_secs_f64()),
        }
    }
}

impl std::error::Error for Fault {}

/// The status of `path` at `address`.
///
/// # Errors
/// When there is no answer within `limit`.
pub fn get_status(address: SocketAddr, path: &str, limit: Duration) -> Result<u16, Fault> {
    Client::new().status(Method::Get, &format!("http://{address}{path}"), limit)
}

/// The status of a blob that cannot exist: a cache has to ask its upstream for it.
///
/// # Errors
/// When there is no answer within `limit`.
pub fn head_probe(
    address: SocketAddr,
    is_https: bool,
    repository: &str,
    limit: Duration,
) -> Result<u16, Fault> {
    match is_https {
        true => super::pinned::any_status(address, "HEAD", &probe_path(repository), limit),
        false => Client::new().status(Method::Head, &probe_url(address, false, repository), limit),
    }
}

#[derive(Debug, Clone)]
pub(super) struct Client {
    agent: Agent,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Method {
    Get,
    Head,
}

impl Method {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
        }
    }
}

impl Client {
    pub(super) fn new() -> Self {
        let config = Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            // A kept connection would belong to a registry that may have been restarted since.
            .max_idle_connections(0)
            .max_response_header_size(16 << 10)
            .input_buffer_size(16 << 10)
            .output_buffer_size(4 << 10)
            .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: Agent::with_parts(config, TcpConnector::default(), Literal) }
    }

    /// The status `url` is answered with. The body is not read.
    pub(super) fn status(&self, method: Method, url: &str, limit: Duration) -> Result<u16, Fault> {
        let request = match method {
            Method::Get => self.agent.get(url),
            Method::Head => self.agent.head(url),
        };
        let answer = request
            .config()
            .timeout_connect(Some(CONNECT_LIMIT.min(limit)))
            .timeout_global(Some(limit))
            .build()
            .call();
        match answer {
            Ok(response) => Ok(response.status().as_u16()),
            Err(Error::Timeout(ureq::Timeout::Connect)) => Err(Fault::Connect(format!(
                "no connection within {:.1} s",
                CONNECT_LIMIT.min(limit).as_secs_f64()
            ))),
            Err(Error::Timeout(_)) => Err(Fault::Silent(limit)),
            Err(Error::Io(error)) => Err(match error.kind() {
                ErrorKind::ConnectionRefused => Fault::Connect("connection refused".to_owned()),
                ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable => {
                    Fault::Connect(error.kind().to_string())
                }
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => {
                    Fault::Broken("connection closed without an answer".to_owned())
                }
                _ => Fault::Broken(error.to_string()),
            }),
            Err(error) => Err(Fault::Broken(error.to_string())),
        }
    }
}

/// Addresses are written out in every URL of ours. ureq's own resolver would start a thread for each of
/// them to keep its time-outs.
#[derive(Debug)]
struct Literal;

impl Resolver for Literal {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let address = uri.authority().and_then(|authority| authority.as_str().parse().ok());
        let mut found = self.empty();
        found.push(address.ok_or(Error::HostNotFound)?);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let v6: SocketAddr = "[fd00::10]:5010".parse().expect("address");
        assert_eq!(endpoint_url(v6, false), "http://[fd00::10]:5010/v2/");
        let url = probe_url(v6, false, "library/busybox");
        assert!(url.ends_with(&format!("/v2/library/busybox/blobs/sha256:{}", "0".repeat(64))), "got {url}");
        assert_eq!(abbreviate(&url), "http://[fd00::10]:5010/v2/library/busybox/blobs/sha256:000...");
    }
}
