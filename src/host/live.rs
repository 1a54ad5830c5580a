//! The running machine: systemd by `systemctl`, never waiting without a bound.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::linux::fs::MetadataExt;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ipnetwork::IpNetwork;
use tracing::{info, warn};

use super::image::sysusers_line;
use super::{
    Aim, Done, Host, LinkState, NetworkWanted, Pulls, Runtime, Session, Wanted, command, container, guard,
    network, ports, state, trial,
};
use crate::containerd::cri::{Code, SOCKET};
use crate::containerd::probe::{self, NoProof};
use crate::facts::{Container, Link, NetworkState};
use crate::node::{ContainerRuntime, Network};
use crate::root::{Root, Space, Staged};
use crate::template::shipped;
use crate::wake::{RUNS, Wakes};

/// For one command that does not wait for anything.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// A unit that is going away: a registry may drain a pull for as long as its TimeoutStopSec= says.
const STOP_LIMIT: Duration = Duration::from_secs(340);
/// Until a queued restart has replaced the old process; one that drains longer goes on by itself.
const RESTART_LIMIT: Duration = Duration::from_secs(10);
/// containerd was back in 0.6 s on every version; a node full of containers takes longer.
const CONTAINERD_LIMIT: Duration = Duration::from_secs(60);
/// One that is coming up when we look.
const STARTING_LIMIT: Duration = Duration::from_secs(10);
/// A pull that goes where it shall takes half a second; one that goes elsewhere may have to wait for DNS.
const PROBE_LIMIT: Duration = Duration::from_secs(30);
/// CRI is served a moment after the socket is; what fails later than this fails for good.
const SETTLING: Duration = Duration::from_secs(3);
/// systemd restarts a containerd that dies every 5 s for ever.
const MOST_RESTARTS: u32 = 3;
/// A link that a boot has brought up; the kernel asks for a second or two whether its IPv6 addresses are free.
const SETTLED: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(50);
const CONTAINERD: &str = "containerd.service";

/// The machine that this process runs on.
pub struct Live;

fn soon() -> Instant {
    Instant::now() + COMMAND_LIMIT
}

/// `systemctl --no-block`: waiting for a job that is itself ordered after cloud-init would never end when
/// cloud-init is what runs us.
fn queue(verb: &str, units: &BTreeSet<String>) -> Result<()> {
    queue_as("replace", verb, units)
}

/// `mode` is a job mode of systemctl(1).
fn queue_as(mode: &str, verb: &str, units: &BTreeSet<String>) -> Result<()> {
    if units.is_empty() {
        return Ok(());
    }
    let mode = format!("--job-mode={mode}");
    let mut args = vec!["--no-block", "--no-ask-password", &mode, verb, "--"];
    args.extend(units.iter().map(String::as_str));
    command::run("systemctl", &args, soon())?;
    info!(units = %units.iter().map(String::as_str).collect::<Vec<_>>().join(" "), "systemctl {verb}");
    Ok(())
}

fn states(units: &BTreeSet<String>) -> Result<Vec<state::UnitState>> {
    let units: Vec<String> = units.iter().cloned().collect();
    state::unit_states(&units, soon())
}

/// Polls until `done` says so or `limit` is over; whether it was done.
fn poll(limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        if done()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        sleep(POLL);
    }
}

impl Host for Live {
    fn space(&self, root: &Root, path: &str) -> Result<Option<Space>> {
        root.space(path.trim_start_matches('/')).map(Some)
    }

    fn network(&self, root: &Root, wanted: &Network, ours: Option<&Link>) -> Result<NetworkState> {
        network::find(root, wanted, ours)
    }

    fn containerd_version(&self, program: &str) -> Option<String> {
        // One that does not say is taken for the oldest.
        command::run(program, &["--version"], soon()).ok().map(|output| output.stdout)
    }

    fn image(&self, runtime: ContainerRuntime, image: &str) -> Option<String> {
        container::inspect(runtime, image)
    }

    fn fetch_image(&self, container: &Container) -> Result<Done> {
        container::fetch(container)?;
        Ok(Done::Now)
    }

    fn make_user(&self, _root: &Root, name: &str) -> Result<Done> {
        let line = sysusers_line(name);
        command::run("systemd-sysusers", &["--inline", &line], soon())
            .with_context(|| format!("make the system user {name}"))?;
        Ok(Done::Now)
    }

    fn remove_user(&self, name: &str) -> Result<bool> {
        if command::find("userdel").is_none() {
            return Ok(false);
        }
        // 6: there is no such user.
        let output = command::Invocation::new("userdel", &["--", name]).output(soon())?;
        ensure!(
            matches!(output.status.code(), Some(0 | 6)),
            "remove the system user {name}: {}",
            output.stderr.trim()
        );
        Ok(true)
    }

