//! Whom `registry.mirrors` asks.

use super::url::{self, Url};
use super::{Asked, Capability, Role};
use crate::containerd::config::{Effective, MAIN, Note, Origin};

/// The endpoints of `registry.mirrors`, and what decided them (`registryEndpoints`): the host's own mirrors or
/// those of `*`, then the host itself unless an endpoint is it.
///
/// # Errors
/// An endpoint that is no URL: every pull fails.
pub fn legacy(effective: &Effective, host: &str) -> Result<(Vec<Asked>, Option<Origin>), Note> {
    let mirror = effective.mirrors.get(host).or_else(|| effective.mirrors.get("*"));
    let origin = mirror.and_then(|mirror| mirror.origin.clone());
    let default = if host == "docker.io" { "registry-1.docker.io" } else { host };
    let default_scheme = |host: &str| if url::is_loopback(host) { "http" } else { "https" };
    let mut urls = Vec::new();
    for endpoint in mirror.into_iter().flat_map(|mirror| &mirror.value) {
        let refuse = |reason: &str| {
            let at = origin.clone().unwrap_or_else(|| Origin::file(MAIN));
            Note::new(&at, format!("endpoint {:?}: {reason}: every pull fails", url::shown(endpoint)))
        };
        let full = if endpoint.contains("://") {
            endpoint.clone()
        } else {
            let dummy = Url::parse(&format!("dummy://{endpoint}")).map_err(refuse)?;
            format!("{}://{endpoint}", default_scheme(&dummy.host))
        };
        urls.push((Url::parse(&full).map_err(refuse)?, Role::Mirror));
    }
    if !urls.iter().any(|(url, _)| url.host == host) {
        let (scheme, host) = (default_scheme(default).to_owned(), default.to_owned());
        urls.push((Url { scheme, host, ..Url::default() }, Role::Upstream));
    }
    let asked = urls.into_iter().map(|(url, role)| {
        let tls =
            effective.configs.get(&url.host).and_then(|config| Some(config.tls.as_ref()?.value.clone()));
        let tls = tls.unwrap_or_default();
        let path = if url.path.is_empty() { "/v2" } else { url.path.trim_end_matches('/') };
        let docker = host == "docker.io" && url.host == "registry-1.docker.io";
        Asked {
            url: format!("{}://{}{path}", url.scheme, url.host),
            then_http: false,
            role,
            capabilities: vec![Capability::Pull, Capability::Resolve],
            namespace: (url.host != host && !docker).then(|| host.to_owned()),
            ca: (!tls.ca_file.is_empty()).then(|| tls.ca_file.clone()).into_iter().collect(),
            client: (!tls.cert_file.is_empty())
                .then(|| (tls.cert_file.clone(), Some(tls.key_file.clone())))
                .into_iter()
                .collect(),
            skip_verify: tls.insecure_skip_verify,
            headers: Vec::new(),
            override_path: false,
            dial_timeout: None,
            origin: if role == Role::Upstream { None } else { origin.clone() },
        }
    });
    let asked = asked.collect();
    Ok((asked, origin))
}
