//! What somebody changed by hand: shown with its time, healed, or kept for good.

#![allow(clippy::indexing_slicing, reason = "a test may")]
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Output;

use larder::drift::{self, What};
use larder::journal::Manifest;
use larder::plan::{Content, Plan, Resource};
use larder::root::Root;
use support::{Machine, SEED, differences, text};

const CONFIG: &str = "etc/larder/registry/ghcr.io.yml";
const HOSTS: &str = "etc/containerd/certs.d/ghcr.io/hosts.toml";
const TIMER: &str = "etc/systemd/system/timers.target.wants/larder-gc@ghcr.io.timer";

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn plan(machine: &Machine) -> String {
    let plan = machine.larder(&["plan"], SEED);
    assert_eq!(plan.status.code(), Some(10), "{}", text(&plan));
    said(&plan)
}

/// Wants `line` to be one of `text`'s, a time in it as `TIME`.
fn has_line(text: &str, wanted: &str) {
    let timeless = |line: &str| {
        let words: Vec<&str> = line.split_inclusive([' ', ':', ']']).collect();
        let mut out = String::new();
        let mut rest = words.concat();
        while let Some(at) = rest.find("20") {
            let (before, from) = rest.split_at(at);
            out.push_str(before);
            if from.len() >= 20 && from.as_bytes()[4] == b'-' && from.as_bytes()[19] == b'Z' {
                out.push_str("TIME");
                rest = from[20..].to_owned();
            } else {
                out.push_str("20");
                rest = from[2..].to_owned();
            }
        }
        out + &rest
    };
    assert!(text.lines().any(|line| timeless(line) == wanted), "wanted the line {wanted:?}, got\n{text}");
}

