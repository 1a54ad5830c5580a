//! What the running machine is doing, read only: units, containerd's CRI plugin, addresses.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::{Deserialize, Serialize};

use super::command;
use crate::containerd::cri::{Client, Code, SOCKET};

const PROPERTIES: &str = "--property=Id,LoadState,ActiveState,SubState,Result,NRestarts,MainPID,Job,\
    ActiveEnterTimestampMonotonic,NextElapseUSecRealtime,NextElapseUSecMonotonic,UnitFileState";

/// One unit as the service manager sees it. The words are systemd's own (`systemctl show`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitState {
    /// As it was asked for.
    pub name: String,
    /// As systemd calls it: differs from `name` for an alias.
    pub id: String,
    /// `loaded`, `not-found`, `masked`, `bad-setting`, `error`; empty: systemd did not say.
    pub load: String,
    /// `active`, `activating`, `deactivating`, `inactive`, `failed`, `reloading`.
    pub active: String,
    /// `running`, `auto-restart`, `waiting`, `dead`…
    pub sub: String,
    /// `success`, `exit-code`, `timeout`…
    pub result: String,
    /// Automatic restarts since somebody last started it.
    pub restarts: u32,
    /// Of a service that runs.
    pub main_pid: Option<u32>,
    /// A start, stop or restart that systemd has still to do.
    pub job: bool,
    /// Since boot; absent while it was never active.
    pub active_since: Option<Duration>,
    /// Of a timer: when it elapses next, in systemd's own words.
    pub next_elapse: Option<String>,
    /// `enabled`, `static`, `masked`, `disabled`…
    pub unit_file: String,
}

impl UnitState {
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.active == "active"
    }

    /// An active timer that will elapse again, or whose unit runs right now.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.is_active() && (self.next_elapse.is_some() || self.sub == "running")
    }

    /// No start will come of itself: neither the unit's own restart nor a queued job.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        !self.job && matches!(self.active.as_str(), "inactive" | "failed")
    }
}

/// `activating (auto-restart), 3 restarts, last result exit-code`.
impl fmt::Display for UnitState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.load.as_str() {
            "loaded" => write!(f, "{} ({})", self.active, self.sub)?,
            "" => f.write_str("no word of it from systemctl")?,
            other => f.write_str(other)?,
        }
        match self.restarts {
            0 => {}
            1 => f.write_str(", 1 restart")?,
            many => write!(f, ", {many} restarts")?,
        }
        if !matches!(self.result.as_str(), "" | "success") {
            write!(f, ", last result {}", self.result)?;
        }
        Ok(())
    }
}

/// The state of each of `units`, in their order, from one call of `systemctl`.
pub fn unit_states(units: &[String], deadline: Instant) -> Result<Vec<UnitState>> {
    // Without names `systemctl show` shows the manager itself.
    if units.is_empty() {
        return Ok(Vec::new());
    }
    let mut args = vec!["show", "--no-pager", PROPERTIES, "--"];
    args.extend(units.iter().map(String::as_str));
    let output = command::run("systemctl", &args, deadline)?;
    Ok(parse_units(units, &output.stdout))
}

/// Blocks are separated by blank lines and come in the order of the arguments; the order of the properties
/// is systemd's own.
fn parse_units(units: &[String], text: &str) -> Vec<UnitState> {
    let blocks: Vec<UnitState> = text.split("\n\n").filter_map(parse_block).collect();
    if blocks.len() == units.len() {
        return units
            .iter()
            .zip(blocks)
            .map(|(name, block)| UnitState { name: name.clone(), ..block })
            .collect();
    }
    let mut by_id: BTreeMap<String, UnitState> =
        blocks.into_iter().map(|block| (block.id.clone(), block)).collect();
    units
        .iter()
        .map(|name| UnitState { name: name.clone(), ..by_id.remove(name).unwrap_or_default() })
        .collect()
}

