//! The engine's own garbage collection.

use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tracing::{info, warn};

use super::{
    Environment, act_as_oneself, act_as_registry_user, config, config_path, engine, handover, objects,
    prepare_store, registry, registry_owner, store,
};
use crate::facts::Registry;
use crate::host::command::Invocation;
use crate::host::container::remove;
use crate::node::{Engine, UpstreamHost};
use crate::plan::registry::GC_LOCK;
use crate::root::Root;
use crate::store::size::SizeFile;
use crate::store::{Layout, own_access};

/// Below the GC unit's TimeoutStartSec=.
const GC_LIMIT: Duration = Duration::from_secs(5 * 3600);
const GC_POLL: Duration = Duration::from_secs(2);
/// The collector stops at a manifest that is evicted while it marks: it is asked again.
const ATTEMPTS: u32 = 5;

/// Runs the engine's own garbage collection, one registry of the node at a time, as the registries' user.
///
/// # Errors
/// When the engine is missing or its collector fails.
pub fn gc(
    root: &Root,
    host: &UpstreamHost,
    engine: Option<&Engine>,
    environment: Option<&Environment>,
) -> Result<()> {
    let config = config(root, host)?;
    let registry = registry(root, host, engine).context("collect")?;
    let deadline = Instant::now() + GC_LIMIT;
    let _turn = root.lock(GC_LOCK, || {
        sleep(GC_POLL);
        Instant::now() < deadline
    })?;
    let started = Instant::now();
    let mut path = root.show(&config_path(host));
    let store = store(&config);
    let folder = store.as_ref().map(|layout| root.show(layout.store()));
    let environment = environment.map(Vec::as_slice).unwrap_or_default();
    let handed: Option<OwnedFd> = match handover::pairs(environment).next() {
        Some(_) if registry.container.is_none() => {
            let text = root.read(&config_path(host))?.context("its configuration is gone")?;
            let fd = handover::with_secrets(&text, handover::pairs(environment));
            Some(fd.with_context(|| format!("read {path}"))?)
        }
        _ => None,
    };
    if let Some(fd) = &handed {
        path = handover::path_of(fd);
    }
    let variables: Vec<String> = environment.iter().map(|(name, _)| name.clone()).collect();
    let owner = registry_owner(root)?;
    let run = engine::Run { host, config: &path, store: folder.as_deref(), owner, variables: &variables };
    // Never -m: on 2.x it fails on images without a tag and deletes the platforms of multi-arch images.
    let command = engine::collect(&registry, &run);
    let args: Vec<&str> = command.get_args().filter_map(|arg| arg.to_str()).collect();
    let own = command.get_envs().filter_map(|(name, value)| Some((name.to_str()?, value?.to_str()?)));
    let collector = Invocation::new(&registry.program, &args).env("OTEL_TRACES_EXPORTER", "none").quiet();
    let collector = own.fold(collector, |to, (name, value)| to.env(name, value));
    let collector = environment
        .iter()
        .filter(|(name, _)| handed.is_none() || !handover::is_secret(name))
        .fold(collector, |to, (name, value)| to.env(name, value));
    let once = || -> Result<(), anyhow::Error> {
        let Some(container) = &registry.container else {
            return collector.run(deadline).map(drop).map_err(Into::into);
        };
        act_as_oneself()?;
        let done = remove(container.runtime, &engine::container_name("larder-gc", host))
            .and_then(|()| collector.run(deadline).map_err(Into::into));
        act_as_registry_user(root)?;
        done.map(drop)
    };
    match store {
        Some(layout) => collect(root, host, &layout, &registry, &once)?,
        None => match once() {
            Err(error) if error.downcast_ref().is_some_and(objects::is_empty) => {}
            done => done?,
        },
    }
    info!(upstream = host.as_str(), seconds = started.elapsed().as_secs(), "garbage collected");
    Ok(())
}

/// In a folder, where images may be evicted meanwhile.
fn collect(
    root: &Root,
    host: &UpstreamHost,
    layout: &Layout,
    registry: &Registry,
    collector: &dyn Fn() -> Result<()>,
) -> Result<()> {
    prepare_store(root, layout)?;
    let evicted = || SizeFile::read(root, layout).map_or(0, |file| file.evicted.bytes);
    for attempt in 1.. {
        complete_repositories(root, layout, registry)?;
        let before = evicted();
        match collector() {
            Ok(()) => break,
            Err(error) if attempt < ATTEMPTS && evicted() != before => {
                warn!(upstream = host.as_str(), "{error:#}: images were evicted meanwhile; once more");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Distribution 3's collector stops at a repository that holds a manifest and no layer yet.
fn complete_repositories(root: &Root, layout: &Layout, registry: &Registry) -> Result<()> {
    if registry.major < 3 {
        return Ok(());
    }
    let mut folders = vec![layout.repositories()];
    while let Some(folder) = folders.pop() {
        let names = root.list(&folder)?;
        if names.iter().any(|name| name == "_manifests") && !names.iter().any(|name| name == "_layers") {
            // A repository may go, or get its first layer, meanwhile.
            let layers = format!("{folder}/_layers");
            match root.make_directory(&layers, own_access(0o750)) {
                Err(_) if root.exists(&layers) || !root.exists(&folder) => {}
                result => result?,
            }
        }
        folders.extend(
            names.iter().filter(|name| !name.starts_with('_')).map(|name| format!("{folder}/{name}")),
        );
    }
    Ok(())
}
