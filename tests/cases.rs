//! `tests/cases/NN-name/`: a profile, a root that you can ls, what `larder plan` says of them, and the root as
//! `larder apply` leaves it. `UPDATE=1 cargo test --test cases` writes the expectations anew: read the diff.
//!
//! A case holds `profile.yaml` and `root/`; `programs` lists programs that the machine has, each with the Go
//! package that its build information names, the version where that is known, and after `+` the
//! storage drivers that a registry was built with. `plan.txt` is the plan, with the exit code in its last line.
//! `tree.txt` lists the root after `apply`, and `expected/` holds what it wrote. A case whose plan is refused
//! has `stderr.txt` in their place.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use support::{Machine, text};

fn cases() -> Vec<PathBuf> {
    let mut cases: Vec<_> = fs::read_dir("tests/cases")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|case| case.join("root").is_dir() || case.join("programs").is_file())
        .collect();
    cases.sort();
    cases
}

fn machine(case: &Path) -> Machine {
    let machine = Machine::bare();
    let root = case.join("root");
    if root.is_dir() {
        let from = format!("{}/.", root.display());
        let copied =
            std::process::Command::new("cp").args(["-a", &from]).arg(machine.root()).status().unwrap();
        assert!(copied.success(), "copy {from}");
    }
    // Owners and modes do not come through version control.
    let chown = std::process::Command::new("chown").args(["-R", "0:0"]).arg(machine.root()).status().unwrap();
    assert!(chown.success(), "these tests make root's files: run them as root");
    let programs = fs::read_to_string(case.join("programs")).unwrap_or_default();
    for line in programs.lines() {
        let (path, package) = line.split_once(' ').unwrap();
        machine.program(path, package);
    }
    machine
}

fn run(machine: &Machine, command: &str, case: &Path) -> Output {
    machine.command(&[command]).arg("--profile").arg(case.join("profile.yaml")).output().unwrap()
}

/// Temporary folders and this machine's ids have no place in an expectation.
fn clean(machine: &Machine, text: &str) -> String {
    text.replace(&format!("{}/", machine.root().display()), "ROOT/")
}

fn shown(machine: &Machine, case: &Path, output: &Output, what: &[u8]) -> String {
    let text = clean(machine, std::str::from_utf8(what).unwrap());
    let text = text.replace(&format!("{}/", case.display()), "");
    format!("{text}exit {}\n", output.status.code().unwrap())
}

fn compare(path: &Path, got: &str, failures: &mut Vec<String>) {
    if std::env::var_os("UPDATE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, got).unwrap();
        return;
    }
    let wanted = fs::read_to_string(path).unwrap_or_default();
    if wanted != got {
        let diff = similar::TextDiff::from_lines(wanted.as_str(), got);
        failures.push(format!("{}:\n{}", path.display(), diff.unified_diff().header("wanted", "got")));
    }
}

/// The listing names the registries' user instead of its id.
fn listing(tree: &BTreeMap<String, String>, passwd: &str) -> String {
    let ids = passwd.lines().find_map(|line| {
        let mut fields = line.strip_prefix("larder:x:")?.split(':');
        Some(format!("{}:{}", fields.next()?, fields.next()?))
    });
    let mut text = String::new();
    for (path, line) in tree {
        let mut words = line.splitn(4, ' ');
        let (kind, second, owner) =
            (words.next().unwrap(), words.next().unwrap_or(""), words.next().unwrap_or(""));
        if kind == "link" {
            text.push_str(&format!("link {path} -> {second}\n"));
        } else {
            let owner = if Some(owner) == ids.as_deref() { "larder" } else { &owner.replace("0:0", "root") };
            text.push_str(&format!("{kind} {second} {owner} {path}\n"));
        }
    }
    text
}

fn check(case: &Path, failures: &mut Vec<String>) {
    let machine = machine(case);
    let before = machine.tree();
    let plan = run(&machine, "plan", case);
    if plan.status.code() == Some(2) {
        assert_eq!(machine.tree(), before, "{}: a refused plan touches nothing", case.display());
        compare(&case.join("stderr.txt"), &shown(&machine, case, &plan, &plan.stderr), failures);
        let apply = run(&machine, "apply", case);
        assert_eq!(apply.status.code(), Some(2), "{}: {}", case.display(), text(&apply));
        assert_eq!(machine.tree(), before, "{}: a refused apply touches nothing", case.display());
        assert!(!machine.has("var/lib/larder"), "{}: a refused apply touches nothing", case.display());
        return;
    }
    compare(&case.join("plan.txt"), &shown(&machine, case, &plan, &plan.stdout), failures);
    let apply = run(&machine, "apply", case);
    assert_eq!(apply.status.code(), Some(0), "{}: {}", case.display(), text(&apply));
    let mut after = machine.tree();
    let passwd = machine.read("etc/passwd");
    // Account files hold the day's date; their tools are not ours.
    after.retain(|path, line| {
        before.get(path) != Some(line)
            && !path.starts_with("etc/passwd")
            && !path.starts_with("etc/shadow")
            && !path.starts_with("etc/group")
            && !path.starts_with("etc/gshadow")
            && path != "etc/.pwd.lock"
    });
    compare(&case.join("tree.txt"), &listing(&after, &passwd), failures);
    // The static units are the same everywhere: units/ is their expectation.
    for path in after.keys().filter(|path| machine.path(path).is_file() && !machine.path(path).is_symlink()) {
        let name = path.rsplit('/').next().unwrap();
        let unit = Path::new("units").join(name);
        if path.starts_with("etc/systemd/system/") && unit.exists() {
            assert_eq!(machine.read(path), fs::read_to_string(unit).unwrap());
        } else {
            compare(&case.join("expected").join(path), &machine.read(path), failures);
        }
    }
    let again = run(&machine, "apply", case);
    assert!(again.stdout.starts_with(b"nothing to change\n"), "{}: {}", case.display(), text(&again));
}

#[test]
fn every_case() {
    let mut failures = Vec::new();
    let cases = cases();
    assert!(!cases.is_empty(), "no case found");
    for case in &cases {
        check(case, &mut failures);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    println!("{} cases", cases.len());
}