fn parse_block(block: &str) -> Option<UnitState> {
    let mut state = UnitState::default();
    for (property, value) in block.lines().filter_map(|line| line.split_once('=')) {
        match property {
            "Id" => state.id = value.to_owned(),
            "LoadState" => state.load = value.to_owned(),
            "ActiveState" => state.active = value.to_owned(),
            "SubState" => state.sub = value.to_owned(),
            "Result" => state.result = value.to_owned(),
            "NRestarts" => state.restarts = value.parse().unwrap_or(0),
            "MainPID" => state.main_pid = value.parse().ok().filter(|pid| *pid != 0),
            // The job's number; old versions add its type.
            "Job" => state.job = !matches!(value, "" | "0"),
            "ActiveEnterTimestampMonotonic" => {
                state.active_since = value.parse().ok().filter(|at| *at != 0).map(Duration::from_micros);
            }
            // A timer has a calendar, or a time since some event, or both: the calendar is the one to show.
            "NextElapseUSecRealtime" => state.next_elapse = elapse(value).or(state.next_elapse),
            "NextElapseUSecMonotonic" => {
                state.next_elapse =
                    state.next_elapse.or_else(|| elapse(value).map(|span| format!("{span} after boot")));
            }
            "UnitFileState" => state.unit_file = value.to_owned(),
            _ => {}
        }
    }
    (!state.id.is_empty()).then_some(state)
}

fn elapse(value: &str) -> Option<String> {
    (!matches!(value, "" | "0" | "n/a" | "infinity")).then(|| value.to_owned())
}

/// Bytes of memory that a process has in use (proc_pid_status(5), `VmRSS`); `None`: there is no such process.
#[must_use]
pub fn resident(pid: u32) -> Option<u64> {
    let status = super::live::read(&format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What `systemctl show` says of one unit, with instants in UTC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, String>);

impl Properties {
    /// Empty where systemd does not say.
    #[must_use]
    pub fn get(&self, property: &str) -> &str {
        self.0.get(property).map_or("", String::as_str)
    }

    #[must_use]
    pub fn number(&self, property: &str) -> Option<u64> {
        self.get(property).parse().ok()
    }

    /// `None`: never.
    #[must_use]
    pub fn time(&self, property: &str) -> Option<crate::status::Time> {
        parse_time(self.get(property))
    }

    /// As [`UnitState`] shows it.
    #[must_use]
    pub fn state(&self) -> String {
        let own = |property: &str| self.get(property).to_owned();
        UnitState {
            load: own("LoadState"),
            active: own("ActiveState"),
            sub: own("SubState"),
            result: own("Result"),
            restarts: self.get("NRestarts").parse().unwrap_or(0),
            ..UnitState::default()
        }
        .to_string()
    }
}

/// More of each of `units` than [`unit_states`], in their order, from one call of `systemctl`.
///
/// # Errors
/// When it fails.
pub fn properties(units: &[String], deadline: Instant) -> Result<Vec<Properties>> {
    const WANTED: &str = "--property=Id,LoadState,ActiveState,SubState,Result,NRestarts,MainPID,MemoryCurrent,\
        ActiveEnterTimestamp,LastTriggerUSec,NextElapseUSecRealtime,NextElapseUSecMonotonic";
    if units.is_empty() {
        return Ok(Vec::new());
    }
    let mut args = vec!["show", "--no-pager", WANTED, "--"];
    args.extend(units.iter().map(String::as_str));
    // Timers' instants are words whatever --timestamp= says, at least until systemd 252.
    let output = command::Invocation::new("systemctl", &args).env("TZ", "UTC").run(deadline)?;
    Ok(parse_properties(units, &output.stdout))
}

/// `Sun 2026-11-22 03:07:00 UTC`; some versions add microseconds.
fn parse_time(text: &str) -> Option<crate::status::Time> {
    let mut words = text.split(' ').skip(1);
    let (date, time) = (words.next()?, words.next()?);
    let at = humantime::parse_rfc3339(&format!("{date}T{time}Z")).ok()?;
    (words.next() == Some("UTC")).then(|| crate::status::Time::of(at))
}

fn parse_properties(units: &[String], text: &str) -> Vec<Properties> {
    let pairs = |block: &str| {
        let lines = block.lines().filter_map(|line| line.split_once('='));
        Properties(lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    };
    let blocks: Vec<Properties> = text.split("\n\n").map(pairs).filter(|block| !block.0.is_empty()).collect();
    if blocks.len() == units.len() {
        return blocks;
    }
    let of = |name: &String| blocks.iter().find(|block| block.get("Id") == name).cloned();
    units.iter().map(|name| of(name).unwrap_or_default()).collect()
}

/// The name of the program that a process runs (proc(5), `comm`); `None`: it is gone.
#[must_use]
pub fn program_of(pid: u64) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).ok().map(|comm| comm.trim_end().to_owned())
}

