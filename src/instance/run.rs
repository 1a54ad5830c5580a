//! Starts a registry. The registry takes the place of this process, so that the unit's main process is the registry;
//! where it could not serve yet, somebody stands in for it first.

use std::fs::File;
use std::os::fd::IntoRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::child::{self, Ended, Question, Signals};
use super::credentials::{self, Login};
use super::handover;
use super::upstream::{self, Answer, Upstream};
use super::{as_registry_user, config, config_path, engine, own_access, registry, registry_owner, store};
use crate::caches::Caches;
use crate::facts::Registry;
use crate::node::{Engine, UpstreamHost};
use crate::root::Root;
use crate::store::Layout;
use crate::template::RegistryConfig;

/// A cached image is served within 5 s of the start, whether the upstream answers or not. An answer that takes longer
/// than this costs one more change of programs, which drains.
const PATIENCE: Duration = Duration::from_secs(1);

/// No answer in so long is none; an upstream that takes its time is an upstream all the same.
const LIMIT: Duration = Duration::from_secs(20);
/// From one answer of a silent upstream to the next question.
const PAUSE: Duration = Duration::from_secs(5);
/// A drain that took no longer says that what the upstream said still holds.
const QUICK: Duration = Duration::from_secs(3);
/// How often a credential helper is asked for a registry that has to be restarted for new ones.
const RENEWAL: Duration = Duration::from_secs(30);
/// Credentials live longer than this: Google's for an hour, Amazon's for twelve.
const SHORTEST_LIFE: Duration = Duration::from_secs(20 * 60);

/// What the engine shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The pull-through registry.
    Cache,
    /// A registry that only serves what is in the store.
    StandIn,
}

/// One registry, as its unit starts it.
struct Instance {
    host: UpstreamHost,
    registry: Registry,
    upstream: Upstream,
    config: RegistryConfig,
    has_helper: bool,
    root: Root,
}

impl Instance {
    fn open(host: &UpstreamHost, engine: Option<&Engine>) -> Result<Self> {
        let root = Root::open(Path::new("/"))?;
        let config = config(&root, host)?;
        let registry = registry(&root, host, engine).with_context(|| format!("start {host}"))?;
        let caches = Caches::read(&root)?;
        let cache = caches.as_ref().and_then(|caches| caches.of(host.as_str()));
        let ca = match cache.and_then(|cache| cache.ca.as_deref()) {
            Some(path) => root.read(path.trim_start_matches('/'))?,
            None => None,
        };
        let ca = ca.map(|pem| String::from_utf8_lossy(&pem).into());
        let upstream = Upstream { remote: config.proxy.remoteurl.clone(), ca };
        let has_helper = cache.is_some_and(|cache| cache.credential_helper.is_some());
        Ok(Self { host: host.clone(), registry, upstream, config, has_helper, root })
    }

    /// The program with all that it needs; it is started by whoever asks.
    fn command(&self, role: Role) -> Result<Command> {
        let mut config = self.root.show(&config_path(&self.host));
        let secrets = if self.registry.container.is_none() { handover::own() } else { Vec::new() };
        if !secrets.is_empty() {
            let text = self.root.read(&config_path(&self.host))?.context("its configuration is gone")?;
            let fd = handover::with_secrets(&text, handover::pairs(&secrets))
                .with_context(|| format!("read {config}"))?;
            config = handover::path_of(&fd);
            // Open until this process is another.
            let _ = fd.into_raw_fd();
        }
        let store = store(&self.config).map(|layout| self.root.show(layout.store()));
        let owner = registry_owner(&self.root)?;
        let run =
            engine::Run { host: &self.host, config: &config, store: store.as_deref(), owner, variables: &[] };
        let mut command = engine::serve(&self.registry, &run, role);
        for (name, _) in &secrets {
            command.env_remove(name);
        }
        command.stdout(self.access_log()).env(credentials::UPSTREAM, self.host.as_str());
        Ok(command)
    }

    /// A registry without a log is better than none.
    fn access_log(&self) -> Stdio {
        // Who used what in an object store is for the store to say.
        let Some(layout) = store(&self.config) else { return Stdio::null() };
        match as_registry_user(&self.root, || open_log(&self.root, &layout)) {
            Ok(file) => file.into(),
            Err(error) => {
                warn!(upstream = self.host.as_str(), "nobody will know what is used: {error:#}");
                Stdio::null()
            }
        }
    }

    fn needs(&self) -> Needs {
        Needs {
            upstream: self.upstream.clone(),
            has_password: std::env::var_os("REGISTRY_PROXY_PASSWORD").is_some(),
            asks_helper: self.registry.is_asking() && self.config.proxy.exec.is_some(),
        }
    }

    /// Whether the registry could do its work if it were started now.
    fn can_start(&self, needs: &Needs) -> bool {
        let answer = upstream::within(PATIENCE, &self.upstream, LIMIT);
        if answer.as_ref().is_some_and(|answer| needs.are_met(answer)) {
            return true;
        }
        let why = answer.map_or_else(|| "no answer".to_owned(), |answer| answer.to_string());
        warn!(
            upstream = self.host.as_str(),
            "{} does not answer ({why}): what is in the cache is served meanwhile", self.upstream.remote
        );
        false
    }

