//! How a cache faces the outside: https, who may ask, and what it tells of itself.

use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use serde_json::{Value as Json, json};

use super::build::Build;
use super::choices::Secret;
use super::form;
use super::values::refusal;
use super::{Access, Listen, Metrics, Text, Tls, UpstreamHost, Username};
use crate::profile::decode::{At, Decode, Decoder, List};
use crate::profile::record::set;
use crate::profile::{Place, Problem, Value};

/// `open`, or the networks that may ask.
#[derive(Debug)]
pub enum AccessForm {
    Open,
    Networks(List<At<IpNetwork>>),
}

impl Decode for AccessForm {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        if value.is_list() {
            return List::decode(value, decoder).map(Self::Networks);
        }
        if value.is_map() {
            return decoder.wrong(value, "`open`, or a list of networks");
        }
        decoder.parse(value, |text| match text {
            "open" => Ok(Self::Open),
            _ => {
                let problem = Problem::error(value.place(), "wanted `open`, or a list of networks");
                Err(match <IpNetwork as Text>::parse(text) {
                    Ok(_) => problem.help(format!("write `[{text}]`")),
                    Err(_) => problem.help("write `[10.0.20.0/24]`"),
                })
            }
        })
    }

    fn schema() -> Json {
        let mut networks = List::<At<IpNetwork>>::schema();
        set(&mut networks, "minItems", 1);
        json!({ "oneOf": [{ "const": "open" }, networks] })
    }
}

/// The registries' own address alone, or with what else there is.
#[derive(Debug)]
pub struct MetricsForm(pub form::MetricsMap);

impl Decode for MetricsForm {
    fn decode<'a>(value: &'a Value, decoder: &mut Decoder<'a>) -> Option<Self> {
        if value.is_map() {
            return form::MetricsMap::decode(value, decoder).map(Self);
        }
        if value.is_list() {
            return decoder.wrong(value, "an address and a port, or a map");
        }
        let place = value.place();
        let registries = decoder.parse(value, |text| {
            <SocketAddr as Text>::parse(text).map_err(|message| refusal(value, message))
        })?;
        let registries = Some(At { value: registries, place });
        Some(Self(form::MetricsMap { registries, ..form::MetricsMap::default() }))
    }

    fn schema() -> Json {
        json!({ "oneOf": [SocketAddr::schema(), form::MetricsMap::schema()] })
    }
}

