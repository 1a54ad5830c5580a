//! The commands that change files, each with a machine.

use crate::judge::Subject;
use crate::support::{Machine, SEED};
use crate::tree::{Tree, What};

/// One line each; where it differs from this.
fn usual(name: &'static str, machine: fn() -> Tree, command: &'static [&'static str]) -> Subject {
    Subject {
        name,
        machine,
        command,
        profile: None,
        settled: None,
        loose: &[],
        sound: |_| Vec::new(),
        keeps_on: false,
    }
}

fn apply(name: &'static str, machine: fn() -> Tree, profile: &str) -> Subject {
    Subject {
        profile: Some(profile.to_owned()),
        settled: Some(&["plan"]),
        ..usual(name, machine, &["apply"])
    }
}

pub const SMALL: &str = "version: 1
upstreams:
  ghcr.io: { port: 5010 }
cache: {}
containerd: {}
";

const OTHER: &str = "version: 1
upstreams:
  docker.io: { port: 5000, username: bot, password: { file: /etc/larder/secrets/docker } }
  quay.io: { port: 5020 }
network:
  interface: eth0
  addresses: [10.0.20.11/24]
  gateway: 10.0.20.1
cache: {}
containerd: {}
";

fn tree(machine: &Machine) -> Tree {
    Tree::read(machine.root())
}

pub fn bare() -> Tree {
    tree(&Machine::debian())
}

/// Provisioned, with a stranger's file, one edited by hand and a store that is filled; then others wrote into
/// containerd's configuration.
fn lived_in() -> Tree {
    let machine = Machine::debian();
    machine.write("etc/larder/secrets/docker", "hunter2\n");
    machine.write("etc/containerd/certs.d/quay.io/hosts.toml", "# mine\n");
    machine.write("etc/containerd/certs.d/ghcr.io/hosts.toml", "# mine, too\n");
    machine.apply(SEED);
    machine.write("etc/containerd/certs.d/docker.io/hosts.toml", "server = \"https://elsewhere\"\n");
    machine.write("var/lib/larder/ghcr.io/docker/blob", "cached");
    let config = machine.read("etc/containerd/config.toml");
    machine.write("etc/containerd/config.toml", format!("{config}\n[debug]\n  level = \"debug\"\n"));
    tree(&machine)
}

/// Provisioned, and then somebody changed modes and owners.
fn other_modes() -> Tree {
    let machine = Machine::debian();
    machine.write("etc/larder/secrets/docker", "hunter2\n");
    machine.apply(OTHER);
    let mut tree = tree(&machine);
    for (path, node) in &mut tree.0 {
        let ours = path.starts_with("etc/larder/registry/") || path.ends_with("hosts.toml");
        if (ours && matches!(node.what, What::File(_))) || path == "var/lib/larder/quay.io" {
            (node.mode, node.owner) = (0o604, (12, 34));
        }
    }
    tree
}

/// So many that they are synced together.
pub fn many() -> String {
    let upstreams: String =
        (0..12).map(|n| format!("  r{n}.example: {{ port: {} }}\n", 5000 + 10 * n)).collect();
    format!("version: 1\nupstreams:\n{upstreams}cache: {{}}\ncontainerd: {{}}\n")
}

const LEGACY: &str = r#"version = 2
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
  endpoint = ["http://10.0.20.10:5000", "https://registry-1.docker.io"]
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."ghcr.io"]
  endpoint = ["http://10.0.20.10:5010"]
[plugins."io.containerd.grpc.v1.cri".registry.configs."ghcr.io".tls]
  insecure_skip_verify = true
"#;

fn legacy() -> Tree {
    let machine = Machine::debian();
    machine.write("etc/containerd/config.toml", LEGACY);
    tree(&machine)
}

pub fn all() -> Vec<Subject> {
    vec![
        apply("apply, small", bare, SMALL),
        apply("apply, first", bare, SEED),
        apply("apply, other profile", lived_in, OTHER),
        Subject {
            command: &["apply", "--purge"],
            settled: Some(&["plan", "--purge"]),
            ..apply("apply, purge", lived_in, OTHER)
        },
        apply("apply, modes", other_modes, OTHER),
        apply("apply, many", bare, &many()),
        Subject { settled: Some(&["migrate"]), ..usual("migrate", legacy, &["migrate", "--write"]) },
    ]
}
