//! Secrets are planted wherever a profile can hold one, and then looked for wherever they must not be.

#![allow(clippy::indexing_slicing, reason = "a test may")]
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use support::{CONTAINERD_1, CONTAINERD_2, DEBIAN_CONTAINERD, DISTRIBUTION_2, DISTRIBUTION_3, Machine, text};

/// Unique ones, by what they are for. All of one length, so that nothing tells them apart but their letters.
struct Planted(BTreeMap<&'static str, String>);

impl Planted {
    fn new() -> Self {
        let mut bytes = [0_u8; 16];
        let mut random = fs::File::open("/dev/urandom").unwrap();
        let names = [
            "inline",
            "file",
            "env",
            "credential",
            "header",
            "auth",
            "auth-file",
            "s3-id",
            "s3-key",
            "azure",
            "gcs",
            "tls-key",
            "client-key",
            "url",
            "broken",
        ];
        let mut secret = || {
            random.read_exact(&mut bytes).unwrap();
            format!("Sx{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        };
        Self(names.into_iter().map(|name| (name, secret())).collect())
    }

    fn get(&self, name: &str) -> &str {
        &self.0[name]
    }

    /// The names of those that are in `bytes`, in clear or in base64.
    fn found_in(&self, bytes: &[u8]) -> Vec<&'static str> {
        let has = |secret: &str| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        // Whatever stands before it in base64, one of the three shifts has these letters.
        let encoded = |secret: &str| {
            (0..3).any(|skip| {
                let whole = base64(&secret.as_bytes()[skip..]);
                has(&whole[..whole.len() / 4 * 4 - 4])
            })
        };
        self.0.iter().filter(|(_, secret)| has(secret) || encoded(secret)).map(|(name, _)| *name).collect()
    }
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letter = |bits: u32| char::from(LETTERS[(bits & 63) as usize]);
    bytes
        .chunks(3)
        .flat_map(|three| {
            let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
            let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
            [letter(bits >> 18), letter(bits >> 12), letter(bits >> 6), letter(bits)]
        })
        .collect()
}

/// A machine whose files hold what profiles refer to.
fn machine(planted: &Planted, registry: &str, containerd: &str) -> Machine {
    let machine = Machine::debian();
    machine.program("usr/bin/docker-registry", registry);
    machine.program("usr/bin/containerd", containerd);
    machine.write("etc/containerd/config.toml", DEBIAN_CONTAINERD);
    let key = |name: &str| {
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", planted.get(name))
    };
    for (path, secret) in [
        ("etc/larder/secrets/file", format!("{}\n", planted.get("file"))),
        ("etc/larder/secrets/auth", planted.get("auth-file").to_owned()),
        ("etc/larder/secrets/s3-id", planted.get("s3-id").to_owned()),
        ("etc/larder/secrets/s3-key", planted.get("s3-key").to_owned()),
        ("etc/larder/secrets/azure", planted.get("azure").to_owned()),
        ("etc/larder/secrets/gcs.json", format!("{{\"private_key\": \"{}\"}}", planted.get("gcs"))),
        ("etc/credstore/hub", planted.get("credential").to_owned()),
        ("etc/ssl/client.key", key("client-key")),
        ("etc/ssl/cache.key", key("tls-key")),
    ] {
        machine.write(path, secret);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(machine.path(path), mode).unwrap();
    }
    machine.write("etc/ssl/client.pem", "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n");
    machine
}

fn profile(planted: &Planted, storage: &str) -> String {
    let (inline, header, auth) = (planted.get("inline"), planted.get("header"), planted.get("auth"));
    format!(
        "version: 1
upstreams:
  docker.io: {{ port: 5000, username: bot, password: {inline} }}
  ghcr.io: {{ port: 5010, username: bot, password: {{ file: /etc/larder/secrets/file }} }}
  quay.io: {{ port: 5020, username: bot, password: {{ env: LARDER_TEST_SECRET }} }}
  a.example.com: {{ port: 5030, username: bot, password: {{ credential: hub }} }}
cache: {{ listen: 127.0.0.1{storage} }}
containerd:
  mirrors:
    docker.io:
      - url: https://mirror.example.com
        headers: {{ X-Token: {header}, X-Other: {{ file: /etc/larder/secrets/file }} }}
        client: [/etc/ssl/client.pem, /etc/ssl/client.key]
  auth:
    r.example.com: {{ username: u, password: {auth} }}
    docker.io: {{ username: u, password: {{ file: /etc/larder/secrets/auth }} }}
"
    )
}

const STORAGES: [(&str, &str); 4] = [
    ("", DISTRIBUTION_2),
    (
        ", storage: { s3: { bucket: b, region: r, regionendpoint: http://127.0.0.1:9, accesskey: { file: \
         /etc/larder/secrets/s3-id }, secretkey: { file: /etc/larder/secrets/s3-key } } }",
        "github.com/docker/distribution/cmd/registry+s3-aws",
    ),
    (
        ", storage: { azure: { accountname: a, container: c, accountkey: { file: /etc/larder/secrets/azure } } }",
        "github.com/distribution/distribution/v3/cmd/registry+azure",
    ),
    (
        ", storage: { gcs: { bucket: b, keyfile: /etc/larder/secrets/gcs.json } }",
        "github.com/distribution/distribution/v3/cmd/registry+gcs",
    ),
];

/// What was looked through, for the count that is printed.
#[derive(Default)]
struct Searched {
    outputs: usize,
    lines: usize,
    files: usize,
    in_private_files: usize,
    hits: Vec<String>,
}

impl Searched {
    fn output(&mut self, what: &str, output: &Output, planted: &Planted) {
        self.outputs += 1;
        for (stream, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
            self.lines += bytes.split(|byte| *byte == b'\n').count();
            for name in planted.found_in(bytes) {
                self.hits.push(format!("{stream} of {what}: {name}"));
            }
        }
    }

    /// Every file below `dir`; those that only their owner reads may hold secrets, and some have to.
    fn files(&mut self, dir: &Path, planted: &Planted) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            if meta.is_dir() {
                self.files(&path, planted);
            } else if meta.is_file() {
                self.files += 1;
                let found = planted.found_in(&fs::read(&path).unwrap());
                if meta.mode() & 0o077 == 0 {
                    self.in_private_files += found.len();
                } else {
                    self.hits.extend(
                        found.iter().map(|name| format!("{} ({:o}): {name}", path.display(), meta.mode())),
                    );
                }
            }
        }
    }
}