    fn try_containerd_config(&self, root: &Root, path: &str) -> Result<()> {
        if command::find("containerd").is_none() {
            return Ok(());
        }
        let context = "try the new containerd configuration";
        // A drop-in is tried as the main file will import it.
        let whole = trial::with_import(root, path)?;
        let path = whole.as_ref().map_or_else(|| path.to_owned(), Staged::trial_path);
        let shown = root.show(&path);
        let dump =
            command::run("containerd", &["--config", &shown, "config", "dump"], soon()).context(context)?;
        let objections = trial::objections(root, &path, &dump.stdout)?;
        ensure!(objections.is_empty(), "{context}: {}", objections.join("; "));
        Ok(())
    }

    fn bad_calendars(&self, expressions: &BTreeSet<String>) -> Result<Vec<String>> {
        bad_calendars(expressions)
    }

    fn port_holders(&self, ports: &BTreeSet<u16>) -> Result<Vec<(u16, String)>> {
        ports::port_holders(ports)
    }

    fn running(&self, units: &BTreeSet<String>) -> Result<BTreeSet<String>> {
        Ok(states(units)?.into_iter().filter(|s| !s.is_at_rest()).map(|s| s.name).collect())
    }

    fn stop(&self, wakes: &Wakes) -> Result<BTreeSet<String>> {
        let running = self.running(&wakes.stop)?;
        queue("stop", &running)?;
        let stopped = poll(STOP_LIMIT, || Ok(states(&running)?.iter().all(state::UnitState::is_at_rest)))?;
        ensure!(stopped, "stop {}: still running", running.into_iter().collect::<Vec<_>>().join(" "));
        Ok(running)
    }

    fn own_units(&self) -> Result<BTreeSet<String>> {
        let args = ["list-units", "--all", "--plain", "--no-legend", "--no-pager", "larder*"];
        let output = command::run("systemctl", &args, soon())?;
        let names = output.stdout.lines().filter_map(|line| line.split_whitespace().next());
        Ok(names.filter(|unit| shipped(unit).is_some()).map(str::to_owned).collect())
    }

    fn forget_units(&self, units: &BTreeSet<String>) -> Result<()> {
        self.stop(&Wakes { stop: units.clone(), ..Wakes::default() })?;
        let failed: BTreeSet<String> =
            states(units)?.into_iter().filter(|unit| unit.active == "failed").map(|unit| unit.name).collect();
        queue("reset-failed", &failed)
    }

    fn is_stale(&self, root: &Root, files: &BTreeSet<&str>, certs_dir: &str) -> Result<bool> {
        // containerd makes its socket anew at each start. Two looks at the disk, nearly always all there is to it.
        let changed =
            |path: &str| fs::metadata(path).ok().map(|meta| (meta.st_ctime(), meta.st_ctime_nsec()));
        let written = files.iter().filter_map(|path| changed(&root.show(path))).max();
        let (Some(started), Some(written)) = (changed(SOCKET), written) else { return Ok(false) };
        if written < started {
            return Ok(false);
        }
        let error = match probe::reads_certs_d(root, certs_dir, Instant::now() + PROBE_LIMIT) {
            Ok(_) => return Ok(false),
            Err(error) => error,
        };
        Ok(match error.downcast_ref::<NoProof>() {
            Some(NoProof::NotRead { .. }) => true,
            // One that does not run reads it when it starts.
            Some(NoProof::Down(error)) => error.code == Code::Unimplemented,
            None => return Err(error),
        })
    }

    fn runtime(&self) -> Result<Option<Runtime>> {
        let mut runtime = None;
        // One that is coming up is given the time to.
        poll(STARTING_LIMIT, || {
            let unit = containerd_unit()?;
            if unit.active == "inactive" {
                return Ok(true);
            }
            let now = state::runtime(soon())?;
            let settled = now.cri == state::CriState::Ok || (unit.active != "activating" && !unit.job);
            runtime = Some(now);
            Ok(settled)
        })?;
        Ok(runtime)
    }

    fn link_states(&self, links: &BTreeSet<Link>) -> Result<BTreeMap<String, LinkState>> {
        network::change::states(links)
    }

    fn holders(
        &self,
        interface: &str,
        addresses: &[IpNetwork],
    ) -> Result<Result<Vec<(IpAddr, String)>, String>> {
        // A packet socket is root's; `larder plan` is anybody's.
        if !nix::unistd::geteuid().is_root() {
            return Ok(Ok(Vec::new()));
        }
        let held = network::change::holders(interface, addresses)?;
        Ok(match held {
            Ok(held) => Ok(held.into_iter().map(|(ip, mac)| (IpAddr::V4(ip), mac.to_string())).collect()),
            Err(mute) => Err(mute.to_string()),
        })
    }

