//! Which endpoints each registry host has on this node, in their order, and what goes with each. Pure: what
//! is out for the moment is an argument, so that a watchdog renders the very files that `apply` does.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use indexmap::IndexMap;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::containerd::Version;
use crate::containerd::hosts::{Capability, Endpoint, Hosts};
use crate::facts::Containerd as Installed;
use crate::node::{Containerd, Mirror, MirrorHost, Node, Order, Trust, Upstream, remote_of};
use crate::plan::local_url;

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
pub fn all<'n>(
    node: &'n Node,
    client: &'n Containerd,
    installed: &'n Installed,
    out: &'n BTreeSet<String>,
) -> impl Iterator<Item = (String, Hosts)> + 'n {
    let upstreams = node.upstreams.iter().filter_map(move |upstream| {
        let hosts = hosts(node, client, upstream, installed, out);
        // Without any of these, containerd asks the upstream by itself.
        let says_something = has_caches(node, client)
            || !mirrors(client, upstream.host.as_str(), installed, false).is_empty()
            || hosts.is_secret();
        says_something.then(|| (upstream.host.to_string(), hosts))
    });
    let is_upstream = |host: &str| node.upstreams.iter().any(|upstream| upstream.host.as_str() == host);
    let named = client.mirrors.iter().map(|(host, _)| host.as_str());
    let own = client.auth.iter().map(|(host, _)| host.as_str());
    let authorised = own.filter(|_| authorises(installed));
    let foreign: indexmap::IndexSet<&str> =
        named.chain(authorised).filter(|host| !is_upstream(host)).collect();
    upstreams.chain(foreign.into_iter().map(move |host| {
        let endpoints = mirrors(client, host, installed, false);
        let server = (host != "_default")
            .then(|| remote_of(host).map(|remote| server(node, client, remote.as_str(), installed)))
            .flatten();
        (host.to_owned(), compose(server, endpoints, client.fallback, out))
    }))
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
pub(super) fn caches(
    node: &Node,
    client: &Containerd,
    upstream: &Upstream,
    installed: &Installed,
) -> Vec<Endpoint> {
    let port = upstream.port.get();
    let own = node.cache.as_ref().map(|cache| local_url(cache, upstream));
    let mut urls: Vec<String> = if client.caches.is_empty() {
        own.iter().cloned().collect()
    } else {
        client.caches.iter().map(|cache| cache.url(port)).collect()
    };
    if let (Order::Spread, Some(id)) = (client.order, &installed.machine_id) {
        // Each node's own order, and the same after a cache has joined or left: rendezvous hashing.
        urls.sort_by_cached_key(|url| Sha256::digest(format!("{id}\n{}\n{url}", upstream.host)));
    }
    let dial_timeout = installed.version().has_transfer_service().then_some(CACHE_DIAL);
    let certificate = node.cache.as_ref().and_then(|cache| cache.tls.as_ref()).map(|tls| &tls.certificate);
    // Its own certificate is one that this node can trust, whoever signed it.
    let ca = |url: &String| {
        certificate.filter(|_| own.as_ref() == Some(url)).map(ToString::to_string).into_iter().collect()
    };
    urls.into_iter().map(|url| Endpoint { dial_timeout, ca: ca(&url), ..Endpoint::mirror(url) }).collect()
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

/// Whole from the start: a text that grows leaves copies behind.
fn base64(bytes: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(STANDARD.encode(bytes))
}

#[cfg(test)]
#[allow(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may")]
mod tests {
    use super::*;
    use crate::profile::{Source, load};

    fn node(client: &str) -> Node {
        let upstreams = "docker.io: { port: 5000 }, ghcr.io: { port: 5010 }";
        let text = format!("version: 1\nupstreams: {{ {upstreams} }}\ncontainerd:\n{client}");
        let source = Source::Text { name: "profile.yaml".to_owned(), text };
        load(&source).and_then(|loaded| loaded.node()).unwrap_or_else(|problems| panic!("{problems}")).0
    }

    /// The server and the hosts of docker.io.
    fn docker(client: &str, installed: &Installed, out: &[&str]) -> (Option<String>, Vec<String>) {
        let node = node(client);
        let out = out.iter().map(|url| (*url).to_owned()).collect();
        let hosts = hosts(&node, node.containerd.as_ref().unwrap(), &node.upstreams[0], installed, &out);
        hosts.render("docker.io").unwrap();
        (hosts.server.map(|server| server.url), hosts.hosts.into_iter().map(|host| host.url).collect())
    }

    fn on(major: u32, minor: u32) -> Installed {
        Installed { version: Some(Version::new(major, minor, 0)), ..Installed::default() }
    }

    const A: &str = "http://10.0.0.1:5000";
    const B: &str = "http://10.0.0.2:5000";
    const MIRROR: &str = "https://mirror.gcr.io";
    const HUB: &str = "https://registry-1.docker.io";

    #[test]
    fn what_is_out_is_left_out_but_never_the_last() {
        let with = |fallback: bool| {
            format!(
                "  caches: [10.0.0.1, 10.0.0.2]\n  fallback: {fallback}\n  mirrors: {{ docker.io: [{MIRROR}] }}\n"
            )
        };
        for (fallback, out, server, hosts) in [
            (true, &[][..], HUB, &[A, B, MIRROR][..]),
            (true, &[A], HUB, &[B, MIRROR]),
            (true, &[MIRROR, A, B], HUB, &[HUB]),
            (false, &[], MIRROR, &[A, B, MIRROR]),
            (false, &[MIRROR], B, &[A, B]),
            (false, &[A, B, MIRROR], A, &[A]),
        ] {
            let got = docker(&with(fallback), &on(1, 7), out);
            let wanted = hosts.iter().map(|url| (*url).to_owned()).collect();
            assert_eq!(got, (Some(server.to_owned()), wanted), "fallback {fallback}, out {out:?}");
        }
    }

    #[test]
    fn without_caches_the_default_mirrors_are_everybodys() {
        let client =
            "  fallback: false\n  mirrors: { _default: [https://m.io], private.io: [https://p.io] }\n";
        assert_eq!(
            docker(client, &on(2, 1), &[]),
            (Some("https://m.io".to_owned()), vec!["https://m.io".to_owned()])
        );
        let node = node(client);
        let (installed, nobody) = (on(2, 1), BTreeSet::new());
        let all = all(&node, node.containerd.as_ref().unwrap(), &installed, &nobody);
        let names: Vec<_> = all.map(|(name, _)| name).collect();
        assert_eq!(names, ["docker.io", "ghcr.io", "_default", "private.io"]);
    }

    #[test]
    fn a_default_without_anybody_left_has_no_server_and_keeps_one() {
        let node = node("  mirrors: { _default: [https://m.io, https://n.io] }\n");
        let out = ["https://m.io", "https://n.io"].map(str::to_owned).into();
        let installed = on(1, 6);
        let (_, default) = all(&node, node.containerd.as_ref().unwrap(), &installed, &out).last().unwrap();
        assert_eq!((default.server.as_ref(), default.hosts[0].url.as_str()), (None, "https://m.io"));
    }

    #[test]
    fn each_node_has_an_order_of_its_own_and_keeps_it() {
        let spread = "  caches: [10.0.0.1, 10.0.0.2, 10.0.0.3]\n  order: spread\n";
        let order = |id: u32, client: &str| {
            let machine_id = Some(format!("{id:032x}"));
            docker(client, &Installed { machine_id, ..on(2, 1) }, &[]).1
        };
        let mut first = std::collections::BTreeMap::new();
        for id in 0..300 {
            let whole = order(id, spread);
            *first.entry(whole[0].clone()).or_insert(0) += 1;
            // A cache that goes takes nobody from the others.
            let without = order(id, "  caches: [10.0.0.2, 10.0.0.1]\n  order: spread\n");
            assert_eq!(without, whole.into_iter().filter(|url| !url.contains(".3:")).collect::<Vec<_>>());
        }
        assert!(first.len() == 3 && first.values().all(|count| (60..140).contains(count)), "{first:?}");
        assert_eq!(docker(spread, &on(2, 1), &[]).1[0], A, "an image has the order as listed");
    }

    #[test]
    fn credentials_go_to_their_host_alone_and_where_the_version_reads_them() {
        let client = "  caches: [10.0.0.1]\n  mirrors: { docker.io: [https://h.io/p] }\n  auth: { docker.io: { username: \
                      u, password: p }, h.io: { username: v, password: q } }\n";
        let node = node(client);
        let client = node.containerd.as_ref().unwrap();
        let get =
            |installed: &Installed| hosts(&node, client, &node.upstreams[0], installed, &BTreeSet::new());
        assert!(!get(&on(2, 0)).is_secret());
        let now = get(&on(2, 1));
        let header =
            |endpoint: &Endpoint| endpoint.headers.get("Authorization").map(|value| value[0].to_string());
        assert_eq!(now.server.as_ref().and_then(header).as_deref(), Some("Basic dTpw"));
        assert_eq!(header(&now.hosts[0]), None, "a cache");
        assert_eq!(header(&now.hosts[1]).as_deref(), Some("Basic djpx"));
        // With the caches out, the upstream stands among the hosts with all that goes with it.
        let out = ["http://10.0.0.1:5000", "https://h.io/p"].map(str::to_owned).into();
        let alone = hosts(&node, client, &node.upstreams[0], &on(2, 1), &out);
        assert_eq!(
            (alone.hosts[0].url.as_str(), header(&alone.hosts[0]).as_deref()),
            (HUB, Some("Basic dTpw"))
        );
    }

    #[test]
    fn a_dial_timeout_is_written_where_it_is_one() {
        let client = "  caches: [10.0.0.1]\n  mirrors: { docker.io: [{ url: \"http://m.io\", dial_timeout: 2s }, { url: \
                      \"https://n.io\", dial_timeout: 3s }] }\n";
        let node = node(client);
        let of = |installed: &Installed| {
            let client = node.containerd.as_ref().unwrap();
            let hosts = hosts(&node, client, &node.upstreams[0], installed, &BTreeSet::new()).hosts;
            hosts.iter().map(|host| host.dial_timeout.map_or(0, |time| time.as_secs())).collect::<Vec<_>>()
        };
        assert_eq!(of(&on(1, 7)), [0, 0, 0]);
        let patched = Installed { version: Some(Version::new(2, 0, 11)), ..Installed::default() };
        assert_eq!(of(&patched), [0, 0, 3], "over http it would be taken for TLS");
        assert_eq!(of(&on(2, 1)), [1, 2, 3]);
    }

    #[test]
    fn base64_is_rfc_4648s() {
        let spelt =
            ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|text| base64(text.as_bytes()).to_string());
        assert_eq!(spelt, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
    }
}
