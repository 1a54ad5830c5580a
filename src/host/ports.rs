//! Who listens on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::command;
use super::live::read;

/// /proc/net/tcp's word for a listening socket.
const LISTEN: &str = "0A";

const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// Whether `systemctl list-sockets` has this port for a registry: address, unit, what it starts.
fn is_ours(sockets: &str, port: u16) -> bool {
    let end = format!(":{port}");
    sockets.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next().is_some_and(|listen| listen.ends_with(&end))
            && words.next().is_some_and(|unit| unit.starts_with("larder-registry@"))
    })
}

/// Listening sockets on `ports` whose process is not in a registry unit of ours.
pub(super) fn port_holders(ports: &BTreeSet<u16>) -> Result<Vec<(u16, String)>> {
    let mut inodes = BTreeMap::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in read(table).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, state, _, _, _, _, _, inode, ..] = fields.as_slice() else { continue };
            let port = local.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
            if let (LISTEN, Some(port)) = (*state, port)
                && ports.contains(&port)
            {
                inodes.insert(format!("socket:[{inode}]"), port);
            }
        }
    }
    if inodes.is_empty() {
        return Ok(Vec::new());
    }
    let (mut holders, mut passed) = (Vec::new(), BTreeSet::new());
    for entry in fs::read_dir("/proc").context("list the processes")? {
        let Ok(pid) = entry.context("list the processes")?.file_name().into_string() else { continue };
        // A process may end meanwhile.
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for file in files.flatten() {
            let Ok(target) = fs::read_link(file.path()) else { continue };
            let Some(target) = target.to_str().filter(|target| inodes.contains_key(*target)) else {
                continue;
            };
            // systemd's own sockets, for whoever is to have them.
            if pid == "1" {
                passed.extend(inodes.get(target).copied());
                continue;
            }
            let Some(port) = inodes.remove(target) else { continue };
            let unit = read(&format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let unit = unit.trim().rsplit('/').next().unwrap_or_default().to_owned();
            let name = read(&format!("/proc/{pid}/comm")).unwrap_or_default();
            if !unit.starts_with("larder-registry@") {
                holders.push((port, format!("{} (pid {pid}, {unit})", name.trim())));
            }
        }
    }
    if !passed.is_empty() {
        let args = ["list-sockets", "--no-legend", "--no-pager"];
        let sockets = command::run("systemctl", &args, Instant::now() + COMMAND_LIMIT)?.stdout;
        inodes.retain(|_, port| !(passed.contains(port) && is_ours(&sockets, *port)));
    }
    holders.extend(inodes.into_values().map(|port| (port, "a process that cannot be seen".to_owned())));
    Ok(holders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_registries_are_known_by_their_port() {
        let listed = "10.0.20.10:5000 larder-registry@docker.io.socket larder-registry@docker.io.service\n\
                      [::]:22         ssh.socket                       ssh.service\n";
        assert!(is_ours(listed, 5000));
        assert!(!is_ours(listed, 22) && !is_ours(listed, 500));
    }
}
