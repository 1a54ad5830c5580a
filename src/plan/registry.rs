//! One Distribution registry per upstream: its config, its store, its place in the boot.

use std::net::SocketAddr;

use anyhow::Result;

use super::local_address;
use super::{Content, Plan, Purpose, REGISTRY_FOLDER, UNIT_FOLDER, User, listen_address};
use crate::caches::{self, CACHES, CacheOf};
use crate::facts::{DEBIAN_REGISTRY, Facts, Registry};
use crate::node::{Cache, ContainerRuntime, HelperName, Memory, Node, Size, Upstream};
use crate::store::size::shown;
use crate::template::{
    self, ContainerCommand, EngineCommand, Json, Socket, Sockets, Storage, render, render_registry,
};

mod objects;
use objects::Variable;

/// What the static units name.
const STATIC_PROGRAM: &str = "/usr/bin/docker-registry";
/// Where the static units let registries write.
const STATIC_STORAGE: &str = "/var/lib/larder";

/// A folder whose lock lets one registry of the node collect at a time; only registries can open it.
pub const GC_LOCK: &str = "var/lib/larder/gc";

pub(super) fn plan(
    node: &Node,
    cache: &Cache,
    facts: &Facts,
    plan: &mut Plan,
    refused: &mut Vec<String>,
) -> Result<()> {
    // Absence is a problem that the facts have told already.
    let Some(registry) = &facts.registry else { return Ok(()) };
    plan.needs_user = true;
    plan.folder("etc/larder");
    plan.folder(REGISTRY_FOLDER);
    plan.directory(GC_LOCK, 0o750, User::Registry, Purpose::Settings);
    match &cache.objects {
        None => plan.folder(cache.storage.as_str().trim_start_matches('/')),
        Some(store) => objects::check(store, registry, refused),
    }
    if let (Some(container), Some(_)) = (&registry.container, &cache.tls) {
        refused.push(format!(
            "cache.tls: not with an engine in a container yet: {} is not shown the credentials that systemd keeps for \
             the registry; install a binary",
            container.runtime.name()
        ));
    }
    let docker = registry.container.as_ref().is_some_and(|one| one.runtime == ContainerRuntime::Docker);
    if docker && (cache.memory.high.is_some() || cache.memory.max.is_some()) {
        refused.push(
            "cache.memory: does not hold what docker runs: take it out, or use podman, whose containers stay in \
             their units"
                .to_owned(),
        );
    }
    let variables = objects::variables(cache, facts, refused);
    for (upstream, debug) in node.upstreams.iter().zip(debug_addresses(cache)) {
        one(upstream, cache, registry, debug, facts, &variables, plan)?;
    }
    let all: Vec<CacheOf> =
        node.upstreams.iter().map(|upstream| cache_of(upstream, cache, registry)).collect();
    plan.file(
        CACHES.to_owned(),
        caches::render(cache.max_size.map(Size::get), cache.tls.as_ref(), &all)?,
        0o644,
        Content::Ours,
    );
    plan.warnings.extend(too_large(node, cache, facts).map(|warning| (CACHES.to_owned(), warning)));
    engine(registry, plan)?;
    memory(cache, plan)?;
    if takes_sockets(registry) {
        let text = render("the drop-in of the sockets", &Sockets)?;
        plan.file(
            format!("{UNIT_FOLDER}/larder-registry@.service.d/50-socket.conf"),
            text,
            0o644,
            Content::Ours,
        );
    }
    if cache.objects.is_some() {
        objects::drop_in(plan)?;
    } else if cache.storage.as_str() != STATIC_STORAGE {
        for unit in
            ["larder-registry@.service", "larder-gc@.service", "larder-scrub@.service", "larder-tend.service"]
        {
            let below = if unit.contains('@') { "/%i" } else { "" };
            let text = render("the storage drop-in", &Storage { storage: cache.storage.as_str(), below })?;
            plan.file(format!("{UNIT_FOLDER}/{unit}.d/50-storage.conf"), text, 0o644, Content::Ours);
        }
    }
    if let Some(port) = facts.debian_registry
        && node.upstreams.iter().any(|upstream| upstream.port.get() == port)
    {
        let mask = format!("{UNIT_FOLDER}/{DEBIAN_REGISTRY}");
        plan.warnings.push((
            mask.clone(),
            format!("{DEBIAN_REGISTRY} of the docker-registry package listens on port {port}: it is stopped and masked"),
        ));
        plan.link(mask, "/dev/null");
    }
    Ok(())
}

