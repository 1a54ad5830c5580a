//! Upstreams: their defaults, and what shows when two of them, or one and this node, meet.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::build::Build;
use super::choices::Secret;
use super::client::remote_of;
use super::form;
use super::values::ScheduleForm;
use super::{Credentials, Listen, RemoteUrl, Repository, Schedule, Size, Upstream, UpstreamHost, Username};
use crate::profile::decode::At;
use crate::profile::{Place, Problem};

/// A public repository of each well-known upstream, for the verification to ask for; with the tag of an image
/// where that is small enough to be pulled for a proof.
pub(super) const PROBES: [(&str, &str); 13] = [
    ("cgr.dev", "chainguard/static:latest"),
    ("docker.elastic.co", "elasticsearch/elasticsearch"),
    ("docker.io", "library/busybox:latest"),
    ("gcr.io", "google-containers/pause:3.2"),
    ("ghcr.io", "containerd/busybox:1.36"),
    ("mcr.microsoft.com", "hello-world:latest"),
    ("nvcr.io", "nvidia/cuda"),
    ("public.ecr.aws", "docker/library/busybox:latest"),
    ("quay.io", "prometheus/busybox:latest"),
    ("reg.kyverno.io", "kyverno/kyverno"),
    ("registry.access.redhat.com", "ubi9/ubi"),
    ("registry.gitlab.com", "gitlab-org/gitlab-runner"),
    ("registry.k8s.io", "pause:3.10"),
];

/// Bytes: below, nothing that is worth a cache fits.
const LEAST_SIZE: u64 = 100 << 20;

/// The schedules of upstreams that say none.
pub(super) struct Defaults {
    pub(super) gc: Schedule,
    pub(super) scrub: Schedule,
    pub(super) restart: Schedule,
    pub(super) restart_always: bool,
}

/// Written for one upstream.
fn one(schedule: At<ScheduleForm>) -> Schedule {
    match schedule.value {
        ScheduleForm::Never => Schedule::Never,
        ScheduleForm::Every(period) => Schedule::Every(period),
        ScheduleForm::Calendar(calendar) => Schedule::At(calendar),
    }
}

/// Written for all upstreams of the node.
pub(super) fn all(schedule: Option<At<ScheduleForm>>, default: Schedule) -> Schedule {
    match schedule.map(one) {
        None => default,
        Some(Schedule::At(calendar)) => Schedule::AllAt(calendar),
        Some(schedule) => schedule,
    }
}

/// Whether a cache that listens there is what answers at this URL's host.
pub(super) fn is_here(url: &RemoteUrl, listen: Listen, own: &[At<IpNetwork>]) -> bool {
    let name = url.host_and_port().0;
    match name.parse::<IpAddr>() {
        Err(_) => is_localhost(name),
        Ok(ip) => match listen {
            Listen::Address(listen) => ip == listen,
            Listen::Any => ip.is_loopback() || own.iter().any(|address| address.value.ip() == ip),
        },
    }
}

fn is_loopback(url: &RemoteUrl) -> bool {
    let name = url.host_and_port().0;
    name.parse::<IpAddr>().map_or_else(|_| is_localhost(name), |ip| ip.is_loopback())
}

/// By RFC 6761 section 6.3, and what Debian's /etc/hosts has besides.
fn is_localhost(name: &str) -> bool {
    name == "localhost"
        || name.ends_with(".localhost")
        || matches!(name, "localhost.localdomain" | "ip6-localhost" | "ip6-loopback")
}

