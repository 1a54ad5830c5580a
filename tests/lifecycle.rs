//! What a sequence of runs does to a machine's files: nothing twice, nothing lost, nothing left.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::thread::sleep;
use std::time::Duration;

use support::{DEBIAN_CONTAINERD, Machine, SEED, differences, text};

const WITHOUT_GHCR: &str = "version: 1
upstreams:
  docker.io: { port: 5000 }
network:
  interface: eth0
  addresses: [10.0.20.10/24]
  gateway: 10.0.20.1
cache: {}
containerd: {}
";

#[test]
fn a_second_apply_writes_nothing() {
    let machine = Machine::debian();
    machine.apply(SEED);
    let before = machine.stamps();
    let said = machine.apply(SEED);
    assert_eq!(said, "nothing to change\n");
    assert_eq!(machine.stamps(), before);
    let plan = machine.larder(&["plan"], SEED);
    assert_eq!(plan.status.code(), Some(0), "{}", text(&plan));
}

#[test]
fn plan_tells_and_touches_nothing() {
    let machine = Machine::debian();
    let before = machine.stamps();
    let plan = machine.larder(&["plan"], SEED);
    assert_eq!(plan.status.code(), Some(10), "{}", text(&plan));
    let shown = String::from_utf8(plan.stdout).unwrap();
    assert!(
        shown.contains("+remoteurl: \"https://ghcr.io\"")
            || shown.contains("+  remoteurl: \"https://ghcr.io\""),
        "{shown}"
    );
    assert_eq!(machine.stamps(), before);
}

#[test]
fn files_have_their_modes_and_owners() {
    let machine = Machine::debian();
    machine.apply(SEED);
    let passwd = machine.read("etc/passwd");
    let uid: u32 =
        passwd.lines().find_map(|l| l.strip_prefix("larder:x:")?.split(':').next()?.parse().ok()).unwrap();
    let of = |path: &str| {
        let meta = machine.path(path).symlink_metadata().unwrap();
        (meta.mode() & 0o7777, meta.uid())
    };
    assert_eq!(of("var/lib/larder/docker.io"), (0o750, uid));
    assert_eq!(of("var/lib/larder/state"), (0o700, 0));
    assert_eq!(of("var/lib/larder/state/manifest.json"), (0o600, 0));
    assert_eq!(of("etc/systemd/network/05-larder-eth0.network"), (0o644, 0));
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    let machine = Machine::debian();
    let profile = machine.path("p.yaml");
    fs::write(&profile, SEED).unwrap();
    let larder = env!("CARGO_BIN_EXE_larder");
    let script = format!(
        "umask 077; exec {larder} apply --root {} --profile {}",
        machine.root().display(),
        profile.display()
    );
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let mode = machine.path("etc/systemd/network/05-larder-eth0.network").metadata().unwrap().mode() & 0o777;
    assert_eq!(mode, 0o644, "systemd-networkd runs as its own user");
}

#[test]
fn an_upstream_that_leaves_takes_everything_but_its_data() {
    let machine = Machine::debian();
    machine.apply(SEED);
    machine.write("var/lib/larder/ghcr.io/docker/blob", "cached");
    machine.apply(WITHOUT_GHCR);
    let left: Vec<_> = machine.tree().into_keys().filter(|path| path.contains("ghcr.io")).collect();
    assert_eq!(
        left,
        ["var/lib/larder/ghcr.io", "var/lib/larder/ghcr.io/docker", "var/lib/larder/ghcr.io/docker/blob"]
    );

    machine.converge(&["apply", "--purge"], WITHOUT_GHCR);
    let left: Vec<_> = machine.tree().into_keys().filter(|path| path.contains("ghcr.io")).collect();
    assert_eq!(left, [""; 0]);
    let plan = machine.larder(&["plan", "--purge"], WITHOUT_GHCR);
    assert_eq!(plan.status.code(), Some(0), "{}", text(&plan));
}

#[test]
fn what_comes_back_is_what_it_was() {
    let machine = Machine::debian();
    machine.apply(WITHOUT_GHCR);
    let before = machine.tree();
    machine.apply(SEED);
    machine.converge(&["apply", "--purge"], WITHOUT_GHCR);
    machine.converge(&["apply", "--purge"], WITHOUT_GHCR);
    assert_eq!(differences(&before, &machine.tree()), [""; 0]);
}

