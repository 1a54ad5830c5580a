//! `verify --pull`: which endpoint serves what, by evidence.
//!
//! A registry that nobody has gets a hosts.toml with the upstream's own endpoints in their order, each replaced
//! by a listener of ours that sends containerd on to it, and a small image is pulled from there through CRI. So
//! it is the running containerd that walks its own way and fetches with its own means (DNS, proxies,
//! authorities, credentials); the listeners see where it was sent, and the last one that it was sent to for
//! something has served it: containerd takes nothing whose digest is not right. No file that is in use changes.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use toml_edit::{DocumentMut, Item, Table, TableLike, value};

use super::http::{Client as Http, Fault, Method};
use super::{Machine, Probe, Run, Seen, Witness};
use crate::containerd::cri::{Client, Code, CriError, SOCKET};
use crate::containerd::probe::{Shadow, shadow_name, sweep};
use crate::containerd::witness::{Answer, Asked, Witness as Listener};
use crate::root::Root;

/// More at once would measure containerd's own limits.
const MOST_WORKERS: usize = 4;
/// For what has to be put in order after the deadline.
const TIDY_LIMIT: Duration = Duration::from_secs(5);
/// What a cache is asked after the pull went past it.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// The upstream itself, where no hosts.toml names it.
const DOCKER: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// What a pull has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// In the order in which containerd tries them.
    pub endpoints: Vec<Endpoint>,
    /// What was asked of them, in the order of time.
    pub asked: Vec<Request>,
    /// What it ended with.
    pub result: Result<(), String>,
}

/// A real endpoint behind a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// As hosts.toml writes it.
    pub url: String,
    /// With the `/v2` that is asked.
    base: String,
    /// The registry itself: by its name or its URL, or because it is behind all the others and none of them.
    pub upstream: bool,
    /// The registry whose name is the namespace itself is not told it.
    ns: bool,
    /// Why it did not serve what it was asked for, where that can be told.
    pub said: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub endpoint: usize,
    pub method: String,
    /// `manifests/latest`, `blobs/sha256:…`
    pub object: String,
}

/// The pulls still to be done.
pub(super) struct Pulls {
    checks: Vec<usize>,
    next: AtomicUsize,
}

impl Pulls {
    pub(super) fn new(run: &Run<'_>) -> Self {
        let is_pull = |probe: &Probe| matches!(probe, Probe::Pull { .. });
        let checks = run.checks.iter().enumerate().filter(|(_, check)| is_pull(&check.probe));
        Self { checks: checks.map(|(index, _)| index).collect(), next: AtomicUsize::new(0) }
    }

    pub(super) fn workers(&self) -> usize {
        self.checks.len().min(MOST_WORKERS)
    }

    pub(super) fn work(&self, machine: &dyn Machine, witness: &Witness<'_>) {
        while let Some(index) = self.checks.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let Some(check) = witness.run.checks.get(*index) else { continue };
            let Probe::Pull { certs_dir, image, remote, cached } = &check.probe else { continue };
            let seen = match image {
                None => Seen::Skipped(
                    "no small public image of it is known: set its `probe` to one with a tag".to_owned(),
                ),
                Some(image) => {
                    let wanted = Wanted { certs_dir, host: &check.subject, image, remote, number: *index };
                    match machine.pull(&wanted, witness.run.deadline) {
                        Ok(pulled) => judge(image, *cached, &pulled),
                        Err(error) => no_pull(&error),
                    }
                }
            };
            witness.tell(*index, seen);
        }
    }
}

/// What is to be pulled.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Absolute.
    pub certs_dir: &'a str,
    /// The upstream as images name it.
    pub host: &'a str,
    /// `library/busybox:latest`
    pub image: &'a str,
    /// The URL of the upstream itself.
    pub remote: &'a str,
    /// Tells the pulls of one run apart.
    pub number: usize,
}

/// This way of looking would show something else than what a pull does.
#[derive(Debug)]
struct Unfit(String);

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unfit {}

fn no_pull(error: &anyhow::Error) -> Seen {
    if let Some(unfit) = error.downcast_ref::<Unfit>() {
        return Seen::Skipped(format!("not pulled: {unfit}"));
    }
    match error.downcast_ref::<CriError>() {
        Some(CriError { code: Code::Unavailable | Code::Unimplemented, message }) => {
            Seen::Skipped(format!("not pulled, CRI is not up: {message}"))
        }
        _ => Seen::Settled(format!("{error:#}")),
    }
}

