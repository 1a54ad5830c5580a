//! What Larder renders, read by the programs that it is for.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[path = "support/registry.rs"]
mod real;
use real::registry;

/// Every file below the cases' expectations that `wanted` likes.
fn expected(wanted: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    fn walk(dir: &Path, wanted: &dyn Fn(&Path) -> bool, found: &mut Vec<PathBuf>) {
        let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                walk(&path, wanted, found);
            } else if path.components().any(|part| part.as_os_str() == "expected") && wanted(&path) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new("tests/cases"), wanted, &mut found);
    assert!(!found.is_empty(), "the cases have no such file");
    found
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
}

/// Past the test harness, which shows what a passing test prints to nobody.
fn not_run(why: std::fmt::Arguments) {
    use std::io::Write;
    std::io::stderr().write_all(format!("NOT RUN: {why}\n").as_bytes()).unwrap();
}

/// Which storage driver a configuration names.
fn driver(config: &Path) -> &'static str {
    let text = fs::read_to_string(config).unwrap();
    ["filesystem", "s3", "azure", "gcs"].iter().find(|d| text.contains(&format!("\n  {d}:\n"))).unwrap()
}

/// What systemd would make of the environment file beside a configuration: single quotes keep all else.
fn secrets(config: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(config.with_extension("env")).unwrap_or_default();
    let line = |line: &str| {
        let (name, value) = line.split_once("='")?;
        Some((name.to_owned(), value.strip_suffix('\'')?.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

/// The offline check: without a remote and on a port of the kernel's choice, a good config listens.
fn listens(registry: &Path, config: &Path, secrets: &[(String, String)]) -> Result<(), String> {
    let store = tempfile::tempdir().unwrap();
    let mut command = Command::new(registry);
    command
        .arg("serve")
        .arg(config)
        .env_clear()
        .envs(secrets.iter().map(|(name, value)| (name, value)))
        .env("OTEL_TRACES_EXPORTER", "none")
        .env("REGISTRY_PROXY_REMOTEURL", "")
        .env("REGISTRY_HTTP_ADDR", "127.0.0.1:0")
        .env("REGISTRY_HTTP_DEBUG_ADDR", "127.0.0.1:0")
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if fs::read_to_string(config).unwrap().contains("\n  tls:") {
        // Where systemd would have put them.
        let ssl = Path::new("tests/cases/240-face/root/etc/ssl");
        command.env("REGISTRY_HTTP_TLS_CERTIFICATE", ssl.join("cache.pem"));
        command.env("REGISTRY_HTTP_TLS_KEY", ssl.join("private/cache.key"));
    }
    // One storage type at most: this would be another one.
    if fs::read_to_string(config).unwrap().contains("filesystem:") {
        command.env("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", store.path());
    }
    let mut child = command.spawn().unwrap();
    // Ends when it listens, or when the registry gives up and closes the pipe.
    let mut said = String::new();
    let listening = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok).any(|line| {
        said.push_str(&line);
        said.push('\n');
        line.contains("listening on")
    });
    child.kill().unwrap();
    child.wait().unwrap();
    if listening { Ok(()) } else { Err(said) }
}

fn every_config_starts(major: u32) {
    let Some(binary) = registry(major) else { return };
    let mut configs = expected(&|path| path.extension().is_some_and(|e| e == "yml"));
    // Debian's 2.x has no more than these.
    configs.retain(|config| major >= 3 || ["filesystem", "s3"].contains(&driver(config)));
    for config in &configs {
        if let Err(said) = listens(&binary, config, &secrets(config)) {
            panic!("{}: wanted Distribution {major}.x to listen, got:\n{said}", config.display());
        }
    }
    println!("{} configs, Distribution {major}.x", configs.len());
}

/// A secret that did not arrive would not stop S3's driver: the other two say what they miss.
#[test]
fn secrets_reach_the_storage_drivers() {
    let Some(binary) = registry(3) else { return };
    let configs = expected(&|path| path.extension().is_some_and(|e| e == "yml"));
    let mut tried = Vec::new();
    for (wanted, complaint) in [("azure", "secret"), ("gcs", "credentials")] {
        let config = configs.iter().find(|config| driver(config) == wanted).unwrap();
        assert!(!secrets(config).is_empty(), "{}: no secret", config.display());
        let said = listens(&binary, config, &[]).expect_err("without its secret it starts");
        assert!(said.contains(complaint), "{}: wanted a word of {complaint}, got:\n{said}", config.display());
        tried.push(wanted);
    }
    println!("{tried:?}");
}

#[test]
fn distribution_2_takes_every_registry_config() {
    every_config_starts(2);
}

#[test]
fn distribution_3_takes_every_registry_config() {
    every_config_starts(3);
}

#[test]
fn the_offline_check_can_fail() {
    let Some(binary) = registry(2).or_else(|| registry(3)) else { return };
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("bad.yml");
    fs::write(&config, "version: 0.1\nhttp: { draintimeout: soon }\n").unwrap();
    assert!(listens(&binary, &config, &[]).is_err());
}

#[test]
fn systemd_understands_every_calendar() {
    if find("systemd-analyze").is_none() {
        not_run(format_args!("no systemd-analyze here"));
        return;
    }
    let timers = expected(&|path| path.to_str().is_some_and(|path| path.contains(".timer.d/")));
    let calendars: Vec<String> = timers
        .iter()
        .flat_map(|path| fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|line| line.strip_prefix("OnCalendar=").filter(|c| !c.is_empty()).map(str::to_owned))
        .collect();
    let output = Command::new("systemd-analyze").arg("calendar").arg("--").args(&calendars).output().unwrap();
    assert!(output.status.success(), "{calendars:?}: {}", String::from_utf8_lossy(&output.stderr));
    println!("{} calendars", calendars.len());
}