    fn carries(&self, interface: &str, address: IpAddr) -> bool {
        // What cannot be told is no reason for a warning.
        state::addresses()
            .is_ok_and(|all| all.iter().any(|(name, has)| name == interface && has.ip() == address))
    }

    fn session(&self) -> Option<Session> {
        network::session::find()
    }

    fn arm_guard(&self) -> Result<()> {
        guard::arm()
    }

    fn disarm_guard(&self) -> Result<()> {
        guard::disarm()
    }

    fn release_links(&self, links: &BTreeSet<Link>) -> Result<()> {
        network::change::release(links)
    }

    fn wake_links(&self, links: &BTreeSet<Link>, aim: &Aim) -> Result<String> {
        network::change::wake(links, aim)
    }

    fn is_proven(&self, wanted: &NetworkWanted) -> Result<bool> {
        Ok(match network::change::prove(wanted, SETTLED) {
            Ok(()) => true,
            Err(error) => {
                info!("the network is not as it shall be: {error:#}");
                false
            }
        })
    }

    fn wake(&self, root: &Root, wakes: &Wakes, wanted: &Wanted, begun: &mut Wakes) -> Result<Vec<String>> {
        if wakes.reload {
            begun.reload = true;
            command::run("systemctl", &["daemon-reload"], soon())?;
        }
        begun.restart.clone_from(&wakes.restart);
        let before = queue_restart(&wakes.restart)?;
        begun.start.clone_from(&wakes.start);
        queue("start", &startable(&wakes.start)?)?;
        wait_for_restart(&before)?;
        if wakes.containerd {
            begun.containerd = true;
            return restart_containerd(root, wanted);
        }
        Ok(Vec::new())
    }

    fn in_place(&self) {
        if let Err(error) = notify("READY=1") {
            warn!("tell systemd that all is in place: {error}");
        }
    }

    fn start_resting(&self, enabled: &BTreeSet<String>) -> Result<Vec<String>> {
        let resting: BTreeSet<String> = states(enabled)?
            .into_iter()
            .filter(|s| s.is_at_rest() && s.load == "loaded" && !RUNS.contains(&s.name.as_str()))
            .map(|s| s.name)
            .collect();
        // One that listens by itself makes room for its socket.
        let sockets = resting.iter().filter_map(|unit| unit.strip_suffix(".socket"));
        let services: BTreeSet<String> = sockets
            .map(|instance| format!("{instance}.service"))
            .filter(|unit| !resting.contains(unit))
            .collect();
        queue_restart(&services)?;
        queue("start", &resting)?;
        Ok(resting.into_iter().collect())
    }
}

/// A unit of somebody else's that we unmasked starts only where its owner has it enabled.
fn startable(units: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    let (ours, others): (BTreeSet<String>, BTreeSet<String>) =
        units.iter().cloned().partition(|unit| unit.starts_with("larder"));
    let enabled = states(&others)?.into_iter().filter(|s| s.unit_file == "enabled").map(|s| s.name);
    Ok(ours.into_iter().chain(enabled).collect())
}

/// Restarts what runs; how that was before.
fn queue_restart(units: &BTreeSet<String>) -> Result<Vec<state::UnitState>> {
    let mut before = states(units)?;
    before.retain(|state| !state.is_at_rest());
    queue("restart", &before.iter().map(|state| state.name.clone()).collect())?;
    Ok(before)
}

/// Waits a little for the new processes, so that nobody takes the old one's answer for the new one's.
fn wait_for_restart(before: &[state::UnitState]) -> Result<()> {
    let running: BTreeSet<String> = before.iter().map(|state| state.name.clone()).collect();
    poll(RESTART_LIMIT, || {
        let now = states(&running)?;
        Ok(now.iter().all(|now| {
            let old = before.iter().find(|old| old.name == now.name);
            !now.job && old.is_none_or(|old| now.main_pid.is_none() || now.main_pid != old.main_pid)
        }))
    })?;
    Ok(())
}

fn containerd_unit() -> Result<state::UnitState> {
    let unit = BTreeSet::from([CONTAINERD.to_owned()]);
    Ok(states(&unit)?.into_iter().next().unwrap_or_default())
}

