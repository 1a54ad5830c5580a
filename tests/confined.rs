//! Nothing outside of `--root` is ever touched: not through links that are there, not through links that come while
//! larder runs, not through names that somebody else made.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use support::{Machine, SEED, text};

/// A folder outside, with a file that nobody may touch, in the shape of what larder writes.
struct Outside {
    dir: tempfile::TempDir,
}

const SENTINEL: &str = "not larder's\n";
/// What larder writes in one or the other of these.
const FOLDERS: [&str; 6] = [
    "etc/larder",
    "etc/larder/registry",
    "etc/containerd",
    "etc/systemd/system",
    "var/lib/larder",
    "etc/systemd",
];

impl Outside {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in FOLDERS.map(|folder| folder.rsplit('/').next().unwrap()) {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let file = dir.path().join("sentinel");
        fs::write(&file, SENTINEL).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o604)).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Every path with its mode, its owner and its contents.
    fn state(&self) -> Vec<String> {
        fn walk(dir: &Path, out: &mut Vec<String>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let meta = fs::symlink_metadata(&path).unwrap();
                let bytes = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
                out.push(format!(
                    "{} {:o} {}:{} {bytes:?}",
                    path.display(),
                    meta.mode(),
                    meta.uid(),
                    meta.gid()
                ));
                if meta.is_dir() {
                    walk(&path, out);
                }
            }
        }
        let mut out = Vec::new();
        walk(self.dir.path(), &mut out);
        out.sort();
        out
    }
}

fn apply(machine: &Machine) -> Output {
    machine.larder(&["apply"], SEED)
}

#[test]
fn links_in_the_root_lead_nowhere_else() {
    for (n, folder) in FOLDERS.iter().enumerate() {
        let outside = Outside::new();
        let machine = Machine::debian();
        let _ = fs::remove_dir_all(machine.path(folder));
        fs::create_dir_all(machine.path(folder).parent().unwrap()).unwrap();
        let name = folder.rsplit('/').next().unwrap();
        // Absolute, and up beyond the root.
        let target = match n % 2 {
            0 => outside.path(name),
            _ => Path::new("../../../../../../../../").join(outside.path(name).strip_prefix("/").unwrap()),
        };
        symlink(target, machine.path(folder)).unwrap();
        let before = outside.state();
        let output = apply(&machine);
        assert_eq!(outside.state(), before, "{folder}: {}", text(&output));
    }
}

#[test]
fn files_that_somebody_planted_are_replaced_not_written_through() {
    // Where everything goes, from a machine that nobody has touched.
    let plain = Machine::debian();
    let first = plain.tree();
    assert!(apply(&plain).status.success());
    let written: Vec<String> = plain
        .tree()
        .into_keys()
        .filter(|path| {
            !first.contains_key(path) && plain.path(path).is_file() && !plain.path(path).is_symlink()
        })
        .filter(|path| {
            !path.starts_with("var/lib/larder/state/")
                && !path.starts_with("etc/passwd")
                && !path.ends_with(".lock")
        })
        .filter(|path| !["etc/group-", "etc/shadow-", "etc/gshadow", "etc/gshadow-"].contains(&path.as_str()))
        .collect();
    assert!(written.len() > 20, "{written:?}");
    for hard in [false, true] {
        let outside = Outside::new();
        let machine = Machine::debian();
        for path in &written {
            fs::create_dir_all(machine.path(path).parent().unwrap()).unwrap();
            match hard {
                true => fs::hard_link(outside.path("sentinel"), machine.path(path)).unwrap(),
                false => symlink(outside.path("sentinel"), machine.path(path)).unwrap(),
            }
            // A temporary file's name, guessed.
            let folder = machine.path(path).parent().unwrap().to_owned();
            let _ = symlink(outside.path("sentinel"), folder.join(".larder-new.0000000000000000"));
        }
        let before = outside.state();
        let output = apply(&machine);
        assert_eq!(outside.state(), before, "hard: {hard}: {}", text(&output));
        if output.status.success() {
            let through =
                written.iter().find(|path| machine.path(path).is_symlink() || machine.read(path) == SENTINEL);
            assert_eq!(through, None, "hard: {hard}");
        }
    }
}

#[test]
fn a_root_that_changes_underneath_is_not_left() {
    let outside = Outside::new();
    let machine = Machine::debian();
    assert!(apply(&machine).status.success());
    let before = outside.state();
    // Beside each folder a link that takes its place, again and again.
    let pairs: Vec<(PathBuf, PathBuf)> = FOLDERS
        .iter()
        .map(|folder| {
            let link = machine.path(&format!("{folder}-link"));
            symlink(outside.path(folder.rsplit('/').next().unwrap()), &link).unwrap();
            (machine.path(folder), link)
        })
        .collect();
    let (stop, swaps) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut runs = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for (folder, link) in &pairs {
                    let _ = renameat2(AT_FDCWD, folder, AT_FDCWD, link, RenameFlags::RENAME_EXCHANGE);
                    swaps.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        });
        let started = Instant::now();
        // Each run has everything to do, or something to repair.
        while runs < 30 && started.elapsed() < Duration::from_secs(20) {
            let profile = SEED.replace("5010", &(5010 + runs).to_string());
            let output = machine.larder(&["apply"], &profile);
            assert!(output.status.code().is_some(), "{}", text(&output));
            runs += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(outside.state(), before, "after {runs} runs");
    println!("{runs} runs, {} swaps", swaps.load(Ordering::Relaxed));
}

/// The process itself never opens a path of the tree but by the root that it holds: what strace sees proves it, where
/// there is one.
#[test]
fn no_system_call_names_a_path_of_the_tree() {
    let Ok(strace) = Command::new("strace").arg("-V").output() else {
        use std::io::Write;
        std::io::stderr().write_all(b"NOT RUN: no strace here\n").unwrap();
        return;
    };
    assert!(strace.status.success());
    let machine = Machine::debian();
    machine.write("profile.yaml", SEED);
    let log = machine.path("strace.log");
    let larder = env!("CARGO_BIN_EXE_larder");
    // The process itself: those that it starts have --root of their own.
    let output = Command::new("strace")
        .args(["-qq", "-e", "trace=%file", "-o"])
        .arg(&log)
        .arg(larder)
        .args(["apply", "--root"])
        .arg(machine.root())
        .arg("--profile")
        .arg(machine.path("profile.yaml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let root = machine.root().to_str().unwrap();
    let named: Vec<String> = fs::read_to_string(&log)
        .unwrap()
        .lines()
        .filter(|line| line.contains(&format!("\"{root}/")) && !line.contains("profile.yaml"))
        .filter(|line| !line.starts_with("execve"))
        .map(str::to_owned)
        .collect();
    assert_eq!(named, Vec::<String>::new());
}

#[test]
fn a_tree_is_removed_without_following_and_to_a_depth() {
    let outside = Outside::new();
    let dir = tempfile::tempdir().unwrap();
    let root = larder::root::Root::open(dir.path()).unwrap();
    let before = outside.state();
    fs::create_dir_all(dir.path().join("tree/a/b")).unwrap();
    symlink(outside.path("larder"), dir.path().join("tree/a/link")).unwrap();
    root.remove_tree("tree").unwrap();
    assert!(!dir.path().join("tree").exists());
    assert_eq!(outside.state(), before);
    // As deep as another user can make it: told, not followed until the stack ends.
    let deep = dir.path().join("deep").join("a/".repeat(400));
    fs::create_dir_all(&deep).unwrap();
    let error = root.remove_tree("deep").expect_err("too deep");
    assert!(format!("{error:#}").contains("remove"), "{error:#}");
}
