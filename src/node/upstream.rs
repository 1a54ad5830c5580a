//! Upstreams: their defaults, and what shows when two of them, or one and this node, meet.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::build::Build;
use super::choices::Secret;
use super::client::remote_of;
use super::form;
use super::values::ScheduleForm;
use super::{Credentials, Listen, Port, RemoteUrl, Repository, Schedule, Upstream, UpstreamHost, Username};
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

/// The schedules of upstreams that say none.
pub(super) struct Defaults {
    pub(super) gc: Schedule,
    pub(super) restart: Schedule,
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
        Err(_) => name == "localhost",
        Ok(ip) => match listen {
            Listen::Address(listen) => ip == listen,
            Listen::Any => ip.is_loopback() || own.iter().any(|address| address.value.ip() == ip),
        },
    }
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

    pub(super) fn upstream(
        &mut self,
        host: At<UpstreamHost>,
        form: form::Upstream,
        defaults: &Defaults,
    ) -> Option<Upstream> {
        let credentials = self.credentials(&host, form.username, form.password);
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
        Some(Upstream {
            port: form.port?.value,
            remote: remote?,
            credentials: credentials?,
            probe,
            gc: form.gc.map_or_else(|| defaults.gc.clone(), one),
            restart: form.restart.map_or_else(|| defaults.restart.clone(), one),
            host: host.value,
        })
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
    ) {
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
            }
        }
    }

    /// A cache asks nobody who they are: it hands on what its credentials open.
    pub(super) fn open_credentials(
        &mut self,
        upstreams: &[(At<UpstreamHost>, form::Upstream)],
        listen: Listen,
    ) {
        let address = match listen {
            Listen::Address(address) if address.is_loopback() => return,
            Listen::Address(address) => address.to_string(),
            Listen::Any => "this node".to_owned(),
        };
        for (host, form) in upstreams {
            let (Some(username), Some(_)) = (&form.username, &form.password) else { continue };
            let port = form.port.map_or_else(String::new, |port: At<Port>| format!(", port {}", port.value));
            let message = format!(
                "upstreams.{}: whoever reaches {address}{port} can pull what `{}` can",
                host.value, username.value
            );
            let help =
                "let a firewall decide who reaches it; `cache.listen: 127.0.0.1` is for this node alone";
            self.report(Problem::warning(username.place, message).help(help));
        }
    }
}
