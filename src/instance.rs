//! What the units of one registry run: before its start, at it, after it, and for its garbage collection. All of it
//! runs as the registry's own user, in its sandbox.

use anyhow::{Context, Result, bail};
use nix::unistd::{Gid, Uid, geteuid, getuid, setegid, seteuid, setgid, setgroups, setuid};
use tracing::warn;

use crate::caches::Caches;
use crate::diff::registry_ids;
use crate::facts::{self, Container, Registry, image};
use crate::host::container::{fetch, inspect, remove};
use crate::node::{AbsolutePath, ContainerRuntime, Engine, ImageSource, UpstreamHost};
use crate::plan::REGISTRY_FOLDER;
use crate::root::{Owner, Root};
use crate::store::{Layout, own_access};
use crate::template::RegistryConfig;

mod child;
mod credentials;
mod drain;
mod engine;
mod gc;
mod handover;
mod objects;
mod ready;
mod restart;
pub mod run;
mod upstream;
pub use credentials::get;
pub use drain::drain;
pub use gc::gc;
pub use objects::{Environment, environments};
pub use ready::ready;
pub use restart::restart;

fn config(root: &Root, host: &UpstreamHost) -> Result<RegistryConfig> {
    let path = config_path(host);
    let bytes = root.read(&path)?.with_context(|| format!("read {}: not there", root.show(&path)))?;
    RegistryConfig::parse(&String::from_utf8_lossy(&bytes))
        .with_context(|| format!("read {}", root.show(&path)))
}

fn config_path(host: &UpstreamHost) -> String {
    format!("{REGISTRY_FOLDER}/{host}.yml")
}

/// What the unit names, or what `apply` has left word of, or the binary that is found here.
fn registry(root: &Root, host: &UpstreamHost, engine: Option<&Engine>) -> Result<Registry> {
    let caches = Caches::read(root)?;
    let cache = caches.as_ref().and_then(|caches| caches.of(host.as_str()));
    let known = match (engine, cache.and_then(|cache| cache.engine.as_deref())) {
        (None, Some(known)) => Some(Engine::parse(known).map_err(anyhow::Error::msg)?),
        _ => None,
    };
    match engine.or(known.as_ref()) {
        Some(Engine::Container { runtime, image: ImageSource::Name(image) }) => {
            let name = runtime.name();
            let program = facts::find_program(root, name)
                .with_context(|| format!("no {name} here: install it, or run `larder apply`"))?;
            let major = cache.context("it is not in caches.json: run `larder apply`")?.major;
            let image = image.to_string();
            let container = Container { runtime: *runtime, image, archive: None, is_there: true };
            Ok(Registry { program: format!("/{program}"), major, container: Some(container) })
        }
        engine => facts::find_registry(root, engine.unwrap_or(&Engine::Auto))?
            .context("no registry binary found: run `larder apply`"),
    }
}

/// Makes what the registry and its collector expect of a store, and sets aside what would keep the registry
/// from starting. The store's own folder is there: apply made it. So is the image, but for one from an archive: no
/// other is fetched here.
///
/// # Errors
/// When there is no such image, and on I/O errors.
pub fn prepare(host: &UpstreamHost, engine: Option<&Engine>, archive: Option<&AbsolutePath>) -> Result<()> {
    let root = Root::open(std::path::Path::new("/"))?;
    let config = config(&root, host)?;
    let registry = engine.map(|_| registry(&root, host, engine)).transpose()?;
    if let Some(registry) = &registry
        && let Some(container) = &registry.container
    {
        have_image(container, registry.major, archive)?;
        clear(host, container.runtime)?;
    }
    match store(&config) {
        Some(layout) => as_registry_user(&root, || prepare_store(&root, &layout)),
        // An object store has no folders to be made, and writes the list of what expires whole.
        None => Ok(()),
    }
}

