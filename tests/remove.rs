//! `larder remove`: what goes, what stays, and what is said of it. That all comes back to the byte is shown by
//! `machine_states`.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod support;

use std::fs;
use std::process::Output;

use support::{DEBIAN_CONTAINERD, Machine, SEED, differences, text};

const NOTHING: &str = "nothing of larder's is here\n";
const CONFIG: &str = "etc/containerd/config.toml";
const STATE: &str = "var/lib/larder/state";

fn remove(machine: &Machine, arguments: &[&str]) -> Output {
    let mut command = vec!["remove"];
    command.extend(arguments);
    machine.command(&command).output().unwrap()
}

/// Wants exit code 0, and returns what it said.
fn removed(machine: &Machine, arguments: &[&str]) -> String {
    let output = remove(machine, arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn stores_stay_with_their_user_and_are_taken_up_again() {
    let machine = Machine::debian();
    let before = machine.tree();
    machine.apply(SEED);
    machine.write("var/lib/larder/ghcr.io/docker/blob", "cached");
    let applied = machine.tree();
    let said = removed(&machine, &[]);
    assert!(said.contains(&format!("stays: {}", machine.path("var/lib/larder/ghcr.io").display())), "{said}");
    let left: Vec<_> = differences(&before, &machine.tree())
        .into_iter()
        .map(|line| line.split(": wanted").next().unwrap().to_owned())
        .filter(|path| !path.starts_with("etc/"))
        .collect();
    assert_eq!(
        left,
        [
            "var",
            "var/lib",
            "var/lib/larder",
            "var/lib/larder/docker.io",
            "var/lib/larder/ghcr.io",
            "var/lib/larder/ghcr.io/docker",
            "var/lib/larder/ghcr.io/docker/blob"
        ]
    );
    assert!(machine.read("etc/passwd").contains("larder:"), "the stores are somebody's");
    assert_eq!(removed(&machine, &[]), NOTHING);

    machine.apply(SEED);
    assert_eq!(differences(&applied, &machine.tree()), [""; 0]);
    assert_eq!(machine.read("var/lib/larder/ghcr.io/docker/blob"), "cached");
    removed(&machine, &[]);
    removed(&machine, &["--purge"]);
    assert!(!machine.has("var") && !machine.read("etc/passwd").contains("larder:"));
    assert_eq!(removed(&machine, &["--purge"]), NOTHING);
}

#[test]
fn a_machine_that_larder_was_never_on_is_not_touched() {
    let machine = Machine::debian();
    let before = machine.stamps();
    for arguments in [&[][..], &["--purge"], &["--dry-run"], &["--output", "json"]] {
        let output = remove(&machine, arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    }
    assert_eq!(machine.stamps(), before);
}

#[test]
fn a_dry_run_shows_what_goes_and_touches_nothing() {
    let machine = Machine::debian();
    machine.apply(SEED);
    let before = machine.stamps();
    let output = remove(&machine, &["--dry-run"]);
    assert_eq!(output.status.code(), Some(10), "{}", text(&output));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("give back etc/containerd/config.toml\n"), "{said}");
    assert!(said.contains("remove etc/systemd/network/05-larder-eth0.network\n"), "{said}");
    assert!(!said.contains("remove var/lib/larder/ghcr.io\n"), "{said}");
    let output = remove(&machine, &["--dry-run", "--purge", "--output", "json"]);
    assert_eq!(output.status.code(), Some(10));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let changes = value["changes"].as_array().unwrap();
    assert!(changes.iter().any(|row| row["path"] == "var/lib/larder/ghcr.io"), "{value}");
    assert_eq!(machine.stamps(), before);
}

#[test]
fn what_was_edited_by_hand_is_kept_aside_and_told() {
    let machine = Machine::debian();
    machine.apply(SEED);
    machine.write("etc/containerd/certs.d/ghcr.io/hosts.toml", "# by hand\n");
    let edited = format!("{}\n[debug]\n  level = \"debug\"\n", machine.read(CONFIG));
    machine.write(CONFIG, &edited);
    let said = removed(&machine, &["--purge"]);
    let kept = format!("{STATE}/kept/etc/containerd/certs.d/ghcr.io/hosts.toml.edited-by-hand");
    let kept = machine.stamps().into_keys().find(|path| path.starts_with(&kept)).unwrap();
    assert!(said.contains(&format!("kept aside: {}", machine.path(&kept).display())), "{said}");
    assert_eq!(machine.read(&kept), "# by hand\n");
    assert!(!machine.has("etc/containerd/certs.d"));
    // What others have written into a file of others is theirs, and so is the file.
    assert_eq!(machine.read(CONFIG), edited);
    assert!(said.contains(&format!("left: {}", machine.path(CONFIG).display())), "{said}");
    assert_eq!(machine.read(&format!("{STATE}/kept/{CONFIG}")), DEBIAN_CONTAINERD);
    assert_eq!(removed(&machine, &["--purge"]), NOTHING);
}

#[test]
fn what_others_put_into_a_folder_of_ours_stays_there() {
    let machine = Machine::debian();
    machine.apply(SEED);
    machine.write("etc/systemd/system/larder-gc@ghcr.io.timer.d/90-theirs.conf", "[Timer]\n");
    machine.write("etc/larder/profile.yaml", SEED);
    removed(&machine, &["--purge"]);
    assert!(machine.has("etc/systemd/system/larder-gc@ghcr.io.timer.d/90-theirs.conf"));
    assert_eq!(machine.read("etc/larder/profile.yaml"), SEED);
    let ours: Vec<_> = machine.tree().into_keys().filter(|path| path.contains("larder")).collect();
    assert_eq!(
        ours,
        [
            "etc/larder",
            "etc/larder/profile.yaml",
            "etc/systemd/system/larder-gc@ghcr.io.timer.d",
            "etc/systemd/system/larder-gc@ghcr.io.timer.d/90-theirs.conf"
        ]
    );
}

#[test]
fn units_that_a_package_has_enabled_are_disabled() {
    let machine = Machine::debian();
    for unit in fs::read_dir("units").unwrap() {
        let name = unit.unwrap().file_name();
        machine.write(&format!("usr/lib/systemd/system/{}", name.to_str().unwrap()), "");
    }
    let enabled = "etc/systemd/system/multi-user.target.wants/larder.service";
    machine.link(enabled, "/usr/lib/systemd/system/larder.service");
    machine.apply(SEED);
    removed(&machine, &[]);
    assert!(!machine.has(enabled), "the next boot would bring all back");
    assert!(machine.has("usr/lib/systemd/system/larder.service"), "that is the package's");
}

#[test]
fn the_account_files_of_others_changes_lose_the_users_lines_alone() {
    let machine = Machine::debian();
    machine.apply(SEED);
    for (file, line) in [("etc/passwd", "new:x:1000:1000::/:/bin/sh\n"), ("etc/group", "new:x:1000:larder\n")]
    {
        machine.write(file, format!("{}{line}", machine.read(file)));
    }
    removed(&machine, &["--purge"]);
    assert_eq!(machine.read("etc/passwd"), "root:x:0:0:root:/root:/bin/bash\nnew:x:1000:1000::/:/bin/sh\n");
    assert_eq!(machine.read("etc/group"), "root:x:0:\nnew:x:1000:larder\n");
}

#[test]
fn a_user_that_was_there_before_us_stays() {
    let machine = Machine::debian();
    let passwd = format!("{}larder:x:998:998::/:/bin/false\n", machine.read("etc/passwd"));
    machine.write("etc/passwd", &passwd);
    machine.apply(SEED);
    removed(&machine, &["--purge"]);
    assert_eq!(machine.read("etc/passwd"), passwd);
}

#[test]
fn what_programs_of_ours_write_beside_the_profile_goes_too() {
    let machine = Machine::debian();
    for folder in ["srv/metrics", "run/larder/watch", "var/lib/systemd/timers"] {
        fs::create_dir_all(machine.path(folder)).unwrap();
    }
    machine.apply(&SEED.replace("cache: {}", "cache: { metrics: { textfile: /srv/metrics } }"));
    let ours = [
        "srv/metrics/larder.prom",
        "run/larder/status.json",
        "run/larder/watch/state.json",
        "var/lib/systemd/timers/stamp-larder-gc@ghcr.io.timer",
    ];
    let theirs = ["srv/metrics/other.prom", "var/lib/systemd/timers/stamp-apt-daily.timer"];
    ours.iter().chain(&theirs).for_each(|path| machine.write(path, "x"));
    removed(&machine, &[]);
    assert_eq!(ours.map(|path| machine.has(path)), [false; 4]);
    assert_eq!(theirs.map(|path| machine.has(path)), [true; 2]);
    assert!(!machine.has("run/larder"));
}
