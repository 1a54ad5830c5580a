//! The timer that acts when this process no longer can (systemd-run(1)): a transient unit, so that it is gone with the
//! next boot, when there is nothing left that it could compare with.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{command, state};

const TIMER: &str = "larder-network-guard.timer";
const SERVICE: &str = "larder-network-guard.service";
/// How long a machine whose `larder` died is off the network at most, but for what the manager itself takes. A good
/// run has disarmed it by then, mostly; one that has not keeps the lock, and the service waits for it.
const DELAY: &str = "--on-active=15s";
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

fn soon() -> Instant {
    Instant::now() + COMMAND_LIMIT
}

pub(super) fn arm() -> Result<()> {
    let program = program()?;
    let program = program.to_str().context("find this program's file: its path is not UTF-8")?;
    // Those of a run that died would be in the way of the new ones' names. The service waits for the lock that this
    // process has: it is not at work.
    stop(&[TIMER, SERVICE])?;
    let args = [
        "--quiet",
        "--no-ask-password",
        "--collect",
        "--unit=larder-network-guard",
        "--description=Put the network back that larder left without proof",
        DELAY,
        "--timer-property=AccuracySec=100ms",
        // Should a manager fail at first.
        "--property=Restart=on-failure",
        "--property=RestartSec=15s",
        "--property=StartLimitIntervalSec=30min",
        "--property=StartLimitBurst=5",
        "--",
        program,
        "unit",
        "restore-network",
    ];
    command::run("systemd-run", &args, soon())?;
    Ok(())
}

/// The service stays: this process may be it, and one that waits finds that there is nothing to do.
pub(super) fn disarm() -> Result<()> {
    stop(&[TIMER])
}

fn stop(units: &[&str]) -> Result<()> {
    let units: Vec<String> = units.iter().map(|unit| (*unit).to_owned()).collect();
    let there: Vec<String> = state::unit_states(&units, soon())?
        .into_iter()
        .filter(|unit| unit.load == "loaded")
        .map(|unit| unit.name)
        .collect();
    if there.is_empty() {
        return Ok(());
    }
    let mut args = vec!["--no-ask-password", "stop", "--"];
    args.extend(there.iter().map(String::as_str));
    command::run("systemctl", &args, soon())?;
    Ok(())
}

/// A file with this program that will be there when this process is not: its own, or another `larder` where that was
/// replaced meanwhile.
fn program() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program's file")?;
    let of = |path: &std::path::Path| path.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
    if of(&own).is_some() && of(&own) == of(std::path::Path::new("/proc/self/exe")) {
        return Ok(own);
    }
    command::find("larder")
        .context("find a larder that could bring the network back: this program's file is gone")
}
