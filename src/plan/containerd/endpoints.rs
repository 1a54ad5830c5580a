//! Which endpoints each registry host has on this node, in their order, and what goes with each. Pure: what
//! is out for the moment is an argument, so that a watchdog renders the very files that `apply` does.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use indexmap::IndexMap;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::containerd::Version;
use crate::containerd::hosts::{Capability, Endpoint, Hosts};
use crate::facts::Containerd as Installed;
use crate::node::{CacheHost, Containerd, Mirror, MirrorHost, Node, Order, Trust, Upstream, remote_of};
use crate::plan::local_address;

/// A cache is near: one that has not answered by then does not. containerd's own 30 s count for each of the
/// three requests of a pull.
const CACHE_DIAL: Duration = Duration::from_secs(1);

/// The endpoints of `upstream`: its caches, then its mirrors, then, where the profile lets it, itself. `out`
/// are the URLs that are not to be asked for now; where that leaves none, the file still says what every
/// version of containerd takes: the upstream itself or, without fallback, the first endpoint all the same.
#[must_use]
pub fn hosts(
    node: &Node,
    client: &Containerd,
    upstream: &Upstream,
    installed: &Installed,
    out: &BTreeSet<String>,
) -> Hosts {
    let host = upstream.host.as_str();
    let mut endpoints = caches(node, client, upstream, installed);
    endpoints.extend(mirrors(client, host, installed, !endpoints.is_empty()));
    compose(Some(server(node, client, upstream.remote.as_str(), installed)), endpoints, client.fallback, out)
}

/// The endpoints of every host that has a file on this node, by the name of its folder.
#[must_use]
pub fn all(
    node: &Node,
    client: &Containerd,
    installed: &Installed,
    out: &BTreeSet<String>,
) -> Vec<(String, Hosts)> {
    let mut all = Vec::new();
    for upstream in &node.upstreams {
        let hosts = hosts(node, client, upstream, installed, out);
        // Without any of these, containerd asks the upstream by itself.
        let says_something = has_caches(node, client)
            || !mirrors(client, upstream.host.as_str(), installed, false).is_empty()
            || hosts.is_secret();
        if says_something {
            all.push((upstream.host.to_string(), hosts));
        }
    }
    let is_upstream = |host: &str| node.upstreams.iter().any(|upstream| upstream.host.as_str() == host);
    let named = client.mirrors.iter().map(|(host, _)| host.as_str());
    let own = client.auth.iter().map(|(host, _)| host.as_str());
    let authorised = own.filter(|_| authorises(installed));
    let foreign: indexmap::IndexSet<&str> =
        named.chain(authorised).filter(|host| !is_upstream(host)).collect();
    for host in foreign {
        let endpoints = mirrors(client, host, installed, false);
        let server = (host != "_default")
            .then(|| remote_of(host).map(|remote| server(node, client, remote.as_str(), installed)))
            .flatten();
        all.push((host.to_owned(), compose(server, endpoints, client.fallback, out)));
    }
    all
}

/// Whether upstreams are asked for at some cache.
fn has_caches(node: &Node, client: &Containerd) -> bool {
    !client.caches.is_empty() || node.cache.is_some()
}

/// Puts the files' entries together.
fn compose(
    server: Option<Endpoint>,
    endpoints: Vec<Endpoint>,
    fallback: bool,
    out: &BTreeSet<String>,
) -> Hosts {
    let mut hosts: Vec<Endpoint> =
        endpoints.iter().filter(|endpoint| !out.contains(&endpoint.url)).cloned().collect();
    // A file without any host is one that 1.6 throws away.
    if hosts.is_empty() {
        let itself = server.clone().filter(|_| fallback || endpoints.is_empty());
        hosts.extend(match itself {
            Some(server) => Some(Endpoint { capabilities: pull_and_resolve(), ..server }),
            None => endpoints.first().cloned(),
        });
    }
    if fallback || endpoints.is_empty() {
        return Hosts { server, hosts };
    }
    // containerd always asks a server last, and the upstream where none is written: so that is an endpoint,
    // too.
    Hosts { server: hosts.last().cloned(), hosts }
}

fn pull_and_resolve() -> Vec<Capability> {
    vec![Capability::Pull, Capability::Resolve]
}

/// The caches that serve `upstream`, in the order in which containerd tries them.
fn caches(node: &Node, client: &Containerd, upstream: &Upstream, installed: &Installed) -> Vec<Endpoint> {
    let port = upstream.port.get();
    let mut urls: Vec<String> = if client.caches.is_empty() {
        node.cache.iter().map(|cache| format!("http://{}", local_address(cache, upstream))).collect()
    } else {
        let url = |cache: &CacheHost| match cache {
            CacheHost::Address(ip) => format!("http://{}", SocketAddr::new(*ip, port)),
            CacheHost::Name(name) => format!("http://{name}:{port}"),
        };
        client.caches.iter().map(url).collect()
    };
    if let (Order::Spread, Some(id)) = (client.order, &installed.machine_id) {
        // Each node's own order, and the same after a cache has joined or left: rendezvous hashing.
        urls.sort_by_cached_key(|url| Sha256::digest(format!("{id}\n{}\n{url}", upstream.host)));
    }
    let dial_timeout = installed.version().has_transfer_service().then_some(CACHE_DIAL);
    urls.into_iter().map(|url| Endpoint { dial_timeout, ..Endpoint::mirror(url) }).collect()
}