/// Pulls through the containerd that runs here.
///
/// # Errors
/// When the way could not be laid out, or CRI is not there. A pull that fails is an answer.
pub(super) fn pull(root: &Root, wanted: &Wanted<'_>, deadline: Instant) -> Result<Pulled> {
    sweep(root, wanted.certs_dir)?;
    let (mut document, mut endpoints) = read_hosts(root, wanted)?;
    if let Some(url) = authorized(&document) {
        return Err(Unfit(format!(
            "{url} has an Authorization header of its own, which no client takes along when it is sent on"
        ))
        .into());
    }
    let log: Arc<Mutex<Vec<Request>>> = Arc::default();
    let mut listeners = Vec::new();
    for (index, endpoint) in endpoints.iter().enumerate() {
        listeners.push(listen(index, endpoint, wanted.host, Arc::clone(&log))?);
    }
    let urls: Vec<String> = listeners.iter().map(Listener::url).collect();
    redirect(&mut document, &urls)?;
    let name = shadow_name(&format!("pull-{}-{}", std::process::id(), wanted.number));
    let shadow = Shadow::new(root, wanted.certs_dir, &name, &document.to_string())?;
    let client = Client::connect(SOCKET, deadline)?;
    let reference = format!("{}/{}", shadow.name(), wanted.image);
    let result = client.pull(&reference);
    tidy(shadow.name(), &reference);
    if let Err(error) = &result
        && matches!(error.code, Code::Unavailable | Code::Unimplemented)
    {
        return Err(error.clone().into());
    }
    let asked = log.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let result = result.map(drop).map_err(|error| error.message.replace(shadow.name(), wanted.host));
    let mut pulled = Pulled { endpoints: Vec::new(), asked, result };
    for (index, endpoint) in endpoints.iter_mut().enumerate() {
        if let Some(object) = pulled.passed(index) {
            endpoint.said = ask(endpoint, wanted, &object, deadline);
        }
    }
    pulled.endpoints = endpoints;
    Ok(pulled)
}

/// The image goes as far as it came: where it has other names, it was here before.
fn tidy(shadow: &str, reference: &str) {
    let tidy = || -> Result<(), CriError> {
        let client = Client::connect(SOCKET, Instant::now() + TIDY_LIMIT)?;
        let Some(image) = client.image_status(reference)? else { return Ok(()) };
        let names = || image.repo_tags.iter().chain(&image.repo_digests);
        let ours = |name: &&String| name.split('/').next() == Some(shadow);
        if names().all(|name| ours(&name)) {
            return client.remove_image(&image.id);
        }
        names().filter(ours).try_for_each(|name| client.remove_name(name))
    };
    if let Err(error) = tidy() {
        tracing::warn!("remove the image {reference}: {error}");
    }
}

/// The upstream's hosts.toml as it is on the disk, and its endpoints with the server last.
fn read_hosts(root: &Root, wanted: &Wanted<'_>) -> Result<(DocumentMut, Vec<Endpoint>)> {
    let host = wanted.host;
    let certs_dir = wanted.certs_dir.trim_matches('/');
    let mut folders = vec![host.to_owned(), "_default".to_owned()];
    if let Some((name, port)) = host.split_once(':') {
        folders.insert(0, format!("{name}_{port}_"));
    }
    let path = folders.iter().map(|folder| format!("{certs_dir}/{folder}"));
    // A folder without the file hides `_default`.
    let path = path.into_iter().find(|path| root.exists(path)).map(|folder| format!("{folder}/hosts.toml"));
    let bytes = match &path {
        Some(path) => root.read(path)?.unwrap_or_default(),
        None => Vec::new(),
    };
    let shown = path.map_or_else(|| "no hosts.toml".to_owned(), |path| root.show(&path));
    let broken = || format!("read {shown}: containerd takes the whole file for broken");
    let text = String::from_utf8(bytes).with_context(broken)?;
    let document: DocumentMut = text.parse().with_context(broken)?;
    let endpoints = endpoints(&document, host, wanted.remote);
    Ok((document, endpoints))
}

fn endpoints(document: &DocumentMut, host: &str, remote: &str) -> Vec<Endpoint> {
    let own = if host == DOCKER.0 { DOCKER.1 } else { host };
    let endpoint = |url: &str, settings: Option<&dyn TableLike>| {
        let url = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        let overrides =
            settings.and_then(|settings| settings.get("override_path")?.as_bool()).unwrap_or(false);
        let trimmed = url.trim_end_matches('/');
        let base =
            if overrides || trimmed.ends_with("/v2") { trimmed.to_owned() } else { format!("{trimmed}/v2") };
        let authority = url.split_once("://").map_or("", |(_, rest)| rest);
        let authority = authority.split('/').next().unwrap_or(authority);
        let ns = authority != own && authority != host;
        let upstream = !ns || trimmed == remote;
        Endpoint { url: trimmed.to_owned(), base, upstream, ns, said: None }
    };
    let mut all: Vec<Endpoint> = Vec::new();
    if let Some(hosts) = document.get("host").and_then(Item::as_table_like) {
        all.extend(hosts.iter().map(|(url, settings)| endpoint(url, settings.as_table_like())));
    }
    let server = document.get("server").and_then(Item::as_str);
    let implied = format!("https://{own}");
    let mut server = endpoint(server.unwrap_or(&implied), Some(document.as_table()));
    server.upstream |= all.iter().all(|other| other.url != server.url);
    all.push(server);
    all
}