/// A budget that the file system has no room for.
fn too_large(node: &Node, cache: &Cache, facts: &Facts) -> Option<String> {
    let space = facts.space?;
    let each: u64 = node.upstreams.iter().filter_map(|upstream| upstream.max_size).map(Size::get).sum();
    let (key, wanted) = match cache.max_size {
        Some(all) => ("cache.max_size", all.get()),
        None => ("upstreams.*.max_size together", each),
    };
    // Some of it is always left free.
    (wanted > space.size / 100 * 95).then(|| {
        format!(
            "{key}: {} are more than the file system of {} has, {}: the caches will give way before they get there, \
             so that 5 % of it stays free; write less to have it as it is written",
            shown(wanted),
            cache.storage,
            shown(space.size)
        )
    })
}

/// What the programs that look after a registry have to know of it.
fn cache_of(upstream: &Upstream, cache: &Cache, registry: &Registry) -> CacheOf {
    CacheOf {
        host: upstream.host.to_string(),
        address: local_address(cache, upstream),
        remote: upstream.remote.to_string(),
        major: registry.major,
        engine: Some(argument(registry)),
        store: cache.objects.is_none().then(|| format!("{}/{}", cache.storage, upstream.host)),
        max_size: upstream.max_size.map(Size::get),
        probe: upstream.probe.as_ref().map(|probe| probe.as_str().to_owned()),
        credential_helper: upstream.credential_helper.as_ref().map(ToString::to_string),
        restart_always: upstream.restart_always,
        memory_high: cache.memory.high.or(cache.memory.max).map(Size::get),
        ca: upstream.ca.as_ref().map(|_| format!("/{}", ca_path(upstream))),
    }
}

/// A copy, so that the registry's user can read it, and a renewal is seen.
fn ca_path(upstream: &Upstream) -> String {
    format!("{REGISTRY_FOLDER}/{}.ca.pem", upstream.host)
}

fn one(
    upstream: &Upstream,
    cache: &Cache,
    registry: &Registry,
    debug: Option<SocketAddr>,
    facts: &Facts,
    variables: &[Variable],
    plan: &mut Plan,
) -> Result<()> {
    let host = upstream.host.as_str();
    let store = match &cache.objects {
        Some(objects) => objects.folder(host),
        None => format!("{}/{host}", cache.storage),
    };
    let settings = cache.objects.as_ref().map(|objects| objects::settings(objects, host, registry));
    let listen = match cache.listen {
        // Distribution's own word for every address of both families.
        crate::node::Listen::Any => format!(":{}", upstream.port.get()),
        crate::node::Listen::Address(_) => listen_address(cache, upstream).to_string(),
    };
    let config = render_registry(&template::Registry {
        host,
        store: &store,
        objects: cache
            .objects
            .as_ref()
            .zip(settings.as_ref())
            .map(|(objects, settings)| template::Objects { driver: objects.driver.name(), settings }),
        listen: &listen,
        remote: upstream.remote.as_str(),
        major: registry.major,
        is_asking: registry.is_asking(),
        credential_helper: upstream.credential_helper.as_ref().map(HelperName::as_str),
        debug: debug.map(|address| address.to_string()),
        tls: cache.tls.is_some(),
    })?;
    let base = format!("{REGISTRY_FOLDER}/{host}");
    plan.file(format!("{base}.yml"), config, 0o644, Content::Ours);
    let mut secrets = Vec::new();
    if let Some(credentials) = &upstream.credentials {
        // Absence is a problem that the facts have told already.
        let Some(password) = facts.passwords.get(&upstream.host) else { return Ok(()) };
        if registry.is_asking() {
            let login = template::login(&credentials.username, password);
            plan.file(login_path(host), login.as_bytes(), 0o600, Content::Login);
        } else {
            secrets.push(("REGISTRY_PROXY_USERNAME", Json::Text(&credentials.username)));
            secrets.push(("REGISTRY_PROXY_PASSWORD", Json::Text(password)));
        }
    }
    secrets.extend(variables.iter().map(Variable::pair));
    if !secrets.is_empty() {
        let text = template::registry_env(&secrets);
        plan.file(format!("{base}.env"), text.as_bytes(), 0o600, Content::Secret);
    }
    if cache.objects.is_none() {
        plan.directory(store.trim_start_matches('/'), 0o750, User::Registry, Purpose::Data);
    }
    if takes_sockets(registry) {
        let socket = format!("larder-registry@{host}.socket");
        // systemd's word for every address of both families is the port alone.
        let text = render("the socket drop-in", &Socket { listen: listen.trim_start_matches(':') })?;
        plan.file(format!("{UNIT_FOLDER}/{socket}.d/50-larder.conf"), text, 0o644, Content::Ours);
        enable(plan, facts, "sockets.target", SOCKET, &socket);
    }
    // Absence is a problem that the facts have told already.
    if let Some(pem) = facts.trusted.get(&upstream.host) {
        let path = ca_path(upstream);
        let text = render("the drop-in of its ca", &template::RegistryCa { path: &format!("/{path}") })?;
        plan.file(path, pem.as_bytes(), 0o644, Content::Ours);
        let unit = format!("larder-registry@{host}.service");
        plan.file(format!("{UNIT_FOLDER}/{unit}.d/50-ca.conf"), text, 0o644, Content::Ours);
    }
    let unit = format!("larder-registry@{host}.service");
    enable(plan, facts, "multi-user.target", "larder-registry@.service", &unit);
    Ok(())
}

