//! The commands that change files, each with a machine.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::LazyLock;

use crate::judge::Subject;
use crate::store::{self, Store};
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
        cleaner: None,
        loose: &[],
        sound: |_, _| Vec::new(),
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

// ---- caches that watch looks after

/// One that answers, as long as this process runs.
static ALIVE: LazyLock<u16> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let _ = connection.read(&mut [0; 1024]);
            let _ = connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        }
    });
    port
});

/// Two caches, one of which nobody is at home at.
fn watched() -> Tree {
    let machine = Machine::debian();
    machine.apply(&format!(
        "version: 1\nupstreams:\n  docker.io: {{ port: {} }}\n  quay.io: {{ port: 1024 }}\n\
         containerd: {{ caches: [127.0.0.1] }}\n",
        *ALIVE
    ));
    tree(&machine)
}

// ---- stores

const KIB: usize = 1024;
const HOUR: u64 = 3600;
const STORE: &str = "srv/a.example";

/// A cache with some images; above its budget, where it has one.
fn filled(budget: Option<u64>) -> (Machine, Store) {
    let machine = Machine::bare();
    let caches = serde_json::json!({
        "version": 1,
        "max_size": budget,
        "upstreams": [{
            "host": "a.example", "address": "127.0.0.1:5000", "remote": "https://x.example", "major": 2,
            "store": format!("/{STORE}"), "max_size": null, "probe": null,
        }],
    });
    machine.write("etc/larder/caches.json", caches.to_string());
    let mut store = Store::new(&machine.path(STORE));
    store.image("library/old", "1", &[("base", 4 * KIB), ("old", 30 * KIB)], 9 * HOUR);
    store.image("one", "1", &[("twice", 20 * KIB)], 6 * HOUR);
    store.image("two", "1", &[("twice", 20 * KIB)], 5 * HOUR);
    store.image("library/new", "1", &[("base", 4 * KIB), ("new", 30 * KIB)], HOUR);
    let loose = store.blob(&store::content("loose", 10 * KIB), 2 * HOUR);
    store.link("library/new", "_layers", &loose, 2 * HOUR);
    store.upload("library/new", "stuck", 10 * KIB, 48 * HOUR);
    (machine, store)
}

fn over_budget() -> Tree {
    tree(&filled(Some(200 << 10)).0)
}

fn cached() -> Tree {
    tree(&filled(None).0)
}

/// One blob is not what its name says.
fn rotten() -> Tree {
    let (machine, store) = filled(None);
    let digest = store::digest(&store::content("old", 30 * KIB));
    fs::write(store.blob_folder(&digest).join("data"), vec![7; 30 * KIB]).unwrap();
    tree(&machine)
}

/// What is in a store is what its name says, and a link is a digest; after a whole run nothing is half gone.
fn sound_store(tree: &Tree, settled: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    for (path, node) in &tree.0 {
        let (What::File(bytes), true) = (&node.what, path.starts_with(STORE)) else { continue };
        let name = Path::new(path).parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        if path.contains("/blobs/") && path.ends_with("/data") {
            let is_rotten = bytes.first() == Some(&7) && !settled;
            if store::digest(bytes) != format!("sha256:{name}") && !is_rotten {
                wrong.push(format!("{path} is not what its name says"));
            }
        } else if path.ends_with("/link") && !(bytes.starts_with(b"sha256:") && bytes.len() == 71) {
            wrong.push(format!("{path} is no digest"));
        } else if settled && path.contains("/.larder/trash/") {
            wrong.push(format!("{path} is left"));
        }
    }
    wrong
}

fn on_store(name: &'static str, machine: fn() -> Tree, command: &'static [&'static str]) -> Subject {
    Subject { sound: sound_store, keeps_on: true, loose: &[STORE], ..usual(name, machine, command) }
}

const OWN: &str = "srv/a.example/.larder";

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
        Subject { settled: Some(&["remove"]), ..usual("remove", lived_in, &["remove"]) },
        Subject {
            settled: Some(&["remove", "--purge"]),
            ..usual("remove --purge", lived_in, &["remove", "--purge"])
        },
        Subject { loose: &["run/larder/watch/"], keeps_on: true, ..usual("watch", watched, &["watch"]) },
        on_store("gc", over_budget, &["gc", "--all"]),
        on_store("tend", over_budget, &["tend"]),
        Subject {
            loose: &[OWN],
            cleaner: Some(&["gc", "--all"]),
            ..on_store("scrub", rotten, &["scrub", "--rate", "none"])
        },
        Subject {
            cleaner: Some(&["gc", "--all"]),
            ..on_store("refresh", cached, &["refresh", "a.example/library/old:1"])
        },
    ]
}