#[test]
fn a_file_edited_by_hand_is_kept_aside() {
    let machine = Machine::debian();
    machine.apply(SEED);
    let path = "etc/containerd/certs.d/ghcr.io/hosts.toml";
    let ours = machine.read(path);
    machine.write(path, "server = \"https://elsewhere\"\n");
    let plan = machine.larder(&["plan"], SEED);
    let shown = String::from_utf8_lossy(&plan.stdout);
    assert!(
        shown.contains("[edited by hand since 20") && shown.contains("Z: kept aside]"),
        "{}",
        text(&plan)
    );
    let said = machine.apply(SEED);
    assert_eq!(machine.read(path), ours);
    let kept = format!("var/lib/larder/state/kept/{path}.edited-by-hand.20");
    assert!(said.contains(&kept), "{said}");
    let copy = |said: &str| {
        let (_, copy) = said.split_once("is kept as ").unwrap();
        let copy = copy.lines().next().unwrap().trim_start_matches(machine.root().to_str().unwrap());
        machine.read(copy.trim_start_matches('/'))
    };
    assert_eq!(copy(&said), "server = \"https://elsewhere\"\n");

    // Another edit does not overwrite the first one's copy.
    machine.write(path, "# again\n");
    let again = machine.apply(SEED);
    assert_eq!(copy(&said), "server = \"https://elsewhere\"\n");
    assert_eq!(copy(&again), "# again\n");
}

#[test]
fn a_strangers_file_is_kept_aside_and_comes_back() {
    let machine = Machine::debian();
    let path = "etc/containerd/certs.d/ghcr.io/hosts.toml";
    machine.write(path, "# mine\n");
    fs::set_permissions(machine.path(path), fs::Permissions::from_mode(0o640)).unwrap();
    let said = machine.apply(SEED);
    assert!(said.contains("kept aside: "), "{said}");
    assert_ne!(machine.read(path), "# mine\n");
    machine.apply(WITHOUT_GHCR);
    assert_eq!(machine.read(path), "# mine\n");
    assert_eq!(machine.path(path).metadata().unwrap().mode() & 0o777, 0o640);
}

#[test]
fn a_file_that_was_right_already_stays_when_we_go() {
    let machine = Machine::debian();
    let path = "etc/containerd/certs.d/ghcr.io/hosts.toml";
    let other = Machine::debian();
    other.apply(SEED);
    machine.write(path, other.read(path));
    machine.apply(SEED);
    machine.apply(WITHOUT_GHCR);
    assert_eq!(machine.read(path), other.read(path));
}

#[test]
fn containerd_config_comes_back_when_the_client_role_goes() {
    let machine = Machine::debian();
    let before = machine.read("etc/containerd/config.toml");
    machine.apply(SEED);
    assert_ne!(machine.read("etc/containerd/config.toml"), before);
    machine.apply(&SEED.replace("containerd: {}\n", ""));
    assert_eq!(machine.read("etc/containerd/config.toml"), before);
}

#[test]
fn what_others_wrote_into_containerd_config_stays() {
    let machine = Machine::debian();
    machine.apply(SEED);
    let path = "etc/containerd/config.toml";
    let edited = format!("{}\n[debug]\n  level = \"debug\"\n", machine.read(path));
    machine.write(path, &edited);
    assert_eq!(machine.apply(SEED), "nothing to change\n");
    machine.apply(&SEED.replace("containerd: {}\n", ""));
    assert_eq!(machine.read(path), edited, "it is not only ours any more");
}

/// Whether a run has something else to change, or has our own setting of it to change.
#[test]
fn what_others_wrote_into_containerd_config_stays_whatever_else_changes() {
    let moved = "containerd: { certs_dir: /etc/containerd/other.d }\n";
    for other in [SEED.replace("port: 5010", "port: 5011"), SEED.replace("containerd: {}\n", moved)] {
        let machine = Machine::debian();
        machine.apply(SEED);
        let path = "etc/containerd/config.toml";
        machine.write(path, format!("{}\n[debug]\n  level = \"debug\"\n", machine.read(path)));
        machine.apply(&other);
        let edited = machine.read(path);
        assert!(edited.contains("[debug]"), "{edited}");
        let plan = machine.larder(&["plan"], &other);
        assert_eq!(plan.status.code(), Some(0), "{}", text(&plan));
        assert_eq!(machine.apply(&other), "nothing to change\n");
        machine.apply(other.split("containerd:").next().unwrap());
        assert_eq!(machine.read(path), edited, "it is not only ours any more");
    }
}

