//! Read-only: what this machine is, as far as the plan depends on it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use zeroize::Zeroizing;

use crate::certificate::Certificate;
use crate::containerd::Version;
use crate::host::Host;
use crate::node::{Engine, Node, SecretSource, Trust, UpstreamHost, certificates, to_pem};
use crate::plan::network::path_of;
use crate::root::{Entry, Root, Space};
use crate::template::UNITS;

pub mod binary;
mod client;
mod face;
pub mod image;
pub mod network;
mod version;
pub use image::Container;
pub use network::{Backend, INTERFACES, Link, Manager, ManagerFile, NetworkState};
pub use version::containerd_version;

/// The system user that registries run as.
pub const USER: &str = "larder";
/// containerd's own configuration (containerd-config.toml(5)).
pub const CONTAINERD_CONFIG: &str = "etc/containerd/config.toml";
/// A file of ours in a folder that it imports; sorts after what people write.
pub const CONTAINERD_DROP_IN: &str = "zz-larder.toml";
/// resolv.conf(5).
pub const RESOLV_CONF: &str = "etc/resolv.conf";
/// The unit of Debian's docker-registry package: it takes port 5000 on every address.
pub const DEBIAN_REGISTRY: &str = "docker-registry.service";

const PACKAGED_UNITS: [&str; 2] = ["usr/lib/systemd/system", "lib/systemd/system"];
/// systemd's own search path for programs that a unit names without a folder (systemd.service(5)).
const PROGRAM_FOLDERS: [&str; 6] = ["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"];
/// Debian's name and upstream's.
const REGISTRY_PROGRAMS: [&str; 2] = ["docker-registry", "registry"];

/// What the plan needs to know.
#[derive(Debug, Default)]
pub struct Facts {
    pub registry: Option<Registry>,
    /// Units of ours that a package has put in `/usr/lib`.
    pub packaged: Vec<&'static str>,
    /// The port of Debian's own registry service, where that package is.
    pub debian_registry: Option<u16>,
    /// The file system of the caches, where it can be told.
    pub space: Option<Space>,
    pub containerd: Containerd,
    /// Endpoints that `larder watch` has taken out for now, by URL.
    pub out: BTreeSet<String>,
    pub network: NetworkState,
    /// The upstream passwords that could be read.
    pub passwords: BTreeMap<UpstreamHost, Zeroizing<String>>,
    /// Those of the object store, by Distribution's own name.
    pub store_secrets: Vec<(&'static str, Zeroizing<String>)>,
    /// What the registries are to show, where that could be read.
    pub certificate: Option<Certificate>,
    /// The folder of node_exporter's textfile collector, absolute: what it is told goes there.
    pub textfile: Option<String>,
    /// The certificates that are trusted for one upstream: PEM, and nothing else.
    pub trusted: BTreeMap<UpstreamHost, Arc<str>>,
    /// What stands in the way, each a line for the operator.
    pub problems: Vec<String>,
}

/// Distribution's registry: a binary, or an image and what runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    /// Absolute, on the machine itself.
    pub program: String,
    pub major: u32,
    /// Present: `program` runs the image that the registry is in.
    pub container: Option<Container>,
}

impl Registry {
    /// Whether it takes its socket from systemd, and asks a program of ours for its credentials each time that it
    /// needs them: Distribution 3 does, where it runs among our files.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        self.major >= 3 && self.container.is_none()
    }
}

#[derive(Debug, Default)]
pub struct Containerd {
    /// Major version of the binary, where there is one.
    pub major: Option<u32>,
    pub config: Option<String>,
    /// The files that `imports` names, in order.
    pub imports: Vec<(String, String)>,
    pub version: Option<Version>,
    /// What tells this machine from others (machine-id(5)); an image has none.
    pub machine_id: Option<String>,
    /// Where a drop-in of ours would be read, whether it is there or not.
    pub drop_in: Option<String>,
    /// Whether the package manager asks before it replaces the main file.
    pub is_conffile: bool,
    /// Those secrets of the profile's `containerd` block that are not written in it.
    pub secrets: Vec<(SecretSource, Zeroizing<String>)>,
}

