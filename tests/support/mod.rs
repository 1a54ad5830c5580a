//! Machines for tests: root trees that look like a Debian machine to what only reads them, and the binary.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub const DISTRIBUTION_2: &str = "github.com/docker/distribution/cmd/registry";
pub const DISTRIBUTION_3: &str = "github.com/distribution/distribution/v3/cmd/registry";
pub const CONTAINERD_1: &str = "github.com/containerd/containerd/cmd/containerd";
pub const CONTAINERD_2: &str = "github.com/containerd/containerd/v2/cmd/containerd";

pub const SEED: &str = "version: 1
upstreams:
  docker.io: { port: 5000 }
  ghcr.io: { port: 5010 }
network:
  interface: eth0
  addresses: [10.0.20.10/24]
  gateway: 10.0.20.1
cache: {}
containerd: {}
";

pub const DEBIAN_CONTAINERD: &str = r#"version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"#;

/// The least ELF file that carries Go's build information for a main package, `PACKAGE` or `PACKAGE VERSION`:
/// it is read, never run.
pub fn go_program(program: &str) -> Vec<u8> {
    let (package, version) = program.split_once(' ').unwrap_or((program, ""));
    let module = package.split("/cmd/").next().unwrap_or(package);
    let line = if version.is_empty() { String::new() } else { format!("mod\t{module}\t{version}\th1:x=\n") };
    let module = format!("{0}path\t{package}\n{line}{0}", "0123456789abcdef");
    let mut info = b"\xff Go buildinf:".to_vec();
    info.extend([8, 2]);
    info.resize(32, 0);
    for text in ["go1.26.0", &module] {
        assert!(text.len() < 0x4000, "two varint bytes are enough");
        info.extend([(text.len() & 0x7f | 0x80) as u8, (text.len() >> 7) as u8]);
        info.extend(text.as_bytes());
    }
    let names = b"\0.shstrtab\0.go.buildinfo\0";
    let (info_at, names_at) = (64_u64, 64 + info.len() as u64);
    let sections_at = names_at + names.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(40, 0);
    elf.extend(sections_at.to_le_bytes());
    elf.resize(58, 0);
    for number in [64_u16, 3, 1] {
        elf.extend(number.to_le_bytes());
    }
    elf.extend(&info);
    elf.extend(names);
    for (name, at, size) in
        [(0_u32, 0, 0), (1, names_at, names.len() as u64), (11, info_at, info.len() as u64)]
    {
        let mut section = name.to_le_bytes().to_vec();
        section.resize(24, 0);
        section.extend(at.to_le_bytes());
        section.extend(size.to_le_bytes());
        section.resize(64, 0);
        elf.extend(section);
    }
    elf
}

