//! `larder apply` and then `larder remove --purge`, on machines in any state that one may be found in: what is there
//! afterwards is what was there before, to the byte, the mode, the owner, the time and the number of names.
//!
//! 200 states, of another seed each time; the seed is printed. `LARDER_SEED=N` does the same states again,
//! `LARDER_STATES=N` as many.

#![allow(clippy::indexing_slicing, reason = "a test may")]
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use support::{
    CONTAINERD_1, CONTAINERD_2, DEBIAN_CONTAINERD, DISTRIBUTION_2, DISTRIBUTION_3, Machine, differences, text,
};

const STATES: u32 = 200;
const THREADS: u32 = 2;

/// What `larder apply` is told.
#[derive(Debug, Clone)]
struct Profile {
    upstreams: BTreeSet<usize>,
    network: Option<usize>,
    cache: Option<usize>,
    containerd: Option<usize>,
    password: bool,
}

const UPSTREAMS: [&str; 3] =
    ["docker.io: { port: 5000", "ghcr.io: { port: 5010", "quay.io: { port: 5020, gc: daily"];
const NETWORKS: [&str; 3] = [
    "{ interface: eth0, addresses: [10.0.20.10/24], gateway: 10.0.20.1 }",
    "{ interface: eth0, addresses: [10.0.20.11/24, \"fd00:20::10/64\"], gateway: 10.0.20.1, mtu: 1400 }",
    "{ interface: eth0, addresses: [10.0.20.12/24], nameservers: { addresses: [10.0.20.1], search: [lab.test] } }",
];
const CACHES: [&str; 6] = [
    "{}",
    "{ storage: /srv/cache }",
    "{ access: [10.0.20.0/24] }",
    "{ max_size: 100GiB }",
    "{ memory: { high: 512MiB, max: 1GiB } }",
    "{ metrics: { registries: \"127.0.0.1:5100\", textfile: /srv/metrics } }",
];
const CLIENTS: [&str; 4] = [
    "{}",
    "{ max_concurrent_downloads: 6 }",
    "{ caches: [10.0.20.10, 10.0.20.11] }",
    "{ caches: [10.0.20.10], mirrors: { ghcr.io: [http://10.0.20.9:5000] }, fallback: false }",
];

impl Profile {
    fn text(&self) -> String {
        let mut text = "version: 1\nupstreams:\n".to_owned();
        for (number, upstream) in UPSTREAMS.iter().enumerate().filter(|(at, _)| self.upstreams.contains(at)) {
            let password = match (number, self.password && self.cache.is_some()) {
                (1, true) => ", username: bot, password: { file: /etc/larder/secrets/ghcr }",
                _ => "",
            };
            text.push_str(&format!("  {upstream}{password} }}\n"));
        }
        let blocks = [
            ("network", self.network.map(|at| NETWORKS[at])),
            ("cache", self.cache.map(|at| CACHES[at])),
            ("containerd", self.containerd.map(|at| CLIENTS[at])),
        ];
        for (name, block) in blocks {
            text.extend(block.map(|block| format!("{name}: {block}\n")));
        }
        text
    }
}

fn profile() -> impl Strategy<Value = Profile> {
    let upstreams = proptest::collection::btree_set(0..UPSTREAMS.len(), 1..=UPSTREAMS.len());
    let some = |count: usize| proptest::option::weighted(0.75, 0..count);
    (upstreams, some(NETWORKS.len()), some(CACHES.len()), some(CLIENTS.len()), any::<bool>()).prop_map(
        |(upstreams, network, cache, containerd, password)| Profile {
            upstreams,
            network,
            // A profile has to ask for something, and a client for a cache.
            cache: cache.or((containerd.is_none_or(|at| at < 2)).then_some(0)),
            containerd,
            // Who may ask has to be said then.
            password: password && cache == Some(2),
        },
    )
}

