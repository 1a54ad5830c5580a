//! What `larder watch` does to a machine's files, and how `apply` and `plan` live with it.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may"
)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use support::{Machine, text};

/// A cache on loopback that answers while it is not dropped.
struct Cache {
    address: SocketAddr,
    over: Arc<AtomicBool>,
}

impl Cache {
    fn new() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap())
    }

    fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let ended = over.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let mut connection = connection.unwrap();
                let _ = connection.read(&mut [0; 1024]);
                let _ = connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            }
        });
        Self { address, over }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes it. Once nobody is answered any more it is gone.
        while TcpStream::connect(self.address).is_ok() {}
    }
}

const DOCKER: &str = "etc/containerd/certs.d/docker.io/hosts.toml";
const QUAY: &str = "etc/containerd/certs.d/quay.io/hosts.toml";
const STATE: &str = "run/larder/watch/state.json";

fn profile(docker: &Cache, quay: &Cache) -> String {
    format!(
        "version: 1\nupstreams:\n  docker.io: {{ port: {} }}\n  quay.io: {{ port: {} }}\n\
         containerd: {{ caches: [127.0.0.1] }}\n",
        docker.address.port(),
        quay.address.port()
    )
}

fn watch(machine: &Machine) -> String {
    let output = machine.command(&["watch"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What was seen last was seen long ago.
fn age(machine: &Machine) {
    let mut state: serde_json::Value = serde_json::from_str(&machine.read(STATE)).unwrap();
    for health in state["memory"]["endpoints"].as_object_mut().unwrap().values_mut() {
        health["since"] = 0.into();
        if health["answering"].is_object() {
            health["answering"]["since"] = 0.into();
        }
    }
    machine.write(STATE, state.to_string());
}

fn converged(machine: &Machine, profile: &str) {
    let plan = machine.larder(&["plan"], profile);
    assert_eq!(plan.status.code(), Some(0), "{}", text(&plan));
    let before = machine.stamps();
    assert_eq!(machine.apply(profile), "nothing to change\n");
    assert_eq!(machine.stamps(), before);
}

#[test]
fn a_dead_cache_goes_out_and_comes_back_and_apply_lives_with_it() {
    let (docker, quay) = (Cache::new(), Cache::new());
    let profile = profile(&docker, &quay);
    let machine = Machine::debian();
    machine.apply(&profile);
    let (full, url) = (machine.read(DOCKER), format!("http://{}", docker.address));
    assert_eq!(watch(&machine), "");
    let before = machine.stamps();
    assert_eq!(watch(&machine), "");
    assert_eq!(machine.stamps(), before, "nothing is written while all is well");

    let address = docker.address;
    drop(docker);
    assert_eq!(
        watch(&machine),
        format!("docker.io: {url} is out, containerd no longer asks it: connection refused\n")
    );
    let short = machine.read(DOCKER);
    assert!(
        short.contains("[host.\"https://registry-1.docker.io\"]\ncapabilities = [\"pull\", \"resolve\"]"),
        "{short}"
    );
    assert!(!short.contains(&format!("[host.\"{url}\"]")), "{short}");
    converged(&machine, &profile);
    let before = machine.stamps();
    assert_eq!(watch(&machine), "");
    assert_eq!(machine.stamps(), before, "nothing is written while nothing changes");

    let _docker = Cache::at(address);
    for _ in 0..3 {
        assert_eq!(watch(&machine), "");
    }
    assert_eq!(machine.read(DOCKER), short);
    age(&machine);
    let said = watch(&machine);
    assert!(said.starts_with(&format!("docker.io: {url} is back after ")), "{said}");
    assert_eq!(machine.read(DOCKER), full);
    converged(&machine, &profile);
}

#[test]
fn a_boot_forgets_who_is_out_and_the_next_round_repairs() {
    let (docker, quay) = (Cache::new(), Cache::new());
    let profile = profile(&docker, &quay);
    let machine = Machine::debian();
    machine.apply(&profile);
    let (full, address) = (machine.read(DOCKER), docker.address);
    drop(docker);
    watch(&machine);
    fs::remove_dir_all(machine.path("run/larder")).unwrap();
    let plan = machine.larder(&["plan"], &profile);
    assert!(!text(&plan).contains("by hand"), "{}", text(&plan));
    let _docker = Cache::at(address);
    watch(&machine);
    assert_eq!(machine.read(DOCKER), full);
    converged(&machine, &profile);
}

#[test]
fn a_profile_that_changes_meanwhile_is_followed() {
    let (docker, quay, other) = (Cache::new(), Cache::new(), Cache::new());
    let both = profile(&docker, &quay);
    let machine = Machine::debian();
    machine.apply(&both);
    drop(docker);
    watch(&machine);
    // Another remote: what is out stays out.
    let moved = both.replace("docker.io: { ", "docker.io: { remote: \"https://mirror.example\", ");
    machine.apply(&moved);
    let now = machine.read(DOCKER);
    assert!(now.contains("[host.\"https://mirror.example\"]"), "{now}");
    converged(&machine, &moved);
    // Another port: an endpoint that nothing is known of.
    let moved = profile(&other, &quay);
    machine.apply(&moved);
    assert!(machine.read(DOCKER).contains(&format!("[host.\"http://{}\"]", other.address)));
    assert_eq!(watch(&machine), "");
    converged(&machine, &moved);
    // The upstream leaves while its cache is out.
    drop(other);
    watch(&machine);
    let without = moved.lines().filter(|line| !line.contains("docker.io")).collect::<Vec<_>>().join("\n");
    machine.apply(&without);
    assert!(!machine.has("etc/containerd/certs.d/docker.io"));
    let kept = machine.tree().into_keys().any(|path| path.contains("kept/etc/containerd/certs.d"));
    assert!(!kept, "nothing of it was somebody else's");
}

#[test]
fn nothing_is_left_when_containerd_leaves_the_profile() {
    let (docker, quay) = (Cache::new(), Cache::new());
    let profile = profile(&docker, &quay);
    let machine = Machine::debian();
    let theirs = "# theirs\nserver = \"https://elsewhere\"\n";
    machine.write(QUAY, theirs);
    machine.apply(&profile);
    drop(docker);
    drop(quay);
    watch(&machine);
    assert!(machine.read(QUAY).contains("Left out"));
    let cache = profile.split("containerd:").next().unwrap().to_owned() + "cache: { listen: 127.0.0.1 }\n";
    machine.apply(&cache);
    assert_eq!(machine.read(QUAY), theirs);
    // The units stay: they look after the registries, too.
    let is_left = |path: &String| {
        (path.contains("watch") && !path.starts_with("etc/systemd/system/")) || path == DOCKER
    };
    let left: Vec<_> = machine.tree().into_keys().filter(is_left).collect();
    assert_eq!(left, [""; 0]);
    assert_eq!(watch(&machine), "");
}

#[test]
fn a_file_edited_by_hand_is_left_alone() {
    let (docker, quay) = (Cache::new(), Cache::new());
    let profile = profile(&docker, &quay);
    let machine = Machine::debian();
    machine.apply(&profile);
    machine.write(QUAY, "# mine\n");
    drop(docker);
    drop(quay);
    watch(&machine);
    assert_eq!(machine.read(QUAY), "# mine\n");
    assert!(machine.read(DOCKER).contains("Left out"));
    let plan = machine.larder(&["plan"], &profile);
    assert!(text(&plan).contains("[edited by hand since 20"), "{}", text(&plan));
    fs::remove_file(machine.path(QUAY)).unwrap();
    watch(&machine);
    assert!(!machine.has(QUAY), "who took it away had a reason");
}

#[test]
fn a_run_at_work_is_left_alone() {
    let (docker, quay) = (Cache::new(), Cache::new());
    let machine = Machine::debian();
    machine.apply(&profile(&docker, &quay));
    watch(&machine);
    drop(docker);
    let lock = fs::File::open(machine.path("var/lib/larder/state")).unwrap();
    lock.lock().unwrap();
    let before = machine.stamps();
    assert_eq!(watch(&machine), "");
    assert_eq!(machine.stamps(), before);
    drop(lock);
    assert!(watch(&machine).contains("is out"));
}

#[test]
fn killed_at_any_instant_the_next_round_repairs() {
    let (docker, quay) = (Cache::new(), Cache::new());
    let profile = profile(&docker, &quay);
    let machine = Machine::debian();
    machine.apply(&profile);
    let full = [machine.read(DOCKER), machine.read(QUAY)];
    watch(&machine);
    let addresses = [docker.address, quay.address];
    drop((docker, quay));
    watch(&machine);
    let short = [machine.read(DOCKER), machine.read(QUAY)];
    let mut died = 0;
    // Each time the last rounds before they come back: about 4 ms of work.
    for attempt in 0..24_u64 {
        let caches = addresses.map(Cache::at);
        for _ in 0..3 {
            watch(&machine);
        }
        age(&machine);
        let mut child = machine
            .command(&["watch"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        sleep(Duration::from_micros(400 * attempt));
        child.kill().unwrap();
        if child.wait().unwrap().code().is_none() {
            died += 1;
        }
        for (path, index) in [(DOCKER, 0), (QUAY, 1)] {
            let now = machine.read(path);
            assert!(now == full[index] || now == short[index], "{now}");
        }
        let plan = machine.larder(&["plan"], &profile);
        assert!(!text(&plan).contains("by hand"), "{}", text(&plan));
        if attempt % 2 == 0 {
            machine.apply(&profile);
            converged(&machine, &profile);
        }
        watch(&machine);
        assert_eq!([machine.read(DOCKER), machine.read(QUAY)], full, "killed after {} us", 400 * attempt);
        converged(&machine, &profile);
        // In the folder of the watch, where others write too, one goes once it is old.
        let stays = |path: &String| path.contains(".larder-new.") && !path.starts_with("run/larder/watch/");
        let temporary: Vec<_> = machine.stamps().into_keys().filter(stays).collect();
        assert_eq!(temporary, [""; 0], "killed after {} us", 400 * attempt);
        // Out again, by way of a state in which they are: 2 s of asking are saved.
        drop(caches);
        machine.write(STATE, out(addresses));
        watch(&machine);
        assert_eq!([machine.read(DOCKER), machine.read(QUAY)], short);
    }
    assert!(died > 0, "none of the 24 rounds was killed at work");
    println!("{died} of 24 rounds were killed at work");
}

fn out(addresses: [SocketAddr; 2]) -> String {
    let health = serde_json::json!({ "out": true, "since": 0, "at": 0, "level": 1, "why": "silent" });
    let endpoints = addresses.map(|address| (format!("http://{address}"), health.clone()));
    let endpoints: serde_json::Map<_, _> = endpoints.into_iter().collect();
    serde_json::json!({ "writing": false, "memory": { "endpoints": endpoints } }).to_string()
}
