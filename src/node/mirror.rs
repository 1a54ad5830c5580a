//! One mirror: what its keys mean together.

use std::collections::HashMap;
use std::time::Duration;

use super::build::Build;
use super::choices::Secret;
use super::form;
use super::values::Keyed;
use super::{Capability, HeaderName, Mirror, RemoteUrl, SecretSource};
use crate::profile::decode::{At, List};
use crate::profile::{Place, Problem};

/// Below it a healthy link fails; above it containerd's own 30 s end it.
const DIALS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(30);
/// HTTP's own, which containerd's client sets or drops.
const RESERVED: [&str; 6] =
    ["connection", "content-length", "host", "te", "transfer-encoding", "proxy-authorization"];

impl Build<'_> {
    pub(super) fn mirror(
        &mut self,
        path: &str,
        form: form::Mirror,
        url: RemoteUrl,
        place: Place,
    ) -> Option<Mirror> {
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
}