/// Something that somebody has put on the machine.
#[derive(Debug, Clone)]
enum Thing {
    File { bytes: Vec<u8>, mode: u32, owner: u32, age: u32, attribute: bool, names: bool },
    Link { target: &'static str },
    Folder { mode: u32, owner: u32 },
}

/// Where: all paths that Larder writes, or looks at.
const FILES: [&str; 26] = [
    "etc/containerd/certs.d/docker.io/hosts.toml",
    "etc/containerd/certs.d/ghcr.io/hosts.toml",
    "etc/containerd/certs.d/ghcr.io/ca.crt",
    "etc/containerd/certs.d/_default/hosts.toml",
    "etc/larder/registry/docker.io.yml",
    "etc/larder/registry/ghcr.io.env",
    "etc/larder/registry/other.io.yml",
    "etc/larder/caches.json",
    "etc/larder/watch.json",
    "etc/larder/access.nft",
    "etc/systemd/system/larder.service",
    "etc/systemd/system/larder-registry@.service",
    "etc/systemd/system/larder-gc@docker.io.timer.d/50-larder.conf",
    "etc/systemd/system/larder-gc@docker.io.timer.d/90-theirs.conf",
    "etc/systemd/system/larder-registry@.service.d/50-memory.conf",
    "etc/systemd/system/larder-tend.service.d/50-storage.conf",
    "etc/systemd/network/05-larder-eth0.network",
    "etc/systemd/network/10-eth0.network",
    "etc/cloud/cloud.cfg.d/99-larder-network.cfg",
    "etc/netplan/90-larder-eth0.yaml",
    "etc/network/interfaces.d/larder-eth0",
    "etc/NetworkManager/system-connections/larder-eth0.nmconnection",
    "etc/resolv.conf",
    "var/lib/larder/docker.io/blob",
    "var/lib/larder/notes",
    "srv/cache/ghcr.io/blob",
];
const LINKS: [(&str, &str); 8] = [
    ("etc/systemd/system/docker-registry.service", "/dev/null"),
    ("etc/systemd/system/larder-gc@.timer", "/dev/null"),
    ("etc/systemd/system/multi-user.target.wants/larder-registry@ghcr.io.service", "/srv/theirs.service"),
    (
        "etc/systemd/system/multi-user.target.wants/larder-registry@docker.io.service",
        "/etc/systemd/system/larder-registry@.service",
    ),
    ("etc/systemd/system/multi-user.target.wants/larder.service", "/etc/systemd/system/larder.service"),
    (
        "etc/systemd/system/timers.target.wants/larder-watch.timer",
        "/usr/lib/systemd/system/larder-watch.timer",
    ),
    ("etc/containerd/certs.d/docker.io/hosts.toml", "../../theirs.toml"),
    ("etc/larder/caches.json", "/srv/caches.json"),
];
const FOLDERS: [&str; 8] = [
    "etc/larder",
    "etc/larder/registry",
    "etc/containerd/certs.d",
    "etc/containerd/certs.d/ghcr.io",
    "etc/systemd/system/larder-gc@docker.io.timer.d",
    "var/lib/larder",
    "var/lib/larder/docker.io",
    "srv/cache",
];

fn thing() -> impl Strategy<Value = (&'static str, Thing)> {
    let mode =
        prop_oneof![Just(0o644_u32), Just(0o600), Just(0o640), Just(0o755), Just(0o4711), 0_u32..0o1000];
    let owner = prop_oneof![3 => Just(0_u32), 1 => Just(1234_u32)];
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        Just(b"# theirs\n".to_vec()),
        Just(b"server = \"https://example.com\"\n".to_vec()),
    ];
    let file = (bytes, mode, owner, any::<u32>(), any::<bool>(), any::<bool>()).prop_map(
        |(bytes, mode, owner, age, attribute, names)| Thing::File {
            bytes,
            mode,
            owner,
            age,
            attribute,
            names,
        },
    );
    let folder =
        (prop_oneof![Just(0o755_u32), Just(0o700), Just(0o750)], prop_oneof![Just(0_u32), Just(1234)])
            .prop_map(|(mode, owner)| Thing::Folder { mode, owner });
    prop_oneof![
        6 => ((0..FILES.len()), file).prop_map(|(at, file)| (FILES[at], file)),
        2 => (0..LINKS.len()).prop_map(|at| (LINKS[at].0, Thing::Link { target: LINKS[at].1 })),
        1 => ((0..FOLDERS.len()), folder).prop_map(|(at, folder)| (FOLDERS[at], folder)),
    ]
}