/// Whether pods could pull through this machine's containerd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CriState {
    /// The plugin is up.
    Ok,
    /// There is no containerd on this machine.
    NotInstalled,
    /// Nothing listens on containerd's socket; the reason.
    NotRunning(String),
    /// containerd runs without the plugin: `disabled_plugins`, or a build without it.
    Absent,
    /// The plugin is there but not up: its status (`error`, `skip`) and why, as containerd says it.
    Unwell { status: String, error: String },
}

impl fmt::Display for CriState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::NotInstalled => f.write_str("no containerd on this machine"),
            Self::NotRunning(why) => write!(f, "containerd not running ({SOCKET}: {why})"),
            Self::Absent => {
                f.write_str("containerd without its CRI plugin (see disabled_plugins in its config)")
            }
            Self::Unwell { status, error } if error.is_empty() => f.write_str(status),
            Self::Unwell { status, error } => write!(f, "{status}: {error}"),
        }
    }
}

impl CriState {
    /// 2: pods can be started, 1: containerd runs all the same, 0: nothing does.
    #[must_use]
    pub fn rank(&self) -> u8 {
        match self {
            Self::Ok => 2,
            Self::Absent | Self::Unwell { .. } => 1,
            Self::NotInstalled | Self::NotRunning(_) => 0,
        }
    }
}

/// How well containerd is, and what it reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    pub cri: CriState,
    /// The `config_path` that it runs with; containerd 2 does not say.
    pub config_path: Option<String>,
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cri.fmt(f)?;
        match &self.config_path {
            Some(path) => write!(f, ", config_path {path:?}"),
            None => Ok(()),
        }
    }
}

/// The state of containerd's CRI plugin.
pub fn cri(deadline: Instant) -> Result<CriState> {
    runtime(deadline).map(|runtime| runtime.cri)
}

/// Asks containerd itself, by CRI.
pub fn runtime(deadline: Instant) -> Result<Runtime> {
    let without = |cri| Ok(Runtime { cri, config_path: None });
    if let Err(error) = dial(SOCKET) {
        return without(match command::find("containerd") {
            Some(_) => CriState::NotRunning(error.desc().to_lowercase()),
            None => CriState::NotInstalled,
        });
    }
    let answer = Client::connect(SOCKET, deadline).and_then(|client| client.status());
    match answer {
        Ok(status) if status.runtime_ready => {
            Ok(Runtime { cri: CriState::Ok, config_path: status.config_path })
        }
        Ok(status) => without(CriState::Unwell { status: "not ready".to_owned(), error: status.reason }),
        Err(error) if error.code == Code::Unimplemented => without(unwell_plugin(deadline)?),
        Err(error) => without(CriState::Unwell { status: "no answer".to_owned(), error: error.message }),
    }
}

/// Why containerd has no CRI to speak. CRI cannot say that, `ctr` can.
fn unwell_plugin(deadline: Instant) -> Result<CriState> {
    let unknown = || CriState::Unwell {
        status: "not served".to_owned(),
        error: "the plugin failed, or is off: see containerd's log".to_owned(),
    };
    let listed = match command::run("ctr", &["plugins", "ls", "id==cri"], deadline) {
        Err(command::Error::NotFound { .. }) => return Ok(unknown()),
        listed => listed?,
    };
    Ok(match parse_plugin_status(&listed.stdout) {
        None => CriState::Absent,
        // Loaded, and not served yet.
        Some("ok") => unknown(),
        Some(status) => {
            let detailed = command::run("ctr", &["plugins", "ls", "--detailed", "id==cri"], deadline)?;
            CriState::Unwell { status: status.to_owned(), error: parse_plugin_error(&detailed.stdout) }
        }
    })
}

