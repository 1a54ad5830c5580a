//! Verification against the real registry, as a cache in front of a real one: what its answers mean must
//! stay what they were measured to mean.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use larder::verify::{Check, Probe, Row, State, progress, run};
use nix::sys::signal::Signal;

#[path = "support/registry.rs"]
mod real;
use real::{Running, registry};

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
    let Some(binary) = registry(major) else { return };
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

#[test]
fn distribution_2_says_what_its_upstream_does() {
    says_what_its_upstream_does(2);
}

#[test]
fn distribution_3_says_what_its_upstream_does() {
    says_what_its_upstream_does(3);
}
