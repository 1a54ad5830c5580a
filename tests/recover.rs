//! A run that died is finished by the next one, or undone: by hand, or because no profile says any more what there
//! shall be.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

use support::{DEBIAN_CONTAINERD, Machine, SEED, differences, text};

const HOSTS: &str = "etc/containerd/certs.d/ghcr.io/hosts.toml";
const STATE: &str = "var/lib/larder/state";

/// Debian, with a file of somebody else's in the way.
fn machine() -> Machine {
    let machine = Machine::debian();
    machine.write(HOSTS, "# theirs\n");
    fs::set_permissions(machine.path(HOSTS), fs::Permissions::from_mode(0o640)).unwrap();
    touch(&machine.path(HOSTS));
    touch(&machine.path("etc/containerd/config.toml"));
    machine
}

/// Long ago, so that a file that is written anew shows.
fn touch(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789)).unwrap();
}

/// The machine, with times and names; what tells of the attempt, and the user, are left out.
fn whole(machine: &Machine) -> BTreeMap<String, String> {
    let mut tree = machine.tree();
    let made = ["var", "var/lib", "var/lib/larder"];
    tree.retain(|path, _| {
        let account = ["passwd", "group", "shadow"].iter().any(|name| path.contains(name));
        !made.contains(&path.as_str()) && !account && path != "etc/.pwd.lock"
    });
    for (path, line) in &mut tree {
        let meta = machine.path(path).symlink_metadata().unwrap();
        if !meta.is_dir() {
            line.push_str(&format!(" {}.{} {}", meta.mtime(), meta.mtime_nsec(), meta.nlink()));
        }
    }
    tree
}

/// `larder apply`, ended by SIGKILL when it makes its `count`th call of `syscall`; `None`: it makes no so many.
fn killed(machine: &Machine, profile: &str, syscall: &str, count: usize) -> Option<Output> {
    let file = machine.path("p.yaml");
    fs::write(&file, profile).unwrap();
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e"])
        .arg(format!("inject={syscall}:signal=SIGKILL:when={count}"))
        .arg("-e")
        .arg(format!("trace={syscall}"))
        .arg(env!("CARGO_BIN_EXE_larder"))
        .args(["apply", "--root"])
        .arg(machine.root())
        .arg("--profile")
        .arg(&file)
        .output()
        .unwrap();
    fs::remove_file(&file).unwrap();
    output.status.code().is_none().then_some(output)
}

fn recover(machine: &Machine) -> Output {
    machine.command(&["recover"]).output().unwrap()
}

/// Every so manieth of the calls that give a file its name.
const KILLS: [usize; 10] = [3, 4, 5, 6, 8, 11, 15, 20, 28, 40];

#[test]
fn a_dead_run_is_undone_by_hand_to_the_last_time_and_name() {
    let mut undone = 0;
    for count in KILLS {
        let machine = machine();
        let before = whole(&machine);
        if killed(&machine, SEED, "renameat", count).is_none() {
            continue;
        }
        let output = recover(&machine);
        assert_eq!(output.status.code(), Some(0), "rename {count}: {}", text(&output));
        assert_eq!(differences(&before, &whole(&machine)), [""; 0], "rename {count}: {}", text(&output));
        undone += usize::from(text(&output).contains("it is undone"));
        let again = recover(&machine);
        assert_eq!(again.status.code(), Some(0), "{}", text(&again));
        assert!(text(&again).contains("nothing to recover"), "{}", text(&again));
        assert!(!machine.has(&format!("{STATE}/undo")), "rename {count}");
        // Nothing has been forgotten of it: the next run is as good as a first one.
        machine.apply(SEED);
    }
    assert!(undone >= 5, "only {undone} of {} died with something to undo", KILLS.len());
}

#[test]
fn a_profile_that_is_refused_or_gone_undoes_what_it_cannot_finish() {
    for profile in ["version: 1\nupstreams: { nonsense", ""] {
        let machine = machine();
        let before = whole(&machine);
        assert!(killed(&machine, SEED, "renameat", 20).is_some());
        assert_ne!(differences(&before, &whole(&machine)), [""; 0], "it had begun");
        let output = if profile.is_empty() {
            machine.command(&["apply"]).output().unwrap()
        } else {
            machine.larder(&["apply"], profile)
        };
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        let said = text(&output);
        assert!(said.contains("a run of larder died before its end; it is undone"), "{said}");
        assert_eq!(differences(&before, &whole(&machine)), [""; 0]);
        let again = machine.larder(&["apply"], "version: 1\nupstreams: { nonsense");
        assert_eq!(again.status.code(), Some(2));
        assert!(!text(&again).contains("undone"), "{}", text(&again));
    }
}

#[test]
fn what_the_machine_itself_refuses_undoes_a_dead_run_too() {
    let machine = machine();
    let before = whole(&machine);
    assert!(killed(&machine, SEED, "renameat", 20).is_some());
    // Not a folder, as it would have to be.
    machine.write("dev/full", "");
    let refused =
        machine.larder(&["apply"], &SEED.replace("cache: {}", "cache: { storage: /dev/full/larder }"));
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    fs::remove_dir_all(machine.path("dev")).unwrap();
    assert_eq!(differences(&before, &whole(&machine)), [""; 0]);
}

#[test]
fn what_somebody_writes_after_a_run_died_is_kept_aside() {
    let machine = machine();
    assert!(killed(&machine, SEED, "renameat", 28).is_some());
    assert_ne!(machine.read(HOSTS), "# theirs\n");
    machine.write(HOSTS, "# by hand\n");
    let output = recover(&machine);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(machine.read(HOSTS), "# theirs\n");
    let kept = format!("{STATE}/kept/{HOSTS}.edited-by-hand");
    let kept = machine.stamps().into_keys().find(|path| path.starts_with(&kept)).unwrap();
    assert_eq!(machine.read(&kept), "# by hand\n");
    assert!(text(&output).contains(&kept), "{}", text(&output));
}

#[test]
fn what_cannot_be_undone_is_said_and_the_next_run_tries_again() {
    let machine = machine();
    let before = whole(&machine);
    assert!(killed(&machine, SEED, "renameat", 28).is_some());
    let config = machine.path("etc/containerd/config.toml");
    assert_ne!(fs::read_to_string(&config).unwrap(), DEBIAN_CONTAINERD);
    fs::remove_file(&config).unwrap();
    fs::create_dir_all(config.join("in the way")).unwrap();
    let output = recover(&machine);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains("by hand: mv -T ") && said.contains("&& cp -aT "), "{said}");
    let json = machine.command(&["recover", "--output", "json"]).output().unwrap();
    assert_eq!(json.status.code(), Some(3), "{}", text(&json));
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(value["left"].as_array().unwrap().len(), 1, "{value}");
    fs::remove_dir_all(&config).unwrap();
    let output = recover(&machine);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(differences(&before, &whole(&machine)), [""; 0]);
}

#[test]
fn a_store_that_has_something_in_it_stays_until_it_is_told_to_go() {
    let machine = machine();
    let before = whole(&machine);
    assert!(killed(&machine, SEED, "renameat", 28).is_some());
    machine.write("var/lib/larder/ghcr.io/docker/blob", "cached");
    let output = recover(&machine);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let store = machine.path("var/lib/larder/ghcr.io");
    let said = format!("stays, with what it has cached: {}\n", store.display());
    assert!(text(&output).contains(&said), "{}", text(&output));
    assert!(!machine.has("var/lib/larder/docker.io"), "nothing was in that one");
    let output = machine.command(&["remove", "--purge"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(differences(&before, &whole(&machine)), [""; 0]);
    assert!(!machine.has("var"));
}
