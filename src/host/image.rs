//! An image: files are written, nothing runs, and what is left is named.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Done, Host, Runtime, Wanted, command};
use crate::facts::{Manager, NetworkState, find_program};
use crate::node::{InterfaceMatch, Network};
use crate::root::{Entry, Root};
use crate::wake::Wakes;

/// Editing a few account files takes milliseconds.
const SYSUSERS_LIMIT: Duration = Duration::from_secs(20);
const NETWORKD_ENABLED: &str = "etc/systemd/system/multi-user.target.wants/systemd-networkd.service";
const NETWORKMANAGER_ENABLED: &str = "etc/systemd/system/multi-user.target.wants/NetworkManager.service";

/// A tree that is not running.
pub struct Image;

/// The line of sysusers.d(5) for a user that owns nothing but its home.
pub(super) fn sysusers_line(name: &str) -> String {
    format!("u {name} - \"Larder's registries\" /var/lib/larder")
}

impl Host for Image {
    /// In the order in which cloud-init itself looks for who will configure the network.
    fn network(&self, root: &Root, wanted: &Network, _ours: bool) -> Result<NetworkState> {
        let mut state = NetworkState::default();
        match &wanted.interface {
            InterfaceMatch::Name(name) => state.interface = Some(name.as_str().to_owned()),
            InterfaceMatch::Auto | InterfaceMatch::Mac(_) => {
                state.manager = Manager::LaterAtBoot {
                    reason: "which interface is meant can only be told on the machine itself".to_owned(),
                };
                return Ok(state);
            }
        }
        // Such a link points to a unit of the image; its target need not be followed.
        let enabled = |link: &str| root.entry(link).map(|entry| entry != Entry::Absent);
        let netplan = !root.list("etc/netplan")?.is_empty() || find_program(root, "netplan").is_some();
        let ifupdown = find_program(root, "ifup").is_some() && root.exists("etc/network/interfaces");
        let other = if ifupdown {
            Some(("ifupdown", "/etc/network/interfaces and ifup are there"))
        } else if netplan {
            Some(("netplan", "netplan is installed"))
        } else if enabled(NETWORKMANAGER_ENABLED)? {
            Some(("NetworkManager", "NetworkManager.service is enabled"))
        } else {
            None
        };
        if let Some((name, evidence)) = other {
            state.manager = Manager::Other { name, evidence: evidence.to_owned() };
        } else if !enabled(NETWORKD_ENABLED)? {
            state.manager =
                Manager::Nobody { evidence: "systemd-networkd.service is not enabled".to_owned() };
        }
        Ok(state)
    }

    fn make_user(&self, root: &Root, name: &str) -> Result<Done> {
        if command::find("systemd-sysusers").is_none() {
            return Ok(Done::Later(format!(
                "user {name}: there is no systemd-sysusers here; larder.service makes it at the first boot"
            )));
        }
        let tree = format!("--root={}", root.directory().display());
        let line = sysusers_line(name);
        command::run("systemd-sysusers", &[&tree, "--inline", &line], Instant::now() + SYSUSERS_LIMIT)
            .with_context(|| format!("make the system user {name}"))?;
        Ok(Done::Now)
    }

    fn try_containerd_config(&self, _root: &Root, _path: &str) -> Result<()> {
        Ok(())
    }

    fn bad_calendars(&self, expressions: &BTreeSet<String>) -> Result<Vec<String>> {
        super::live::bad_calendars(expressions)
    }

    fn port_holders(&self, _ports: &BTreeSet<u16>) -> Result<Vec<(u16, String)>> {
        Ok(Vec::new())
    }

    fn stop(&self, _wakes: &Wakes) -> Result<BTreeSet<String>> {
        Ok(BTreeSet::new())
    }

    fn is_stale(&self, _: &Root, _: &BTreeSet<&str>, _: &str) -> Result<bool> {
        Ok(false)
    }

    fn runtime(&self) -> Result<Option<Runtime>> {
        Ok(None)
    }

    fn wake(&self, _: &Root, _: &Wakes, _: &Wanted, _: &mut Wakes) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn in_place(&self) {}

    fn start_resting(&self, _enabled: &BTreeSet<String>) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}
