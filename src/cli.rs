//! The commands, and what each prints.

use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use serde_json::json;

use crate::apply::Failed;
use crate::drift::Choices;
use crate::guard;
use crate::host::image::Image;
use crate::host::live::Live;
use crate::host::{Host, booted};
use crate::instance;
use crate::log::{self, TOLD};
use crate::node::{AbsolutePath, Engine, Node, UpstreamHost, schema};
use crate::plan::Refused;
use crate::profile::{self, Loaded, Problems, Source};
use crate::root::Root;

mod explain;
mod gc;
mod migrate;
mod recover;
mod refresh;
mod remove;
mod run;
mod scrub;
mod status;
mod tend;
mod watch;

/// Exit codes (also in `larder --help`).
pub mod code {
    pub const CONVERGED: u8 = 0;
    pub const FAILED: u8 = 1;
    pub const REFUSED: u8 = 2;
    pub const NOT_ROLLED_BACK: u8 = 3;
    pub const DOWN: u8 = 4;
    pub const SOMETHING_TO_DO: u8 = 10;
}

/// Make this machine a working part of a registry-mirror fleet, from one YAML profile.
#[derive(Debug, Parser)]
#[command(
    name = "larder",
    version,
    after_help = "Exit codes:\n  0   converged (plan: nothing to do)\n  1   failed, and put back as it was\n  \
                  2   profile or usage refused, nothing touched\n  3   failed, and not all could be put back\n  \
                  4   applied, but the verification found something down\n      \
                  (explain: something written does not work as written; status: something is out or down)\n  \
                  10  plan, migrate: something to do"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, clap::Args)]
struct Input {
    /// Read this profile alone; `-` is standard input [default: the layers /usr/lib/larder/profile.yaml,
    /// /etc/larder/profile.yaml and /etc/larder/profile.d/*.yaml]
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Work on the image unpacked in DIR, not on the running machine
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// What a command takes that only a running machine can answer.
#[derive(Debug, clap::Args)]
struct LiveInput {
    /// As for apply
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// What a command takes that needs no profile.
#[derive(Debug, clap::Args)]
struct NoProfile {
    /// Work on the image unpacked in DIR, not on the running machine
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

impl NoProfile {
    fn input(&self) -> Input {
        Input { profile: None, root: self.root.clone(), output: self.output }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make this machine what the profile says, prove it, exit
    Apply {
        #[command(flatten)]
        input: Input,
        /// Also delete the cached data of upstreams that have left the profile
        #[arg(long)]
        purge: bool,
        #[command(flatten)]
        choices: Choices,
        /// Write the files of the network only and wake nobody, while this machine boots (larder-network.service does)
        #[arg(long, conflicts_with_all = ["purge", "root", "keep", "take"])]
        before_network: bool,
    },
    /// Take away all that is larder's, and give back what was there before it. Needs no profile
    #[command(
        after_help = "Exit codes:\n  0   it is gone, or nothing of it was here\n  1   failed, and put back as it was\n  \
                      3   failed, and not all could be put back\n  10  --dry-run: there is something to remove"
    )]
    Remove {
        #[command(flatten)]
        input: NoProfile,
        /// Keep what the registries have cached, and their user [default]
        #[arg(long, conflicts_with = "purge")]
        keep_data: bool,
        /// Also delete what the registries have cached, and their user if larder made it
        #[arg(long)]
        purge: bool,
        /// Show what would go
        #[arg(long)]
        dry_run: bool,
    },
    /// Undo a run that died: everything is as it was before it. `larder apply` does so by itself where it cannot
    /// finish what the run has begun
    #[command(
        after_help = "Exit codes:\n  0  everything is as it was before the run, or there was nothing to recover\n  3  \
                      not all could be put back: what is left is said, and how to do it by hand"
    )]
    Recover {
        #[command(flatten)]
        input: NoProfile,
    },
    /// Show what apply would change, as a diff
    Plan {
        #[command(flatten)]
        input: Input,
        /// As for apply
        #[arg(long)]
        purge: bool,
        #[command(flatten)]
        choices: Choices,
    },
    /// Read the profile only
    Check {
        #[command(flatten)]
        input: Input,
    },
    /// Prove the endpoints again, change nothing
    Verify {
        #[command(flatten)]
        input: LiveInput,
        /// Also pull a small image of each upstream through containerd, and say which endpoint served it
        #[arg(long)]
        pull: bool,
    },
    /// Show what runs here: registries, the endpoints that containerd asks, when what is due; 4 when something
    /// is out or down
    Status(status::StatusInput),
    /// Ask each cache once; take those that do not answer out of containerd's hosts.toml files, and put them back
    /// once they do. larder-watch.timer sees to it that this happens every three seconds
    Watch {
        /// Go on for so many rounds, three seconds apart
        #[arg(long, value_name = "N", default_value = "1")]
        rounds: u32,
        /// Work on the image unpacked in DIR, not on the running machine
        #[arg(long, value_name = "DIR")]
        root: Option<PathBuf>,
    },
    /// Print the merged profile and where each value comes from
    Config {
        #[command(flatten)]
        input: Input,
    },
    /// Show what containerd does for an image of one registry host, and which setting made it so
    #[command(
        after_help = "Exit codes:\n  0  images can be pulled, and the host's settings work as written\n  \
                            2  no registry host\n  4  explained: something stops pulls, or does not work as written"
    )]
    Explain {
        #[command(flatten)]
        input: explain::ExplainInput,
    },
    /// Turn containerd's older mirror settings into hosts.toml files that ask the same endpoints
    Migrate {
        #[command(flatten)]
        input: migrate::MigrateInput,
    },
    /// Print the profile's JSON Schema
    Schema,
    /// Evict what was used longest ago from stores that are above their budget, then collect the garbage
    #[command(
        after_help = "Exit codes:\n  0  done\n  1  something failed\n  2  usage refused: nothing of that is cached here"
    )]
    Gc {
        #[command(flatten)]
        input: gc::GcInput,
    },
    /// Read all that is cached, and remove what is not what its name says, so that the next pull fetches it again
    #[command(
        after_help = "Exit codes:\n  0   nothing is broken, or no longer\n  1   something broken could not be removed, or \
                      a store not be read\n  2   usage refused: nothing of that is cached here\n  10  --dry-run: \
                      something is broken"
    )]
    Scrub {
        #[command(flatten)]
        input: scrub::ScrubInput,
    },
    /// Forget one cached image, so that the next pull asks its registry again
    Refresh {
        #[command(flatten)]
        input: refresh::RefreshInput,
    },
    /// Keep the caches within their budget and the disk from running full, and note what is used. larder-tend.timer
    /// sees to it that this happens every second
    Tend {
        /// Go on for so many rounds, a second apart
        #[arg(long, value_name = "N", default_value = "1")]
        rounds: u32,
        /// Another machine's files
        #[arg(long, hide = true, value_name = "DIR")]
        root: Option<PathBuf>,
    },
    /// What registries call for their credentials
    #[command(hide = true)]
    Get,
    /// What the registry units call
    #[command(hide = true)]
    Unit {
        #[command(subcommand)]
        step: UnitStep,
    },
}