fn dial(path: &str) -> Result<(), Errno> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    match connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &UnixAddr::new(path)?) {
        // EAGAIN: somebody listens but is slow to accept.
        Ok(()) | Err(Errno::EAGAIN) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Columns: TYPE, ID, PLATFORMS, STATUS. The type is the same from 1.6 to 2.x.
fn parse_plugin_status(table: &str) -> Option<&str> {
    table.lines().find_map(|line| {
        let mut columns = line.split_whitespace();
        (columns.next() == Some("io.containerd.grpc.v1") && columns.next() == Some("cri"))
            .then(|| columns.next_back())
            .flatten()
    })
}

fn parse_plugin_error(details: &str) -> String {
    details
        .lines()
        .skip_while(|line| !line.starts_with("Error:"))
        .find_map(|line| line.trim().strip_prefix("Message:"))
        .map_or_else(String::new, |message| message.trim().to_owned())
}

/// Every IPv4 and IPv6 address of the machine with the name of its interface, in the kernel's order.
pub fn addresses() -> Result<Vec<(String, IpNetwork)>> {
    let interfaces = nix::ifaddrs::getifaddrs().context("read the machine's addresses")?;
    Ok(interfaces
        .filter_map(|interface| {
            let (address, mask) = (interface.address?, interface.netmask?);
            let network = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => IpNetwork::with_netmask(v4.ip().into(), mask.as_sockaddr_in()?.ip().into()),
                (_, Some(v6)) => IpNetwork::with_netmask(v6.ip().into(), mask.as_sockaddr_in6()?.ip().into()),
                _ => return None,
            };
            Some((interface.interface_name, network.ok()?))
        })
        .collect())
}