/// The mirrors of `host`. A folder of its own hides `_default`'s: those are its mirrors, where it has nothing
/// else.
fn mirrors(client: &Containerd, host: &str, installed: &Installed, has_others: bool) -> Vec<Endpoint> {
    let named = client.mirrors.iter().find(|(name, _)| name.as_str() == host);
    let found = named.or_else(|| client.mirrors.iter().find(|(name, _)| !has_others && name.is_default()));
    let Some((name, mirrors)) = found else { return Vec::new() };
    let numbered = mirrors.iter().zip(1_usize..);
    numbered.map(|(mirror, number)| endpoint(client, name, mirror, number, installed)).collect()
}

fn endpoint(
    client: &Containerd,
    host: &MirrorHost,
    mirror: &Mirror,
    number: usize,
    installed: &Installed,
) -> Endpoint {
    let url = mirror.url.as_str().to_owned();
    let mut headers = IndexMap::new();
    for (name, source) in &mirror.headers {
        // What could not be read is a problem that the facts have told already.
        headers.extend(installed.secret(source).map(|value| (name.to_string(), vec![value])));
    }
    authorise(&mut headers, &url, client, installed, |host| remote_of(host).map(|url| url.to_string()));
    Endpoint {
        capabilities: mirror.capabilities.clone(),
        ca: mirror.ca.iter().map(|ca| trust_path(client, host, ca, number)).collect(),
        client: mirror.client.iter().map(|(cert, key)| (cert.to_string(), Some(key.to_string()))).collect(),
        skip_verify: mirror.skip_verify,
        headers,
        override_path: mirror.override_path,
        dial_timeout: mirror.dial_timeout.filter(|_| dials(installed.version(), mirror)),
        url,
    }
}

/// Whether `dial_timeout` does what it says: 2.0.7 to 2.0.11 take it for TLS on an `http` URL.
pub(super) fn dials(version: Version, mirror: &Mirror) -> bool {
    version.has_transfer_service() || (version.has_dial_timeout() && mirror.url.is_https())
}

/// The file that an endpoint's CA is in, absolute. Ours sorts before `hosts.toml`, and so is there before the
/// file that names it: a CA that is missing fails the pull.
pub(super) fn trust_path(client: &Containerd, host: &MirrorHost, trust: &Trust, number: usize) -> String {
    match trust {
        Trust::File(path) => path.to_string(),
        Trust::Pem(_) => format!("{}/{host}/ca-larder-{number}.pem", client.certs_dir),
    }
}

/// The registry itself. It is trusted as the system trusts it.
fn server(node: &Node, client: &Containerd, url: &str, installed: &Installed) -> Endpoint {
    let mut headers = IndexMap::new();
    authorise(&mut headers, url, client, installed, |host| contacted(node, host));
    Endpoint { url: url.to_owned(), headers, ..Endpoint::default() }
}

/// From 2.1 on, a static header answers a registry that asks for a token, too; before, `config.toml` does.
fn authorises(installed: &Installed) -> bool {
    installed.version().has_transfer_service()
}

/// The URL at which this node asks `host` itself.
pub(super) fn contacted(node: &Node, host: &str) -> Option<String> {
    let upstream = node.upstreams.iter().find(|upstream| upstream.host.as_str() == host);
    match upstream {
        Some(upstream) => Some(upstream.remote.to_string()),
        None => remote_of(host).map(|url| url.to_string()),
    }
}

/// Adds the credentials of the host that `url` leads to.
fn authorise(
    headers: &mut IndexMap<String, Vec<Zeroizing<String>>>,
    url: &str,
    client: &Containerd,
    installed: &Installed,
    contacted: impl Fn(&str) -> Option<String>,
) {
    if !authorises(installed) || headers.keys().any(|name| name.eq_ignore_ascii_case("authorization")) {
        return;
    }
    for (host, credentials) in &client.auth {
        let is_here = contacted(host.as_str()).is_some_and(|asked| authority(&asked) == authority(url));
        if let Some(password) = installed.secret(&credentials.password).filter(|_| is_here) {
            let pair = Zeroizing::new(format!("{}:{}", credentials.username, password.as_str()));
            let value = Zeroizing::new(format!("Basic {}", base64(pair.as_bytes()).as_str()));
            headers.insert("Authorization".to_owned(), vec![value]);
        }
    }
}

/// The host and the port of a URL, as containerd names it: without the scheme's own port.
pub(super) fn authority(url: &str) -> &str {
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    let authority = rest.split('/').next().unwrap_or(rest);
    let own = if scheme == "https" { ":443" } else { ":80" };
    authority.strip_suffix(own).unwrap_or(authority)
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> Zeroizing<String> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    // Whole from the start: a text that grows leaves copies behind.
    let mut out = Zeroizing::new(String::with_capacity(bytes.len().div_ceil(3) * 4));
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4_usize {
            let digit = (bits >> (18 - 6 * place)) & 63;
            let digit = usize::try_from(digit).ok().and_then(|digit| DIGITS.get(digit));
            out.push(if place > chunk.len() { '=' } else { digit.map_or('=', |digit| char::from(*digit)) });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_rfc_4648s() {
        let spelt =
            ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|text| base64(text.as_bytes()).to_string());
        assert_eq!(spelt, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
    }
}
