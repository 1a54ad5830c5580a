//! Stores on a real disk: what a scan sees of them, what an eviction leaves, and that the real registry serves it
//! whatever the instant at which an eviction was killed.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use larder::caches::Caches;
use larder::root::Root;
use larder::store::budget::{Kept, Report, Wanted, keep};
use larder::store::scan::{Store as Scanned, scan};
use larder::store::size::SizeFile;
use larder::store::tend::{Round, Tender};
use larder::store::{Digest, Layout, lock};

#[path = "support/registry.rs"]
mod real;
use real::registry;
#[path = "support/store.rs"]
mod store;
use store::{Store, du};

const HOUR: u64 = 3600;
const KIB: usize = 1024;

/// A machine that caches `hosts`, each with its store below `srv`.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new(max_size: Option<u64>, hosts: &[(&str, Option<u64>)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("etc/larder")).unwrap();
        let upstreams: Vec<serde_json::Value> = hosts
            .iter()
            .map(|(host, size)| {
                serde_json::json!({
                    "host": host, "address": "127.0.0.1:5000", "remote": "https://x.example", "major": 2,
                    "store": format!("/srv/{host}"), "max_size": size, "probe": null,
                })
            })
            .collect();
        let caches = serde_json::json!({ "version": 1, "max_size": max_size, "upstreams": upstreams });
        fs::write(folder.path().join("etc/larder/caches.json"), caches.to_string()).unwrap();
        Self { folder }
    }

    fn root(&self) -> Root {
        Root::open(self.folder.path()).unwrap()
    }

    fn path(&self, host: &str) -> PathBuf {
        self.folder.path().join("srv").join(host)
    }

    fn layout(host: &str) -> Layout {
        Layout::new(&format!("srv/{host}"))
    }

    fn scan(&self, host: &str) -> Scanned {
        scan(&self.root(), &Self::layout(host)).unwrap()
    }

    fn keep(&self, dry_run: bool) -> Report {
        match try_keep(self.folder.path(), dry_run, &mut || {}) {
            Kept::Done(report) => report,
            Kept::Busy => panic!("wanted an eviction, got that somebody else is at it"),
        }
    }
}

fn try_keep(folder: &Path, dry_run: bool, step: &mut dyn FnMut()) -> Kept {
    let root = Root::open(folder).unwrap();
    let caches = Caches::read(&root).unwrap().unwrap();
    let mut wanted = Wanted {
        may_change: &|_| true,
        dry_run,
        free: 0,
        early: 0,
        patience: Duration::ZERO,
        step: &mut |_| step(),
    };
    keep(&root, &caches, &mut wanted).unwrap()
}

/// Images that share layers, one of two platforms, one in two repositories, and what is left of others.
fn fill(path: &Path) -> Store {
    let mut store = Store::new(path);
    store.image("library/old", "1", &[("base", 40 * KIB), ("old", 300 * KIB)], 9 * HOUR);
    store.image("library/old", "2", &[("base", 40 * KIB), ("old 2", 300 * KIB)], 8 * HOUR);
    let amd64 = store.platform("deep/er/multi", &[("base", 40 * KIB), ("amd64", 200 * KIB)], 7 * HOUR);
    let arm64 = store.platform("deep/er/multi", &[("base", 40 * KIB), ("arm64", 200 * KIB)], 7 * HOUR);
    let missing = store::digest(b"a platform that nobody has asked for");
    store.index("deep/er/multi", "latest", &[amd64, arm64, missing], 7 * HOUR);
    store.image("one", "1", &[("twice", 200 * KIB)], 6 * HOUR);
    store.image("two", "1", &[("twice", 200 * KIB)], 5 * HOUR);
    store.image("library/new", "1", &[("base", 40 * KIB), ("new", 300 * KIB)], HOUR);
    let loose = store.blob(&store::content("loose", 100 * KIB), 2 * HOUR);
    store.link("library/new", "_layers", &loose, 2 * HOUR);
    store.upload("library/new", "stuck", 100 * KIB, 2 * HOUR);
    store.upload("library/new", "running", 100 * KIB, 1);
    fs::write(path.join("scheduler-state.json"), "{}").unwrap();
    store
}

#[test]
fn a_scan_counts_what_du_counts() {
    let machine = Machine::new(None, &[("a.example", None)]);
    let path = machine.path("a.example");
    fill(&path);
    // What nobody expects in a store counts as well.
    fs::create_dir_all(path.join("lost+found/some/where")).unwrap();
    fs::write(path.join("lost+found/some/where/file"), vec![1; 10_000]).unwrap();
    fs::create_dir_all(path.join("docker/registry/v2/blobs/sha512/aa/bb")).unwrap();
    fs::write(path.join("docker/registry/v2/blobs/sha512/aa/bb/data"), vec![1; 10_000]).unwrap();
    std::os::unix::fs::symlink("/", path.join("docker/registry/v2/repositories/elsewhere")).unwrap();
    fs::create_dir_all(path.join("docker/registry/v2/blobs/sha256/00/no-digest")).unwrap();
    assert_eq!(machine.scan("a.example").bytes, du(&path));
}