/// An endpoint with a header that does not survive a redirect to another host.
fn authorized(document: &DocumentMut) -> Option<String> {
    let has = |settings: &dyn TableLike| {
        let headers = settings.get("header").and_then(Item::as_table_like);
        headers
            .is_some_and(|headers| headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization")))
    };
    if has(document.as_table()) {
        return Some("the server".to_owned());
    }
    let hosts = document.get("host").and_then(Item::as_table_like)?;
    let mut with = hosts.iter().filter(|(_, settings)| settings.as_table_like().is_some_and(has));
    with.next().map(|(url, _)| url.to_owned())
}

/// The same file with listeners for endpoints: everything else that is said of them stays.
fn redirect(document: &mut DocumentMut, urls: &[String]) -> Result<()> {
    let Some((server, urls)) = urls.split_last() else { bail!("redirect: no endpoint") };
    document.insert("server", value(server));
    document.remove("override_path");
    let mut hosts = Table::new();
    hosts.set_implicit(true);
    let old = document.remove("host");
    let old = old.as_ref().and_then(Item::as_table_like);
    for ((_, settings), url) in old.iter().flat_map(|old| old.iter()).zip(urls) {
        let mut table = Table::new();
        for (key, item) in settings.as_table_like().iter().flat_map(|settings| settings.iter()) {
            // containerd wants tables under a host as tables.
            let item = match (key, item.clone().into_table()) {
                ("override_path", _) => continue,
                ("header", Ok(table)) => Item::Table(table),
                _ => item.clone(),
            };
            table.insert(key, item);
        }
        hosts.insert(url, Item::Table(table));
    }
    // containerd 1.6 refuses a file without a host.
    if hosts.is_empty() {
        hosts.insert(server, Item::Table(Table::new()));
    }
    document.insert("host", Item::Table(hosts));
    let text: Result<DocumentMut, _> = document.to_string().parse();
    ensure!(text.is_ok(), "redirect: the file does not read back");
    Ok(())
}

/// Notes what is asked and sends it on.
fn listen(index: usize, endpoint: &Endpoint, host: &str, log: Arc<Mutex<Vec<Request>>>) -> Result<Listener> {
    let (base, ns) = (endpoint.base.clone(), endpoint.ns.then(|| host.replace(':', "%3A")));
    Listener::listen(move |asked: &Asked| {
        let (path, query) = asked.path_and_query();
        let Some(rest) = path.strip_prefix("/v2/") else { return Answer::NotFound };
        let object = ["manifests/", "blobs/"].iter().find_map(|kind| {
            Some(rest.get(rest.rfind(&format!("/{kind}"))?..)?.trim_start_matches('/').to_owned())
        });
        if let Some(object) = object {
            let request = Request { endpoint: index, method: asked.method.clone(), object };
            log.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        }
        Answer::GoTo(forward(&base, rest, query, ns.as_deref()))
    })
}

/// The URL that containerd would have asked without us: `ns` names the real registry.
fn forward(base: &str, rest: &str, query: &str, ns: Option<&str>) -> String {
    let kept = query.split('&').filter(|part| !part.is_empty() && !part.starts_with("ns="));
    let named = ns.map(|ns| format!("ns={ns}"));
    let query: Vec<&str> = kept.chain(named.as_deref()).collect();
    match query.as_slice() {
        [] => format!("{base}/{rest}"),
        query => format!("{base}/{rest}?{}", query.join("&")),
    }
}

/// What an endpoint answers that the pull went past: asked by Larder itself, in the clear only.
fn ask(endpoint: &Endpoint, wanted: &Wanted<'_>, object: &str, deadline: Instant) -> Option<String> {
    let authority = endpoint.base.strip_prefix("http://")?.split('/').next()?;
    authority.parse::<std::net::SocketAddr>().ok()?;
    let limit = ASK_LIMIT.min(deadline.saturating_duration_since(Instant::now()));
    if limit.is_zero() {
        return None;
    }
    let (repository, _) = wanted.image.split_once(':')?;
    let ns = endpoint.ns.then(|| wanted.host.replace(':', "%3A"));
    let url = forward(&endpoint.base, &format!("{repository}/{object}"), "", ns.as_deref());
    match Http::new().status(Method::Head, &url, limit) {
        // It has it by now.
        Ok(200) => None,
        Ok(status) => Some(status.to_string()),
        Err(fault @ (Fault::Connect(_) | Fault::Broken(_) | Fault::Silent(_))) => Some(fault.to_string()),
    }
}

impl Pulled {
    /// Something that this endpoint was asked for in vain: another was asked after it, or it is what the pull
    /// failed at.
    fn passed(&self, endpoint: usize) -> Option<String> {
        let failed_at = self.asked.last().filter(|_| self.result.is_err());
        let in_vain = |request: &&Request| {
            let last = self.asked.iter().rfind(|other| other.object == request.object);
            last.is_some_and(|last| last.endpoint != endpoint)
                || failed_at.is_some_and(|failed| failed.object == request.object)
        };
        let mut asked = self.asked.iter().filter(|request| request.endpoint == endpoint);
        asked.find(in_vain).map(|request| request.object.clone())
    }

    /// Each object of a kind that was fetched (or only asked for), and the endpoint that served it.
    fn served(&self, kind: &str, method: &str) -> Vec<(&str, usize)> {
        let mut served: Vec<(&str, usize)> = Vec::new();
        for request in &self.asked {
            if request.method != method || !request.object.starts_with(kind) {
                continue;
            }
            match served.iter_mut().find(|(object, _)| *object == request.object) {
                Some((_, endpoint)) => *endpoint = request.endpoint,
                None => served.push((&request.object, request.endpoint)),
            }
        }
        served
    }

    fn name(&self, endpoint: usize) -> String {
        match self.endpoints.get(endpoint) {
            Some(Endpoint { url, upstream: true, .. }) => format!("the upstream itself, {url}"),
            Some(Endpoint { url, .. }) => url.clone(),
            None => String::new(),
        }
    }

    /// `2 blobs from http://10.0.20.10:5000`, once for each endpoint.
    fn by_endpoint(&self, what: &str, served: &[(&str, usize)]) -> Vec<String> {
        let mut counts: Vec<(String, usize)> = Vec::new();
        let mut indices: Vec<usize> = served.iter().map(|(_, endpoint)| *endpoint).collect();
        indices.sort_unstable();
        for name in indices.into_iter().map(|index| self.name(index)) {
            match counts.last_mut() {
                Some((last, count)) if *last == name => *count += 1,
                _ => counts.push((name, 1)),
            }
        }
        let tell = |(name, count): (String, usize)| match (what, count) {
            ("blob", 1) => format!("1 blob from {name}"),
            ("blob", many) => format!("{many} blobs from {name}"),
            _ => format!("{what} from {name}"),
        };
        counts.into_iter().map(tell).collect()
    }
}

fn judge(image: &str, cached: bool, pulled: &Pulled) -> Seen {
    let passed: Vec<String> = pulled
        .endpoints
        .iter()
        .enumerate()
        .filter(|(index, _)| pulled.passed(*index).is_some())
        .map(|(_, endpoint)| match &endpoint.said {
            Some(said) => format!("{} did not serve it ({said})", endpoint.url),
            None => format!("{} did not serve it", endpoint.url),
        })
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let passed = if passed.is_empty() { String::new() } else { format!("; {}", passed.join(", ")) };
    if let Err(error) = &pulled.result {
        if pulled.asked.is_empty() {
            return Seen::Settled(format!("{image}: containerd asked none of the listeners: {error}"));
        }
        return Seen::Settled(format!("{image} not pulled: {error}{passed}"));
    }
    let blobs = pulled.served("blobs/", "GET");
    let manifests = pulled.served("manifests/", "GET");
    let digest = pulled.served("manifests/", "HEAD");
    let mut parts = if manifests.is_empty() {
        pulled.by_endpoint("its digest", &digest)
    } else {
        pulled.by_endpoint("manifest", &manifests)
    };
    if blobs.is_empty() {
        parts.push("its blobs are already on this node, nothing fetched".to_owned());
    } else {
        parts.extend(pulled.by_endpoint("blob", &blobs));
    }
    let none_left = pulled.endpoints.iter().all(|one| one.upstream);
    let out =
        if cached && none_left { "; its hosts.toml names no cache now (see `larder status`)" } else { "" };
    let got = format!("pulled {image}: {}{passed}{out}", parts.join(", "));
    let is_upstream = |index: usize| pulled.endpoints.get(index).is_some_and(|one| one.upstream);
    let bypassed = [&blobs, &manifests, &digest].into_iter().flatten().any(|(_, index)| is_upstream(*index));
    if pulled.asked.is_empty() {
        Seen::Settled(format!("{image}: pulled, but containerd asked none of the listeners"))
    } else if bypassed && (cached || !none_left) {
        Seen::Warned(got)
    } else {
        Seen::Good(got)
    }
}

#[cfg(test)]
mod tests;