impl Containerd {
    /// The version to write for: the oldest, where nothing is installed yet.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version.unwrap_or(Version::OLDEST)
    }

    /// `None`: it could not be read, and that is among the problems.
    #[must_use]
    pub fn secret(&self, source: &SecretSource) -> Option<Zeroizing<String>> {
        match source {
            SecretSource::Literal(text) => Some(text.clone()),
            other => self.secrets.iter().find(|(known, _)| known == other).map(|(_, text)| text.clone()),
        }
    }
}

/// Reads what the plan for `node` depends on; `link` is the one whose files are ours already. Problems of the machine are collected, not returned as an
/// error, so that the operator sees all of them.
///
/// # Errors
/// When a file that is there cannot be read.
pub fn read(root: &Root, host: &dyn Host, node: &Node, link: Option<&Link>) -> Result<Facts> {
    let mut facts = Facts { packaged: packaged(root), ..Facts::default() };
    if let Some(cache) = &node.cache {
        facts.registry = find_registry(root, &cache.engine)?;
        if facts.registry.is_none() {
            image::find(root, host, &cache.engine, &mut facts)?;
        }
        if facts.registry.is_none() {
            match &cache.engine {
                Engine::Auto => facts.problems.push(
                    "no registry binary found in /usr/local/bin or /usr/bin, nor an image registry:3 that podman or \
                     docker has: install Debian's docker-registry or Distribution's registry, or name an image in \
                     `cache.engine`"
                        .to_owned(),
                ),
                Engine::Binary(path) => {
                    facts.problems.push(format!("cache.engine: {path} is no Distribution registry binary"));
                }
                // Told already.
                Engine::Container { .. } => {}
            }
        }
        facts.debian_registry = debian_registry(root)?;
        facts.space = host.space(root, cache.storage.as_str())?;
        read_store(root, cache, &mut facts)?;
        read_passwords(root, node, &mut facts)?;
        face::read(root, cache, &mut facts)?;
        read_trusted(root, node, &mut facts)?;
    }
    face::read_textfile(root, node, &mut facts)?;
    read_client(root, host, node, &mut facts)?;
    facts.network = read_network(root, host, node, link)?;
    Ok(facts)
}

/// Whether containerd reads this file at its start, and has to be restarted for it.
#[must_use]
pub fn is_containerd_config(path: &str) -> bool {
    path == CONTAINERD_CONFIG || path.rsplit('/').next() == Some(CONTAINERD_DROP_IN)
}

/// The part of [`read`] that hosts.toml files depend on: all that a watchdog has to know.
///
/// # Errors
/// When a file that is there cannot be read.
pub fn read_client(root: &Root, host: &dyn Host, node: &Node, facts: &mut Facts) -> Result<()> {
    let Some(client) = &node.containerd else { return Ok(()) };
    facts.containerd = read_containerd(root, host)?;
    client::read(root, client, facts)?;
    facts.out = crate::watch::memory(root)?.out();
    Ok(())
}

fn packaged(root: &Root) -> Vec<&'static str> {
    let Some(folder) = PACKAGED_UNITS.iter().find(|folder| root.exists(&format!("{folder}/larder.service")))
    else {
        return Vec::new();
    };
    UNITS.iter().map(|unit| unit.name).filter(|name| root.exists(&format!("{folder}/{name}"))).collect()
}

/// Finds a program where systemd would.
#[must_use]
pub fn find_program(root: &Root, name: &str) -> Option<String> {
    PROGRAM_FOLDERS.iter().map(|folder| format!("{folder}/{name}")).find(|path| root.exists(path))
}

/// Finds the registry binary and its major version.
///
/// # Errors
/// When a binary that is there cannot be read.
pub fn find_registry(root: &Root, engine: &Engine) -> Result<Option<Registry>> {
    let candidates = match engine {
        Engine::Binary(path) => vec![path.as_str().trim_start_matches('/').to_owned()],
        Engine::Auto => REGISTRY_PROGRAMS.iter().filter_map(|name| find_program(root, name)).collect(),
        Engine::Container { .. } => Vec::new(),
    };
    for path in candidates {
        let Some(file) = root.open_file(&path)? else { continue };
        if let Some(package) = binary::main_package(&file)
            && package.contains("/distribution/")
        {
            let major = binary::major(&package, 2);
            return Ok(Some(Registry { program: format!("/{path}"), major, container: None }));
        }
    }
    Ok(None)
}