/// A registry and its program.
#[derive(Debug, clap::Args)]
struct EngineOf {
    upstream: String,
    /// The registry binary, or `podman:IMAGE` [default: what `apply` has found]
    #[arg(long, value_name = "ENGINE")]
    engine: Option<String>,
}

impl EngineOf {
    fn read(&self) -> Result<(UpstreamHost, Option<Engine>)> {
        let engine = self.engine.as_deref().map(Engine::parse).transpose().map_err(refused)?;
        Ok((UpstreamHost::parse(&self.upstream).map_err(refused)?, engine))
    }
}

#[derive(Debug, Subcommand)]
enum UnitStep {
    /// Before a registry starts
    Prepare {
        #[command(flatten)]
        engine: EngineOf,
        /// What its image is loaded from
        #[arg(long, value_name = "PATH")]
        archive: Option<String>,
    },
    /// After it ended
    Clear(EngineOf),
    /// The registry itself
    Run(EngineOf),
    /// Whoever serves the store while the upstream does not answer
    StandIn(EngineOf),
    /// A registry that `run` waits for
    Serve(EngineOf),
    /// Its stop: what runs finishes, what is stuck does not hold it up
    Drain { upstream: String },
    /// One that has grown, or is not well
    Restart { upstream: String },
    /// Until a registry answers
    Ready { upstream: String },
    /// When there may be another certificate
    Renew,
    /// What the guard of the network runs: puts back what a `larder apply` that died has left without proof
    RestoreNetwork,
}

/// Runs one command and returns the exit code.
#[must_use]
pub fn run(cli: Cli) -> u8 {
    umask(Mode::from_bits_truncate(mask(&cli.command)));
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(error) => report_error(&error),
    }
}

