//! Verification against the real registry, as a cache in front of a real one: what its answers mean must
//! stay what they were measured to mean.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use larder::verify::{Check, Probe, Row, State, progress, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The registry of a major version: `REGISTRY_2` or `REGISTRY_3`, else by its usual name.
fn registry(major: u32) -> Option<PathBuf> {
    let name = if major == 2 { "docker-registry" } else { "registry" };
    let path = std::env::var("PATH").unwrap_or_default();
    std::env::var_os(format!("REGISTRY_{major}"))
        .map(PathBuf::from)
        .or_else(|| path.split(':').map(|folder| Path::new(folder).join(name)).find(|path| path.is_file()))
}

/// A registry that ends with the test.
struct Running {
    child: Child,
    address: SocketAddr,
}

impl Running {
    fn start(binary: &Path, store: &Path, address: &str, remote: Option<SocketAddr>) -> Self {
        std::fs::create_dir_all(store).unwrap();
        let proxy =
            remote.map_or(String::new(), |remote| format!("proxy: {{ remoteurl: \"http://{remote}\" }}\n"));
        let config = store.join("config.yml");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n  delete: {{ enabled: true }}\n\
             http: {{ addr: \"{address}\" }}\n{proxy}",
            store.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new(binary)
            .arg("serve")
            .arg(&config)
            .env_clear()
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let listens = lines.find_map(|line| {
            let (_, after) = line.split_once("listening on ")?;
            after.split(['"', ' ', ',']).next()?.parse().ok()
        });
        // A full pipe would stop it.
        thread::spawn(move || lines.for_each(drop));
        let Some(address) = listens else {
            panic!("wanted {} to listen, got its end: {:?}", binary.display(), child.wait());
        };
        Self { child, address }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The rows of the cache's endpoint and of its upstream.
fn prove(cache: SocketAddr, timeout: Duration) -> (Row, Row) {
    let repository = Some("library/busybox".to_owned());
    let checks = [
        Probe::Endpoint { address: cache, certificate: None },
        Probe::Upstream { address: cache, certificate: None, repository, required: false },
    ]
    .map(|probe| Check { subject: "upstream.example".to_owned(), probe });
    let report = run(&checks, timeout, progress(false).as_mut());
    let [endpoint, upstream] = report.rows() else { panic!("wanted two rows, got {report}") };
    (endpoint.clone(), upstream.clone())
}

fn says_what_its_upstream_does(major: u32) {
    const LONG: Duration = Duration::from_secs(120);
    let Some(binary) = registry(major) else {
        not_run(format_args!("no Distribution {major}.x here; set REGISTRY_{major}"));
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (far, near) = (folder.path().join("upstream"), folder.path().join("cache"));
    let upstream = Running::start(&binary, &far, "127.0.0.1:0", None);
    let cache = Running::start(&binary, &near, "127.0.0.1:0", Some(upstream.address));

    let (endpoint, healthy) = prove(cache.address, LONG);
    assert_eq!((endpoint.state, healthy.state), (State::Ok, State::Ok), "healthy: {endpoint}; {healthy}");

    // Its socket accepts, and nothing comes.
    upstream.signal(Signal::SIGSTOP);
    let (endpoint, silent) = prove(cache.address, Duration::from_secs(5));
    upstream.signal(Signal::SIGCONT);
    assert_eq!((endpoint.state, silent.state), (State::Ok, State::Warned), "silent: {endpoint}; {silent}");
    assert!(silent.got.starts_with("no answer within"), "silent: {silent}");

    let address = upstream.address.to_string();
    drop(upstream);
    let started = Instant::now();
    let (endpoint, away) = prove(cache.address, LONG);
    assert_eq!((endpoint.state, away.state), (State::Ok, State::Warned), "away: {endpoint}; {away}");
    assert!(away.got.starts_with("500"), "away: {away}");
    assert!(started.elapsed() < LONG, "wanted an end before the deadline");

    // Back: the cache needs no restart, and neither does the verification that began before.
    let back = thread::spawn(move || {
        thread::sleep(Duration::from_millis(500));
        Running::start(&binary, &far, &address, None)
    });
    let (endpoint, again) = prove(cache.address, LONG);
    assert_eq!((endpoint.state, again.state), (State::Ok, State::Ok), "back: {endpoint}; {again}");
    drop(back.join().unwrap());

    let address = cache.address;
    drop(cache);
    let (endpoint, unasked) = prove(address, Duration::from_secs(2));
    assert_eq!((endpoint.state, unasked.state), (State::Down, State::Skipped), "down: {endpoint}; {unasked}");
}

/// Past the test harness, which shows what a passing test prints to nobody.
fn not_run(why: std::fmt::Arguments) {
    use std::io::Write;
    std::io::stderr().write_all(format!("NOT RUN: {why}\n").as_bytes()).unwrap();
}

#[test]
fn distribution_2_says_what_its_upstream_does() {
    says_what_its_upstream_does(2);
}

#[test]
fn distribution_3_says_what_its_upstream_does() {
    says_what_its_upstream_does(3);
}
