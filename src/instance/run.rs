//! Starts a registry. The registry takes the place of this process, so that the unit's main process is the registry;
//! where it could not serve yet, somebody stands in for it first.

#![expect(clippy::disallowed_methods, reason = "this process becomes another program")]

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tracing::{info, warn};

use super::standin::{self, Ended};
use super::upstream::{self, Answer};
use super::{OWN_FOLDER, config, config_path, own_access, registry, store};
use crate::facts::Registry;
use crate::node::{AbsolutePath, RemoteUrl, UpstreamHost};
use crate::root::Root;
use crate::template::RegistryConfig;

/// Below the folder of our own in the store: Distribution's access log, which it writes on its standard output.
pub const ACCESS_LOG: &str = "access.log";
/// A cached image is served within 5 s of the start, whether the upstream answers or not.
const FIRST_LIMIT: Duration = Duration::from_secs(2);

/// What the engine shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The pull-through registry.
    Cache,
    /// A registry that only serves what is in the store.
    StandIn,
}

/// One registry, as its unit starts it.
pub(super) struct Instance {
    pub(super) host: UpstreamHost,
    pub(super) registry: Registry,
    pub(super) remote: RemoteUrl,
    config: RegistryConfig,
    root: Root,
}

impl Instance {
    fn open(host: &UpstreamHost, engine: Option<&AbsolutePath>) -> Result<Self> {
        let root = Root::open(Path::new("/"))?;
        let config = config(&root, host)?;
        let registry = registry(&root, engine).with_context(|| format!("start {host}"))?;
        let remote = RemoteUrl::parse(&config.proxy.remoteurl).map_err(anyhow::Error::msg)?;
        Ok(Self { host: host.clone(), registry, remote, config, root })
    }

    /// The program with all that it needs; it is started by whoever asks.
    fn command(&self, role: Role) -> Command {
        let mut command = engine_command(&self.registry, &self.root.show(&config_path(&self.host)), role);
        command.stdout(self.access_log());
        command
    }

    /// A registry without a log is better than none.
    fn access_log(&self) -> Stdio {
        match open_log(&self.root, store(&self.config)) {
            Ok(file) => file.into(),
            Err(error) => {
                warn!(upstream = self.host.as_str(), "nobody will know what is used: {error:#}");
                Stdio::null()
            }
        }
    }

    /// Whether the registry could do its work if it were started now.
    pub(super) fn can_start(&self, answer: &Answer) -> bool {
        let has_password = std::env::var_os("REGISTRY_PROXY_PASSWORD").is_some();
        match answer {
            // Distribution 2 learns once, when it starts, whom to give its credentials to: from a challenge.
            Answer::Answered(Some(429 | 500..)) => !has_password,
            Answer::Answered(_) => true,
            // With a helper for its credentials Distribution 3 asks nobody when it starts, and then serves what it
            // has as fast as the upstream fails.
            Answer::Failed(_) => self.registry.major >= 3 && self.config.proxy.exec.is_some(),
            Answer::Silent(_) => false,
        }
    }
}

/// How the engine is started: what every kind of engine has in common with the others is done by the caller.
#[must_use]
pub fn engine_command(registry: &Registry, config: &str, role: Role) -> Command {
    let mut command = Command::new(&registry.program);
    command.args(["serve", config]);
    if role == Role::StandIn {
        // Without a remote it is a plain registry; the configuration lets nobody write to it.
        command.env("REGISTRY_PROXY_REMOTEURL", "").env("REGISTRY_HTTP_DRAINTIMEOUT", "60s");
    }
    command
}

fn open_log(root: &Root, store: &str) -> Result<File> {
    let folder = format!("{store}/{OWN_FOLDER}");
    root.make_directories(&folder, own_access(0o750))?;
    root.append(&folder, ACCESS_LOG, 0o640)
}

/// Becomes the registry of `host`, once its upstream answers; until then somebody stands in for it.
///
/// # Errors
/// When the registry cannot be started, or its stand-in ended by itself.
pub fn run(host: &UpstreamHost, engine: Option<&AbsolutePath>) -> Result<()> {
    let instance = Instance::open(host, engine)?;
    // Whoever is started here inherits neither: see `standin`.
    loop {
        let answer = upstream::ask(&instance.remote, FIRST_LIMIT);
        if instance.can_start(&answer) {
            break;
        }
        warn!(
            upstream = host.as_str(),
            "{} does not answer ({answer}): what is in the cache is served meanwhile", instance.remote
        );
        match standin::serve(&instance, engine)? {
            Ended::Asked => return Ok(()),
            Ended::Drained { quickly } => {
                info!(upstream = host.as_str(), "{} answers again", instance.remote);
                if quickly {
                    break;
                }
            }
        }
    }
    let mut command = instance.command(Role::Cache);
    Err(command.exec()).with_context(|| format!("start {}", instance.registry.program))
}

/// Becomes the stand-in.
///
/// # Errors
/// When it cannot be started.
pub fn stand_in(host: &UpstreamHost, engine: Option<&AbsolutePath>) -> Result<()> {
    let instance = Instance::open(host, engine)?;
    standin::as_a_child()?;
    let mut command = instance.command(Role::StandIn);
    standin::hand_on_sockets(&mut command);
    Err(command.exec()).with_context(|| format!("start {}", instance.registry.program))
}