#[test]
fn debians_own_registry_is_masked_and_comes_back() {
    let machine = Machine::debian();
    let mask = "etc/systemd/system/docker-registry.service";
    let output = machine.larder(&["apply"], SEED);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("it is stopped and masked"),
        "{}",
        text(&output)
    );
    assert_eq!(fs::read_link(machine.path(mask)).unwrap().to_str(), Some("/dev/null"));
    machine.apply(&SEED.replace("port: 5000", "port: 5001"));
    assert!(!machine.has(mask), "port 5000 is free for it again");
}

#[test]
fn packaged_units_are_not_written_again() {
    let machine = Machine::debian();
    for unit in fs::read_dir("units").unwrap() {
        let unit = unit.unwrap();
        machine.write(&format!("usr/lib/systemd/system/{}", unit.file_name().to_str().unwrap()), "");
    }
    machine.apply(SEED);
    assert!(!machine.has("etc/systemd/system/larder-registry@.service"));
    assert_eq!(
        fs::read_link(
            machine.path("etc/systemd/system/multi-user.target.wants/larder-registry@ghcr.io.service")
        )
        .unwrap()
        .to_str(),
        Some("/usr/lib/systemd/system/larder-registry@.service")
    );
}

#[test]
fn no_symlink_leads_out_of_the_root() {
    let outside = tempfile::tempdir().unwrap();
    let escape = outside.path().to_str().unwrap();
    for (link, target) in [
        ("etc/larder", escape.to_owned()),
        ("etc/systemd/network", format!("../../../../../../../../../..{escape}")),
        ("var/lib/larder", escape.to_owned()),
        ("etc/containerd/certs.d", escape.to_owned()),
    ] {
        let machine = Machine::debian();
        machine.link(link, &target);
        let output = machine.larder(&["apply"], SEED);
        let here: Vec<_> = fs::read_dir(outside.path()).unwrap().collect();
        assert!(here.is_empty(), "{link} -> {target}: {here:?}\n{}", text(&output));
        assert_eq!(output.status.code(), Some(2), "{link} -> {target}: {}", text(&output));
    }
}

#[test]
fn a_link_inside_the_root_is_followed_inside() {
    let machine = Machine::debian();
    machine.write("srv/certs/.keep", "");
    machine.link("etc/containerd/certs.d", "/srv/certs");
    machine.apply(SEED);
    assert!(machine.has("srv/certs/ghcr.io/hosts.toml"));
}

#[test]
fn secrets_are_for_root_alone_and_never_shown() {
    let profile = SEED.replace(
        "ghcr.io: { port: 5010 }",
        "ghcr.io: { port: 5010, username: bot, password: { file: /etc/larder/secrets/ghcr } }",
    );
    let machine = Machine::debian();
    machine.write("etc/larder/secrets/ghcr", "hunter2-xyzzy\n");
    let plan = machine.larder(&["plan"], &profile);
    let json = machine.larder(&["plan", "--output", "json"], &profile);
    let apply = machine.larder(&["apply"], &profile);
    assert_eq!(apply.status.code(), Some(0), "{}", text(&apply));
    for output in [&plan, &json, &apply] {
        assert!(!text(output).contains("xyzzy"), "{}", text(output));
    }
    let holders: Vec<_> =
        machine.tree().into_iter().filter(|(_, line)| line.contains("xyzzy")).map(|(path, _)| path).collect();
    assert_eq!(holders, ["etc/larder/registry/ghcr.io.env", "etc/larder/secrets/ghcr"]);
    let mode = machine.path("etc/larder/registry/ghcr.io.env").metadata().unwrap().mode() & 0o777;
    assert_eq!(mode, 0o600);
    assert!(!machine.read("var/lib/larder/state/manifest.json").contains("xyzzy"));
}

