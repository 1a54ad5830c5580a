//! containerd as a client: caches, mirrors and credentials, and what shows when they meet.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::build::Build;
use super::choices::MirrorForm;
use super::form;
use super::text::no_registry;
use super::upstream::is_here;
use super::values::Keyed;
use super::{
    AbsolutePath, CacheHost, CacheName, Containerd, Credentials, Listen, Mirror, MirrorHost, Order,
    RemoteUrl, Upstream, UpstreamHost,
};
use crate::profile::decode::{At, List};
use crate::profile::{Place, Problem};

const CERTS_DIR: &str = "/etc/containerd/certs.d";
/// A shorter one cancels a pull that containerd would have taken to the next endpoint: it waits 30 s for a
/// connection (containerd issue 10624).
const SHORTEST_PROGRESS: Duration = Duration::from_secs(30);
/// What mirrors are compared with.
pub(super) struct Fleet<'a> {
    pub(super) upstreams: &'a [Upstream],
    /// Whether every upstream could be made.
    pub(super) is_whole: bool,
    /// Where the registries of this node listen, if it has some.
    pub(super) listen: Option<Listen>,
    pub(super) own: &'a [At<IpNetwork>],
    /// Whether those registries serve https.
    pub(super) is_https: bool,
}

impl Fleet<'_> {
    fn upstream(&self, host: &str) -> Option<&Upstream> {
        self.upstreams.iter().find(|upstream| upstream.host.as_str() == host)
    }
}