/// Our own files have their modes from us; this is for the programs that we run. Those that manage the network make
/// files for others to read: under another mask `netplan` writes them so that systemd-networkd, a user of its own,
/// cannot, and lets go of the link. What registries and their collectors make is for nobody else.
fn mask(command: &Command) -> u32 {
    match command {
        Command::Unit { step: UnitStep::RestoreNetwork } => 0o022,
        Command::Unit { .. } | Command::Gc { .. } | Command::Scrub { .. } | Command::Tend { .. } => 0o027,
        Command::Status(_) | Command::Watch { .. } => 0o077,
        _ => 0o022,
    }
}

/// Errors end up here, whole and once.
fn report_error(error: &anyhow::Error) -> u8 {
    if error.is::<BadProfile>() {
        return code::REFUSED;
    }
    tell_error(error);
    match error.downcast_ref::<Failed>() {
        Some(failed) if !failed.not_undone.is_empty() => code::NOT_ROLLED_BACK,
        _ if error.is::<recover::NotUndone>() => code::NOT_ROLLED_BACK,
        _ if error.is::<Refused>() || error.is::<run::Busy>() => code::REFUSED,
        _ => code::FAILED,
    }
}

/// Whether nothing was done because nothing of the kind is done.
fn is_refusal(error: &anyhow::Error) -> bool {
    error.is::<BadProfile>() || error.is::<Refused>()
}

/// To the person, and to the journal where that is not where the person's text goes.
fn tell_error(error: &anyhow::Error) {
    let _ = writeln!(stderr().lock(), "error: {error:#}");
    let denied = |cause: &(dyn std::error::Error + 'static)| {
        let errno = cause.downcast_ref::<Errno>().copied();
        let io = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        matches!(errno, Some(Errno::EACCES | Errno::EPERM)) || io == Some(ErrorKind::PermissionDenied)
    };
    if !geteuid().is_root() && error.chain().any(denied) {
        let _ = writeln!(stderr().lock(), "run it as root");
    }
    if !log::stderr_is_journal() {
        tracing::error!(target: TOLD, "{error:#}");
    }
}

fn tell_warning(warning: &str) {
    let _ = writeln!(stderr().lock(), "warning: {warning}");
    if !log::stderr_is_journal() {
        tracing::warn!(target: TOLD, "{warning}");
    }
}

fn dispatch(command: Command) -> Result<u8> {
    match command {
        Command::Apply { input, before_network: true, .. } => run::before_network(&input),
        Command::Apply { input, purge, choices, before_network: false } => {
            run::apply_command(&input, purge, &choices)
        }
        Command::Remove { input, purge, dry_run, .. } => {
            remove::remove_command(&input.input(), purge, dry_run)
        }
        Command::Recover { input } => recover::recover_command(&input.input()),
        Command::Plan { input, purge, choices } => run::plan_command(&input, purge, &choices),
        Command::Check { input } => check_command(&input),
        Command::Verify { input: LiveInput { profile, output }, pull } => {
            run::verify_command(&Input { profile, root: None, output }, pull)
        }
        Command::Status(input) => status::status_command(&input),
        Command::Watch { rounds, root } => watch::watch_command(rounds, root.as_deref()),
        Command::Config { input } => {
            let loaded = load(&input)?;
            match input.output {
                Output::Text => print(&loaded.config()),
                Output::Json => print_json(&json!({ "version": 1, "values": loaded.config_json() })),
            }
        }
        Command::Explain { input } => explain::explain_command(&input),
        Command::Migrate { input } => migrate::migrate_command(&input),
        Command::Schema => print_json(&schema()),
        Command::Gc { input } => gc::gc_command(&input),
        Command::Scrub { input } => scrub::scrub_command(&input),
        Command::Refresh { input } => refresh::refresh_command(&input),
        Command::Tend { rounds, root } => tend::tend_command(rounds, root.as_deref()),
        Command::Get => {
            log::init();
            instance::get()?;
            Ok(code::CONVERGED)
        }
        Command::Unit { step } => {
            log::init();
            match step {
                UnitStep::Prepare { engine, archive } => {
                    let (host, engine) = engine.read()?;
                    let archive = archive.as_deref().map(AbsolutePath::parse).transpose().map_err(refused)?;
                    instance::prepare(&host, engine.as_ref(), archive.as_ref())
                }
                UnitStep::Clear(engine) => match engine.read()? {
                    (host, Some(Engine::Container { runtime, .. })) => instance::clear(&host, runtime),
                    _ => Ok(()),
                },
                UnitStep::Run(engine) => {
                    let (host, engine) = engine.read()?;
                    instance::run::run(&host, engine.as_ref())
                }
                UnitStep::StandIn(engine) => {
                    let (host, engine) = engine.read()?;
                    instance::run::child(&host, engine.as_ref(), instance::run::Role::StandIn)
                }
                UnitStep::Serve(engine) => {
                    let (host, engine) = engine.read()?;
                    instance::run::child(&host, engine.as_ref(), instance::run::Role::Cache)
                }
                UnitStep::Restart { upstream } => {
                    instance::restart(&UpstreamHost::parse(&upstream).map_err(refused)?)
                }
                UnitStep::Drain { upstream } => {
                    instance::drain(&UpstreamHost::parse(&upstream).map_err(refused)?)
                }
                UnitStep::Renew => crate::renew::renew(),
                UnitStep::Ready { upstream } => {
                    instance::ready(&UpstreamHost::parse(&upstream).map_err(refused)?)
                }
                UnitStep::RestoreNetwork => guard::restore(&Root::open(Path::new("/"))?, &Live),
            }?;
            Ok(code::CONVERGED)
        }
    }
}