impl Build<'_> {
    pub(super) fn ports(&mut self, upstreams: &[(At<UpstreamHost>, form::Upstream)]) {
        let mut taken: HashMap<u16, (&UpstreamHost, Place)> = HashMap::new();
        let mut clashes = Vec::new();
        for (host, upstream) in upstreams {
            let Some(port) = upstream.port else { continue };
            match taken.get(&port.value.get()) {
                None => {
                    taken.insert(port.value.get(), (&host.value, port.place));
                }
                Some((first, place)) => clashes.push((host, port, (*first).clone(), *place)),
            }
        }
        let mut free = (5000..u16::MAX).step_by(10).filter(|port| !taken.contains_key(port));
        for (host, port, first, place) in clashes {
            let line = self.loaded.line(place);
            let message =
                format!("upstreams.{}.port: {} is already {first}'s (line {line})", host.value, port.value);
            let help = match free.next() {
                Some(free) => format!("give every upstream a port of its own: {free} is free"),
                None => "give every upstream a port of its own".to_owned(),
            };
            self.report(Problem::error(port.place, message).related(place, "first used here").help(help));
        }
    }

    /// Budgets that hold no image, or that another one makes void.
    pub(super) fn sizes(&mut self, upstreams: &[(At<UpstreamHost>, form::Upstream)], all: Option<At<Size>>) {
        let least = |build: &mut Self, path: &str, size: At<Size>| {
            if size.value.get() < LEAST_SIZE {
                let message = format!("{path}: too little for the images of a node: they are often larger");
                build.error(size.place, message, "write `1GiB` or more; 100MiB is the least that is taken");
            }
        };
        if let Some(all) = all {
            least(self, "cache.max_size", all);
        }
        for (host, upstream) in upstreams {
            let Some(size) = upstream.max_size else { continue };
            least(self, &format!("upstreams.{}.max_size", host.value), size);
            if let Some(all) = all.filter(|all| all.value.get() < size.value.get()) {
                let message = format!(
                    "upstreams.{}.max_size: it never gets there: all together may take less",
                    host.value
                );
                let problem = Problem::warning(size.place, message).related(all.place, "all together");
                self.report(problem.help("write less than `cache.max_size`, or take it out"));
            }
        }
    }

    pub(super) fn upstream(
        &mut self,
        host: At<UpstreamHost>,
        form: form::Upstream,
        defaults: &Defaults,
    ) -> Option<Upstream> {
        self.two_sources(&host, &form);
        let credentials = self.credentials(&host, form.username, form.password);
        let restart = form.restart.unwrap_or_default();
        let ca_place = form.ca.as_ref().map(|ca| ca.place);
        let ca = form.ca.map(|ca| ca.value);
        let probe = match form.probe {
            Some(probe) => Some(self.probe(&host.value, probe)?),
            None => {
                let known = PROBES.iter().find(|(name, _)| *name == host.value.as_str());
                known.and_then(|(_, repository)| Repository::parse(repository).ok())
            }
        };
        let remote = match form.remote {
            Some(remote) => Some(remote.value),
            None => remote_of(host.value.as_str()),
        };
        if let (Some(place), Some(remote)) = (ca_place, remote.as_ref().filter(|remote| !remote.is_https())) {
            let message = format!("upstreams.{}.ca: {remote} shows no certificate", host.value);
            self.error(place, message, "take it out, or write an https `remote`");
        }
        Some(Upstream {
            port: form.port?.value,
            remote: remote?,
            credentials: credentials?,
            ca,
            probe,
            gc: form.gc.map_or_else(|| defaults.gc.clone(), one),
            scrub: form.scrub.map_or_else(|| defaults.scrub.clone(), one),
            restart: restart.at.map_or_else(|| defaults.restart.clone(), one),
            restart_always: restart.always.unwrap_or(defaults.restart_always),
            credential_helper: form.credential_helper.map(|helper| helper.value),
            max_size: form.max_size.map(|size| size.value),
            host: host.value,
        })
    }

    /// A helper, and what it is to be asked for.
    fn two_sources(&mut self, host: &At<UpstreamHost>, form: &form::Upstream) {
        let Some(helper) = &form.credential_helper else { return };
        let written = form.username.as_ref().map(|username| ("username", username.place));
        let written = written.or_else(|| form.password.as_ref().map(|password| ("password", password.place)));
        if let Some((key, place)) = written {
            let message = format!("upstreams.{}: both `credential_helper` and `{key}`", host.value);
            let problem = Problem::error(helper.place, message).related(place, "the other source");
            self.report(problem.help("take one of them out"));
        }
    }

    /// `None` where half of them is missing.
    #[allow(clippy::option_option)]
    fn credentials(
        &mut self,
        host: &At<UpstreamHost>,
        username: Option<At<Username>>,
        password: Option<At<Secret>>,
    ) -> Option<Option<Credentials>> {
        let host = &host.value;
        if let Some(password) = &password {
            self.in_clear(&format!("upstreams.{host}.password"), password);
        }
        let written = |key: &str| {
            let tree = self.loaded.tree();
            tree.get("upstreams").and_then(|all| all.get(host.as_str())).is_some_and(|one| one.says(key))
        };
        match (username, password) {
            (None, None) => Some(None),
            (Some(username), Some(password)) => {
                Some(Some(Credentials { username: username.value.to_string(), password: password.value.0 }))
            }
            (Some(username), None) => {
                if !written("password") {
                    let message = format!("upstreams.{host}.username: there is no `password` beside it");
                    self.error(
                        username.place,
                        message,
                        "write `password: { file: /etc/larder/secrets/NAME }`",
                    );
                }
                None
            }
            (None, Some(password)) => {
                if !written("username") {
                    let message = format!("upstreams.{host}.password: there is no `username` beside it");
                    self.error(password.place, message, "write `username: NAME`");
                }
                None
            }
        }
    }

    fn probe(&mut self, host: &UpstreamHost, probe: At<Repository>) -> Option<Repository> {
        let text = probe.value.as_str();
        let path = format!("upstreams.{host}.probe");
        if let Some(rest) = text.strip_prefix(host.as_str()).and_then(|rest| rest.strip_prefix('/')) {
            self.error(
                probe.place,
                format!("{path}: the registry's host is no part of it"),
                format!("write `{rest}`"),
            );
            return None;
        }
        if host.as_str() == "docker.io" && !text.contains('/') {
            let message = format!("{path}: docker.io has no repository `{text}`");
            self.error(probe.place, message, format!("write `library/{text}`"));
            return None;
        }
        Some(probe.value)
    }

    /// Upstreams that are this very node's caches: each pull would ask itself for ever.
    pub(super) fn loops(
        &mut self,
        upstreams: &[(At<UpstreamHost>, form::Upstream)],
        listen: Listen,
        own: &[At<IpNetwork>],
        access_is_said: bool,
    ) {
        let is_loopback_only =
            access_is_said || matches!(listen, Listen::Address(address) if address.is_loopback());
        let ports: HashMap<u16, Place> = upstreams
            .iter()
            .filter_map(|(_, form)| form.port.map(|port| (port.value.get(), port.place)))
            .collect();
        for (host, form) in upstreams {
            let (remote, place) = match &form.remote {
                Some(remote) => (Some(remote.value.clone()), remote.place),
                None => (RemoteUrl::parse(&format!("https://{}", host.value)).ok(), host.place),
            };
            let Some(remote) = remote else { continue };
            let port = remote.host_and_port().1;
            if let Some(at) = ports.get(&port).filter(|_| is_here(&remote, listen, own)) {
                let message = format!("upstreams.{}.remote: {remote} is this node's own cache", host.value);
                let problem = Problem::error(place, message).related(*at, "served here");
                self.report(problem.help("write the upstream's own URL"));
            } else if is_loopback(&remote) && !is_loopback_only {
                let message = format!(
                    "upstreams.{}.remote: {remote} answers this machine alone, and the cache passes it on to the network",
                    host.value
                );
                let problem = Problem::warning(place, message);
                self.report(problem.help(
                    "write `cache.access`, the networks that may ask, or `cache.listen: 127.0.0.1` for this machine's own",
                ));
            }
        }
    }
}
