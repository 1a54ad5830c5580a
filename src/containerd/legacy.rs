//! containerd's older way to name mirrors, `registry.mirrors` and `registry.configs.*.tls` in `config.toml`:
//! whom that asks, and the hosts.toml tree that asks the same. Pure.
//!
//! The rule is that of `registryEndpoints` and `registryHosts` in containerd's `image_pull.go`; it is the
//! same in 1.6, 1.7 and 2.x, but that 2.x has forgotten `configs.*.tls`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use indexmap::IndexMap;

use super::Version;
use super::hosts::{Capability, Endpoint, Hosts};

/// The directory that stands for every host without one of its own.
pub const DEFAULT: &str = "_default";
/// The key of `mirrors` that means the same.
const WILDCARD: &str = "*";
pub(crate) const DOCKER: &str = "docker.io";
pub(crate) const DOCKER_REGISTRY: &str = "registry-1.docker.io";

/// What `config.toml` says in the older way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Legacy {
    /// `mirrors.KEY.endpoint`, in the order of the file.
    pub mirrors: IndexMap<String, Vec<String>>,
    /// `configs.KEY.tls`.
    pub tls: IndexMap<String, Tls>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Mirror(String),
    Tls(String),
}

/// `configs.KEY.tls`; an empty text says nothing, as in containerd.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    pub ca_file: String,
    pub cert_file: String,
    pub key_file: String,
    pub insecure_skip_verify: bool,
}

impl Tls {
    /// Whether it changes anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The files that it names and what has to be in each; absolute: containerd runs in `/`, a hosts.toml's
    /// paths start at its folder.
    pub fn files(&self) -> impl Iterator<Item = (String, &'static str)> + '_ {
        [(&self.ca_file, "CERTIFICATE"), (&self.cert_file, "CERTIFICATE"), (&self.key_file, "PRIVATE KEY")]
            .into_iter()
            .filter(|(file, _)| !file.is_empty())
            .map(|(file, what)| (absolute(file), what))
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// One place that containerd asks for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub scheme: String,
    /// With its port where one is written.
    pub host: String,
    /// What comes before the repository's name, `/v2` mostly.
    pub path: String,
    /// Where it holds: https only.
    pub tls: Option<Tls>,
}

impl Asked {
    /// `scheme://host/path`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}{}", self.scheme, self.host, self.path)
    }

    /// As hosts.toml writes it.
    fn endpoint(&self) -> Endpoint {
        let plain = self.path == "/v2";
        let path = if plain { "" } else { &self.path };
        let mut endpoint = Endpoint {
            url: format!("{}://{}{path}", self.scheme, self.host),
            capabilities: vec![Capability::Pull, Capability::Resolve],
            override_path: !plain,
            ..Endpoint::default()
        };
        if let Some(tls) = &self.tls {
            endpoint.ca =
                Some(&tls.ca_file).filter(|f| !f.is_empty()).map(|f| absolute(f)).into_iter().collect();
            if !tls.cert_file.is_empty() {
                endpoint.client = vec![(absolute(&tls.cert_file), Some(absolute(&tls.key_file)))];
            }
            endpoint.skip_verify = tls.insecure_skip_verify;
        }
        endpoint
    }

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{text:?} is not an endpoint that containerd can ask: {why}");
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
            None => (default_scheme(authority(text)).to_owned(), text),
        };
        if !matches!(scheme.as_str(), "http" | "https") {
            return Err(wrong("its scheme is neither http nor https"));
        }
        let host = authority(rest);
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
        if host.is_empty() || !host.chars().all(good) {
            return Err(wrong("there is no host in it"));
        }
        if port(host).is_some_and(|port| port.parse::<u16>().is_err()) {
            return Err(wrong("its port is not a number up to 65535"));
        }
        let start = rest.find('/').unwrap_or(rest.len());
        let end = rest.find(['?', '#']).unwrap_or(rest.len());
        let path = rest.get(start..end).unwrap_or_default();
        if path.chars().any(char::is_control) {
            return Err(wrong("there is a control character in it"));
        }
        let path = if path.is_empty() { "/v2".to_owned() } else { clean(path) };
        Ok(Self { scheme, host: host.to_owned(), path, tls: None })
    }

    fn is_ipv6(&self) -> bool {
        self.host.starts_with('[')
    }
}

/// Two ways to write the same request are one here.
fn same_place(a: &Asked, b: &Asked) -> bool {
    (&a.scheme, &a.host, &a.path) == (&b.scheme, &b.host, &b.path)
}

/// `host[:port]` of what follows a scheme; containerd drops names and passwords.
fn authority(rest: &str) -> &str {
    let all = rest.split(['/', '?', '#']).next().unwrap_or_default();
    all.rsplit_once('@').map_or(all, |(_, host)| host)
}

fn port(host: &str) -> Option<&str> {
    let after = host.rsplit_once(']').map_or(host, |(_, after)| after);
    after.rsplit_once(':').map(|(_, port)| port)
}