impl Build<'_> {
    pub(super) fn containerd(&mut self, form: At<form::Containerd>, fleet: &Fleet) -> Option<Containerd> {
        let form = form.value;
        let mut caches = form.caches.map_or_else(Vec::new, |caches| caches.value.items);
        caches.iter_mut().for_each(|cache| self.cache_host(cache, fleet));
        let mut seen = HashMap::new();
        for cache in &caches {
            if let Some(first) = seen.insert(&cache.value.name, cache.place) {
                let message = format!("containerd.caches: {} is here twice", cache.value);
                let problem = Problem::error(cache.place, message).related(first, "first here");
                self.report(problem.help("keep one of them"));
            }
        }
        let certs_dir = match form.certs_dir {
            None => AbsolutePath::parse(CERTS_DIR).ok()?,
            Some(path) => {
                if path.value.as_str() == "/" {
                    let message = "containerd.certs_dir: the root folder is not for hosts.toml files alone";
                    self.error(path.place, message, format!("write {CERTS_DIR}"));
                } else if let Some(whose) = path.value.is_the_systems() {
                    let message = format!("containerd.certs_dir: {whose} is not for hosts.toml files");
                    self.error(path.place, message, format!("write {CERTS_DIR}"));
                }
                path.value
            }
        };
        let has_caches = !caches.is_empty() || fleet.listen.is_some();
        let fallback = form.fallback.is_none_or(|fallback| fallback.value);
        let mirrors_at = form.mirrors.as_ref().map(|mirrors| mirrors.place);
        let mirrors = match form.mirrors {
            None => Vec::new(),
            Some(mirrors) => self.mirrors(mirrors.value, &caches, fallback, fleet)?,
        };
        // Nothing is concluded from what could not be read.
        if fleet.is_whole && self.is_clean() {
            self.without_endpoint(&mirrors, has_caches, form.fallback, mirrors_at, fleet);
        }
        if let Some(timeout) = form.image_pull_progress_timeout.filter(|t| t.value < SHORTEST_PROGRESS) {
            let message = format!(
                "containerd.image_pull_progress_timeout: {} cancels pulls that would have gone on with the next \
                 endpoint",
                humantime::format_duration(timeout.value)
            );
            self.error(timeout.place, message, "write 30s or more; containerd's own is 5m");
        }
        let auth = form.auth.map_or_else(Vec::new, |auth| self.auth(auth, fleet));
        Some(Containerd {
            caches: caches.into_iter().map(|cache| cache.value).collect(),
            order: form.order.map_or(Order::Listed, |order| order.value),
            fallback,
            certs_dir,
            mirrors,
            max_concurrent_downloads: form.max_concurrent_downloads.map(|downloads| downloads.0),
            image_pull_progress_timeout: form.image_pull_progress_timeout.map(|timeout| timeout.value),
            auth,
        })
    }

    fn cache_host(&mut self, cache: &mut At<CacheHost>, fleet: &Fleet) {
        let CacheName::Address(address) = cache.value.name else { return };
        if address.is_unspecified() || address.is_multicast() {
            let message = format!("containerd.caches: {address} is no machine's address");
            self.error(cache.place, message, "write the address on which the cache listens");
        } else if let Err(got) = no_registry(address) {
            let message = format!("containerd.caches: wanted a cache's address, {got}");
            self.error(cache.place, message, "write the address on which the cache listens");
        }
        let is_own = match fleet.listen {
            Some(Listen::Address(listen)) => listen == address,
            Some(Listen::Any) => {
                address.is_loopback() || fleet.own.iter().any(|own| own.value.ip() == address)
            }
            None => false,
        };
        if is_own && cache.value.is_https && !fleet.is_https {
            let message =
                format!("containerd.caches: {} is this node, which has no `cache.tls`", cache.value);
            let other = CacheHost { is_https: false, ..cache.value.clone() };
            self.error(cache.place, message, format!("write {other}"));
        }
        cache.value.is_https |= is_own && fleet.is_https;
        if fleet.is_https && !cache.value.is_https {
            let message =
                format!("containerd.caches: {} is asked by http, and this node serves https", cache.value);
            let other = CacheHost { is_https: true, ..cache.value.clone() };
            self.report(
                Problem::warning(cache.place, message).help(format!("write {other} if that one does, too")),
            );
        }
    }

    /// Upstreams that would have nobody to ask.
    fn without_endpoint(
        &mut self,
        mirrors: &[(MirrorHost, Vec<Mirror>)],
        has_caches: bool,
        fallback: Option<At<bool>>,
        mirrors_at: Option<Place>,
        fleet: &Fleet,
    ) {
        let Some(at) = fallback.filter(|fallback| !fallback.value && !has_caches) else { return };
        let covers = |host: &str| mirrors.iter().any(|(name, _)| name.as_str() == host || name.is_default());
        for upstream in fleet.upstreams.iter().filter(|upstream| !covers(upstream.host.as_str())) {
            let message = format!(
                "containerd.fallback: {} has no cache and no mirror: nobody would be asked for its images",
                upstream.host
            );
            let problem = Problem::error(at.place, message);
            let problem = match mirrors_at {
                Some(place) => problem.related(place, "not named here"),
                None => problem,
            };
            self.report(
                problem.help("name a cache under `caches`, or a mirror of it, or write `fallback: true`"),
            );
        }
    }

    fn mirrors(
        &mut self,
        forms: Keyed<MirrorHost, At<List<At<MirrorForm>>>>,
        caches: &[At<CacheHost>],
        fallback: bool,
        fleet: &Fleet,
    ) -> Option<Vec<(MirrorHost, Vec<Mirror>)>> {
        let mut whole = true;
        let mut out = Vec::new();
        for (host, list) in forms.entries {
            let At { value: list, place } = list;
            let path = format!("containerd.mirrors.{}", host.value);
            if list.items.is_empty() && list.whole {
                let help = "write `[https://mirror.example.com]`, or take the key out";
                self.error(place, format!("{path}: there is none"), help);
            }
            whole &= list.whole;
            let mut seen: Vec<(String, Place)> = Vec::new();
            let mut mirrors = Vec::new();
            for (index, form) in list.items.into_iter().enumerate() {
                let path = format!("{path}[{index}]");
                let Some(url) = form.value.0.url.clone() else {
                    whole = false;
                    continue;
                };
                self.endpoint(&path, &host.value, &url.value.0, url.place, caches, fallback, fleet);
                let normal = normal(&url.value.0);
                match seen.iter().find(|(other, _)| *other == normal) {
                    None => seen.push((normal, url.place)),
                    Some((_, first)) => {
                        let message = format!("{path}: {} is here twice", url.value.0);
                        let problem = Problem::error(url.place, message).related(*first, "first here");
                        self.report(problem.help("keep one of them"));
                    }
                }
                mirrors.extend(self.mirror(&path, form.value.0, url.value.0, url.place));
            }
            out.push((host.value, mirrors));
        }
        whole.then_some(out)
    }

    /// Where a mirror must not lead.
    #[allow(clippy::too_many_arguments, reason = "a place, and all that it is compared with")]
    fn endpoint(
        &mut self,
        path: &str,
        host: &MirrorHost,
        url: &RemoteUrl,
        place: Place,
        caches: &[At<CacheHost>],
        fallback: bool,
        fleet: &Fleet,
    ) {
        let (name, port) = url.host_and_port();
        let ip: Option<IpAddr> = name.parse().ok();
        if ip.is_some_and(|ip| ip.is_unspecified() || ip.is_multicast()) {
            self.error(
                place,
                format!("{path}: {name} is no machine's address"),
                "write the mirror's address",
            );
            return;
        }
        // The caches of the fleet, by what is behind their ports.
        let named = caches.iter().find(|cache| match (&cache.value.name, ip) {
            (CacheName::Address(address), Some(ip)) => *address == ip,
            (CacheName::Name(cache), None) => cache.as_str() == name,
            _ => false,
        });
        let own = fleet.listen.is_some_and(|listen| is_here(url, listen, fleet.own));
        if let Some(upstream) = fleet.upstreams.iter().find(|upstream| upstream.port.get() == port)
            && (named.is_some() || own)
        {
            let whose = if own { "this node's own cache" } else { "the cache" };
            let is_first = own && caches.is_empty() || named.is_some();
            let problem = if host.as_str() != upstream.host.as_str() {
                Problem::error(
                    place,
                    format!("{path}: {url} is {whose} of {}, which has no other images", upstream.host),
                )
                .help("a cache serves one upstream on each port: write a mirror that has these images")
            } else if is_first {
                Problem::error(
                    place,
                    format!("{path}: {url} is {whose} of {host}, which is asked first anyway"),
                )
                .help("take it out")
            } else {
                return;
            };
            self.report(match named {
                Some(cache) => problem.related(cache.place, "this cache"),
                None => problem,
            });
            return;
        }
        let remote = match fleet.upstream(host.as_str()) {
            Some(upstream) => Some(upstream.remote.clone()),
            None if host.is_default() => None,
            None => remote_of(host.as_str()),
        };
        if remote.is_some_and(|remote| normal(&remote) == normal(url)) {
            let message = format!("{path}: {url} is {host} itself");
            let help = if fallback {
                "take it out: it is asked last anyway"
            } else {
                "take it out: with `fallback: false` it is never to be asked"
            };
            self.error(place, message, help);
        }
    }

    fn auth(
        &mut self,
        auth: Keyed<UpstreamHost, form::Login>,
        fleet: &Fleet,
    ) -> Vec<(UpstreamHost, Credentials)> {
        let mut out = Vec::new();
        let mut seen: HashMap<String, At<UpstreamHost>> = HashMap::new();
        for (host, login) in auth.entries {
            let name = host.value.as_str();
            let asked =
                fleet.upstream(name).map(|upstream| upstream.remote.clone()).or_else(|| remote_of(name));
            let asked = asked.map(|url| format!("{:?}", url.host_and_port())).unwrap_or_default();
            if let Some(first) = seen.insert(asked, At { value: host.value.clone(), place: host.place }) {
                let message = format!("containerd.auth.{name}: the same registry as {}", first.value);
                let problem = Problem::error(host.place, message).related(first.place, "first here");
                self.report(problem.help("keep one of them: a registry host has one pair of credentials"));
            }
            // What is missing has been reported.
            let (Some(username), Some(password)) = (login.username, login.password) else { continue };
            self.in_clear(&format!("containerd.auth.{}.password", host.value), &password);
            let credentials = Credentials { username: username.to_string(), password: password.value.0 };
            out.push((host.value, credentials));
        }
        out
    }
}

/// The URL that containerd asks for a registry host where nothing else is written.
#[must_use]
pub fn remote_of(host: &str) -> Option<RemoteUrl> {
    RemoteUrl::parse(&match host {
        "docker.io" => "https://registry-1.docker.io".to_owned(),
        host => format!("https://{host}"),
    })
    .ok()
}

/// Two URLs with the same of these lead to the same place.
fn normal(url: &RemoteUrl) -> String {
    let (host, port) = url.host_and_port();
    let path = url.path();
    let path = path.strip_suffix("/v2").unwrap_or(path);
    format!("{} {host} {port} {path}", url.is_https())
}
