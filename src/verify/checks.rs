//! What there is to prove of a node.

use std::collections::BTreeMap;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::direct::{Login, Question};
use super::{Check, Probe};
use crate::node::{
    Access, Cache, Containerd, Node, Repository, Schedule, Upstream, UpstreamHost, UpstreamPolicy,
};
use crate::plan::local_address;

/// What the profile only names, read on this machine: what upstreams are asked with.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    pub passwords: &'a BTreeMap<UpstreamHost, Zeroizing<String>>,
    pub trusted: &'a BTreeMap<UpstreamHost, Arc<str>>,
}

/// The checks of `node`, whose address is on `interface` where that is known.
#[must_use]
pub fn checks(node: &Node, interface: Option<&str>, known: Known<'_>) -> Vec<Check> {
    let addresses = node.network.iter().flat_map(|network| &network.addresses).map(|address| Check {
        subject: "network".to_owned(),
        probe: Probe::Address { address: *address, interface: interface.map(str::to_owned) },
    });
    let registries = node.cache.iter().flat_map(|cache| {
        let policy = node.verify.upstreams;
        node.upstreams.iter().flat_map(move |upstream| of_registry(upstream, cache, policy, known))
    });
    let face = node.cache.iter().flat_map(|cache| {
        let access = Probe::Unit { unit: "larder-access.service".to_owned() };
        let access = (cache.access != Access::Open).then_some(access);
        let tls = cache.tls.as_ref().map(|tls| Probe::Certificate { path: tls.certificate.to_string() });
        let tended = Probe::Timer { unit: "larder-tend.timer".to_owned() };
        let tended = cache.objects.is_none().then_some(tended);
        access.into_iter().chain(tls).chain(tended).map(|probe| Check { subject: "cache".to_owned(), probe })
    });
    let containerd =
        node.containerd.iter().map(|_| Check { subject: "containerd".to_owned(), probe: Probe::Cri });
    let timer = node.is_watched().then(|| Probe::Timer { unit: "larder-watch.timer".to_owned() });
    let caches = node.asks_caches().then_some(Probe::Caches);
    let subject = if node.asks_caches() { "containerd" } else { "watch" };
    let watched = timer.into_iter().chain(caches).map(|probe| Check { subject: subject.to_owned(), probe });
    addresses.chain(face).chain(registries).chain(containerd).chain(watched).collect()
}

/// A pull through containerd for each upstream of `node`.
#[must_use]
pub fn pulls(node: &Node) -> Vec<Check> {
    let pull = |client: &Containerd, upstream: &Upstream| Check {
        subject: upstream.host.to_string(),
        probe: Probe::Pull {
            certs_dir: client.certs_dir.to_string(),
            image: upstream.probe.as_ref().and_then(Repository::image),
            remote: upstream.remote.to_string(),
            cached: node.cache.is_some() || !client.caches.is_empty(),
        },
    };
    let clients = node.containerd.iter();
    clients.flat_map(|client| node.upstreams.iter().map(|upstream| pull(client, upstream))).collect()
}

fn question(upstream: &Upstream, known: Known<'_>) -> Question {
    let password = known.passwords.get(&upstream.host);
    let login = upstream.credentials.as_ref().zip(password).map(|(credentials, password)| Login {
        username: credentials.username.clone(),
        password: password.clone(),
    });
    Question {
        remote: upstream.remote.to_string(),
        repository: upstream.probe.as_ref().map(|probe| probe.as_str().to_owned()),
        tag: upstream.probe.as_ref().and_then(Repository::tag).map(str::to_owned),
        login,
        ca: known.trusted.get(&upstream.host).cloned(),
    }
}

fn of_registry(upstream: &Upstream, cache: &Cache, policy: UpstreamPolicy, known: Known<'_>) -> Vec<Check> {
    let host = upstream.host.as_str();
    let address = local_address(cache, upstream);
    let required = policy == UpstreamPolicy::Require;
    let certificate = cache.tls.as_ref().map(|tls| tls.certificate.to_string());
    let mut probes = vec![
        Probe::Unit { unit: format!("larder-registry@{host}.service") },
        Probe::Endpoint { address, certificate: certificate.clone() },
        Probe::Preflight { question: question(upstream, known), required },
        Probe::Upstream {
            address,
            certificate,
            repository: upstream.probe.as_ref().map(|probe| probe.as_str().to_owned()),
            required,
        },
    ];
    for (job, schedule) in [("gc", &upstream.gc), ("scrub", &upstream.scrub), ("restart", &upstream.restart)]
    {
        if *schedule != Schedule::Never {
            probes.push(Probe::Timer { unit: format!("larder-{job}@{host}.timer") });
        }
    }
    probes.into_iter().map(|probe| Check { subject: host.to_owned(), probe }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Source, load};

    fn lines(profile: &str, interface: Option<&str>) -> Vec<String> {
        let source = Source::Text { name: "profile.yaml".to_owned(), text: profile.to_owned() };
        let (node, _) =
            load(&source).and_then(|loaded| loaded.node()).unwrap_or_else(|problems| panic!("{problems}"));
        let (passwords, trusted) = Default::default();
        checks(&node, interface, Known { passwords: &passwords, trusted: &trusted })
            .iter()
            .map(|check| format!("{}: {}", check.subject, check.probe.wanted()))
            .collect()
    }

    #[test]
    fn node_is_checked_for_all_that_it_shall_be() {
        let profile = "version: 1\n\
            upstreams:\n  ghcr.io: { port: 5010 }\n  quay.io: { port: 5020, restart: never }\n\
            network: { addresses: [10.0.20.10/24], routes: [{ to: default, via: 10.0.20.1 }] }\n\
            cache: {}\ncontainerd: {}\n";
        let got = lines(profile, Some("eth0"));
        let of = |subject: &str| got.iter().filter(|line| line.starts_with(subject)).collect::<Vec<_>>();
        assert_eq!(of("network"), ["network: 10.0.20.10/24 on eth0"]);
        assert_eq!(
            of("quay.io"),
            [
                "quay.io: larder-registry@quay.io.service active",
                "quay.io: 200 from http://10.0.20.10:5020/v2/",
                "quay.io: prometheus/busybox:latest of https://quay.io",
                "quay.io: 404 from HEAD http://10.0.20.10:5020/v2/prometheus/busybox/blobs/sha256:000...",
                "quay.io: larder-gc@quay.io.timer armed",
                "quay.io: larder-scrub@quay.io.timer armed",
            ]
        );
        assert_eq!((of("ghcr.io").len(), of("containerd").len(), got.len()), (7, 3, 18));
    }

    #[test]
    fn cache_on_every_address_is_asked_on_loopback() {
        let profile = "version: 1\nupstreams: { ghcr.io: { port: 5010 } }\ncache: { listen: 0.0.0.0 }\n";
        let got = lines(profile, None);
        assert!(got.contains(&"ghcr.io: 200 from http://127.0.0.1:5010/v2/".to_owned()), "got {got:#?}");
    }
}
