//! What a change on disk means for the running machine. One table for creation, change and removal alike, so
//! that an upstream that leaves the profile is stopped by the same rules that started it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::facts::{Link, is_containerd_config};
use crate::plan::face::ACCESS;
use crate::plan::network::link_of;
use crate::plan::{REGISTRY_FOLDER, UNIT_FOLDER};

/// Units that run `larder apply` itself: it starts none of them.
pub const RUNS: [&str; 2] = ["larder.service", NETWORK_UNIT];
/// Writes the files of the network before it is up.
pub const NETWORK_UNIT: &str = "larder-network.service";

/// Units to touch, in this order: stop, reload, links, start, restart, containerd.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wakes {
    pub stop: BTreeSet<String>,
    /// systemd reads its unit files again.
    pub reload: bool,
    /// Managers of the network read their files again, for these links.
    pub links: BTreeSet<Link>,
    pub start: BTreeSet<String>,
    /// Those that run.
    pub restart: BTreeSet<String>,
    pub containerd: bool,
}

/// How a path changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// Contents or mode of a file, or a new one.
    File,
    /// A link is there now.
    Linked {
        target: &'a str,
    },
    Removed,
}

impl Wakes {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds all of another's.
    pub fn add_all(&mut self, other: &Self) {
        self.stop.extend(other.stop.iter().cloned());
        self.reload |= other.reload;
        self.links.extend(other.links.iter().cloned());
        self.start.extend(other.start.iter().cloned());
        self.restart.extend(other.restart.iter().cloned());
        self.containerd |= other.containerd;
    }

    /// Adds what one changed path asks for.
    pub fn add(&mut self, path: &str, change: Change) {
        if let Some(rest) = path.strip_prefix(UNIT_FOLDER).and_then(|rest| rest.strip_prefix('/')) {
            self.reload = true;
            self.add_unit(rest, change);
        } else if let Some(file) = path.strip_prefix(REGISTRY_FOLDER).and_then(|rest| rest.strip_prefix('/'))
        {
            let instance = [".yml", ".env", ".ca.pem"].iter().find_map(|end| file.strip_suffix(end));
            if let Some(instance) = instance {
                self.restart.insert(format!("larder-registry@{instance}.service"));
            }
        } else if path == ACCESS {
            self.restart.insert("larder-access.service".to_owned());
        } else if let Some(link) = link_of(path) {
            self.links.insert(link);
        } else if is_containerd_config(path) {
            self.containerd = true;
        }
    }

    fn add_unit(&mut self, path: &str, change: Change) {
        match path.split_once('/') {
            // Enablement: what systemctl enable --now and disable --now do.
            Some((folder, unit)) if folder.ends_with(".wants") => {
                if RUNS.contains(&unit) {
                    return;
                }
                let set = if change == Change::Removed { &mut self.stop } else { &mut self.start };
                set.insert(unit.to_owned());
            }
            // A drop-in, of one instance or of all.
            Some((folder, _)) => {
                if let Some(unit) = folder.strip_suffix(".d") {
                    self.restart.insert(unit.to_owned());
                }
            }
            // Masked, or no longer.
            None if change == (Change::Linked { target: "/dev/null" }) => {
                self.stop.insert(path.to_owned());
            }
            None if change == Change::Removed && !path.starts_with("larder") => {
                self.start.insert(path.to_owned());
            }
            None => {
                self.restart.insert(path.to_owned());
            }
        }
    }

    /// Replaces templates by the instances that are wanted, and drops what another step covers.
    pub fn settle(&mut self, enabled: &BTreeSet<String>) {
        let templates: Vec<String> =
            self.restart.iter().filter(|unit| unit.contains("@.")).cloned().collect();
        for template in templates {
            self.restart.remove(&template);
            if let Some((start, end)) = template.split_once("@.") {
                let instances = enabled.iter().filter(|unit| {
                    unit.starts_with(&format!("{start}@")) && unit.ends_with(&format!(".{end}"))
                });
                self.restart.extend(instances.cloned());
            }
        }
        // A socket cannot take the place of a registry that listens by itself, nor move while it is used: the registry
        // goes first, and its start brings the socket up before it.
        let sockets = self.start.iter().chain(&self.restart).filter(|unit| enabled.contains(*unit));
        let sockets = sockets.filter_map(|unit| {
            let instance = unit.strip_suffix(".socket")?;
            Some(format!("{instance}.service"))
        });
        let services: Vec<String> = sockets.collect();
        self.restart.extend(services);
        self.restart.retain(|unit| {
            // One-shot services are not running between their timers, and runs of larder's are ourselves.
            enabled.contains(unit) && !self.start.contains(unit) && !RUNS.contains(&unit.as_str())
        });
        self.start.retain(|unit| !self.stop.contains(unit));
    }