fn debian_registry(root: &Root) -> Result<Option<u16>> {
    if !PACKAGED_UNITS.iter().any(|folder| root.exists(&format!("{folder}/{DEBIAN_REGISTRY}"))) {
        return Ok(None);
    }
    #[derive(serde::Deserialize)]
    struct Config {
        http: Http,
    }
    #[derive(serde::Deserialize)]
    struct Http {
        addr: String,
    }
    let config = root.read("etc/docker/registry/config.yml")?;
    let addr = config.and_then(|bytes| serde_yaml::from_slice::<Config>(&bytes).ok()).map(|c| c.http.addr);
    let port = addr.and_then(|addr| addr.rsplit_once(':')?.1.parse().ok());
    // The package's own default, where its file cannot be understood.
    Ok(Some(port.unwrap_or(5000)))
}

fn read_passwords(root: &Root, node: &Node, facts: &mut Facts) -> Result<()> {
    for upstream in &node.upstreams {
        let Some(credentials) = &upstream.credentials else { continue };
        match find_secret(root, &credentials.password)? {
            Some(password) => {
                facts.passwords.insert(upstream.host.clone(), password);
            }
            None => facts.problems.push(format!(
                "upstreams.{}.password: {} is not there",
                upstream.host,
                name_secret(root, &credentials.password)
            )),
        }
    }
    Ok(())
}

/// What an object store takes beside its settings: secrets, and a registry that was built with its driver.
fn read_store(root: &Root, cache: &crate::node::Cache, facts: &mut Facts) -> Result<()> {
    let Some(store) = &cache.objects else { return Ok(()) };
    let driver = store.driver.name();
    for (name, source) in &store.secrets {
        match find_secret(root, source)? {
            Some(secret) => facts.store_secrets.push((name, secret)),
            None => facts.problems.push(format!(
                "cache.storage.{driver}.{}: {} is not there",
                name.replace('_', "."),
                name_secret(root, source)
            )),
        }
    }
    if let Some(registry @ Registry { container: None, .. }) = &facts.registry
        && let Some(file) = root.open_file(registry.program.trim_start_matches('/'))?
        && !binary::holds(&file, store.driver.package().as_bytes())?
    {
        facts.problems.push(format!(
            "cache.storage.{driver}: {} was built without that driver: install Distribution's own 3.x, and name it in \
             `cache.engine`",
            registry.program
        ));
    }
    Ok(())
}

fn read_trusted(root: &Root, node: &Node, facts: &mut Facts) -> Result<()> {
    // A fleet's upstreams share few authorities.
    let mut known: BTreeMap<&str, Arc<str>> = BTreeMap::new();
    for upstream in &node.upstreams {
        let Some(trust) = &upstream.ca else { continue };
        let (name, found) = match trust {
            Trust::Pem(text) => (text.as_str(), Some(text.as_bytes().to_vec())),
            Trust::File(path) => (path.as_str(), None),
        };
        if let Some(pem) = known.get(name) {
            facts.trusted.insert(upstream.host.clone(), Arc::clone(pem));
            continue;
        }
        let bytes = match found {
            Some(bytes) => Some(bytes),
            None => root.read(name.trim_start_matches('/'))?,
        };
        let wrong = match bytes.map(String::from_utf8) {
            None => "is not there".to_owned(),
            Some(Err(_)) => "is no PEM".to_owned(),
            Some(Ok(text)) => match certificates(&text) {
                Err(wrong) => wrong,
                Ok(found) => {
                    let pem: Arc<str> = to_pem(&found).into();
                    known.insert(name, Arc::clone(&pem));
                    facts.trusted.insert(upstream.host.clone(), pem);
                    continue;
                }
            },
        };
        let name = match trust {
            Trust::Pem(_) => "the text".to_owned(),
            Trust::File(_) => root.show(name.trim_start_matches('/')),
        };
        facts.problems.push(format!("upstreams.{}.ca: {name} {wrong}", upstream.host));
    }
    Ok(())
}