fn run(machine: &Machine, planted: &Planted, command: &[&str], profile: &str) -> Output {
    let mut child = machine
        .command(command)
        .args(["--profile", "-"])
        .env("LARDER_TEST_SECRET", planted.get("env"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(profile.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn no_output_and_no_file_for_others_has_a_secret() {
    let planted = Planted::new();
    let mut searched = Searched::default();
    for (storage, registry) in STORAGES {
        for containerd in [CONTAINERD_1, CONTAINERD_2] {
            let machine = machine(&planted, registry, containerd);
            let good = profile(&planted, storage);
            for command in [
                &["check"][..],
                &["check", "--output", "json"],
                &["config"],
                &["config", "--output", "json"],
                &["plan"],
                &["plan", "--output", "json"],
                &["apply"],
                &["plan"],
                &["apply", "--output", "json"],
            ] {
                let output = run(&machine, &planted, command, &good);
                assert!(matches!(output.status.code(), Some(0 | 10)), "{command:?}: {}", text(&output));
                searched.output(&format!("{command:?}"), &output, &planted);
            }
            // Somebody edits what holds secrets: shown, kept aside, and shown to nobody else.
            let holding: Vec<String> = machine
                .tree()
                .into_iter()
                .filter(|(path, line)| {
                    line.starts_with("file 0600") && !path.contains("secrets") && !path.contains("ssl")
                })
                .filter(|(path, _)| !path.contains("credstore") && !path.contains("shadow"))
                .map(|(path, _)| path)
                .collect();
            assert!(!holding.is_empty());
            for path in &holding {
                let mine = machine.read(path) + "# mine\n";
                fs::write(machine.path(path), mine).unwrap();
            }
            for command in [&["plan"][..], &["plan", "--output", "json"], &["apply"]] {
                let output = run(&machine, &planted, command, &good);
                searched.output(&format!("{command:?} after an edit"), &output, &planted);
            }
            // One that fails on the way, and what it puts back.
            let other = good.replace("username: bot", "username: other");
            let folder = machine.path("etc/systemd/system/multi-user.target.wants");
            Command::new("chattr").arg("+i").arg(&folder).status().unwrap();
            let output = run(&machine, &planted, &["apply"], &other.replace("  ghcr.io:", "  ghcr.example:"));
            Command::new("chattr").arg("-i").arg(&folder).status().unwrap();
            searched.output("an apply that fails", &output, &planted);
            // The secrets leave.
            let output = run(&machine, &planted, &["apply"], "version: 1\ncontainerd: {}\nupstreams: {}\n");
            searched.output("an apply without them", &output, &planted);
            searched.files(machine.root(), &planted);
        }
    }
    println!(
        "planted {} secrets: {} outputs ({} lines) and {} files searched, {} found in files for their owner alone",
        planted.0.len(),
        searched.outputs,
        searched.lines,
        searched.files,
        searched.in_private_files
    );
    assert_eq!(searched.hits, [""; 0]);
    assert!(searched.in_private_files > 20, "the search finds what is there: {}", searched.in_private_files);
}

#[test]
fn no_report_on_a_bad_profile_quotes_a_secret() {
    let planted = Planted::new();
    let machine = machine(&planted, DISTRIBUTION_3, CONTAINERD_2);
    let (secret, url) = (planted.get("broken"), planted.get("url"));
    let good = profile(&planted, "");
    let mut searched = Searched::default();
    let line = good.lines().find(|line| line.contains("docker.io: { port")).unwrap();
    let bad = [
        // Something else is wrong on the line, beside it, or with the secret itself.
        good.replace("port: 5000", "port: 99999"),
        good.replace("username: bot, password", "usernam: bot, password"),
        good.replace("password: ", "passwrd: "),
        good.replace("password: ", "PASSWORD: "),
        good.replace("password: ", "password:"),
        good.replace(line, &format!("  docker.io: {{ port: 5000, username: b, password: \"{secret}")),
        good.replace(line, &format!("  docker.io:\n    port: 5000\n    username: b\n    password: |\n      {secret}\n      x")),
        good.replace(line, &format!("  docker.io: {{ port: 5000, username: b, password: [{secret}] }}")),
        good.replace(line, &format!("  docker.io: {{ port: 5000, username: b, password: &a {secret} }}")),
        good.replace(line, &format!("  docker.io: {{ port: 5000, username: b, password: !!str {secret} }}")),
        good.replace(line, &format!("  docker.io: {{ port: 5000, username: b, password: {{ text: {secret} }} }}")),
        good.replace(line, &format!("  docker.io: {{ port: 5000, username: b, password: {secret}, password: x }}")),
        good.replace(line, &format!("  docker.io: {{ port: 5000, token: {secret} }}")),
        good.replace(line, &format!("  docker.io: {{ port: 5000, auth: {{ password: {secret} }} }}")),
        good.replace(line, &format!("  docker.io: {{ port: 5000, remote: \"https://u:{url}@registry.example.com\" }}")),
        good.replace("https://mirror.example.com", &format!("https://u:{url}@mirror.example.com")),
        good.replace(line, &format!("{line}\n    password: {secret}")),
        good.replace(line, &format!("{line}\n\tpassword: {secret}")),
        good.replace("X-Token: ", "X-Tok en: "),
        good.replace("listen: 127.0.0.1", &format!("storage: {{ s3: {{ bucket: b, secretkey: {secret}, region: ] }} }}")),
        good.replace("listen: 127.0.0.1", &format!("storage: {{ azure: {{ accountkey: {secret} }} }}")),
        good.replace(
            "listen: 127.0.0.1",
            &format!("storage: {{ azure: {{ accountname: a, container: c, credentials: {{ secret: {secret} }} }} }}"),
        ),
        good.replace("version: 1", "version: 7"),
        good.clone() + "\u{0}",
        good.clone() + "---\nversion: 1\n",
        good.clone() + &format!("secret: {secret}\npasswords: [{secret}]\n"),
    ];
    for (number, profile) in bad.iter().enumerate() {
        for command in [&["check"][..], &["check", "--output", "json"], &["config"], &["plan"], &["apply"]] {
            let output = run(&machine, &planted, command, profile);
            if command != ["config"] {
                assert_eq!(
                    output.status.code(),
                    Some(2),
                    "{number} {command:?}: {}\n{profile}",
                    text(&output)
                );
            }
            searched.output(&format!("{command:?} of bad profile {number}"), &output, &planted);
        }
    }
    println!("{} bad profiles: {} outputs, {} lines searched", bad.len(), searched.outputs, searched.lines);
    assert_eq!(searched.hits, [""; 0]);
}

/// The whole memory of a process that is stopped.
fn memory(pid: Pid) -> Vec<(String, Vec<u8>)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut regions = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, access) = (fields.next().unwrap(), fields.next().unwrap());
        let name = fields.nth(3).unwrap_or("(anonymous)");
        let (start, end) = range.split_once('-').unwrap();
        let at = |text| u64::from_str_radix(text, 16).unwrap();
        if !access.starts_with("rw") {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(at(end) - at(start)).unwrap()];
        memory.seek(SeekFrom::Start(at(start))).unwrap();
        if memory.read_exact(&mut bytes).is_ok() {
            regions.push((name.to_owned(), bytes));
        }
    }
    regions
}

/// Runs it under a tracer that stops it at its very end, and returns its memory as it is then.
fn memory_at_exit(
    machine: &Machine,
    planted: &Planted,
    command: &[&str],
    profile: &str,
) -> Vec<(String, Vec<u8>)> {
    let mut child = machine
        .command(command)
        .args(["--profile", "-"])
        .env("LARDER_TEST_SECRET", "none")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    // It waits for its profile.
    ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACEEXIT).unwrap();
    child.stdin.take().unwrap().write_all(profile.as_bytes()).unwrap();
    loop {
        match waitpid(pid, None).unwrap() {
            WaitStatus::PtraceEvent(_, _, event) if event == ptrace::Event::PTRACE_EVENT_EXIT as i32 => break,
            WaitStatus::Stopped(_, signal) => ptrace::cont(pid, signal).unwrap(),
            WaitStatus::PtraceEvent(..) => ptrace::cont(pid, None).unwrap(),
            other => panic!("wanted its end, got {other:?}"),
        }
    }
    assert!(!planted.0.is_empty());
    let regions = memory(pid);
    ptrace::cont(pid, None).unwrap();
    let status = child.wait().unwrap();
    assert!(matches!(status.code(), Some(0 | 10)), "{command:?}: {status}");
    regions
}