fn refused(reason: impl std::fmt::Display) -> Refused {
    Refused(vec![reason.to_string()])
}

fn print(text: &str) -> Result<u8> {
    stdout().lock().write_all(text.as_bytes()).context("write to standard output")?;
    Ok(code::CONVERGED)
}

fn print_json(value: &serde_json::Value) -> Result<u8> {
    print(&format!("{value:#}\n"))
}

fn source(input: &Input) -> Source {
    match &input.profile {
        Some(path) if path == Path::new("-") => Source::Stdin,
        Some(path) => Source::File(path.clone()),
        None => Source::Layers { root: input.root.clone().unwrap_or_else(|| PathBuf::from("/")) },
    }
}

/// The profile was refused, and why has been told.
#[derive(Debug)]
struct BadProfile;

impl std::fmt::Display for BadProfile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the profile was refused")
    }
}

impl std::error::Error for BadProfile {}

/// Problems as text go to standard error; as JSON they are the answer.
fn refuse(input: &Input, problems: &Problems) -> BadProfile {
    let _ = match input.output {
        Output::Text => stderr().lock().write_all(problems.render(stderr().is_terminal()).as_bytes()),
        Output::Json => writeln!(stdout().lock(), "{:#}", json!({ "version": 1, "problems": problems })),
    };
    BadProfile
}

fn load(input: &Input) -> Result<Loaded> {
    profile::load(&source(input)).map_err(|problems| refuse(input, &problems).into())
}

/// The profile's part of every command: warnings are told, problems end the run.
fn read_node(input: &Input) -> Result<(Node, Problems)> {
    let (node, warnings) = load(input)?.node().map_err(|problems| refuse(input, &problems))?;
    if !warnings.is_empty() {
        let _ = stderr().lock().write_all(warnings.render(stderr().is_terminal()).as_bytes());
    }
    Ok((node, warnings))
}

fn machine(input: &Input) -> Result<(Root, Box<dyn Host>)> {
    match &input.root {
        Some(dir) => {
            let dir = std::path::absolute(dir).with_context(|| format!("open {}", dir.display()))?;
            Ok((Root::open(&dir)?, Box::new(Image::Tree)))
        }
        None if booted() => {
            // An image has no journal, and the builder's own is not the place for its events.
            log::init();
            Ok((Root::open(Path::new("/"))?, Box::new(Live)))
        }
        None => Err(refused(
            "systemd does not run here: in a chroot or a container, say --root / to write the files only",
        )
        .into()),
    }
}

fn check_command(input: &Input) -> Result<u8> {
    let (node, warnings) = read_node(input)?;
    match input.output {
        Output::Text => print(&format!(
            "the profile is right: {} upstreams{}{}{}\n",
            node.upstreams.len(),
            node.network.as_ref().map_or("", |_| ", a static address"),
            node.cache.as_ref().map_or("", |_| ", a cache"),
            node.containerd.as_ref().map_or("", |_| ", containerd")
        )),
        Output::Json => print_json(&json!({ "version": 1, "problems": warnings })),
    }
}
