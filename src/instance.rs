//! What the units of one registry run: before its start, at it, after it, and for its garbage collection. All of it
//! runs as the registry's own user, in its sandbox.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::unistd::{Gid, Uid, getegid, geteuid, setgid, setgroups, setuid};
use tracing::{info, warn};

use crate::diff::registry_ids;
use crate::facts::{self, Registry};
use crate::host::command::Invocation;
use crate::node::{AbsolutePath, Engine, UpstreamHost};
use crate::plan::REGISTRY_FOLDER;
use crate::plan::registry::GC_LOCK;
use crate::root::{Access, Owner, Root};
use crate::template::RegistryConfig;

mod ready;
pub mod run;
mod standin;
mod upstream;
pub use ready::ready;

/// Below the store's root folder: what Larder keeps of it.
pub const OWN_FOLDER: &str = ".larder";
/// Below the store's root folder (distribution's storage layout, `registry/storage/paths.go`).
const REPOSITORIES: &str = "docker/registry/v2/repositories";
const BLOBS: &str = "docker/registry/v2/blobs";
/// The proxy's own list of what expires when.
const SCHEDULER: &str = "scheduler-state.json";
/// Below the GC unit's TimeoutStartSec=.
const GC_LIMIT: Duration = Duration::from_secs(5 * 3600);
const GC_POLL: Duration = Duration::from_secs(2);

fn config(root: &Root, host: &UpstreamHost) -> Result<RegistryConfig> {
    let path = config_path(host);
    let bytes = root.read(&path)?.with_context(|| format!("read {}: not there", root.show(&path)))?;
    RegistryConfig::parse(&String::from_utf8_lossy(&bytes))
        .with_context(|| format!("read {}", root.show(&path)))
}

fn config_path(host: &UpstreamHost) -> String {
    format!("{REGISTRY_FOLDER}/{host}.yml")
}

/// The program that the unit names, or the one that is found here.
fn registry(root: &Root, engine: Option<&AbsolutePath>) -> Result<Registry> {
    let engine = engine.map_or(Engine::Auto, |path| Engine::Binary(path.clone()));
    facts::find_registry(root, &engine)?.context("no registry binary found: run `larder apply`")
}

/// Makes what the registry and its collector expect of a store, and sets aside what would keep the registry
/// from starting. The store's own folder is there: apply made it.
///
/// # Errors
/// On I/O errors.
pub fn prepare(host: &UpstreamHost) -> Result<()> {
    let root = Root::open(std::path::Path::new("/"))?;
    prepare_store(&root, store(&config(&root, host)?))
}

fn store(config: &RegistryConfig) -> &str {
    config.storage.filesystem.rootdirectory.trim_start_matches('/')
}

fn prepare_store(root: &Root, store: &str) -> Result<()> {
    for folder in [REPOSITORIES, BLOBS, OWN_FOLDER] {
        root.make_directories(&format!("{store}/{folder}"), own_access(0o750))?;
    }
    let state = format!("{store}/{SCHEDULER}");
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

/// Files of the store belong to whom this process runs as: the units', or after [`become_registry_user`].
fn own_access(mode: u32) -> Access {
    let owner = Owner::Id { uid: geteuid().as_raw(), gid: getegid().as_raw() };
    Access { mode, owner }
}

/// Runs the engine's own garbage collection, one registry of the node at a time.
///
/// # Errors
/// When the engine is missing or its collector fails.
pub fn gc(host: &UpstreamHost, engine: Option<&AbsolutePath>) -> Result<()> {
    let root = Root::open(std::path::Path::new("/"))?;
    become_registry_user(&root)?;
    let config = config(&root, host)?;
    let registry = registry(&root, engine).context("collect")?;
    let deadline = Instant::now() + GC_LIMIT;
    let _turn = root.lock(GC_LOCK, || {
        sleep(GC_POLL);
        Instant::now() < deadline
    })?;
    let store = store(&config);
    prepare_store(&root, store)?;
    complete_repositories(&root, store, &registry)?;
    let started = Instant::now();
    let path = root.show(&config_path(host));
    // Never -m: on 2.x it fails on images without a tag and deletes the platforms of multi-arch images.
    Invocation::new(&registry.program, &["garbage-collect", &path])
        .env("OTEL_TRACES_EXPORTER", "none")
        .quiet()
        .run(deadline)?;
    info!(upstream = host.as_str(), seconds = started.elapsed().as_secs(), "garbage collected");
    Ok(())
}

/// By hand this is called as root, who must not leave files of its own in a store, nor trust what is in there.
fn become_registry_user(root: &Root) -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let Some(Owner::Id { uid, gid }) = registry_ids(root)? else {
        bail!("collect: there is no user {}: run `larder apply` first", facts::USER);
    };
    setgroups(&[])
        .and_then(|()| setgid(Gid::from_raw(gid)))
        .and_then(|()| setuid(Uid::from_raw(uid)))
        .with_context(|| format!("become the user {}", facts::USER))
}

/// Distribution 3's collector stops at a repository that holds a manifest and no layer yet.
fn complete_repositories(root: &Root, store: &str, registry: &Registry) -> Result<()> {
    if registry.major < 3 {
        return Ok(());
    }
    let mut folders = vec![format!("{store}/{REPOSITORIES}")];
    while let Some(folder) = folders.pop() {
        let names = root.list(&folder)?;
        if names.iter().any(|name| name == "_manifests") && !names.iter().any(|name| name == "_layers") {
            root.make_directory(&format!("{folder}/_layers"), own_access(0o750))?;
        }
        folders.extend(
            names.iter().filter(|name| !name.starts_with('_')).map(|name| format!("{folder}/{name}")),
        );
    }
    Ok(())
}