impl Build<'_> {
    pub(super) fn tls(form: Option<At<form::Tls>>) -> Option<Option<Tls>> {
        match form {
            None => Some(None),
            // What is missing has been reported.
            Some(tls) => Some(Some(Tls { certificate: tls.value.certificate?, key: tls.value.key? })),
        }
    }

    /// Open where nothing is said.
    pub(super) fn access(&mut self, form: Option<At<AccessForm>>) -> Option<Access> {
        let Some(At { value: form, place }) = form else { return Some(Access::Open) };
        let networks = match form {
            AccessForm::Open => return Some(Access::Open),
            AccessForm::Networks(networks) => networks,
        };
        if networks.items.is_empty() && networks.whole {
            let message = "cache.access: there is no network: nobody could pull";
            self.error(
                place,
                message,
                "write `[10.0.20.0/24]`; `cache.listen: 127.0.0.1` is for this node alone",
            );
        }
        let mut seen: Vec<(IpNetwork, Place)> = Vec::new();
        for network in &networks.items {
            let At { value, place } = *network;
            if value.ip() != value.network() {
                let message = format!("cache.access: {value} is one address of a network");
                let (one, all) = (host(value.ip()), format!("{}/{}", value.network(), value.prefix()));
                self.error(place, message, format!("write {all} for the network, or {one} for the address"));
            }
            if let Some((_, first)) = seen.iter().find(|(other, _)| *other == value) {
                let problem = Problem::error(place, format!("cache.access: {value} is here twice"));
                self.report(problem.related(*first, "first here").help("keep one of them"));
            }
            seen.push((value, place));
        }
        networks.whole.then(|| Access::Networks(networks.items.into_iter().map(|one| one.value).collect()))
    }

    pub(super) fn metrics(
        &mut self,
        form: Option<At<MetricsForm>>,
        listen: Listen,
        upstreams: &[(At<UpstreamHost>, form::Upstream)],
    ) -> Metrics {
        let Some(At { value: MetricsForm(form), place }) = form else { return Metrics::default() };
        if let Some(At { value: base, place }) = form.registries {
            self.debug_ports(base, place, listen, upstreams);
        } else if form.textfile.is_none() && self.is_clean() {
            let help = "write `{ textfile: /var/lib/prometheus/node-exporter }`, or `127.0.0.1:5001` for the \
                        registries' own";
            self.error(place, "cache.metrics: it says nothing", help);
        }
        if let Some(path) = &form.textfile
            && let Some(whose) = path.value.is_the_systems()
        {
            let message = format!("cache.metrics.textfile: {whose} is not for metrics");
            self.error(path.place, message, "write /var/lib/prometheus/node-exporter");
        }
        Metrics {
            textfile: form.textfile.map(|path| path.value),
            registries: form.registries.map(|base| base.value),
        }
    }

    /// One port for each registry, from `base` on.
    fn debug_ports(
        &mut self,
        base: SocketAddr,
        place: Place,
        listen: Listen,
        upstreams: &[(At<UpstreamHost>, form::Upstream)],
    ) {
        if !base.ip().is_loopback() {
            let message = format!("cache.metrics: {} can be reached from elsewhere", base.ip());
            let help = "write `127.0.0.1:PORT`: behind the same port is Go's profiler, which shows what is in memory; \
                        let a Prometheus agent on this node read it";
            self.error(place, message, help);
        }
        if base.port() < 1024 {
            let message = format!("cache.metrics: the port {} belongs to root", base.port());
            self.error(place, message, "write a port from 1024 on");
        }
        let last = usize::from(base.port()) + upstreams.len().saturating_sub(1);
        if last > usize::from(u16::MAX) {
            let message = format!(
                "cache.metrics: {} registries need the ports from {} to {last}: the highest is {}",
                upstreams.len(),
                base.port(),
                u16::MAX
            );
            self.error(place, message, "write a lower one");
        }
        let meets = match listen {
            Listen::Any => true,
            Listen::Address(ip) => ip == base.ip(),
        };
        for (host, form) in upstreams.iter().filter(|_| meets) {
            let Some(port) = form.port else { continue };
            let number = usize::from(port.value.get());
            if number >= usize::from(base.port()) && number <= last {
                let message = format!("cache.metrics: {number} is {}'s own port", host.value);
                let problem = Problem::error(place, message).related(port.place, "used here");
                let count = upstreams.len();
                self.report(
                    problem
                        .help(format!("each registry has a port from there on: keep {count} of them free")),
                );
            }
        }
    }

    /// A cache asks nobody who they are: it hands on what its credentials open.
    pub(super) fn open_credentials(
        &mut self,
        upstreams: &[(At<UpstreamHost>, form::Upstream)],
        listen: Listen,
        access_is_said: bool,
    ) {
        let address = match listen {
            _ if access_is_said => return,
            Listen::Address(address) if address.is_loopback() => return,
            Listen::Address(address) => address.to_string(),
            Listen::Any => "this node".to_owned(),
        };
        for (host, form) in upstreams {
            let credentials: (Option<&At<Username>>, Option<&At<Secret>>) =
                (form.username.as_ref(), form.password.as_ref());
            let (place, who) = match (credentials, &form.credential_helper) {
                ((Some(username), Some(_)), _) => (username.place, username.value.to_string()),
                (_, Some(helper)) => (helper.place, format!("docker-credential-{}", helper.value)),
                _ => continue,
            };
            let port = form.port.map_or_else(String::new, |port| format!(", port {}", port.value));
            let message = format!(
                "upstreams.{}: whoever reaches {address}{port} can pull what `{who}` can",
                host.value
            );
            let help = "write `cache.access: [10.0.20.0/24]`, the networks that may, or `cache.access: open` where all \
                        may";
            self.report(Problem::warning(place, message).help(help));
        }
    }
}

/// The network of one address.
fn host(ip: IpAddr) -> String {
    format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })
}