fn have_image(container: &Container, wanted: u32, archive: Option<&AbsolutePath>) -> Result<()> {
    let Container { runtime, image, .. } = container;
    if let Some(path) = archive
        && inspect(*runtime, image).is_none()
    {
        fetch(&Container { archive: Some(path.to_string()), ..container.clone() })?;
    }
    let name = runtime.name();
    let inspected = inspect(*runtime, image)
        .with_context(|| format!("{name} has no image {image}: run `larder apply`, which gets it"))?;
    match image::major_of(&inspected, image) {
        Some(major) if major != wanted => {
            bail!(
                "{image} is Distribution {major}.x by now, and configured as {wanted}.x: run `larder apply`"
            )
        }
        _ => Ok(()),
    }
}

/// After the registry: nothing of its name is left, even where what ran it was killed.
///
/// # Errors
/// What the runtime says against it.
pub fn clear(host: &UpstreamHost, runtime: ContainerRuntime) -> Result<()> {
    remove(runtime, &engine::container_name("larder", host))
}

/// `None`: the data is in an object store, which the engine alone looks into.
fn store(config: &RegistryConfig) -> Option<Layout> {
    config.storage.folder().map(Layout::new)
}

fn prepare_store(root: &Root, layout: &Layout) -> Result<()> {
    for folder in [layout.repositories(), layout.blobs(), layout.own()] {
        root.make_directories(&folder, own_access(0o750))?;
    }
    let state = layout.scheduler();
    if let Some(bytes) = root.read(&state)?
        && serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_err()
    {
        // Distribution 2 and 3.0 write it in place; after a power cut they panic at every start.
        warn!(path = root.show(&state), "set aside: not JSON; what it listed will not expire by itself");
        root.write(&format!("{state}.broken"), &bytes, own_access(0o640))?;
        root.remove(&state)?;
    }
    Ok(())
}

/// The ids of the registries' user.
fn registry_owner(root: &Root) -> Result<(u32, u32)> {
    match registry_ids(root)? {
        Some(Owner::Id { uid, gid }) => Ok((uid, gid)),
        _ => bail!("there is no user {}: run `larder apply` first", facts::USER),
    }
}

/// By hand this is called as root, who must not leave files of its own in a store, nor trust what is in there.
///
/// # Errors
/// When there is no such user.
pub(crate) fn become_registry_user(root: &Root) -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = registry_owner(root)?;
    setgroups(&[])
        .and_then(|()| setgid(Gid::from_raw(gid)))
        .and_then(|()| setuid(Uid::from_raw(uid)))
        .with_context(|| format!("become the user {}", facts::USER))
}

/// The same for a while: what runs containers needs root again.
///
/// # Errors
/// When there is no such user.
pub(crate) fn act_as_registry_user(root: &Root) -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = registry_owner(root)?;
    setgroups(&[])
        .and_then(|()| setegid(Gid::from_raw(gid)))
        .and_then(|()| seteuid(Uid::from_raw(uid)))
        .with_context(|| format!("become the user {}", facts::USER))
}

/// Ends [`act_as_registry_user`], where root began it.
fn act_as_oneself() -> Result<()> {
    if !getuid().is_root() || geteuid().is_root() {
        return Ok(());
    }
    seteuid(Uid::from_raw(0)).and_then(|()| setegid(Gid::from_raw(0))).context("become root again")
}

/// Files of a store are never opened as root: whoever writes to it could lead root elsewhere.
fn as_registry_user<T>(root: &Root, what: impl FnOnce() -> Result<T>) -> Result<T> {
    act_as_registry_user(root)?;
    let result = what();
    act_as_oneself()?;
    result
}

/// Whether what runs the registries is a container's runtime, which only root may ask.
///
/// # Errors
/// When what `apply` has left cannot be read.
pub(crate) fn needs_root(engine: Option<&Engine>) -> Result<bool> {
    if let Some(engine) = engine {
        return Ok(matches!(engine, Engine::Container { .. }));
    }
    let caches = Caches::read(&Root::open(std::path::Path::new("/"))?)?;
    let known = caches.iter().flat_map(|caches| &caches.upstreams).filter_map(|one| one.engine.as_deref());
    Ok(known.filter_map(|text| Engine::parse(text).ok()).any(|one| matches!(one, Engine::Container { .. })))
}
