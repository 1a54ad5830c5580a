//! The machine that a root directory belongs to: a running one, or an image that will be booted later.
//! Nothing else asks which of the two it is.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use zeroize::Zeroizing;

use crate::facts::NetworkState;
use crate::node::Network;
use crate::root::Root;
use crate::wake::Wakes;

pub mod command;
pub mod image;
pub mod live;
mod network;
pub mod state;
mod trial;
pub use state::Runtime;

/// Whether something was done, or is left to the machine's own first boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    Now,
    Later(String),
}

/// What changes or knows more than files.
pub trait Host {
    /// Who has the interface that `wanted` means. `ours`: our own file has it already.
    ///
    /// # Errors
    /// When the machine cannot be asked.
    fn network(&self, root: &Root, wanted: &Network, ours: bool) -> Result<NetworkState>;

    /// What `containerd --version` prints; `None` where it cannot run.
    fn containerd_version(&self, program: &str) -> Option<String> {
        let _ = program;
        None
    }

    /// Makes a system user (sysusers.d(5)).
    ///
    /// # Errors
    /// When systemd-sysusers fails.
    fn make_user(&self, root: &Root, name: &str) -> Result<Done>;

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

    /// Stops what has to be stopped before its files change, and returns what ran.
    ///
    /// # Errors
    /// When a unit does not stop in time.
    fn stop(&self, wakes: &Wakes) -> Result<BTreeSet<String>>;

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

    /// Everything of `wakes` but the stops, in their order; `begun` gets each before it is tried. Returns what
    /// a person has to be told.
    ///
    /// # Errors
    /// When systemd refuses, the address does not come up, or containerd does not show what is wanted of it.
    fn wake(&self, root: &Root, wakes: &Wakes, wanted: &Wanted, begun: &mut Wakes) -> Result<Vec<String>>;

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
    pub network: Option<NetworkWanted>,
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
    pub addresses: Vec<ipnetwork::IpNetwork>,
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

/// Whether this runs on a machine that systemd has booted (sd_booted(3)).
#[must_use]
pub fn booted() -> bool {
    Path::new("/run/systemd/system").is_dir()
}