/// A root tree that is taken away with the value.
pub struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    /// No program, no service: accounts only.
    pub fn bare() -> Self {
        Self::bare_in(tempfile::tempdir().unwrap())
    }

    /// The same in memory, where there is no disk to wait for.
    pub fn bare_in_memory() -> Self {
        let memory = Path::new("/dev/shm");
        Self::bare_in(
            if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap(),
        )
    }

    fn bare_in(dir: tempfile::TempDir) -> Self {
        let machine = Self { dir };
        machine.write("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n");
        machine.write("etc/group", "root:x:0:\n");
        machine.write("etc/shadow", "root:*:19000:0:99999:7:::\n");
        machine
    }

    /// Debian 12 with containerd, docker-registry, cloud-init and systemd-networkd.
    pub fn debian() -> Self {
        Self::bare().like_debian()
    }

    pub fn like_debian(self) -> Self {
        let machine = self;
        machine.program("usr/bin/docker-registry", DISTRIBUTION_2);
        machine.program("usr/bin/containerd", CONTAINERD_1);
        machine.write("etc/containerd/config.toml", DEBIAN_CONTAINERD);
        machine.write("etc/cloud/cloud.cfg", "");
        machine.write("usr/lib/systemd/system/docker-registry.service", "");
        machine.write("etc/docker/registry/config.yml", "http:\n  addr: :5000\n");
        machine.link(
            "etc/systemd/system/multi-user.target.wants/systemd-networkd.service",
            "/lib/systemd/system/systemd-networkd.service",
        );
        machine
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn program(&self, path: &str, package: &str) {
        let (package, drivers) = package.split_once('+').unwrap_or((package, ""));
        let mut bytes = go_program(package);
        for driver in drivers.split('+').filter(|driver| !driver.is_empty()) {
            bytes.extend(format!("registry/storage/driver/{driver}.").into_bytes());
        }
        self.write(path, bytes);
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub fn link(&self, path: &str, target: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
    }

    pub fn has(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    /// Runs `larder COMMAND --root HERE --profile -` with the profile on standard input.
    pub fn larder(&self, command: &[&str], profile: &str) -> Output {
        use std::io::Write;
        let mut child = self
            .command(command)
            .args(["--profile", "-"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(profile.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    pub fn command(&self, command: &[&str]) -> Command {
        let mut larder = Command::new(env!("CARGO_BIN_EXE_larder"));
        larder.args(command).arg("--root").arg(self.root());
        larder
    }

    /// Applies and wants exit code 0.
    pub fn apply(&self, profile: &str) -> String {
        self.converge(&["apply"], profile)
    }

    pub fn converge(&self, command: &[&str], profile: &str) -> String {
        let output = self.larder(command, profile);
        assert_eq!(output.status.code(), Some(0), "{command:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Every path with its type, mode, owner and contents; the manifest and what is kept are left out.
    pub fn tree(&self) -> BTreeMap<String, String> {
        let mut tree = BTreeMap::new();
        walk(self.root(), self.root(), &mut |path, line| {
            tree.insert(path, line);
        });
        tree.retain(|path, _| !path.starts_with("var/lib/larder/state"));
        tree
    }

    /// Inode and change time of every path: a write of the same bytes shows here too.
    pub fn stamps(&self) -> BTreeMap<String, (u64, i64, i64)> {
        let mut stamps = BTreeMap::new();
        walk(self.root(), self.root(), &mut |path, _| {
            let meta = self.path(&path).symlink_metadata().unwrap();
            stamps.insert(path, (meta.ino(), meta.ctime(), meta.ctime_nsec()));
        });
        stamps
    }
}

fn walk(base: &Path, dir: &Path, found: &mut dyn FnMut(String, String)) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let meta = path.symlink_metadata().unwrap();
        let shown = path.strip_prefix(base).unwrap().to_str().unwrap().to_owned();
        let owner = format!("{:04o} {}:{}", meta.mode() & 0o7777, meta.uid(), meta.gid());
        if meta.is_symlink() {
            found(shown, format!("link {}", fs::read_link(&path).unwrap().display()));
        } else if meta.is_dir() {
            found(shown, format!("folder {owner}"));
            walk(base, &path, found);
        } else {
            let bytes = fs::read(&path).unwrap();
            found(shown, format!("file {owner} {}", String::from_utf8_lossy(&bytes)));
        }
    }
}

/// Both outputs, for a failure's message.
pub fn text(output: &Output) -> String {
    format!(
        "exit {:?}\n--- stdout\n{}\n--- stderr\n{}",
        output.status.code(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The paths that differ, each with both sides.
pub fn differences(wanted: &BTreeMap<String, String>, got: &BTreeMap<String, String>) -> Vec<String> {
    let paths: std::collections::BTreeSet<_> = wanted.keys().chain(got.keys()).collect();
    paths
        .into_iter()
        .filter(|path| wanted.get(*path) != got.get(*path))
        .map(|path| format!("{path}: wanted {:?}, got {:?}", wanted.get(path), got.get(path)))
        .collect()
}

/// What this thread has worked, whatever else the machine does.
pub fn own_time() -> std::time::Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}