#[test]
fn a_run_that_is_killed_is_finished_by_the_next() {
    let whole = Machine::debian();
    whole.apply(SEED);
    let wanted: Vec<_> = whole.tree().into_keys().collect();
    let mut died = 0;
    for attempt in 0..40_u64 {
        let machine = Machine::debian();
        let profile = machine.path("p.yaml");
        fs::write(&profile, SEED).unwrap();
        let mut child = machine
            .command(&["apply"])
            .arg("--profile")
            .arg(&profile)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        sleep(Duration::from_micros(700 * attempt));
        child.kill().unwrap();
        if child.wait().unwrap().code().is_none() {
            died += 1;
        }
        fs::remove_file(&profile).unwrap();
        machine.apply(SEED);
        let got: Vec<_> = machine.tree().into_keys().filter(|path| path != "etc/.pwd.lock").collect();
        let wanted: Vec<_> = wanted.iter().filter(|path| *path != "etc/.pwd.lock").cloned().collect();
        assert_eq!(got, wanted, "killed after {} us", 700 * attempt);
        assert_eq!(machine.apply(SEED), "nothing to change\n");
        let temporary: Vec<_> =
            machine.stamps().into_keys().filter(|path| path.contains(".larder-new.")).collect();
        assert_eq!(temporary, [""; 0]);
    }
    assert!(died > 0, "none of the 40 runs was killed at work");
    println!("{died} of 40 runs were killed at work");
}

#[test]
fn two_runs_at_once_take_turns() {
    let machine = Machine::debian();
    let profile = machine.path("p.yaml");
    fs::write(&profile, SEED).unwrap();
    let runs: Vec<_> = (0..4)
        .map(|_| {
            machine
                .command(&["apply"])
                .arg("--profile")
                .arg(&profile)
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let said: Vec<_> = runs.into_iter().map(|run| run.wait_with_output().unwrap()).collect();
    for output in &said {
        assert_eq!(output.status.code(), Some(0), "{}", text(output));
    }
    let idle = said.iter().filter(|output| output.stdout.starts_with(b"nothing to change")).count();
    assert_eq!(idle, 3, "one run does the work");
}

/// A file system of its own, taken away with the value.
struct SmallDisk<'m>(&'m Machine);

impl<'m> SmallDisk<'m> {
    fn new(machine: &'m Machine, path: &str, options: &str) -> Self {
        fs::create_dir_all(machine.path(path)).unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "larder-test"])
            .arg(machine.path(path))
            .status()
            .unwrap();
        assert!(mount.success(), "mount: these tests run as root");
        Self(machine)
    }

    fn resize(&self, path: &str, options: &str) {
        let mount = std::process::Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(self.0.path(path))
            .status()
            .unwrap();
        assert!(mount.success());
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path("etc/systemd")).status();
    }
}

#[test]
fn a_full_disk_leaves_everything_as_it_was() {
    // From nothing fits to nearly all fits.
    for blocks in [1, 3, 5, 7, 9] {
        let machine = Machine::debian();
        fs::remove_dir_all(machine.path("etc/systemd")).unwrap();
        let disk = SmallDisk::new(&machine, "etc/systemd", &format!("size={}k", blocks * 4));
        machine.link(
            "etc/systemd/system/multi-user.target.wants/systemd-networkd.service",
            "/lib/systemd/system/systemd-networkd.service",
        );
        let mut before = machine.tree();
        let output = machine.larder(&["apply"], SEED);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{blocks} blocks: {said}");
        assert!(said.contains("No space left on device"), "{said}");
        let mut after = machine.tree();
        for tree in [&mut before, &mut after] {
            // The account is made before the first file, by its own tool; the state folder needs its parents.
            tree.retain(|path, _| {
                !["etc/passwd", "etc/group", "etc/shadow", "etc/gshadow"]
                    .iter()
                    .any(|file| path.starts_with(file))
                    && !matches!(path.as_str(), "etc/.pwd.lock" | "var" | "var/lib" | "var/lib/larder")
            });
        }
        assert_eq!(differences(&before, &after), [""; 0], "{blocks} blocks");
        disk.resize("etc/systemd", "size=1m");
        machine.apply(SEED);
    }
}

