//! The machine that a root directory belongs to: a running one, or an image that will be booted later.
//! Nothing else asks which of the two it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use ipnetwork::IpNetwork;
use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::facts::{Backend, Container, Link, NetworkState};
use crate::node::{ContainerRuntime, Network, Route};
use crate::root::{Root, Space};
use crate::wake::Wakes;

pub mod command;
mod guard;
pub mod container;
pub mod image;
pub mod live;
pub mod names;
mod network;
mod ports;
pub mod signals;
pub mod state;
mod trial;
pub use network::link::{Held, LinkState};
pub use network::session::Session;
pub use state::Runtime;

/// Whether something was done, or is left to the machine's own first boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    Now,
    Later(String),
}

/// What changes or knows more than files.
pub trait Host {
    /// Who has the interface that `wanted` means. `ours` is the link that files of ours are for already.
    ///
    /// # Errors
    /// When the machine cannot be asked.
    fn network(&self, root: &Root, wanted: &Network, ours: Option<&Link>) -> Result<NetworkState>;

    /// How much room there is where the absolute `path` is, or shall be; `None` where only the machine itself can tell.
    ///
    /// # Errors
    /// When the file system does not say.
    fn space(&self, root: &Root, path: &str) -> Result<Option<Space>> {
        let _ = (root, path);
        Ok(None)
    }

    /// What `containerd --version` prints; `None` where it cannot run.
    fn containerd_version(&self, program: &str) -> Option<String> {
        let _ = program;
        None
    }

    /// What `podman image inspect` or `docker image inspect` prints; `None` where it has no such image, or cannot be
    /// asked.
    fn image(&self, runtime: ContainerRuntime, image: &str) -> Option<String> {
        let _ = (runtime, image);
        None
    }

    /// Has the runtime pull an image, or load it from an archive.
    ///
    /// # Errors
    /// What the runtime says against it.
    fn fetch_image(&self, container: &Container) -> Result<Done> {
        let _ = container;
        Ok(Done::Later(format!("{} comes when the machine itself applies", container.image)))
    }

    /// Makes a system user (sysusers.d(5)).
    ///
    /// # Errors
    /// When systemd-sysusers fails.
    fn make_user(&self, root: &Root, name: &str) -> Result<Done>;

    /// Removes a system user that nobody needs any more, as the running machine does that (userdel(8)); `false`: it has
    /// no means to.
    ///
    /// # Errors
    /// When userdel refuses.
    fn remove_user(&self, name: &str) -> Result<bool> {
        let _ = name;
        Ok(false)
    }

    /// Has the machine's own containerd read a configuration that is not in place yet.
    ///
    /// # Errors
    /// What containerd says against it.
    fn try_containerd_config(&self, root: &Root, path: &str) -> Result<()>;

    /// Whether systemd understands these calendar expressions; the ones that it does not, with its words.
    ///
    /// # Errors
    /// When systemd-analyze cannot be run.
    fn bad_calendars(&self, expressions: &BTreeSet<String>) -> Result<Vec<String>>;

    /// Who listens on a port of this machine that is not `larder-registry@`.
    ///
    /// # Errors
    /// When the kernel's tables cannot be read.
    fn port_holders(&self, ports: &BTreeSet<u16>) -> Result<Vec<(u16, String)>>;

    /// Those of these units that run.
    ///
    /// # Errors
    /// When systemd cannot be asked.
    fn running(&self, units: &BTreeSet<String>) -> Result<BTreeSet<String>> {
        Ok(units.clone())
    }

    /// Stops what has to be stopped before its files change, and returns what ran.
    ///
    /// # Errors
    /// When a unit does not stop in time.
    fn stop(&self, wakes: &Wakes) -> Result<BTreeSet<String>>;

    /// Units of ours that systemd knows of, whether they run or not.
    ///
    /// # Errors
    /// When systemd cannot be asked.
    fn own_units(&self) -> Result<BTreeSet<String>> {
        Ok(BTreeSet::new())
    }

    /// Stops units whose files are gone, and has systemd forget what became of them.
    ///
    /// # Errors
    /// When one does not stop in time.
    fn forget_units(&self, units: &BTreeSet<String>) -> Result<()> {
        let _ = units;
        Ok(())
    }