    /// Whether its credentials expire, and it can only be given others by a restart.
    fn is_told_by_us(&self) -> bool {
        !self.registry.is_asking() && self.has_helper
    }

    /// Asks for credentials until they are others. A helper that makes new ones each time costs a restart now and
    /// then only.
    fn renewal(&self, login: &Login) -> Question {
        let (host, digest, given) = (self.host.clone(), login.digest(), Instant::now());
        let (upstream, old) = (self.upstream.clone(), login.clone());
        Question::new(RENEWAL, RENEWAL, move || {
            let root = Root::open(Path::new("/"));
            match root.and_then(|root| credentials::login(&root, &host)) {
                Ok(login) if login.digest() == digest => false,
                Ok(_) => given.elapsed() >= SHORTEST_LIFE || upstream::refuses(&upstream, &old, LIMIT),
                Err(error) => {
                    warn!(upstream = host.as_str(), "the credentials stay as they are: {error:#}");
                    false
                }
            }
        })
    }

    /// Arguments for a process of our own that becomes the engine.
    fn child(&self, step: &str, engine: Option<&Engine>) -> Vec<String> {
        let engine = engine.map(|engine| ["--engine".to_owned(), engine.to_string()]);
        let args = ["unit", step, self.host.as_str()].map(str::to_owned).into_iter();
        args.chain(engine.into_iter().flatten()).collect()
    }
}

/// What has to be so before a registry is of use.
#[derive(Clone)]
struct Needs {
    upstream: Upstream,
    /// Of its own, from its start on.
    has_password: bool,
    asks_helper: bool,
}

impl Needs {
    fn are_met(&self, answer: &Answer) -> bool {
        match answer {
            // Distribution 2 learns once, when it starts, whom to give its credentials to: from a challenge.
            Answer::Unwell(_) => !self.has_password,
            Answer::Well => true,
            // With a helper for its credentials Distribution 3 asks nobody when it starts, and then serves what it
            // has as fast as the upstream fails.
            Answer::Failed(_) => self.asks_helper,
            Answer::Silent(_) => false,
        }
    }
}

fn open_log(root: &Root, layout: &Layout) -> Result<File> {
    root.make_directories(&layout.own(), own_access(0o750))?;
    root.append(&layout.access_log(), 0o640)
}

/// Becomes the registry of `host`, once its upstream answers; until then somebody stands in for it.
///
/// # Errors
/// When the registry cannot be started, or its stand-in ended by itself.
pub fn run(host: &UpstreamHost, engine: Option<&Engine>) -> Result<()> {
    let instance = Instance::open(host, engine)?;
    // Before the first thread: each has the mask of whoever started it.
    let mut signals = Signals::block()?;
    let mut needs = instance.needs();
    loop {
        // Distribution 2 is told once, when it starts, who it is.
        let login = if instance.is_told_by_us() {
            credentials::login(&instance.root, host)
        } else {
            Ok(Login::default())
        };
        let login = login.unwrap_or_else(|error| {
            warn!(upstream = host.as_str(), "pulls without credentials meanwhile: {error:#}");
            Login::default()
        });
        needs.has_password |= !login.password.is_empty();
        if !instance.can_start(&needs) {
            let asked = needs.clone();
            let question = Question::new(Duration::ZERO, PAUSE, move || {
                asked.are_met(&upstream::ask(&asked.upstream, LIMIT))
            });
            match child::serve(&instance.child("stand-in", engine), &[], question, &mut signals)? {
                Ended::Asked => return Ok(()),
                Ended::Over(drained) => {
                    info!(upstream = host.as_str(), "{} answers", instance.upstream.remote);
                    // What it said still holds.
                    if drained > QUICK {
                        continue;
                    }
                }
            }
        }
        if !instance.is_told_by_us() {
            break;
        }
        let question = instance.renewal(&login);
        let (username, password) = (quoted(&login.username), quoted(&login.password));
        let environment: &[(&str, &str)] = match login.password.is_empty() {
            true => &[],
            false => &[("REGISTRY_PROXY_USERNAME", &username), ("REGISTRY_PROXY_PASSWORD", &password)],
        };
        match child::serve(&instance.child("serve", engine), environment, question, &mut signals)? {
            Ended::Asked => return Ok(()),
            Ended::Over(_) => {
                info!(upstream = host.as_str(), "the credentials are new: started again with them")
            }
        }
    }
    signals.unblock()?;
    let mut command = instance.command(Role::Cache)?;
    Err(command.exec()).with_context(|| format!("start {}", instance.registry.program))
}

/// Distribution parses such a variable as YAML.
fn quoted(text: &str) -> Zeroizing<String> {
    Zeroizing::new(serde_json::Value::from(text).to_string())
}

/// Becomes the child that [`run`] starts.
///
/// # Errors
/// When it cannot be started.
pub fn child(host: &UpstreamHost, engine: Option<&Engine>, role: Role) -> Result<()> {
    let instance = Instance::open(host, engine)?;
    child::become_one()?;
    let mut command = instance.command(role)?;
    child::take_sockets(&mut command);
    Err(command.exec()).with_context(|| format!("start {}", instance.registry.program))
}