#[test]
fn a_scan_sees_images_tags_and_uploads() {
    let machine = Machine::new(None, &[("a.example", None)]);
    let store = fill(&machine.path("a.example"));
    let scanned = machine.scan("a.example");
    let tags: BTreeMap<String, String> = scanned
        .repositories
        .iter()
        .flat_map(|one| one.tags.iter().map(move |tag| (format!("{}:{}", one.name, tag.name), tag.digest)))
        .map(|(name, digest)| (name, digest.unwrap().to_string()))
        .collect();
    assert_eq!(tags, store.images);
    let uploads: usize = scanned.repositories.iter().map(|one| one.uploads.len()).sum();
    assert_eq!((uploads, scanned.broken.len()), (2, 0));
    // 7 manifests and an index among them, with a configuration each; 8 layers, one of them loose.
    assert_eq!(scanned.manifests.len(), 8);
    assert_eq!(scanned.blobs.len(), 8 + 7 + 8, "{:?}", scanned.blobs);
}

#[test]
fn manifests_that_cannot_be_read_are_reported_and_refer_to_nothing() {
    let machine = Machine::new(None, &[("a.example", None)]);
    let mut store = Store::new(&machine.path("a.example"));
    let sound = store.image("app", "1", &[("layer", KIB)], HOUR);
    let empty = store.manifest("app", "", HOUR);
    let strange = store.manifest("app", "{\"schemaVersion\":7}", HOUR);
    let large = store.manifest("app", &" ".repeat(9 << 20), HOUR);
    let gone = store::digest(b"gone");
    store.link("app", "_manifests/revisions", &gone, HOUR);
    let scanned = machine.scan("a.example");
    let broken: BTreeMap<String, &str> =
        scanned.broken.iter().map(|one| (one.digest.to_string(), one.why)).collect();
    let expected = BTreeMap::from([
        (empty, "it is no manifest of an image or an index"),
        (strange, "it is no manifest of an image or an index"),
        (large, "it cannot be read as a manifest"),
        (gone, "it is linked, and not there"),
    ]);
    assert_eq!(broken, expected);
    assert_eq!(scanned.manifests.keys().collect::<Vec<_>>(), [&Digest::parse(&sound).unwrap()]);
}

/// Nothing is read twice as large as it is, nor deeper than it can be.
#[test]
fn a_scan_ends_whatever_the_tree_looks_like() {
    let machine = Machine::new(None, &[("a.example", None)]);
    let path = machine.path("a.example");
    let store = Store::new(&path);
    let mut deep = store.repository("a");
    for _ in 0..300 {
        deep.push("a");
    }
    fs::create_dir_all(&deep).unwrap();
    assert!(machine.scan("a.example").repositories.is_empty());
}

/// Of 2 MiB or so, what is a bit more than the newest image.
const BUDGET: u64 = 1500 << 10;

#[test]
fn an_eviction_ends_below_the_low_water_and_says_what_went() {
    let machine = Machine::new(Some(BUDGET), &[("a.example", None)]);
    let path = machine.path("a.example");
    fill(&path);
    let before = du(&path);
    let dry = machine.keep(true);
    assert_eq!(du(&path), before, "a dry run changes nothing");
    let report = machine.keep(false);
    let names = |report: &Report| {
        report.upstreams[0].evicted.iter().map(|gone| gone.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&report), ["library/old:1", "library/old:2", "deep/er/multi:latest"]);
    assert_eq!(names(&dry), names(&report), "what a dry run says");
    assert!(report.bytes <= BUDGET / 100 * 80, "{report:?}");
    let own = du(&path.join(".larder"));
    // The folders of repositories that are empty now went as well.
    let after = du(&path) - own;
    let tidied = report.bytes.checked_sub(after);
    assert!(tidied.is_some_and(|tidied| tidied < 128 << 10), "wanted about {}, got {after}", report.bytes);
    assert!(path.join("docker/registry/v2/repositories/library/new/_uploads/running").exists());
    assert!(!path.join("docker/registry/v2/repositories/library/new/_uploads/stuck").exists());
    assert!(!path.join("docker/registry/v2/repositories/deep").exists(), "an empty repository goes");

    let file = SizeFile::read(&machine.root(), &Machine::layout("a.example")).unwrap();
    assert_eq!((file.bytes, file.images, file.evicted.images), (report.bytes, 3, 3));
    assert_eq!(file.evicted.last[0].name, "deep/er/multi:latest");
    assert_eq!(file.evicted.bytes, report.bytes_before - report.bytes);

    let again = machine.keep(false);
    assert_eq!(again.upstreams[0].evicted.len(), 0, "{again:?}");
}