#[test]
fn its_memory_has_none_left_when_it_ends() {
    let planted = Planted::new();
    for (storage, registry) in STORAGES {
        let machine = machine(&planted, registry, CONTAINERD_2);
        let profile = profile(&planted, storage);
        for command in [&["apply"][..], &["plan"], &["config"]] {
            let regions = memory_at_exit(&machine, &planted, command, &profile);
            let mut bytes = 0;
            for (name, region) in &regions {
                bytes += region.len();
                let found = planted.found_in(region);
                assert!(found.is_empty(), "{command:?}: {found:?} in {name}");
            }
            println!(
                "{command:?}{}: {} KiB of memory searched at its end",
                &storage[..storage.len().min(14)],
                bytes >> 10
            );
            // The search finds what is there: an argument is.
            let root = machine.root().to_str().unwrap().as_bytes();
            let has = |region: &Vec<u8>| region.windows(root.len()).any(|window| window == root);
            assert!(regions.iter().any(|(_, region)| has(region)), "wanted its own argument in its memory");
        }
    }
}

#[test]
fn nobody_gets_a_core_of_it_nor_looks_into_it() {
    let nobody = 65_534;
    let mut child = Command::new(env!("CARGO_BIN_EXE_larder"))
        .args(["check", "--profile", "-"])
        .uid(nobody)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let folder = format!("/proc/{}", child.id());
    let core = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("Max core file size")).unwrap_or_default();
        line.split_whitespace().nth(4).map(str::to_owned)
    };
    // It sets both first of all, and then waits for its profile.
    let ready = (0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        fs::read_to_string(format!("{folder}/limits")).is_ok_and(|text| core(&text).as_deref() == Some("0"))
    });
    assert!(
        ready,
        "wanted a limit of no core, got\n{}",
        fs::read_to_string(format!("{folder}/limits")).unwrap()
    );
    // The files of a process that may not be looked into are root's (proc_pid(5)).
    let owner = fs::metadata(format!("{folder}/environ")).unwrap().uid();
    assert_eq!(owner, 0, "wanted root to own {folder}/environ, got {owner}");
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGABRT).unwrap();
    let status = child.wait().unwrap();
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
}