#[test]
fn more_files_are_written_than_may_be_open() {
    let machine = Machine::debian();
    let upstreams: String = (0..40).map(|n| format!("  u{n}.example: {{ port: {} }}\n", 5001 + n)).collect();
    machine.write(
        "profile.yaml",
        format!("version: 1\nupstreams:\n{upstreams}network: {{ addresses: [10.0.20.10/24], interface: eth0 }}\ncache: {{}}\n"),
    );
    let output = std::process::Command::new("sh")
        .args(["-c", "ulimit -n 32; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_larder"), "apply", "--root"])
        .arg(machine.root())
        .arg("--profile")
        .arg(machine.path("profile.yaml"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(machine.has("etc/larder/registry/u39.example.yml"));
}

#[test]
fn a_setting_that_leaves_the_profile_leaves_containerds_file() {
    let machine = Machine::debian();
    let with = SEED.replace(
        "containerd: {}",
        "containerd:\n  max_concurrent_downloads: 6\n  auth: { r.example.com: { username: ci, password: hunter2 } }",
    );
    machine.write("var/lib/dpkg/info/containerd.conffiles", "/etc/containerd/config.toml\n");
    let output = machine.larder(&["apply"], &with);
    let said = text(&output);
    assert!(output.status.success() && !said.contains("hunter2"), "{said}");
    assert!(
        said.contains("warning: /etc/containerd/config.toml is a configuration file of containerd's package")
    );
    let config = machine.read("etc/containerd/config.toml");
    assert!(config.contains("max_concurrent_downloads = 6") && config.contains("password = \"hunter2\""));
    let mode = |path: &str| fs::metadata(machine.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("etc/containerd/config.toml"), 0o600);
    let output = machine.larder(&["plan"], SEED);
    let said = text(&output);
    assert!(said.contains("password = (not shown)") && !said.contains("hunter2"), "{said}");
    machine.apply(SEED);
    let config = machine.read("etc/containerd/config.toml");
    assert!(!config.contains("max_concurrent") && !config.contains("hunter2"), "{config}");
    assert!(config.contains("config_path"));
    machine.apply(&SEED.replace("containerd: {}\n", ""));
    assert_eq!(machine.read("etc/containerd/config.toml"), DEBIAN_CONTAINERD);
    assert_eq!(mode("etc/containerd/config.toml"), 0o644);
}

#[test]
fn a_drop_in_comes_and_goes_and_the_packages_file_stays() {
    let machine = Machine::debian();
    machine.program("usr/bin/containerd", "github.com/containerd/containerd/v2/cmd/containerd v2.1.9");
    let main = format!("imports = [\"/etc/containerd/conf.d/*.toml\"]\n{DEBIAN_CONTAINERD}");
    machine.write("etc/containerd/config.toml", &main);
    machine.apply(&SEED.replace("containerd: {}", "containerd: { max_concurrent_downloads: 6 }"));
    assert_eq!(
        machine.read("etc/containerd/conf.d/zz-larder.toml").lines().skip(1).collect::<Vec<_>>().join("\n"),
        "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n\n\
         [plugins.\"io.containerd.transfer.v1.local\"]\nmax_concurrent_downloads = 6"
    );
    assert_eq!(machine.read("etc/containerd/config.toml"), main);
    // Said by somebody else, it has not to be said again.
    machine.write(
        "etc/containerd/conf.d/50-other.toml",
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n",
    );
    machine.apply(SEED);
    assert!(!machine.has("etc/containerd/conf.d/zz-larder.toml"));
    fs::remove_file(machine.path("etc/containerd/conf.d/50-other.toml")).unwrap();
    machine.apply(SEED);
    assert!(machine.has("etc/containerd/conf.d/zz-larder.toml"));
    // An older containerd would take it in place of all of CRI's settings.
    machine.program("usr/bin/containerd", "github.com/containerd/containerd/cmd/containerd v1.7.24");
    machine.apply(SEED);
    assert!(!machine.has("etc/containerd/conf.d/zz-larder.toml"));
    assert!(machine.read("etc/containerd/config.toml").contains("config_path"));
    machine.program("usr/bin/containerd", "github.com/containerd/containerd/v2/cmd/containerd v2.1.9");
    machine.apply(&SEED.replace("containerd: {}\n", ""));
    assert!(!machine.has("etc/containerd/conf.d/zz-larder.toml"));
    assert_eq!(machine.read("etc/containerd/config.toml"), main);
}