    /// Whether the containerd that runs was started before `files`, its configuration, became what they are, and
    /// does without what `certs_dir` says.
    ///
    /// # Errors
    /// When the machine cannot be asked.
    fn is_stale(&self, root: &Root, files: &BTreeSet<&str>, certs_dir: &str) -> Result<bool>;

    /// How well containerd is before its configuration changes; `None`: it is at rest, and reads the new one
    /// when it starts.
    ///
    /// # Errors
    /// When the machine cannot be asked.
    fn runtime(&self) -> Result<Option<Runtime>>;

    /// What these links carry.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn link_states(&self, links: &BTreeSet<Link>) -> Result<BTreeMap<String, LinkState>> {
        let _ = links;
        Ok(BTreeMap::new())
    }

    /// Who else on the link of `interface` has one of these addresses, as a name for people; `Err` within: that could
    /// not be asked, and why.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn holders(
        &self,
        interface: &str,
        addresses: &[IpNetwork],
    ) -> Result<Result<Vec<(IpAddr, String)>, String>> {
        let _ = (interface, addresses);
        Ok(Ok(Vec::new()))
    }

    /// Whether `interface` has this address now.
    fn carries(&self, interface: &str, address: IpAddr) -> bool {
        let _ = (interface, address);
        false
    }

    /// The ssh session that this run came by.
    fn session(&self) -> Option<Session> {
        None
    }

    /// Sets a timer that puts the network back, should this process end before it is disarmed.
    ///
    /// # Errors
    /// When that is not possible.
    fn arm_guard(&self) -> Result<()> {
        Ok(())
    }

    /// # Errors
    /// When the timer cannot be stopped.
    fn disarm_guard(&self) -> Result<()> {
        Ok(())
    }

    /// Before their files change: takes down those links whose manager could not do so afterwards.
    ///
    /// # Errors
    /// When a manager refuses.
    fn release_links(&self, links: &BTreeSet<Link>) -> Result<()> {
        let _ = links;
        Ok(())
    }

    /// Has the managers of these links read their files, and waits until `aim` is seen to be reached. Returns what
    /// the links carry then, for people.
    ///
    /// # Errors
    /// With what was tried, and what is not as it shall be.
    fn wake_links(&self, links: &BTreeSet<Link>, aim: &Aim) -> Result<String> {
        let _ = (links, aim);
        Ok(String::new())
    }

    /// Whether all of `wanted` is there and works already.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn is_proven(&self, wanted: &NetworkWanted) -> Result<bool> {
        let _ = wanted;
        Ok(false)
    }

    /// Everything of `wakes` but the stops and the links, in their order; `begun` gets each before it is tried. Returns what
    /// a person has to be told.
    ///
    /// # Errors
    /// When systemd refuses, or containerd does not show what is wanted of it.
    fn wake(&self, root: &Root, wakes: &Wakes, wanted: &Wanted, begun: &mut Wakes) -> Result<Vec<String>>;

    /// What this run was told to end by.
    fn interrupted(&self) -> Option<String> {
        signals::arrived()
    }

    /// Tells who waits for it that everything is in place; the proof may still take its time.
    fn in_place(&self);

    /// Starts those of the enabled units that are at rest, and names them.
    ///
    /// # Errors
    /// When systemd cannot be asked.
    fn start_resting(&self, enabled: &BTreeSet<String>) -> Result<Vec<String>>;
}

/// What has to hold once all is woken.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub pulls: Pulls,
    /// CRI has to be up in the end, however it was before.
    pub up: bool,
    /// How well containerd was before anything changed: it is at least as well again.
    pub runtime: Option<Runtime>,
}

/// What containerd's pulls look at once it was restarted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Pulls {
    /// Not ours to say.
    #[default]
    Anything,
    /// What is in this folder.
    Read(String),
    /// What they looked at before.
    AsBefore,
}

/// What has to be on the link after the network files changed.
#[derive(Debug, Clone)]
pub struct NetworkWanted {
    pub interface: String,
    /// Who configures it; `None` where that is not known, and nothing is written for it.
    pub backend: Option<Backend>,
    pub addresses: Vec<IpNetwork>,
    pub routes: Vec<Route>,
}