/// One machine, and what happens to it.
#[derive(Debug, Clone)]
struct State {
    /// Nobody, systemd-networkd, netplan, ifupdown, NetworkManager.
    manager: usize,
    /// None, and configurations that are accepted.
    containerd: usize,
    /// Of Distribution.
    major: u32,
    user: bool,
    packaged: bool,
    things: Vec<(&'static str, Thing)>,
    profile: Profile,
    second: Option<Profile>,
    /// The rename at which `apply` is killed, and whether that is of the second profile.
    killed: Option<(usize, bool)>,
    /// The same of `remove`.
    remove_killed: Option<usize>,
    keep_first: bool,
}

fn state() -> impl Strategy<Value = State> {
    let killed = || proptest::option::weighted(0.3, 3_usize..60);
    let machine = (
        prop_oneof![1 => Just(0_usize), 6 => Just(1), 2 => Just(2), 2 => Just(3), 2 => Just(4)],
        0_usize..5,
        2_u32..=3,
        proptest::bool::weighted(0.2),
        proptest::bool::weighted(0.2),
        proptest::collection::vec(thing(), 0..8),
    );
    let fate = (
        profile(),
        proptest::option::weighted(0.4, profile()),
        killed().prop_flat_map(|at| (Just(at), any::<bool>())),
        killed(),
        proptest::bool::weighted(0.25),
    );
    (machine, fate).prop_map(
        |(
            (manager, containerd, major, user, packaged, things),
            (profile, second, killed, remove_killed, keep),
        )| State {
            manager,
            containerd,
            major,
            user,
            packaged,
            things,
            profile,
            second,
            killed: killed.0.map(|at| (at, killed.1)),
            remove_killed,
            keep_first: keep,
        },
    )
}

impl State {
    fn machine(&self) -> Machine {
        let machine = Machine::bare_in_memory();
        for folder in ["run", "srv/metrics", "var/lib/systemd/timers", "etc/cloud"] {
            fs::create_dir_all(machine.path(folder)).unwrap();
        }
        machine.write("etc/cloud/cloud.cfg", "");
        machine.write("etc/larder/secrets/ghcr", "hunter2\n");
        self.programs(&machine);
        self.network(&machine);
        if self.user {
            let mut passwd = machine.read("etc/passwd");
            passwd.push_str("larder:x:998:998::/:/usr/sbin/nologin\n");
            machine.write("etc/passwd", passwd);
            machine.write("etc/group", "root:x:0:\nlarder:x:998:\n");
        }
        for (path, thing) in &self.things {
            put(&machine, path, thing);
        }
        machine
    }

    fn programs(&self, machine: &Machine) {
        match self.major {
            2 => machine.program("usr/bin/docker-registry", DISTRIBUTION_2),
            _ => machine.program("usr/bin/registry", &format!("{DISTRIBUTION_3} v3.1.1")),
        }
        machine.program("usr/sbin/nft", "example.com/nft");
        machine.write("usr/lib/systemd/system/docker-registry.service", "");
        machine.write("etc/docker/registry/config.yml", "http:\n  addr: :5000\n");
        let config = "etc/containerd/config.toml";
        match self.containerd {
            0 => return,
            1 => machine.write(config, DEBIAN_CONTAINERD),
            2 => machine
                .write(config, format!("# by hand\n{DEBIAN_CONTAINERD}\n[debug]\n  level = \"warn\"\n")),
            3 => machine.write(config, "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n"),
            _ => {}
        }
        match self.containerd {
            3 => machine.program("usr/bin/containerd", &format!("{CONTAINERD_2} v2.1.9")),
            _ => machine.program("usr/bin/containerd", &format!("{CONTAINERD_1} v1.7.24")),
        }
        if machine.has(config) {
            fs::set_permissions(machine.path(config), Permissions::from_mode(0o640)).unwrap();
            age(&machine.path(config), 77);
        }
        if self.packaged {
            for unit in fs::read_dir("units").unwrap() {
                let name = unit.unwrap().file_name();
                machine.write(&format!("usr/lib/systemd/system/{}", name.to_str().unwrap()), "");
            }
        }
    }