fn find_secret(root: &Root, source: &SecretSource) -> Result<Option<Zeroizing<String>>> {
    match source {
        SecretSource::Literal(text) => Ok(Some(text.clone())),
        SecretSource::Env(name) => Ok(crate::host::environment(name)),
        SecretSource::File(path) => read_secret(root, path),
        SecretSource::Credential(name) => crate::host::credential(root, name),
    }
}

/// Where a secret is, for a message.
fn name_secret(root: &Root, source: &SecretSource) -> String {
    match source {
        SecretSource::Literal(_) => "the text".to_owned(),
        SecretSource::Env(name) => format!("the environment variable {name}"),
        SecretSource::File(path) => root.show(&below(path)),
        SecretSource::Credential(name) => format!("the systemd credential {name}"),
    }
}

fn below(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}

fn read_secret(root: &Root, path: &Path) -> Result<Option<Zeroizing<String>>> {
    let Some(bytes) = root.read(&below(path))? else { return Ok(None) };
    let text =
        String::from_utf8(bytes).ok().with_context(|| format!("read {}: not UTF-8", path.display()))?;
    let text = Zeroizing::new(text);
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Some(Zeroizing::new(secret.strip_suffix('\r').unwrap_or(secret).to_owned())))
}

fn read_containerd(root: &Root, host: &dyn Host) -> Result<Containerd> {
    let version = version::ask(root, host)?;
    let major = version.map(|version| version.major);
    let mut containerd = Containerd { major, version, ..Containerd::default() };
    let Some(bytes) = root.read(CONTAINERD_CONFIG)? else { return Ok(containerd) };
    let text = String::from_utf8(bytes)
        .ok()
        .with_context(|| format!("read {}: not UTF-8", root.show(CONTAINERD_CONFIG)))?;
    for path in import_paths(root, &text)? {
        if let Some(bytes) = root.read(&path)? {
            containerd.imports.push((path, String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
    containerd.drop_in = version::drop_in(major, &text);
    containerd.is_conffile = version::is_conffile(root)?;
    containerd.config = Some(text);
    Ok(containerd)
}

/// The files that `imports` of the main file names; `*` in the last component is a glob, and relative paths
/// start at the main file's folder.
fn import_paths(root: &Root, text: &str) -> Result<Vec<String>> {
    let Ok(document) = text.parse::<toml_edit::DocumentMut>() else { return Ok(Vec::new()) };
    let mut paths = Vec::new();
    for pattern in document.get("imports").and_then(|i| i.as_array()).into_iter().flatten() {
        let Some(pattern) = pattern.as_str() else { continue };
        let pattern = match pattern.strip_prefix('/') {
            Some(absolute) => absolute.to_owned(),
            None => format!("etc/containerd/{pattern}"),
        };
        let (folder, name) = pattern.rsplit_once('/').unwrap_or(("", &pattern));
        match name.split_once('*') {
            None => paths.push(pattern),
            Some((start, end)) => {
                let fits = |n: &String| {
                    n.len() >= start.len() + end.len() && n.starts_with(start) && n.ends_with(end)
                };
                paths.extend(root.list(folder)?.into_iter().filter(fits).map(|n| format!("{folder}/{n}")));
            }
        }
    }
    Ok(paths)
}

/// The part of [`read`] that the network depends on.
///
/// # Errors
/// When the machine cannot be asked.
pub fn read_network(root: &Root, host: &dyn Host, node: &Node, ours: Option<&Link>) -> Result<NetworkState> {
    let Some(wanted) = &node.network else { return Ok(NetworkState::default()) };
    let mut state = host.network(root, wanted, ours)?;
    state.cloud_init = root.exists("etc/cloud");
    if let Manager::Is(backend) = state.manager {
        state.files = network::read_files(root, backend)?;
        let ours = state.interface.as_deref().map(|interface| path_of(backend, interface));
        let current = ours.map(|path| root.read(&path)).transpose()?.flatten();
        state.current = current.and_then(|bytes| String::from_utf8(bytes).ok());
        state.resolvconf = find_program(root, "resolvconf").is_some();
        state.resolv_conf_is_link = matches!(root.entry(RESOLV_CONF)?, Entry::Link { .. });
    }
    Ok(state)
}