/// The template of the sockets.
const SOCKET: &str = "larder-registry@.socket";

/// Whether systemd can listen for it, so that a restart refuses nobody.
pub(super) fn takes_sockets(registry: &Registry) -> bool {
    registry.is_asking()
}

/// The credentials that such a registry is given: for its own user, and read anew each time.
#[must_use]
pub fn login_path(host: &str) -> String {
    format!("{REGISTRY_FOLDER}/{host}.login")
}

fn memory(cache: &Cache, plan: &mut Plan) -> Result<()> {
    let Memory { high, max } = cache.memory;
    let Some(ceiling) = high.or(max) else { return Ok(()) };
    let lines = [("MemoryHigh", high), ("MemoryMax", max)];
    let lines = lines.iter().filter_map(|(key, size)| Some((*key, (*size)?.get()))).collect();
    // Of 90 %: what is not Go's own heap needs room too.
    let text = render("the memory drop-in", &template::Memory { lines, go: ceiling.get() / 10 * 9 })?;
    plan.file(format!("{UNIT_FOLDER}/larder-registry@.service.d/50-memory.conf"), text, 0o644, Content::Ours);
    Ok(())
}

/// Where each registry in turn has its own metrics.
fn debug_addresses(cache: &Cache) -> impl Iterator<Item = Option<SocketAddr>> {
    let base = cache.metrics.registries;
    (0_u16..=u16::MAX).map(move |number| {
        let base = base?;
        Some(SocketAddr::new(base.ip(), base.port().checked_add(number)?))
    })
}

/// The link that `systemctl enable` would make.
pub(super) fn enable(plan: &mut Plan, facts: &Facts, target: &str, template: &str, unit: &str) {
    let folder =
        if facts.packaged.contains(&template) { "/usr/lib/systemd/system" } else { "/etc/systemd/system" };
    plan.link(format!("{UNIT_FOLDER}/{target}.wants/{unit}"), format!("{folder}/{template}"));
}

/// What the units' commands call it.
fn argument(registry: &Registry) -> String {
    match &registry.container {
        Some(container) => format!("{}:{}", container.runtime.name(), container.image),
        None => registry.program.clone(),
    }
}

fn engine(registry: &Registry, plan: &mut Plan) -> Result<()> {
    if registry.program == STATIC_PROGRAM {
        return Ok(());
    }
    // In ExecStart= a dollar and a percent sign are special (systemd.service(5), "Command lines"); the
    // profile lets no other special character into a path.
    let safe = |text: &str| text.replace('%', "%%").replace('$', "$$");
    let engine = safe(&argument(registry));
    let archive = registry.container.as_ref().and_then(|container| container.archive.as_deref());
    let archive = archive.map(|path| format!("--archive {} ", safe(path))).unwrap_or_default();
    for (unit, command) in [
        ("larder-registry@.service", format!("larder unit run --engine {engine} %i")),
        ("larder-gc@.service", format!("larder gc --engine {engine} %i")),
    ] {
        let text = match &registry.container {
            None => render("the engine drop-in", &EngineCommand { command: &command })?,
            Some(container) => render(
                "the engine drop-in",
                &ContainerCommand {
                    command: &command,
                    engine: &engine,
                    archive: &archive,
                    serves: unit.starts_with("larder-registry"),
                    podman: container.runtime == ContainerRuntime::Podman,
                },
            )?,
        };
        plan.file(format!("{UNIT_FOLDER}/{unit}.d/50-engine.conf"), text, 0o644, Content::Ours);
    }
    Ok(())
}