/// As Go's path.Clean: containerd joins the repository's name to it.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// As containerd's `docker.IsLocalhost`.
fn is_loopback(host: &str) -> bool {
    let name = match (host.strip_prefix('['), port(host)) {
        (Some(rest), Some(_)) => rest.split(']').next().unwrap_or_default(),
        (None, Some(_)) if host.matches(':').count() == 1 => host.split(':').next().unwrap_or_default(),
        _ => host,
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn default_scheme(host: &str) -> &'static str {
    if is_loopback(host) { "http" } else { "https" }
}

/// The registry itself, as it is asked when nothing else is said.
fn upstream(host: &str) -> Asked {
    let host = if host == DOCKER { DOCKER_REGISTRY } else { host };
    Asked {
        scheme: default_scheme(host).to_owned(),
        host: host.to_owned(),
        path: "/v2".to_owned(),
        tls: None,
    }
}

/// Whether an image's name can begin with it: `mirror/app` is Docker's `mirror/app`.
pub(crate) fn is_image_host(host: &str) -> bool {
    (host.contains(['.', ':']) || host == "localhost")
        && !host.contains(['/', '_'])
        && host.chars().all(|c| !c.is_whitespace() && !c.is_control())
        && !matches!(host, "." | "..")
}

/// The hosts.toml files that ask what the older settings ask.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tree {
    /// By the registry host, [`DEFAULT`] for all others.
    pub hosts: BTreeMap<String, Hosts>,
    /// What is not the same, or had no effect before, each for the operator.
    pub notes: Vec<String>,
}

impl Legacy {
    /// Whether there is nothing to migrate.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mirrors.is_empty() && self.tls.is_empty()
    }

    /// Whom containerd asks for images of `host`, in this order.
    ///
    /// # Errors
    /// When an endpoint of it cannot be understood: containerd can then pull nothing of that host.
    pub fn endpoints(&self, host: &str, version: Version) -> Result<Vec<Asked>, String> {
        let mut asked = self.places(host)?;
        if has_tls(version) {
            self.add_tls(&mut asked);
        }
        Ok(asked)
    }

    /// The same without what says how they are trusted.
    fn places(&self, host: &str) -> Result<Vec<Asked>, String> {
        // An exact key hides the wildcard, even an empty one.
        let found = self.mirrors.get(host).or_else(|| self.mirrors.get(WILDCARD));
        let mut asked: Vec<Asked> =
            found.into_iter().flatten().map(|text| Asked::parse(text)).collect::<Result<_, _>>()?;
        if !asked.iter().any(|one| one.host == host) {
            asked.push(upstream(host));
        }
        Ok(asked)
    }

    fn add_tls(&self, asked: &mut [Asked]) {
        for one in asked.iter_mut().filter(|one| one.scheme == "https") {
            one.tls = self.tls.get(&one.host).filter(|tls| !tls.is_empty()).cloned();
        }
    }

    /// Every host about which the older settings say something of its own.
    #[must_use]
    pub fn named_hosts(&self) -> BTreeSet<String> {
        let mut hosts: BTreeSet<String> =
            self.mirrors.keys().filter(|key| *key != WILDCARD).cloned().collect();
        hosts.extend(self.tls.iter().filter(|(_, tls)| !tls.is_empty()).map(|(host, _)| host.clone()));
        if self.tls.get(DOCKER_REGISTRY).is_some_and(|tls| !tls.is_empty()) {
            hosts.insert(DOCKER.to_owned());
        }
        for (key, endpoint) in
            self.mirrors.iter().flat_map(|(key, list)| list.iter().map(move |one| (key, one)))
        {
            // A mirror of everything is asked for its own images too, and then by its own name: no default is
            // appended. One on this machine would be asked by https first, from 1.7 on, where no file says http.
            let Ok(asked) = Asked::parse(endpoint) else { continue };
            if key == WILDCARD || (is_loopback(&asked.host) && !asked.is_ipv6()) {
                hosts.insert(asked.host);
            }
        }
        hosts.retain(|host| is_image_host(host));
        hosts
    }

    /// The tree that asks the same.
    ///
    /// # Errors
    /// Every reason why there is none that all of this containerd's series can read.
    pub fn tree(&self, version: Version) -> Result<Tree, Vec<(Key, String)>> {
        let mut tree = Tree::default();
        let mut reasons = BTreeSet::new();
        let mirror = |host: &str| {
            let exact = self.mirrors.contains_key(host);
            Key::Mirror(if exact { host } else { WILDCARD }.to_owned())
        };
        for (host, tls) in &self.tls {
            if tls.cert_file.is_empty() != tls.key_file.is_empty() {
                let reason = "cert_file and key_file go together: containerd takes neither alone";
                reasons.insert((Key::Tls(host.clone()), reason.to_owned()));
            }
        }
        for key in self.mirrors.keys().filter(|key| *key != WILDCARD && !is_image_host(key)) {
            tree.notes.push(format!(
                "registry.mirrors.{key:?} never had an effect: no image's registry host is called that"
            ));
        }
        let mut write = |directory: &str, places: Result<Vec<Asked>, String>, server: bool| match places {
            Err(reason) => {
                reasons.insert((mirror(directory), reason));
            }
            Ok(mut asked) => {
                self.add_tls(&mut asked);
                match hosts_of(asked, server, version) {
                    Ok((hosts, notes)) => {
                        tree.notes.extend(notes.into_iter().map(|note| format!("{directory}: {note}")));
                        if !hosts.hosts.is_empty() {
                            tree.hosts.insert(directory.to_owned(), hosts);
                        }
                    }
                    Err(reason) => {
                        reasons.insert((mirror(directory), reason));
                    }
                }
            }
        };
        for host in self.named_hosts() {
            write(&host, self.places(&host), true);
        }
        if let Some(all) = self.mirrors.get(WILDCARD) {
            write(DEFAULT, all.iter().map(|text| Asked::parse(text)).collect(), false);
        }
        if !has_tls(version) && self.tls.values().any(|tls| !tls.is_empty()) {
            tree.notes.push(
                "registry.configs.*.tls has no effect on containerd 2: in hosts.toml it holds again"
                    .to_owned(),
            );
        }
        if version >= Version::new(1, 7, 0) {
            tree.notes.push(
                "images of a loopback registry (localhost:5000/...) that is not named here: containerd asks \
                 by https first, then by http; before it was http at once"
                    .to_owned(),
            );
        }
        if reasons.is_empty() { Ok(tree) } else { Err(reasons.into_iter().collect()) }
    }
}