    fn network(&self, machine: &Machine) {
        let of_case = |case: &str| {
            let from = format!("tests/cases/{case}/root/.");
            let copied = Command::new("cp").args(["-a", &from]).arg(machine.root()).status().unwrap();
            assert!(copied.success());
            let owned = Command::new("chown").args(["-R", "0:0"]).arg(machine.root()).status().unwrap();
            assert!(owned.success());
        };
        match self.manager {
            0 => {}
            1 => machine.link(
                "etc/systemd/system/multi-user.target.wants/systemd-networkd.service",
                "/lib/systemd/system/systemd-networkd.service",
            ),
            2 => of_case("171-netplan"),
            3 => of_case("176-ifupdown"),
            _ => of_case("175-networkmanager"),
        }
    }
}

fn age(path: &Path, age: u32) {
    let file = File::open(path).unwrap();
    file.set_modified(UNIX_EPOCH + Duration::new(u64::from(age), age % 1_000_000_000)).unwrap();
}

fn put(machine: &Machine, path: &str, thing: &Thing) {
    let there = machine.path(path);
    // Two of a state may want the same place.
    if machine.has(path) || fs::create_dir_all(there.parent().unwrap()).is_err() {
        return;
    }
    match thing {
        Thing::Link { target } => symlink(target, &there).unwrap(),
        Thing::Folder { mode, owner } => {
            fs::create_dir(&there).unwrap();
            chown(&there, Some(*owner), Some(*owner)).unwrap();
            fs::set_permissions(&there, Permissions::from_mode(*mode)).unwrap();
        }
        Thing::File { bytes, mode, owner, age: years, attribute, names } => {
            fs::write(&there, bytes).unwrap();
            chown(&there, Some(*owner), Some(*owner)).unwrap();
            fs::set_permissions(&there, Permissions::from_mode(*mode)).unwrap();
            if *attribute {
                let file = File::open(&there).unwrap();
                // Not every file system has them.
                let _ = rustix::fs::fsetxattr(&file, "user.theirs", b"x", rustix::fs::XattrFlags::empty());
            }
            if *names {
                let other = machine.path(&format!("srv/names/{}", path.replace('/', "_")));
                fs::create_dir_all(other.parent().unwrap()).unwrap();
                fs::hard_link(&there, other).unwrap();
            }
            age(&there, *years);
        }
    }
}

/// Everything that there is to see of every path.
fn look(machine: &Machine) -> BTreeMap<String, String> {
    fn walk(base: &Path, dir: &Path, tree: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let mut line = format!("{:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
            if meta.is_dir() {
                walk(base, &path, tree);
            } else {
                line.push_str(&format!(" {} names, {}.{}", meta.nlink(), meta.mtime(), meta.mtime_nsec()));
                if meta.is_symlink() {
                    line.push_str(&format!(" -> {}", fs::read_link(&path).unwrap().display()));
                } else {
                    line.push_str(&format!(" {:?}", String::from_utf8_lossy(&fs::read(&path).unwrap())));
                    let mut names = [0_u8; 4096];
                    let names = match rustix::fs::listxattr(&path, &mut names[..]) {
                        Ok(length) => String::from_utf8_lossy(&names[..length]).into_owned(),
                        Err(_) => String::new(),
                    };
                    line.push_str(&names);
                }
            }
            tree.insert(path.strip_prefix(base).unwrap().to_str().unwrap().to_owned(), line);
        }
    }
    let mut tree = BTreeMap::new();
    walk(machine.root(), machine.root(), &mut tree);
    tree
}

/// A run, ended at the so manieth rename if that is said.
fn larder(machine: &Machine, command: &[&str], profile: Option<&Profile>, killed: Option<usize>) -> Output {
    let outside = tempfile::NamedTempFile::new().unwrap();
    let program = env!("CARGO_BIN_EXE_larder");
    let mut run = match killed {
        None => Command::new(program),
        Some(at) => {
            let mut strace = Command::new("strace");
            strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=renameat", "-e"]);
            strace.arg(format!("inject=renameat:signal=SIGKILL:when={at}")).arg(program);
            strace
        }
    };
    run.args(command).arg("--root").arg(machine.root());
    if let Some(profile) = profile {
        fs::write(outside.path(), profile.text()).unwrap();
        run.arg("--profile").arg(outside.path());
    }
    run.output().unwrap()
}

#[derive(Default)]
struct Counts {
    states: AtomicUsize,
    applied: AtomicUsize,
    killed: AtomicUsize,
}

impl Counts {
    fn add(counter: &AtomicUsize, one: bool) {
        counter.fetch_add(usize::from(one), Ordering::Relaxed);
    }
}

fn run(state: &State, counts: &Counts) -> Result<(), TestCaseError> {
    let machine = state.machine();
    let mut before = look(&machine);
    let ended = |output: &Output| output.status.code().is_none();
    let first_dies = state.killed.filter(|(_, second)| !second).map(|(at, _)| at);
    let output = larder(&machine, &["apply"], Some(&state.profile), first_dies);
    Counts::add(&counts.states, true);
    Counts::add(&counts.killed, ended(&output));
    // 1: something there cannot be read as what it should be.
    if matches!(output.status.code(), Some(1 | 2)) {
        let after = look(&machine);
        prop_assert!(before == after, "refused: {:#?}\n{}", differences(&before, &after), text(&output));
        return Ok(());
    }
    prop_assert!(ended(&output) || output.status.code() == Some(0), "apply: {}", text(&output));
    Counts::add(&counts.applied, true);
    if let Some(second) = &state.second {
        let dies = state.killed.filter(|(_, second)| *second).map(|(at, _)| at);
        let output = larder(&machine, &["apply"], Some(second), dies);
        Counts::add(&counts.killed, ended(&output));
        let code = output.status.code();
        prop_assert!(matches!(code, None | Some(0..=2)), "the second apply: {}", text(&output));
    }
    // What runs on such a machine meanwhile.
    for path in
        ["var/lib/larder/quay.io/docker/blob", "srv/cache/docker.io/docker/blob", "run/larder/status.json"]
    {
        let folder = Path::new(path).parent().unwrap().parent().unwrap().to_str().unwrap();
        if (!before.contains_key(folder) || folder == "run") && machine.path(folder).is_dir() {
            machine.write(path, "x");
        }
    }
    machine.write("var/lib/systemd/timers/stamp-larder-gc@docker.io.timer", "");
    if machine.has("etc/systemd/system/timers.target.wants/larder-metrics.timer") {
        machine.write("srv/metrics/larder.prom", "x 1\n");
    }
    if !machine.has("var/lib/larder/state/manifest.json") {
        fs::remove_file(machine.path("var/lib/systemd/timers/stamp-larder-gc@docker.io.timer")).unwrap();
        let _ = fs::remove_dir_all(machine.path("run/larder"));
    }

    if state.keep_first {
        let output = larder(&machine, &["remove"], None, None);
        prop_assert_eq!(output.status.code(), Some(0), "remove: {}", text(&output));
    }
    if state.remove_killed.is_some() {
        let output = larder(&machine, &["remove", "--purge"], None, state.remove_killed);
        Counts::add(&counts.killed, ended(&output));
        prop_assert!(matches!(output.status.code(), None | Some(0)), "remove: {}", text(&output));
    }
    let output = larder(&machine, &["remove", "--purge"], None, None);
    prop_assert_eq!(output.status.code(), Some(0), "remove: {}", text(&output));
    let after = look(&machine);
    // A unit of ours that somebody had enabled is disabled: it would bring us back.
    let is_ours = |path: &String| path.contains(".wants/larder");
    before.retain(|path, _| !is_ours(path) || after.contains_key(path));
    prop_assert!(
        before == after,
        "{:#?}\nremove: {}\n--- profile\n{}",
        differences(&before, &after),
        text(&output),
        state.profile.text()
    );
    let again = larder(&machine, &["remove", "--purge"], None, None);
    prop_assert_eq!(again.status.code(), Some(0), "remove again: {}", text(&again));
    prop_assert_eq!(String::from_utf8_lossy(&again.stdout), "nothing of larder's is here\n");
    prop_assert_eq!(after, look(&machine));
    Ok(())
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn what_is_removed_was_never_there() {
    let seed = number("LARDER_SEED").unwrap_or_else(|| UNIX_EPOCH.elapsed().unwrap().as_secs());
    let states = number("LARDER_STATES").map_or(STATES, |states| states.try_into().unwrap());
    println!("seed {seed}: LARDER_SEED={seed} LARDER_STATES={states} does the same again");
    let counts = Counts::default();
    let failures: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let counts = &counts;
                scope.spawn(move || {
                    let mut bytes = [0_u8; 32];
                    bytes[..8].copy_from_slice(&seed.to_le_bytes());
                    bytes[8] = u8::try_from(thread).unwrap();
                    let config = Config {
                        cases: states / THREADS + u32::from(thread < states % THREADS),
                        max_shrink_iters: 200,
                        failure_persistence: None,
                        ..Config::default()
                    };
                    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
                    match TestRunner::new_with_rng(config, rng).run(&state(), |state| run(&state, counts)) {
                        Ok(()) => None,
                        Err(TestError::Fail(why, state)) => Some(format!("{why}\n--- the state\n{state:#?}")),
                        Err(other) => Some(other.to_string()),
                    }
                })
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(failures.is_empty(), "seed {seed}:\n{}", failures.join("\n\n"));
    let read = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    let (all, applied, killed) = (read(&counts.states), read(&counts.applied), read(&counts.killed));
    println!("{all} states, {applied} of them applied to, {} refused; {killed} runs killed", all - applied);
    assert!(applied * 2 > all, "only {applied} of {all} profiles could be applied");
}
