//! containerd as a client: caches, mirrors and credentials, and what shows when they meet.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::build::Build;
use super::choices::{MirrorForm, Secret};
use super::form;
use super::upstream::is_here;
use super::values::Keyed;
use super::{
    AbsolutePath, CacheHost, Capability, Containerd, Credentials, HeaderName, Listen, Mirror, MirrorHost,
    Order, RemoteUrl, SecretSource, Upstream, UpstreamHost,
};
use crate::profile::decode::{At, List};
use crate::profile::{Place, Problem};

const CERTS_DIR: &str = "/etc/containerd/certs.d";
/// A shorter one cancels a pull that containerd would have taken to the next endpoint: it waits 30 s for a
/// connection (containerd issue 10624).
const SHORTEST_PROGRESS: Duration = Duration::from_secs(30);
/// Below it a healthy link fails; above it containerd's own 30 s end it.
const DIALS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(30);
/// HTTP's own, which containerd's client sets or drops.
const RESERVED: [&str; 6] =
    ["connection", "content-length", "host", "te", "transfer-encoding", "proxy-authorization"];

/// What mirrors are compared with.
pub(super) struct Fleet<'a> {
    pub(super) upstreams: &'a [Upstream],
    /// Whether every upstream could be made.
    pub(super) is_whole: bool,
    /// Where the registries of this node listen, if it has some.
    pub(super) listen: Option<Listen>,
    pub(super) own: &'a [At<IpNetwork>],
}

impl Fleet<'_> {
    fn upstream(&self, host: &str) -> Option<&Upstream> {
        self.upstreams.iter().find(|upstream| upstream.host.as_str() == host)
    }
}