#[test]
fn a_store_that_somebody_else_changes_is_left_alone() {
    let machine = Machine::new(Some(BUDGET), &[("a.example", None)]);
    fill(&machine.path("a.example"));
    let _held = lock(&machine.root(), &Machine::layout("a.example"), || false).unwrap();
    assert!(matches!(try_keep(machine.folder.path(), false, &mut || {}), Kept::Busy));
}

#[test]
fn upstreams_without_a_store_yet_have_nothing() {
    let machine = Machine::new(Some(BUDGET), &[("a.example", None), ("b.example", Some(BUDGET))]);
    let report = machine.keep(false);
    assert_eq!((report.bytes, report.upstreams.len()), (0, 2));
    assert!(!machine.path("a.example").exists());
}

#[test]
fn tending_evicts_when_a_store_has_grown_above_its_budget() {
    let machine = Machine::new(Some(64 << 20), &[("a.example", None)]);
    let path = machine.path("a.example");
    let mut store = Store::new(&path);
    let root = machine.root();
    let bytes =
        || SizeFile::read(&machine.root(), &Machine::layout("a.example")).map_or(0, |file| file.bytes);
    for number in 0..40_u64 {
        let name = number.to_string();
        store.image("app", &name, &[(name.as_str(), 3 << 20)], 100 * HOUR - number);
        // Each by a process of its own, which has seen no speed yet: a test fills faster than any network, and the
        // water is lowered for that by as much as this machine happens to be slow.
        assert!(matches!(Tender::default().round(&root).unwrap(), Round::Done(_)));
        // The rounds of another file system's users count as growth here: sooner is fine, later is not.
        assert!(du(&path) <= 64 << 20, "wanted at most 64 MiB, got {} after {number} images", du(&path));
    }
    assert!(bytes() > 40 << 20, "wanted no more to go than has to, got {} bytes left", bytes());
    let last = store.repository("app").join("_manifests/tags/39");
    assert!(last.exists() && !store.repository("app").join("_manifests/tags/0").exists());
}

/// A disk of 100 MiB, on which somebody else leaves 3 MiB; then a round, in a mount namespace of its own.
const FULL_DISK: &str = r#"
mkdir disk
mount -t tmpfs -o size=100m,mode=755 tmpfs disk
cp -a srv/. disk/
mount --bind disk srv
left=$(df --output=avail -B1 srv | tail -n1)
head -c $((left - 3 * 1024 * 1024)) /dev/zero > srv/theirs
size=$(stat -c %s srv/theirs)
"$1" tend --rounds 1 --root "$PWD"
echo "free $(df --output=avail -B1 srv | tail -n1)"
echo "theirs $(( $(stat -c %s srv/theirs) - size ))"
cd srv/a.example/docker/registry/v2/repositories/app
echo "tags $(ls _manifests/tags | sort -n | tr '\n' ' ')"
echo "uploads $(ls _uploads | tr '\n' ' ')"
"#;

#[test]
fn a_disk_that_others_fill_gets_room_again() {
    let machine = Machine::new(None, &[("a.example", None)]);
    let mut store = Store::new(&machine.path("a.example"));
    for number in 0..16_u64 {
        let name = number.to_string();
        store.image("app", &name, &[(name.as_str(), 3 << 20)], 100 * HOUR - number);
    }
    store.upload("app", "stuck", 100 * KIB, 2 * HOUR);
    store.upload("app", "running", 100 * KIB, 1);
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-ec", FULL_DISK, "sh"])
        .arg(env!("CARGO_BIN_EXE_larder"))
        .current_dir(machine.folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    let word = |key: &str| said.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
    let free: u64 = word("free").parse().unwrap();
    assert!(free >= 6 << 20, "wanted 6 % of 100 MiB, got {free} bytes free\n{said}{errors}");
    assert_eq!(word("theirs"), "0", "their file is theirs");
    assert_eq!(word("uploads"), "running");
    let tags = word("tags");
    assert!(tags.ends_with(" 15") && !tags.starts_with("0 "), "wanted the oldest to go, got {tags}");
    assert!(tags.split(' ').count() >= 12, "wanted no more to go than has to, got {tags}");
}

#[test]
fn tending_without_a_configuration_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::open(folder.path()).unwrap();
    assert!(matches!(Tender::default().round(&root).unwrap(), Round::Idle));
}

/// A registry that serves a store without an upstream, and ends with the test.
struct Offline {
    child: Child,
    address: String,
}

