//! An image: files are written, nothing runs, and what is left is named.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::network::offline::{self, Devices};
use super::{Aim, Done, Host, Runtime, Wanted, command};
use crate::facts::{Backend, Link, NetworkState};
use crate::node::Network;
use crate::root::Root;
use crate::wake::Wakes;

/// Editing a few account files takes milliseconds.
const SYSUSERS_LIMIT: Duration = Duration::from_secs(20);
/// Half a second, on an idle machine; one that boots is not.
const GENERATE_LIMIT: Duration = Duration::from_secs(60);

/// A tree on which nothing of ours runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// Somewhere on another machine.
    Tree,
    /// This machine, before its network is up: no manager of it may be woken, or the boot hangs.
    BeforeNetwork,
}

impl Image {
    fn devices(self) -> Devices {
        match self {
            Self::Tree => Devices::Elsewhere,
            Self::BeforeNetwork => Devices::Here,
        }
    }
}

/// The line of sysusers.d(5) for a user that owns nothing but its home.
pub(super) fn sysusers_line(name: &str) -> String {
    format!("u {name} - \"Larder's registries\" /var/lib/larder")
}

impl Host for Image {
    fn network(&self, root: &Root, wanted: &Network, _ours: Option<&Link>) -> Result<NetworkState> {
        offline::find(root, wanted, self.devices())
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

    fn running(&self, _units: &BTreeSet<String>) -> Result<BTreeSet<String>> {
        Ok(BTreeSet::new())
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

    fn wake_links(&self, links: &BTreeSet<Link>, _: &Aim) -> Result<String> {
        // What netplan has made of the old files at this boot is in /run already.
        if *self == Self::BeforeNetwork && links.iter().any(|link| link.backend == Backend::Netplan) {
            command::run("netplan", &["generate"], Instant::now() + GENERATE_LIMIT)?;
        }
        Ok(String::new())
    }

    fn wake(&self, _: &Root, _: &Wakes, _: &Wanted, _: &mut Wakes) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn in_place(&self) {}

    fn start_resting(&self, _enabled: &BTreeSet<String>) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_makes_the_same_user() {
        let shipped = include_str!("../../packaging/larder.sysusers");
        assert_eq!(shipped.trim_end(), sysusers_line(crate::facts::USER));
    }
}