impl Build<'_> {
    pub(super) fn containerd(&mut self, form: At<form::Containerd>, fleet: &Fleet) -> Option<Containerd> {
        let form = form.value;
        let caches = form.caches.map_or_else(Vec::new, |caches| caches.value.items);
        let mut seen = HashMap::new();
        for cache in &caches {
            self.cache_host(cache);
            if let Some(first) = seen.insert(&cache.value, cache.place) {
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
        let auth = form.auth.map_or_else(Vec::new, |auth| self.auth(auth));
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

    fn cache_host(&mut self, cache: &At<CacheHost>) {
        let CacheHost::Address(address) = cache.value else { return };
        if address.is_unspecified() || address.is_multicast() {
            let message = format!("containerd.caches: {address} is no machine's address");
            self.error(cache.place, message, "write the address on which the cache listens");
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
        let named = caches.iter().find(|cache| match (&cache.value, ip) {
            (CacheHost::Address(address), Some(ip)) => *address == ip,
            (CacheHost::Name(cache), None) => cache.as_str() == name,
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

    fn mirror(&mut self, path: &str, form: form::Mirror, url: RemoteUrl, place: Place) -> Option<Mirror> {
        let override_path = form.override_path.is_some_and(|path| path.value);
        self.path(path, &url, place, form.override_path);
        let capabilities = match form.capabilities {
            None => vec![Capability::Pull, Capability::Resolve],
            Some(list) => self.capabilities(path, &list),
        };
        let skip_verify = form.skip_verify.is_some_and(|skip| skip.value);
        let client = form.client.as_ref().and_then(|client| match client.value.items.as_slice() {
            [certificate, key] => Some((certificate.value.clone(), key.value.clone())),
            _ => None,
        });
        if let Some(at) = form.client.as_ref().filter(|at| client.is_none() && at.value.whole) {
            let message =
                format!("{path}.client: wanted a certificate and its key, got {}", at.value.items.len());
            self.error(at.place, message, "write `[/etc/ssl/client.pem, /etc/ssl/private/client.key]`");
        }
        if !url.is_https() {
            // containerd from 1.7 on then asks by https first.
            let written = [
                ("ca", form.ca.as_ref().map(|ca| ca.place)),
                ("client", form.client.as_ref().map(|client| client.place)),
                ("skip_verify", form.skip_verify.map(|skip| skip.place)),
            ];
            for (key, at) in written {
                let Some(at) = at else { continue };
                let message = format!("{path}.{key}: there is no TLS at {url}");
                let problem = Problem::error(at, message).related(place, "http");
                self.report(problem.help(format!("write an https URL, or take `{key}` out")));
            }
        } else if let Some(at) = form.skip_verify.filter(|skip| skip.value) {
            let problem = match &form.ca {
                Some(ca) => Problem::error(at.place, format!("{path}.skip_verify: any certificate is taken, so `ca` does nothing"))
                    .related(ca.place, "here")
                    .help("take `skip_verify` out"),
                None => Problem::warning(
                    at.place,
                    format!("{path}.skip_verify: whoever is between this node and {url} can hand it any tag and read its headers"),
                )
                .help("write `ca: /etc/ssl/NAME.pem` in its place, with the certificate that it should show"),
            };
            self.report(problem);
        }
        let headers = form.headers.map_or_else(Vec::new, |headers| self.headers(path, headers, &url));
        if let Some(at) = form.dial_timeout.filter(|timeout| !DIALS.contains(&timeout.value)) {
            let message = format!(
                "{path}.dial_timeout: wanted 100ms to 30s, got {}",
                humantime::format_duration(at.value)
            );
            self.error(
                at.place,
                message,
                "write `1s` for a mirror in the same building, `5s` for one far away",
            );
        }
        Some(Mirror {
            url,
            override_path,
            capabilities,
            ca: form.ca.map(|ca| ca.value),
            client,
            skip_verify,
            headers,
            dial_timeout: form.dial_timeout.map(|timeout| timeout.value),
        })
    }

    /// containerd adds `/v2` to a path that does not end with it, unless the path is the whole one.
    fn path(&mut self, path: &str, url: &RemoteUrl, place: Place, override_path: Option<At<bool>>) {
        let url_path = url.path();
        let has_v2 = url_path.split('/').any(|part| part == "v2");
        match override_path.filter(|path| path.value) {
            None if has_v2 && !url_path.ends_with("/v2") => {
                let message = format!("{path}: containerd would ask for {url_path}/v2/REPOSITORY");
                self.error(
                    place,
                    message,
                    "write `override_path: true` beside `url`, as a Harbor project needs it",
                );
            }
            Some(at) if url_path.is_empty() => {
                let message = format!("{path}.override_path: {url} has no path");
                let problem = Problem::error(at.place, message).related(place, "its URL");
                self.report(
                    problem.help("write the whole path, `/v2` included, or take `override_path` out"),
                );
            }
            Some(at) if !has_v2 => {
                let message = format!(
                    "{path}.override_path: containerd will ask for {url_path}/REPOSITORY, without `/v2`"
                );
                let problem = Problem::warning(at.place, message).related(place, "its URL");
                self.report(problem.help("most registries want `/v2` in the path"));
            }
            _ => {}
        }
    }

    fn capabilities(&mut self, path: &str, list: &At<List<At<Capability>>>) -> Vec<Capability> {
        let mut out: Vec<Capability> = Vec::new();
        for one in &list.value.items {
            if out.contains(&one.value) {
                let message = format!("{path}.capabilities: `{}` is here twice", one.value.as_str());
                self.error(one.place, message, "keep one of them");
            } else {
                out.push(one.value);
            }
        }
        let pulls = out.iter().any(|one| matches!(one, Capability::Pull | Capability::Resolve));
        if !pulls && list.value.whole {
            let message = format!("{path}.capabilities: neither `pull` nor `resolve`: no pull would ask it");
            self.error(list.place, message, "write `[pull, resolve]`, or take the mirror out");
        } else if let Some(push) = list.value.items.iter().find(|one| one.value == Capability::Push) {
            let message = format!("{path}.capabilities: pushes go to this mirror, too");
            let help = "containerd sends a push to each endpoint that takes it: write `[pull, resolve]`";
            self.report(Problem::warning(push.place, message).help(help));
        }
        out
    }

    fn headers(
        &mut self,
        path: &str,
        headers: Keyed<HeaderName, At<Secret>>,
        url: &RemoteUrl,
    ) -> Vec<(HeaderName, SecretSource)> {
        let mut seen: HashMap<String, Place> = HashMap::new();
        if let Some((first, _)) = headers.entries.first().filter(|_| !url.is_https()) {
            let message = format!("{path}.headers: whoever is between this node and {url} can read them");
            self.report(Problem::warning(first.place, message).help("write an https URL"));
        }
        let mut out = Vec::new();
        for (name, secret) in headers.entries {
            let lower = name.value.as_str().to_ascii_lowercase();
            if RESERVED.contains(&lower.as_str()) {
                let message =
                    format!("{path}.headers.{}: containerd's HTTP client sets it itself", name.value);
                self.error(name.place, message, "take it out");
            }
            if let Some(first) = seen.insert(lower, name.place) {
                let message = format!("{path}.headers.{}: is here twice, but for its case", name.value);
                let problem = Problem::error(name.place, message).related(first, "first here");
                self.report(problem.help("keep one of them"));
            }
            self.in_clear(&format!("{path}.headers.{}", name.value), &secret);
            out.push((name.value, secret.value.0));
        }
        out
    }

    fn auth(&mut self, auth: Keyed<UpstreamHost, form::Login>) -> Vec<(UpstreamHost, Credentials)> {
        let mut out = Vec::new();
        for (host, login) in auth.entries {
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