/// Restarts containerd and wants it to be as well as it was, and to read what it shall read. Containers run
/// on: its unit kills the main process alone (KillMode=process), and no task is touched. Never SIGHUP: it
/// kills containerd.
fn restart_containerd(root: &Root, wanted: &Wanted) -> Result<Vec<String>> {
    let before = containerd_unit()?;
    // At rest it reads the new file when it starts. At boot it is queued behind us: waiting for it would be a
    // deadlock.
    // One that failed, by our doing perhaps, is brought back.
    if before.active == "inactive" {
        return Ok(Vec::new());
    }
    let unit = BTreeSet::from([CONTAINERD.to_owned()]);
    queue("reset-failed", &unit)?;
    // Started by hand on a machine that runs, larder.service is what containerd is ordered behind: a job that minds
    // this would wait for ourselves.
    let is_starting = std::env::var_os("NOTIFY_SOCKET").is_some();
    queue_as(if is_starting { "ignore-dependencies" } else { "replace" }, "restart", &unit)?;
    let now = settle(&before, wanted.runtime.as_ref())?;
    if now.cri == state::CriState::Ok
        && let Pulls::Read(certs_dir) = &wanted.pulls
    {
        let deadline = Instant::now() + PROBE_LIMIT;
        let proof = probe::reads_certs_d(root, certs_dir, deadline).context("restart containerd")?;
        info!(certs_dir, "{} reads {certs_dir}", proof.user_agent);
        return Ok(Vec::new());
    }
    let was = wanted.runtime.as_ref();
    if wanted.pulls == Pulls::AsBefore
        && let Some(was) = was
    {
        let same = was.config_path.is_none() || now.config_path == was.config_path;
        ensure!(
            same && now.cri.rank() >= was.cri.rank(),
            "restart containerd: it is not as it was: wanted {was}, got {now}"
        );
    }
    let least = match was {
        Some(was) if !wanted.up => was.cri.rank(),
        _ => state::CriState::Ok.rank(),
    };
    ensure!(
        now.cri.rank() >= least,
        "restart containerd: CRI did not come up with the new configuration: {now}"
    );
    Ok(match (&now.cri, was) {
        (state::CriState::Ok, _) | (_, None) => Vec::new(),
        (cri, Some(was)) => vec![format!(
            "containerd's CRI was not up before its configuration changed ({}), and is not up now ({cri}): see \
             `journalctl -u containerd`",
            was.cri
        )],
    })
}

/// Waits for the new process until its CRI is up, or cannot be expected to come up any more.
fn settle(before: &state::UnitState, was: Option<&Runtime>) -> Result<Runtime> {
    let mut last = Runtime { cri: state::CriState::NotRunning("no answer".to_owned()), config_path: None };
    let mut unwell: Option<Instant> = None;
    poll(CONTAINERD_LIMIT, || {
        let unit = containerd_unit()?;
        // The old one's answer is not the new one's.
        if unit.job || (unit.main_pid.is_some() && unit.main_pid == before.main_pid) {
            return Ok(false);
        }
        last = state::runtime(soon())?;
        // A plugin is loaded once, when containerd starts.
        unwell = match last.cri.rank() {
            1 => unwell.or_else(|| Some(Instant::now())),
            _ => None,
        };
        let hopeless = unit.is_at_rest()
            || unit.restarts >= MOST_RESTARTS
            || unwell.is_some_and(|since| since.elapsed() >= SETTLING)
            || (last.cri.rank() == 0 && was.is_some_and(|was| was.cri.rank() == 0) && unit.restarts > 0);
        Ok(last.cri == state::CriState::Ok || hopeless)
    })?;
    Ok(last)
}

/// A message to the service manager, where this is a service that it wants to hear from (sd_notify(3)).
fn notify(message: &str) -> std::io::Result<()> {
    let Ok(socket) = std::env::var("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}

/// One call for all: `systemd-analyze calendar` prints what it cannot read and goes on.
pub(super) fn bad_calendars(expressions: &BTreeSet<String>) -> Result<Vec<String>> {
    let mut bad = Vec::new();
    if expressions.is_empty() || command::find("systemd-analyze").is_none() {
        return Ok(bad);
    }
    for expression in expressions {
        let output =
            command::Invocation::new("systemd-analyze", &["calendar", "--", expression]).output(soon())?;
        if !output.status.success() {
            let said = output.stderr.lines().next().unwrap_or("not a calendar expression");
            bad.push(format!("{expression:?}: {said}"));
        }
    }
    Ok(bad)
}

/// A file of the kernel's or of a manager's, as text.
pub(super) fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// The same, where it need not be text.
pub(super) fn read_bytes(path: &str) -> Option<Vec<u8>> {
    fs::read(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Past the test harness, which shows what a passing test prints to nobody.
    fn not_run(why: std::fmt::Arguments) {
        use std::io::Write;
        std::io::stderr().write_all(format!("NOT RUN: {why}\n").as_bytes()).unwrap();
    }

    #[test]
    fn systemd_names_the_calendars_that_it_cannot_read() {
        if command::find("systemd-analyze").is_none() {
            not_run(format_args!("no systemd-analyze here"));
            return;
        }
        let all = ["weekly", "Sun *-*-* 03:00", "Sun 25:00"].map(str::to_owned).into();
        let bad = bad_calendars(&all).unwrap();
        assert_eq!(bad.len(), 1, "{bad:?}");
        assert!(bad.iter().all(|line| line.starts_with("\"Sun 25:00\": ")), "{bad:?}");
    }
}
