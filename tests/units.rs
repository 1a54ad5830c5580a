//! What the shipped units and the drop-ins run: this program, the packet filter's, and the engine's own. No shell.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::fs;
use std::path::{Path, PathBuf};

fn files() -> Vec<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["units", "templates"] {
        files.extend(fs::read_dir(here.join(folder)).unwrap().map(|entry| entry.unwrap().path()));
    }
    // And all that a rendered machine gets.
    fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => walk(&path, files),
                false if path.to_str().unwrap().contains("/expected/etc/systemd/") => files.push(path),
                false => {}
            }
        }
    }
    walk(&here.join("tests/cases"), &mut files);
    files.sort();
    files
}

/// The lines `Exec…=COMMAND`, without systemd's own prefixes.
fn commands(text: &str) -> Vec<&str> {
    let lines = text.lines().filter(|line| line.starts_with("Exec"));
    let commands = lines
        .filter_map(|line| Some(line.split_once('=')?.1.trim_start_matches(['-', '+', '!', '@', ':', '|'])));
    commands.filter(|command| !command.is_empty()).collect()
}

#[test]
fn no_unit_runs_a_shell() {
    let mut seen = 0;
    for path in files() {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for command in commands(&text) {
            seen += 1;
            let program = command.split(' ').next().unwrap();
            let name = program.rsplit('/').next().unwrap();
            let wanted = ["larder", "nft", "{{"];
            assert!(wanted.contains(&name), "{}: wanted one of {wanted:?}, got {command}", path.display());
        }
    }
    assert!(seen > 30, "{seen} commands: the files are gone");
}

#[test]
fn every_service_is_in_a_sandbox() {
    let services = files().into_iter().filter(|path| {
        path.parent().unwrap().ends_with("units") && path.extension().is_some_and(|end| end == "service")
    });
    let wanted = [
        "CapabilityBoundingSet=",
        "LockPersonality=yes",
        "NoNewPrivileges=yes",
        "PrivateDevices=yes",
        "ProtectKernelModules=yes",
        "RestrictAddressFamilies=",
        "RestrictNamespaces=yes",
        "SystemCallArchitectures=native",
        "SystemCallFilter=@system-service",
    ];
    for path in services {
        let text = fs::read_to_string(&path).unwrap();
        for line in wanted {
            assert!(text.lines().any(|got| got.starts_with(line)), "{}: wanted {line}", path.display());
        }
    }
}

/// What a drop-in for podman lifts is what the units close: a line that is added to the one belongs into the other.
#[test]
fn what_podman_lifts_is_what_the_units_close() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let keys = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| Some(line.split_once('=')?.0.to_owned())).collect()
    };
    let lifted = keys(&fs::read_to_string(here.join("templates/container.conf")).unwrap());
    // These bind nobody's hands.
    let harmless = ["SystemCallErrorNumber", "UMask"];
    for unit in ["larder-registry@.service", "larder-gc@.service"] {
        let text = fs::read_to_string(here.join("units").join(unit)).unwrap();
        let sandbox = text.split_once("# Sandbox").unwrap().1.split_once('\n').unwrap().1;
        let sandbox = sandbox.split_once("[Install]").map_or(sandbox, |(sandbox, _)| sandbox);
        for key in keys(sandbox) {
            assert!(
                lifted.contains(&key) || harmless.contains(&key.as_str()),
                "{unit}: {key} stays for podman"
            );
        }
    }
}
