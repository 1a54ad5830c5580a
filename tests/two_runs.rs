//! Two runs at once: one waits, and says for whom.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod support;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Machine, SEED, differences, text};

const STATE: &str = "var/lib/larder/state";

fn start(machine: &Machine, command: &[&str], profile: &str) -> Child {
    let mut child = machine
        .command(command)
        .args(["--profile", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(profile.as_bytes()).unwrap();
    child
}

#[test]
fn of_many_runs_at_once_one_works_and_the_others_find_nothing_to_do() {
    let alone = Machine::debian();
    alone.apply(SEED);
    for runs in [2, 8] {
        for first in [true, false] {
            let machine = Machine::debian();
            let mut wanted = alone.tree();
            if !first {
                machine.apply(&SEED.replace("5000", "5001"));
                wanted = machine.tree();
                machine.apply(SEED);
                machine.apply(&SEED.replace("5000", "5001"));
                assert_eq!(differences(&wanted, &machine.tree()), [""; 0]);
                wanted = alone.tree();
            }
            let all: Vec<Child> = (0..runs).map(|_| start(&machine, &["apply"], SEED)).collect();
            let mut worked = 0;
            for run in all {
                let output = run.wait_with_output().unwrap();
                assert_eq!(output.status.code(), Some(0), "{runs} runs: {}", text(&output));
                worked += usize::from(!text(&output).contains("nothing to change"));
            }
            assert_eq!(worked, 1, "{runs} runs");
            assert_eq!(differences(&wanted, &machine.tree()), [""; 0], "{runs} runs");
            assert_eq!(machine.apply(SEED), "nothing to change\n");
        }
    }
}

#[test]
fn many_runs_that_want_different_things_end_with_what_one_of_them_wants() {
    let others = SEED.replace("5010", "5011");
    let ends: Vec<_> = [SEED, &others]
        .map(|profile| {
            let machine = Machine::debian();
            machine.apply(profile);
            machine.tree()
        })
        .into();
    let machine = Machine::debian();
    let all: Vec<Child> =
        (0..8).map(|n| start(&machine, &["apply"], if n % 2 == 0 { SEED } else { &others })).collect();
    for run in all {
        let output = run.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    }
    let tree = machine.tree();
    let left: Vec<_> = ends.iter().map(|end| differences(end, &tree)).collect();
    assert!(left.iter().any(Vec::is_empty), "wanted one of both, got {left:?}");
}

/// A run of `larder apply` that waits, once it has said for whom.
fn waiting(machine: &Machine) -> (Child, BufReader<std::process::ChildStderr>, String) {
    let mut run = start(machine, &["apply"], &SEED.replace("5000", "5001"));
    let mut said = BufReader::new(run.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    (run, said, line)
}

#[test]
fn who_waits_says_for_whom_and_goes_on_when_that_is_through() {
    let machine = Machine::debian();
    machine.apply(SEED);
    let held = Flock::lock(File::open(machine.path(STATE)).unwrap(), FlockArg::LockExclusive).unwrap();
    let (mut run, mut said, line) = waiting(&machine);
    assert!(line.starts_with("warning: waiting for two_runs"), "{line}");
    assert!(line.trim_end().ends_with(&format!("(pid {})", std::process::id())), "{line}");
    drop(held);
    assert_eq!(run.wait().unwrap().code(), Some(0));
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[test]
fn the_lock_of_a_process_that_died_is_free() {
    let machine = Machine::debian();
    machine.apply(SEED);
    let script = ["sh", "-c", "echo; exec sleep 1000"];
    let mut holder = Command::new("flock");
    let mut holder = holder.arg(machine.path(STATE)).args(script).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0];
    holder.stdout.take().unwrap().read_exact(&mut line).unwrap();
    let (mut run, _said, line) = waiting(&machine);
    assert!(line.starts_with("warning: waiting for "), "{line}");
    // The lock is its child's, too.
    let children = format!("/proc/{0}/task/{0}/children", holder.id());
    let child = std::fs::read_to_string(children).unwrap();
    for pid in [child.trim().parse().unwrap(), i32::try_from(holder.id()).unwrap()] {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    holder.wait().unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(0));
}

#[test]
fn who_is_told_to_end_while_it_waits_has_changed_nothing() {
    let machine = Machine::debian();
    machine.apply(SEED);
    let before = machine.stamps();
    let held = Flock::lock(File::open(machine.path(STATE)).unwrap(), FlockArg::LockExclusive).unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let (mut run, mut said, _) = waiting(&machine);
        kill(Pid::from_raw(i32::try_from(run.id()).unwrap()), signal).unwrap();
        assert_eq!(run.wait().unwrap().code(), Some(1), "{signal}");
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, format!("error: stopped by {signal}: nothing was changed\n"));
    }
    drop(held);
    assert_eq!(machine.stamps(), before);
}