impl Offline {
    fn start(binary: &Path, store: &Path, config: &Path) -> Self {
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n  maintenance: {{ readonly: {{ enabled: true }} }}\n\
             http: {{ addr: \"127.0.0.1:0\" }}\n",
            store.display()
        );
        fs::write(config, text).unwrap();
        let mut child = Command::new(binary)
            .arg("serve")
            .arg(config)
            .env_clear()
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.find_map(|line| {
            let (_, after) = line.split_once("listening on ")?;
            after.split(['"', ' ', ',']).next().map(str::to_owned)
        });
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address: address.unwrap() }
    }

    /// What it answers with, where that is 200.
    fn get(&self, path: &str) -> Option<Vec<u8>> {
        const TYPES: &str =
            "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json";
        let url = format!("http://{}/v2/{path}", self.address);
        match ureq::get(&url).header("Accept", TYPES).call() {
            Ok(mut answer) => Some(answer.body_mut().read_to_vec().unwrap()),
            Err(ureq::Error::StatusCode(404)) => None,
            Err(error) => panic!("GET {path}: wanted 200 or 404, got {error}"),
        }
    }

    /// A manifest with all that it refers to, or nothing of it; whether it is there.
    fn is_whole(&self, repository: &str, reference: &str) -> bool {
        let Some(manifest) = self.get(&format!("{repository}/manifests/{reference}")) else { return false };
        if reference.starts_with("sha256:") {
            assert_eq!(store::digest(&manifest), reference);
        }
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let digests = |key: &str| {
            let one = manifest.get(key).cloned().unwrap_or_default();
            let all = one.as_array().cloned().unwrap_or_else(|| vec![one]);
            all.iter().filter_map(|one| one["digest"].as_str().map(str::to_owned)).collect::<Vec<_>>()
        };
        for digest in [digests("config"), digests("layers")].concat() {
            let Some(blob) = self.get(&format!("{repository}/blobs/{digest}")) else {
                panic!("{repository}/{reference} is served, and its blob {digest} is not");
            };
            assert_eq!(store::digest(&blob), digest);
        }
        for digest in digests("manifests") {
            // One platform was never asked for.
            let known = digest != store::digest(b"a platform that nobody has asked for");
            assert!(
                !known || self.is_whole(repository, &digest),
                "{repository}/{reference} has lost {digest}"
            );
        }
        true
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

const CHILD: &str = "LARDER_TEST_EVICT";

/// What [`killed_at_every_step`] starts: ends by SIGKILL before a step of its eviction.
#[test]
fn child_that_is_killed() {
    let Ok(text) = std::env::var(CHILD) else { return };
    let (steps, folder) = text.split_once(' ').unwrap();
    let mut left: u32 = steps.parse().unwrap();
    let mut step = || {
        if left == 0 {
            nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::SIGKILL).unwrap();
        }
        left -= 1;
    };
    assert!(matches!(try_keep(Path::new(folder), false, &mut step), Kept::Done(_)));
}

fn killed_at_every_step(major: u32) {
    let Some(binary) = registry(major) else { return };
    let machine = Machine::new(Some(BUDGET), &[("a.example", None)]);
    let path = machine.path("a.example");
    // It remembers nothing of the store: one serves all that the store becomes.
    let registry = Offline::start(&binary, &path, &machine.folder.path().join("config.yml"));
    let mut served = Vec::new();
    for steps in 0.. {
        let _ = fs::remove_dir_all(&path);
        let store = fill(&path);
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_is_killed", "--quiet"])
            .env(CHILD, format!("{steps} {}", machine.folder.path().display()))
            .stdout(Stdio::null())
            .status()
            .unwrap();
        let killed = status.signal() == Some(9);
        assert!(killed || status.success(), "the eviction: {status}");

        let mut whole = 0;
        for (name, digest) in &store.images {
            let (repository, tag) = name.split_once(':').unwrap();
            let by_tag = registry.is_whole(repository, tag);
            let by_digest = registry.is_whole(repository, digest);
            assert!(by_digest || !by_tag, "after {steps} steps {name} is there, and its manifest is not");
            whole += usize::from(by_digest);
        }
        served.push(whole);

        let report = machine.keep(false);
        assert!(report.bytes <= BUDGET / 100 * 90, "after {steps} steps: {report:?}");
        assert_eq!(fs::read_dir(path.join(".larder/trash")).unwrap().count(), 0, "the trash is swept");
        if !killed {
            break;
        }
    }
    assert!(served.len() > 60, "wanted an eviction of many steps, got {served:?}");
    assert_eq!(
        (served[0], served[served.len() - 1]),
        (6, 3),
        "images that are served, step by step: {served:?}"
    );
    assert!(served.is_sorted_by(|before, after| before >= after), "{served:?}");
}

#[test]
fn distribution_2_serves_what_an_eviction_that_was_killed_has_left() {
    killed_at_every_step(2);
}

#[test]
fn distribution_3_serves_what_an_eviction_that_was_killed_has_left() {
    killed_at_every_step(3);
}