/// One change by hand, the line of `larder plan` that tells it, and its word for programs.
type Case = (&'static str, fn(&Machine), &'static str, &'static str);

const CASES: [Case; 9] = [
    (
        "contents",
        |machine| machine.write(CONFIG, "# mine\n"),
        "change etc/larder/registry/ghcr.io.yml  [edited by hand since TIME: kept aside]",
        "edited",
    ),
    (
        "deleted",
        |machine| fs::remove_file(machine.path(HOSTS)).unwrap(),
        "create etc/containerd/certs.d/ghcr.io/hosts.toml  [deleted by hand at TIME or before]",
        "gone",
    ),
    (
        "a folder with all in it",
        |machine| fs::remove_dir_all(machine.path("etc/larder/registry")).unwrap(),
        "create folder etc/larder/registry (0755 root)  [deleted by hand at TIME or before]",
        "gone",
    ),
    (
        "mode",
        |machine| fs::set_permissions(machine.path(CONFIG), fs::Permissions::from_mode(0o666)).unwrap(),
        "change mode of etc/larder/registry/ghcr.io.yml (0644 root)  [mode changed by hand since TIME, from 0644 root to \
         0666 root]",
        "access",
    ),
    (
        "owner",
        |machine| std::os::unix::fs::chown(machine.path(CONFIG), Some(77), Some(78)).unwrap(),
        "change mode of etc/larder/registry/ghcr.io.yml (0644 root)  [mode changed by hand since TIME, from 0644 root to \
         0644 77:78]",
        "access",
    ),
    (
        "owner of a store",
        |machine| std::os::unix::fs::chown(machine.path("var/lib/larder/ghcr.io"), Some(0), Some(0)).unwrap(),
        "change mode of var/lib/larder/ghcr.io (0750 larder)  [mode changed by hand since TIME, from 0750 larder to 0750 \
         root]",
        "access",
    ),
    (
        "a link",
        |machine| {
            fs::remove_file(machine.path(TIMER)).unwrap();
            symlink("/nowhere", machine.path(TIMER)).unwrap();
        },
        "change link etc/systemd/system/timers.target.wants/larder-gc@ghcr.io.timer -> \
         /etc/systemd/system/larder-gc@.timer  [link changed by hand since TIME, from \
         /etc/systemd/system/larder-gc@.timer to /nowhere: kept aside]",
        "link",
    ),
    (
        "a unit that somebody disabled",
        |machine| fs::remove_file(machine.path(TIMER)).unwrap(),
        "create link etc/systemd/system/timers.target.wants/larder-gc@ghcr.io.timer -> \
         /etc/systemd/system/larder-gc@.timer  [deleted by hand at TIME or before]",
        "gone",
    ),
    (
        "a link in a file's place",
        |machine| {
            fs::rename(machine.path(CONFIG), machine.path("etc/mine.yml")).unwrap();
            symlink("/etc/mine.yml", machine.path(CONFIG)).unwrap();
        },
        "change etc/larder/registry/ghcr.io.yml  [replaced by a link to /etc/mine.yml by hand since TIME: kept aside]",
        "replaced",
    ),
];

#[test]
fn whatever_was_changed_by_hand_is_shown_with_its_time_and_healed() {
    for (what, change, line, word) in CASES {
        let machine = Machine::debian();
        machine.apply(SEED);
        let right = machine.tree();
        change(&machine);
        has_line(&plan(&machine), line);
        let root = Root::open(machine.root()).unwrap();
        let found = drift::read(&root, &Manifest::read(&root).unwrap()).unwrap();
        assert!(found.iter().any(|one| one.what.word() == word), "{what}: wanted {word}, got {found:?}");
        assert!(
            found.iter().all(|one| one.since.is_some_and(|at| at.0 > 1_000_000_000)),
            "{what}: {found:?}"
        );

        machine.apply(SEED);
        let mut healed = machine.tree();
        healed.remove("etc/mine.yml");
        assert_eq!(differences(&right, &healed), [""; 0], "{what}");
        let found = drift::read(&root, &Manifest::read(&root).unwrap()).unwrap();
        assert_eq!(found, [], "{what}");
    }
}

#[test]
fn nothing_is_drift_that_nobody_touched() {
    let machine = Machine::debian();
    for profile in [SEED, "version: 1\nupstreams: { a.io: { port: 5000 } }\ncache: {}\n", SEED] {
        machine.apply(profile);
        let root = Root::open(machine.root()).unwrap();
        assert_eq!(drift::read(&root, &Manifest::read(&root).unwrap()).unwrap(), []);
    }
}

#[test]
fn somebody_elses_file_that_others_changed_since_is_told_as_that() {
    let machine = Machine::debian();
    machine.apply(SEED);
    let config = "etc/containerd/config.toml";
    let ours = machine.read(config);
    machine.write(config, ours.replace("config_path", "config_path_off"));
    has_line(&plan(&machine), "change etc/containerd/config.toml  [changed by others since TIME]");
    let root = Root::open(machine.root()).unwrap();
    let found = drift::read(&root, &Manifest::read(&root).unwrap()).unwrap();
    assert_eq!(found.iter().map(|one| &one.what).collect::<Vec<_>>(), [&What::Others], "{found:?}");
    // A setting of theirs that is none of ours is no work, and told all the same.
    machine.write(config, format!("{ours}# theirs\n"));
    let found = drift::read(&root, &Manifest::read(&root).unwrap()).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn the_diff_is_from_what_was_written_to_what_is_there() {
    let machine = Machine::debian();
    machine.write("etc/larder/profile.yaml", SEED);
    machine.apply(SEED);
    let ours = machine.read(CONFIG);
    machine.write(CONFIG, ours.replace(":5010", ":5011"));
    let json = machine.larder(&["plan", "--output", "json"], SEED);
    let json: serde_json::Value = serde_json::from_str(&said(&json)).unwrap();
    let row = &json["changes"][0];
    assert_eq!(row["drift"]["what"], "edited", "{json:#}");
    assert_eq!(row["stranger"], "edited-by-hand");

    let root = Root::open(machine.root()).unwrap();
    let manifest = Manifest::read(&root).unwrap();
    let with = |bytes: &str, content: Content| {
        let mut plan = Plan::default();
        let file = Resource::File { bytes: bytes.as_bytes().to_vec(), mode: 0o644, content };
        plan.resources.insert(CONFIG.to_owned(), file);
        let mut found = drift::read(&root, &manifest).unwrap();
        drift::explain(&mut found, &root, &manifest, &plan).unwrap();
        found.remove(0)
    };
    let known = with(&ours, Content::Ours).diff.unwrap();
    assert!(known.contains("\n-  addr: \"10.0.20.10:5010\"\n+  addr: \"10.0.20.10:5011\"\n"), "{known}");
    let other = with("another profile's", Content::Ours);
    assert!(other.diff.is_none() && other.note.unwrap().contains("not known any more"));
    let secret = with(&ours, Content::Secret);
    assert!(secret.diff.is_none() && secret.note.unwrap().contains("a secret"));
    assert!(row["diff"].as_str().unwrap().contains("+  addr: \"10.0.20.10:5010\""), "{json:#}");
}

#[test]
fn the_newest_edits_of_a_file_are_kept_and_no_more() {
    let machine = Machine::debian();
    machine.apply(SEED);
    let folder = machine.path("var/lib/larder/state/kept/etc/larder/registry");
    fs::create_dir_all(&folder).unwrap();
    for n in 0..12 {
        let name = format!("ghcr.io.yml.edited-by-hand.2020-01-01T00-00-{n:02}Z");
        fs::write(folder.join(name), format!("# {n}\n")).unwrap();
    }
    machine.write(CONFIG, "# mine\n");
    let told = machine.apply(SEED);
    let mut names: Vec<String> =
        fs::read_dir(&folder).unwrap().map(|one| one.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names.len(), 8, "{names:?}");
    assert_eq!(fs::read_to_string(folder.join(&names[7])).unwrap(), "# mine\n");
    assert!(names[0].ends_with("05Z"), "{names:?}");
    assert!(told.contains(&names[7]), "{told}");
    // The same edit again needs no second copy.
    machine.write(CONFIG, "# mine\n");
    machine.apply(SEED);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 8);
}

#[test]
fn what_is_kept_is_left_alone_until_it_is_taken_back() {
    let machine = Machine::debian();
    machine.apply(SEED);
    let right = machine.tree();
    let ours = machine.read(CONFIG);
    let mine = ours.replace(":5010", ":5011");
    machine.write(CONFIG, &mine);

    let preview = machine.larder(&["plan", "--keep", &format!("/{CONFIG}")], SEED);
    assert_eq!(preview.status.code(), Some(0), "{}", text(&preview));
    let told = machine.converge(&["apply", "--keep", &format!("/{CONFIG}")], SEED);
    assert_eq!(machine.read(CONFIG), mine);
    assert!(told.contains("nothing to change"), "{told}");
    assert!(
        told.contains("left alone: ")
            && told.contains("listens on 10.0.20.10:5011, and all else looks for it on 10.0.20.10:5010"),
        "{told}"
    );

    // For good: neither a boot's run, nor one that changes others of its kind.
    machine.apply(SEED);
    machine.apply(&SEED.replace("docker.io: { port: 5000 }", "docker.io: { port: 5001 }"));
    machine.apply("version: 1\nupstreams: { a.io: { port: 5000 } }\ncache: {}\n");
    assert_eq!(machine.read(CONFIG), mine, "also once the profile no longer has it");
    machine.apply(SEED);
    assert_eq!(machine.read(CONFIG), mine);
    let plan = machine.larder(&["plan"], SEED);
    assert_eq!(plan.status.code(), Some(0), "{}", text(&plan));
    assert!(said(&plan).contains("left alone: "), "{}", text(&plan));

    let told = machine.converge(&["apply", "--take", CONFIG], SEED);
    assert!(told.contains("edited-by-hand"), "{told}");
    let mut tree = machine.tree();
    tree.retain(|path, _| path != "var/lib/larder/a.io");
    assert_eq!(differences(&right, &tree), [""; 0]);
    assert_eq!(machine.apply(SEED), "nothing to change\n");
}

#[test]
fn whatever_was_changed_by_hand_can_be_kept() {
    for (what, change, line, _) in CASES {
        let path =
            line.split_once("etc/").map(|(_, rest)| format!("etc/{}", rest.split(' ').next().unwrap()));
        let Some(path) = path.filter(|path| path != "etc/larder/registry") else { continue };
        if what == "owner of a store" {
            continue;
        }
        let machine = Machine::debian();
        machine.apply(SEED);
        change(&machine);
        let before = machine.tree();
        machine.converge(&["apply", "--keep", &path], SEED);
        machine.apply(SEED);
        assert_eq!(differences(&before, &machine.tree()), [""; 0], "{what}");
    }
}

#[test]
fn a_file_of_the_operators_can_be_kept_before_the_first_run() {
    let machine = Machine::debian();
    machine.write(CONFIG, "# mine from the start\n");
    machine.converge(&["apply", "--keep", CONFIG], SEED);
    assert_eq!(machine.read(CONFIG), "# mine from the start\n");
    machine.apply(SEED);
    assert_eq!(machine.read(CONFIG), "# mine from the start\n");
}

#[test]
fn what_is_none_of_larders_cannot_be_kept_nor_taken() {
    let machine = Machine::debian();
    machine.apply(SEED);
    let before = machine.stamps();
    for (given, wanted) in [
        (["--keep", "etc/larder/registry/ghcr.io.yaml"], "no file of larder's; near it are"),
        (["--keep", "etc/passwd"], "no file of larder's"),
        (["--keep", "../../etc/passwd"], "wanted an absolute path without `..`"),
        (["--keep", "etc/larder/registry"], "a folder: name the files in it"),
        (["--take", CONFIG], "it is not left alone; what is: nothing"),
    ] {
        let output = machine.larder(&[&["apply"], &given[..]].concat(), SEED);
        assert_eq!(output.status.code(), Some(2), "{given:?}: {}", text(&output));
        assert!(text(&output).contains(wanted), "{given:?}: wanted {wanted:?}, got {}", text(&output));
    }
    assert_eq!(machine.stamps(), before);
    let both = machine.larder(&["apply", "--keep", CONFIG, "--take", CONFIG], SEED);
    assert_eq!(both.status.code(), Some(2), "{}", text(&both));
}

#[test]
fn nothing_is_woken_for_what_is_kept() {
    let machine = Machine::debian();
    machine.apply(SEED);
    fs::remove_file(machine.path(TIMER)).unwrap();
    machine.converge(&["apply", "--keep", &format!("/{TIMER}")], SEED);
    assert!(!machine.has(TIMER));
    let root = Root::open(machine.root()).unwrap();
    let manifest = Manifest::read(&root).unwrap();
    assert_eq!(drift::left_alone(&manifest).collect::<Vec<_>>(), [TIMER]);
    assert_eq!(drift::read(&root, &manifest).unwrap(), []);
    assert!(Path::new(machine.root()).exists());
}