    /// What takes the machine back; `stopped` are the units that ran before they were stopped.
    #[must_use]
    pub fn undo(&self, stopped: BTreeSet<String>) -> Self {
        Self { stop: self.start.clone(), start: stopped, ..self.clone() }
    }

    /// What is in both.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let common = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.intersection(b).cloned().collect();
        Self {
            stop: common(&self.stop, &other.stop),
            reload: self.reload && other.reload,
            links: self.links.intersection(&other.links).cloned().collect(),
            start: common(&self.start, &other.start),
            restart: common(&self.restart, &other.restart),
            containerd: self.containerd && other.containerd,
        }
    }

    /// Adds what a run that died has left to do, as far as it still holds: the profile may be another by now.
    /// `enabled` and `masked` are the units that this run's plan enables and masks.
    pub fn take_over(&mut self, unfinished: &Self, enabled: &BTreeSet<String>, masked: &BTreeSet<String>) {
        let ours = |unit: &String| unit.starts_with("larder");
        self.stop.extend(unfinished.stop.iter().filter(|unit| !enabled.contains(*unit)).cloned());
        let wanted = |unit: &&String| enabled.contains(*unit) || (!ours(unit) && !masked.contains(*unit));
        self.start.extend(unfinished.start.iter().filter(wanted).cloned());
        self.restart.extend(unfinished.restart.iter().filter(|unit| enabled.contains(*unit)).cloned());
        self.reload |= unfinished.reload;
        self.links.extend(unfinished.links.iter().cloned());
        self.containerd |= unfinished.containerd;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Backend;

    fn after(changes: &[(&str, Change)], enabled: &[&str]) -> Wakes {
        let mut wakes = Wakes::default();
        for (path, change) in changes {
            wakes.add(path, *change);
        }
        wakes.settle(&enabled.iter().map(|unit| (*unit).to_owned()).collect());
        wakes
    }

    fn set(units: &[&str]) -> BTreeSet<String> {
        units.iter().map(|unit| (*unit).to_owned()).collect()
    }

    const A: &str = "larder-registry@a.io.service";
    const B: &str = "larder-registry@b.io.service";

    #[test]
    fn hosts_toml_wakes_nothing() {
        assert!(after(&[("etc/containerd/certs.d/a.io/hosts.toml", Change::File)], &[A]).is_empty());
    }

    #[test]
    fn containerds_own_configuration_wakes_containerd() {
        for path in ["etc/containerd/config.toml", "etc/containerd/conf.d/zz-larder.toml"] {
            for change in [Change::File, Change::Removed] {
                let wanted = Wakes { containerd: true, ..Wakes::default() };
                assert_eq!(after(&[(path, change)], &[A]), wanted);
            }
        }
    }

    #[test]
    fn one_config_restarts_its_own_registry_only() {
        let wakes = after(&[("etc/larder/registry/a.io.yml", Change::File)], &[A, B]);
        assert_eq!(wakes, Wakes { restart: set(&[A]), ..Wakes::default() });
    }

    #[test]
    fn a_new_registry_is_started_not_restarted() {
        let link = format!("etc/systemd/system/multi-user.target.wants/{A}");
        let target = Change::Linked { target: "/etc/systemd/system/larder-registry@.service" };
        let wakes = after(&[("etc/larder/registry/a.io.yml", Change::File), (&link, target)], &[A]);
        assert_eq!(wakes, Wakes { start: set(&[A]), reload: true, ..Wakes::default() });
    }

    #[test]
    fn a_template_restarts_its_instances_and_no_timer() {
        let wakes = after(
            &[("etc/systemd/system/larder-registry@.service", Change::File)],
            &[A, B, "larder-gc@a.io.timer"],
        );
        assert_eq!(wakes, Wakes { restart: set(&[A, B]), reload: true, ..Wakes::default() });
    }

    #[test]
    fn a_registry_that_leaves_is_stopped() {
        let link = format!("etc/systemd/system/multi-user.target.wants/{A}");
        let wakes =
            after(&[(&link, Change::Removed), ("etc/larder/registry/a.io.yml", Change::Removed)], &[B]);
        assert_eq!(wakes, Wakes { stop: set(&[A]), reload: true, ..Wakes::default() });
    }

    #[test]
    fn a_registry_makes_room_for_its_socket() {
        let socket = "larder-registry@a.io.socket";
        let link = format!("etc/systemd/system/sockets.target.wants/{socket}");
        let target = Change::Linked { target: "/etc/systemd/system/larder-registry@.socket" };
        let new = after(&[(&link, target)], &[A, B, socket]);
        assert_eq!((&new.start, &new.restart), (&set(&[socket]), &set(&[A])));
        let drop_in = format!("etc/systemd/system/{socket}.d/50-larder.conf");
        let moved = after(&[(&drop_in, Change::File)], &[A, B, socket]);
        assert_eq!((&moved.start, &moved.restart), (&set(&[]), &set(&[A, socket])));
        let gone = after(&[(&link, Change::Removed), (&drop_in, Change::Removed)], &[A, B]);
        assert_eq!((&gone.stop, &gone.start, &gone.restart), (&set(&[socket]), &set(&[]), &set(&[])));
    }

    #[test]
    fn new_credentials_of_a_registry_that_asks_for_them_wake_nothing() {
        assert!(after(&[("etc/larder/registry/a.io.login", Change::File)], &[A]).is_empty());
    }

    #[test]
    fn a_masked_unit_stops_and_comes_back() {
        let path = "etc/systemd/system/docker-registry.service";
        let masked = after(&[(path, Change::Linked { target: "/dev/null" })], &[]);
        assert_eq!(masked.stop, set(&["docker-registry.service"]));
        assert_eq!(after(&[(path, Change::Removed)], &[]).start, set(&["docker-registry.service"]));
    }

    #[test]
    fn what_a_dead_run_left_is_done_unless_the_profile_is_another_now() {
        let debians = "docker-registry.service";
        let eth0 = Link { backend: Backend::Networkd, interface: "eth0".to_owned() };
        let links = BTreeSet::from([eth0]);
        let unfinished =
            Wakes { start: set(&[A, debians]), stop: set(&[B]), links: links.clone(), ..Wakes::default() };
        let mut same = Wakes::default();
        same.take_over(&unfinished, &set(&[A]), &set(&[]));
        assert_eq!(same, unfinished);
        let mut other = Wakes::default();
        other.take_over(&unfinished, &set(&[B]), &set(&[debians]));
        assert_eq!(other, Wakes { links, ..Wakes::default() });
    }

    #[test]
    fn the_name_of_a_network_file_says_whom_it_wakes() {
        for (path, backend) in [
            ("etc/systemd/network/05-larder-eth0.network", Backend::Networkd),
            ("etc/netplan/90-larder-eth0.yaml", Backend::Netplan),
            ("etc/NetworkManager/system-connections/larder-eth0.nmconnection", Backend::NetworkManager),
            ("etc/network/interfaces.d/larder-eth0", Backend::Ifupdown),
        ] {
            for change in [Change::File, Change::Removed] {
                let links = BTreeSet::from([Link { backend, interface: "eth0".to_owned() }]);
                assert_eq!(after(&[(path, change)], &[A]), Wakes { links, ..Wakes::default() }, "{path}");
            }
        }
    }

    #[test]
    fn larder_never_restarts_itself() {
        let wakes = after(&[("etc/systemd/system/larder.service", Change::File)], &["larder.service"]);
        assert_eq!(wakes, Wakes { reload: true, ..Wakes::default() });
    }
}