/// What a change of the network comes to.
#[derive(Debug, Clone)]
pub enum Aim {
    /// What the profile says.
    Wanted(NetworkWanted),
    /// Whatever others' files say, as long as it gets the machine onto the network where it was there before.
    Others(BTreeMap<String, LinkState>),
    /// At least what was there, by interface.
    Before(BTreeMap<String, LinkState>),
}

/// A process that is not mistaken for another with its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    pub pid: u32,
    /// In the kernel's ticks since boot (proc_pid_stat(5)).
    started: Option<u64>,
}

impl Process {
    #[must_use]
    pub fn this() -> Self {
        let pid = std::process::id();
        Self { pid, started: started(pid) }
    }

    /// Ends it, if it is there still.
    pub fn kill(&self) {
        if let Ok(pid) = i32::try_from(self.pid)
            && self.started.is_some()
            && started(self.pid) == self.started
        {
            // ESRCH: gone meanwhile, which is what is wanted.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
    }
}

fn started(pid: u32) -> Option<u64> {
    let stat = live::read(&format!("/proc/{pid}/stat"))?;
    // Behind a name that may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// What this process is from its first instruction on, whoever started it.
pub fn guard_process() {
    // It holds passwords: no core is written, nor may another process of its user look into it. What it starts
    // decides for itself about the latter (execve(2)). Where the kernel refuses, all else is as good as before.
    let _ = set_dumpable(false);
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    // A file that would be too large for a limit is an error that can be told, and no death.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    let _ = signals.thread_block();
}

/// An environment variable of this process.
#[must_use]
pub fn environment(name: &str) -> Option<Zeroizing<String>> {
    std::env::var(name).ok().map(Zeroizing::new)
}

/// A systemd credential in clear: passed to this service, or in a credential store (systemd.exec(5),
/// "LoadCredential="). `name` is a file name by the profile's rules.
///
/// # Errors
/// When a store cannot be read.
pub fn credential(root: &Root, name: &str) -> Result<Option<Zeroizing<String>>> {
    if let Ok(folder) = std::env::var("CREDENTIALS_DIRECTORY")
        && let Ok(text) = std::fs::read_to_string(Path::new(&folder).join(name))
    {
        return Ok(Some(Zeroizing::new(text.trim_end_matches('\n').to_owned())));
    }
    for store in ["etc/credstore", "run/credstore", "usr/lib/credstore"] {
        if let Some(bytes) = root.read(&format!("{store}/{name}"))? {
            let text = Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
            return Ok(Some(Zeroizing::new(text.trim_end_matches('\n').to_owned())));
        }
    }
    Ok(None)
}

/// The program that holds the lock of the folder with this number, and its process, as far as the kernel tells
/// (proc_locks(5)).
#[must_use]
pub fn lock_holder(inode: u64) -> Option<String> {
    // `1: FLOCK  ADVISORY  WRITE 123 08:01:4711 0 EOF`; some file systems have another device there.
    let locks = live::read("/proc/locks")?;
    let pid = locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let locked: u64 = fields.get(5)?.rsplit(':').next()?.parse().ok()?;
        if fields.get(1) == Some(&"FLOCK") && locked == inode { fields.get(4).copied() } else { None }
    })?;
    let command = live::read(&format!("/proc/{pid}/cmdline"))?;
    let mut words = command.split('\0');
    let program = words.next()?.rsplit('/').next()?;
    Some(crate::diff::plain(&format!("{program} {} (pid {pid})", words.next().unwrap_or_default())))
}

/// Whether this runs on a machine that systemd has booted (sd_booted(3)).
#[must_use]
pub fn booted() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// What is made of what programs print and the kernel tells, for `crate::fuzz`.
pub(crate) fn read_any(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    names::read_any(&text);
    network::link::read_any(&text);
    network::session::read_any(bytes);
    state::read_any(&text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_not_mistaken_for_another_with_its_number() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        let ours = Process { pid, started: started(pid) };
        let other = Process { pid, started: ours.started.map(|at| at + 1) };
        other.kill();
        Process { pid, started: None }.kill();
        assert!(child.try_wait().unwrap().is_none(), "wanted it to run still");
        ours.kill();
        assert!(!child.wait().unwrap().success());
    }
}