/// For `crate::fuzz`.
pub(super) fn read_any(text: &str) {
    let units = ["a.service".to_owned(), "b.timer".to_owned()];
    let _ = parse_units(&units, text);
    let _ = parse_properties(&units, text);
    let _ = text.lines().filter_map(parse_time).count();
    let _ = parse_plugin_status(text);
    let _ = parse_plugin_error(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    const SERVICE: &str = "Result=exit-code\nNRestarts=3\nMainPID=0\nId=larder-registry@ghcr.io.service\n\
        LoadState=loaded\nActiveState=activating\nSubState=auto-restart\nUnitFileState=enabled\n\
        ActiveEnterTimestampMonotonic=0\n";
    const TIMER: &str = "Result=success\nNextElapseUSecRealtime=Sun 2026-11-22 03:07:00 UTC\n\
        NextElapseUSecMonotonic=0\nId=larder-gc@ghcr.io.timer\nLoadState=loaded\nActiveState=active\n\
        SubState=waiting\nUnitFileState=enabled\nActiveEnterTimestampMonotonic=12345678\n";
    const MISSING: &str = "Id=nothing.service\nLoadState=not-found\nActiveState=inactive\nSubState=dead\n";

    #[test]
    fn parses_blocks_in_the_order_of_the_units() {
        let units = names(&["larder-registry@ghcr.io.service", "larder-gc@ghcr.io.timer", "alias.service"]);
        let states = parse_units(&units, &[SERVICE, TIMER, MISSING].join("\n"));
        let said: Vec<String> = states.iter().map(|state| format!("{}: {state}", state.name)).collect();
        assert_eq!(
            said,
            [
                "larder-registry@ghcr.io.service: activating (auto-restart), 3 restarts, last result exit-code",
                "larder-gc@ghcr.io.timer: active (waiting)",
                "alias.service: not-found",
            ]
        );
        let armed: Vec<bool> = states.iter().map(UnitState::is_armed).collect();
        assert_eq!(armed, [false, true, false]);
    }

    #[test]
    fn finds_blocks_by_id_when_some_are_missing() {
        let units = names(&["other.service", "larder-gc@ghcr.io.timer"]);
        let states = parse_units(&units, TIMER);
        let said: Vec<String> = states.iter().map(ToString::to_string).collect();
        assert_eq!(said, ["no word of it from systemctl", "active (waiting)"]);
    }

    #[test]
    fn timer_on_an_interval_is_armed() {
        let text = "Id=a.timer\nLoadState=loaded\nActiveState=active\nSubState=waiting\n\
            NextElapseUSecRealtime=\nNextElapseUSecMonotonic=2h 3min\n";
        let states = parse_units(&names(&["a.timer"]), text);
        assert_eq!(states.first().and_then(|state| state.next_elapse.as_deref()), Some("2h 3min after boot"));
    }

    #[test]
    fn timer_that_never_elapses_again_is_not_armed() {
        let text = "Id=a.timer\nLoadState=loaded\nActiveState=active\nSubState=elapsed\n\
            NextElapseUSecRealtime=\nNextElapseUSecMonotonic=infinity\n";
        let states = parse_units(&names(&["a.timer"]), text);
        assert_eq!(states.first().map(UnitState::is_armed), Some(false));
    }

    #[test]
    fn instants_are_seconds() {
        let times = ["Sun 2026-11-22 03:07:00 UTC", "Sun 2026-11-22 03:07:00.123456 UTC", "n/a", "", "Sun"];
        let wanted = Some(crate::status::Time(1_795_316_820));
        assert_eq!(times.map(parse_time), [wanted, wanted, None, None, None]);
        assert_eq!(parse_time("Sun 2026-11-22 03:07:00 CET"), None, "another zone");
    }

    #[test]
    fn no_units_need_no_systemctl() {
        assert!(unit_states(&[], Instant::now()).is_ok_and(|states| states.is_empty()));
    }

    #[test]
    fn reads_plugin_tables_of_every_containerd() {
        let v1 = "TYPE                     ID     PLATFORMS      STATUS    \n\
                  io.containerd.grpc.v1    cri    linux/amd64    error     \n";
        let v2 =
            "TYPE ID PLATFORMS STATUS\nio.containerd.cri.v1 images - ok\nio.containerd.grpc.v1 cri - ok\n";
        let disabled = "TYPE    ID    PLATFORMS    STATUS    \n";
        let found = [v1, v2, disabled].map(parse_plugin_status);
        assert_eq!(found, [Some("error"), Some("ok"), None]);
    }

    #[test]
    fn reads_why_a_plugin_failed() {
        let details = "Type:          io.containerd.grpc.v1\nID:            cri\nExports:      \n\
            \x20              CRIVersion           v1\nError:        \n               Code:        Unknown\n\
            \x20              Message:     invalid plugin config: `mirrors` cannot be set\n";
        assert_eq!(parse_plugin_error(details), "invalid plugin config: `mirrors` cannot be set");
        assert_eq!(parse_plugin_error("Type: x\n"), "");
    }

    #[test]
    fn socket_without_a_listener() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("sock");
        let path = path.to_str().expect("utf-8 path");
        assert_eq!(dial(path), Err(Errno::ENOENT));
        let listener = std::os::unix::net::UnixListener::bind(path).expect("bind");
        assert_eq!(dial(path), Ok(()));
        drop(listener);
        assert_eq!(dial(path), Err(Errno::ECONNREFUSED));
    }

    #[test]
    fn loopback_has_its_address() {
        let addresses = addresses().expect("addresses");
        let loopback: IpNetwork = "127.0.0.1/8".parse().expect("network");
        let found = addresses.iter().any(|(name, network)| name == "lo" && *network == loopback);
        assert!(found, "wanted 127.0.0.1/8 on lo, got {addresses:?}");
    }
}
