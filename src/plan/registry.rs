//! One Distribution registry per upstream: its config, its store, its place in the boot.

use anyhow::Result;

use super::local_address;
use super::{Content, Plan, Purpose, REGISTRY_FOLDER, UNIT_FOLDER, User, listen_address};
use crate::caches::{self, CACHES, CacheOf};
use crate::facts::{DEBIAN_REGISTRY, Facts, Registry};
use crate::node::{Cache, Node, Upstream};
use crate::template::{self, EngineCommand, Storage, render, render_registry};

/// What the static units name.
const STATIC_PROGRAM: &str = "/usr/bin/docker-registry";
/// Where the static units let registries write.
const STATIC_STORAGE: &str = "/var/lib/larder";

/// A folder whose lock lets one registry of the node collect at a time; only registries can open it.
pub const GC_LOCK: &str = "var/lib/larder/gc";

pub(super) fn plan(node: &Node, cache: &Cache, facts: &Facts, plan: &mut Plan) -> Result<()> {
    // Absence is a problem that the facts have told already.
    let Some(registry) = &facts.registry else { return Ok(()) };
    plan.needs_user = true;
    plan.folder("etc/larder");
    plan.folder(REGISTRY_FOLDER);
    plan.directory(GC_LOCK, 0o750, User::Registry, Purpose::Settings);
    plan.folder(cache.storage.as_str().trim_start_matches('/'));
    for upstream in &node.upstreams {
        one(upstream, cache, registry, facts, plan)?;
    }
    let all: Vec<CacheOf> =
        node.upstreams.iter().map(|upstream| cache_of(upstream, cache, registry)).collect();
    plan.file(CACHES.to_owned(), caches::render(None, &all)?, 0o644, Content::Ours);
    engine(registry, plan)?;
    if cache.storage.as_str() != STATIC_STORAGE {
        for unit in ["larder-registry@.service", "larder-gc@.service"] {
            let text = render("the storage drop-in", &Storage { storage: cache.storage.as_str() })?;
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

/// What the programs that look after a registry have to know of it.
fn cache_of(upstream: &Upstream, cache: &Cache, registry: &Registry) -> CacheOf {
    CacheOf {
        host: upstream.host.to_string(),
        address: local_address(cache, upstream),
        remote: upstream.remote.to_string(),
        major: registry.major,
        store: format!("{}/{}", cache.storage, upstream.host),
        max_size: None,
        probe: upstream.probe.as_ref().map(|probe| probe.as_str().to_owned()),
    }
}

fn one(
    upstream: &Upstream,
    cache: &Cache,
    registry: &Registry,
    facts: &Facts,
    plan: &mut Plan,
) -> Result<()> {
    let host = upstream.host.as_str();
    let store = format!("{}/{host}", cache.storage);
    let listen = match cache.listen {
        // Distribution's own word for every address of both families.
        crate::node::Listen::Any => format!(":{}", upstream.port.get()),
        crate::node::Listen::Address(_) => listen_address(cache, upstream).to_string(),
    };
    let config = render_registry(&template::Registry {
        host,
        store: &store,
        listen: &listen,
        remote: upstream.remote.as_str(),
        major: registry.major,
    })?;
    let base = format!("{REGISTRY_FOLDER}/{host}");
    plan.file(format!("{base}.yml"), config, 0o644, Content::Ours);
    if let Some(credentials) = &upstream.credentials {
        // Absence is a problem that the facts have told already.
        let Some(password) = facts.passwords.get(&upstream.host) else { return Ok(()) };
        let text = template::registry_env(&credentials.username, password);
        plan.file(format!("{base}.env"), text.as_bytes(), 0o600, Content::Secret);
    }
    plan.directory(store.trim_start_matches('/'), 0o750, User::Registry, Purpose::Data);
    let unit = format!("larder-registry@{host}.service");
    enable(plan, facts, "multi-user.target", "larder-registry@.service", &unit);
    Ok(())
}

/// The link that `systemctl enable` would make.
pub(super) fn enable(plan: &mut Plan, facts: &Facts, target: &str, template: &str, unit: &str) {
    let folder =
        if facts.packaged.contains(&template) { "/usr/lib/systemd/system" } else { "/etc/systemd/system" };
    plan.link(format!("{UNIT_FOLDER}/{target}.wants/{unit}"), format!("{folder}/{template}"));
}

fn engine(registry: &Registry, plan: &mut Plan) -> Result<()> {
    if registry.program == STATIC_PROGRAM {
        return Ok(());
    }
    // In ExecStart= a dollar and a percent sign are special (systemd.service(5), "Command lines"); the
    // profile lets no other special character into a path.
    let program = registry.program.replace('%', "%%").replace('$', "$$");
    for (unit, command) in [
        ("larder-registry@.service", format!("larder unit run --engine {program} %i")),
        ("larder-gc@.service", format!("larder gc --engine {program} %i")),
    ] {
        let text = render("the engine drop-in", &EngineCommand { command: &command })?;
        plan.file(format!("{UNIT_FOLDER}/{unit}.d/50-engine.conf"), text, 0o644, Content::Ours);
    }
    Ok(())
}