/// containerd 2 took `configs.*.tls` out.
fn has_tls(version: Version) -> bool {
    version.major < 2
}

fn hosts_of(asked: Vec<Asked>, server: bool, version: Version) -> Result<(Hosts, Vec<String>), String> {
    let mut notes = Vec::new();
    if let Some(one) = asked.iter().find(|one| one.is_ipv6() && !version.takes_ipv6_hosts()) {
        return Err(format!(
            "{}: containerd 1 cannot read an IPv6 address in hosts.toml: give it a name, in /etc/hosts perhaps",
            one.url()
        ));
    }
    let mut rest = asked;
    let last = if server { rest.pop() } else { None };
    let mut hosts: Vec<Asked> = Vec::new();
    for one in rest {
        if hosts.iter().any(|other| same_place(other, &one)) {
            notes.push(format!("{} stood there twice: it is asked once", one.url()));
        } else {
            hosts.push(one);
        }
    }
    if let (Some(last), true) = (&last, hosts.is_empty()) {
        // containerd 1.6, and 1.7 before .32, refuse a file without a [host].
        hosts.push(last.clone());
    }
    let server = last.map(|last| Endpoint { capabilities: Vec::new(), ..last.endpoint() });
    Ok((Hosts { server, hosts: hosts.iter().map(Asked::endpoint).collect() }, notes))
}

impl Tree {
    /// Whom containerd asks for images of `host` with this tree, in this order.
    #[must_use]
    pub fn endpoints(&self, host: &str) -> Vec<Asked> {
        let found = self.hosts.get(host).or_else(|| self.hosts.get(DEFAULT));
        let mut asked: Vec<Asked> = found.iter().flat_map(|file| &file.hosts).map(read_back).collect();
        let server = found.and_then(|file| file.server.as_ref()).map(read_back);
        asked.push(server.unwrap_or_else(|| upstream(host)));
        asked
    }
}

fn read_back(endpoint: &Endpoint) -> Asked {
    let (scheme, rest) = endpoint.url.split_once("://").unwrap_or(("https", &endpoint.url));
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = if endpoint.override_path { clean(path) } else { "/v2".to_owned() };
    let (cert_file, key_file) = match endpoint.client.first() {
        Some((cert, key)) => (cert.clone(), key.clone().unwrap_or_default()),
        None => Default::default(),
    };
    let tls = Tls {
        ca_file: endpoint.ca.first().cloned().unwrap_or_default(),
        cert_file,
        key_file,
        insecure_skip_verify: endpoint.skip_verify,
    };
    Asked {
        scheme: scheme.to_owned(),
        host: host.to_owned(),
        path,
        tls: Some(tls).filter(|tls| !tls.is_empty()),
    }
}

/// A question that is put twice in a row, or once more after others, finds nothing that the first did not.
#[must_use]
pub fn distinct(asked: &[Asked]) -> Vec<&Asked> {
    let mut seen: Vec<&Asked> = Vec::new();
    for one in asked {
        if !seen.iter().any(|other| same_place(other, one)) {
            seen.push(one);
        }
    }
    seen
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url())?;
        let Some(tls) = &self.tls else { return Ok(()) };
        if !tls.ca_file.is_empty() {
            write!(f, ", ca {}", absolute(&tls.ca_file))?;
        }
        if !tls.cert_file.is_empty() {
            write!(f, ", client {} {}", absolute(&tls.cert_file), absolute(&tls.key_file))?;
        }
        if tls.insecure_skip_verify { f.write_str(", not verified") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
