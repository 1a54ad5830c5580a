#![allow(clippy::disallowed_methods, reason = "a test looks at the files themselves")]

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::*;

struct Store {
    folder: tempfile::TempDir,
    root: Root,
    layout: Layout,
}

const MANIFEST: &[u8] = br#"{"schemaVersion":2}"#;

impl Store {
    /// One image: a manifest with a tag, and two layers.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path()).unwrap();
        let store = Self { root, folder, layout: Layout::new("/store") };
        for layer in [&b"one"[..], b"two"] {
            let digest = store.blob(layer);
            store.put(&store.layout.layer_link("a/b", &digest), digest.to_string().as_bytes());
        }
        let digest = store.blob(MANIFEST);
        let name = digest.to_string();
        store.put(&store.layout.revision_link("a/b", &digest), name.as_bytes());
        store.put(&store.layout.tag_link("a/b", "v1"), name.as_bytes());
        let index = format!("{}/index/sha256/{}/link", store.layout.tag("a/b", "v1"), digest.hex());
        store.put(&index, name.as_bytes());
        store
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = digest_of(bytes);
        self.put(&self.layout.blob_data(&digest), bytes);
        digest
    }

    fn scrub(&self, options: &Options) -> Report {
        scrub(&self.root, &self.layout, options).unwrap()
    }

    fn found(&self) -> Vec<String> {
        self.scrub(&quick()).broken.iter().map(ToString::to_string).collect()
    }
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::new(Sha256::digest(bytes).into())
}

fn quick() -> Options {
    Options { rate: None, settle: Duration::ZERO, ..Options::default() }
}

#[test]
fn a_sound_store_stays_as_it_is() {
    let store = Store::new();
    let report = store.scrub(&quick());
    assert_eq!((report.blobs, report.links, report.complete), (3, 5, true));
    assert_eq!(report.broken, []);
    let last = State::read(&store.root, &store.layout).last.unwrap();
    assert_eq!((last.sum.blobs, last.sum.links, last.sum.broken), (3, 5, 0));
}

#[test]
fn data_that_has_another_digest_goes_and_the_rest_stays() {
    for (what, bytes, why) in [
        ("empty", &b""[..], "empty"),
        ("cut", b"on", "has another digest"),
        ("other", b"0ne", "has another digest"),
    ] {
        let store = Store::new();
        let digest = digest_of(b"one");
        store.put(&store.layout.blob_data(&digest), bytes);
        assert_eq!(store.found(), [format!("blob {digest}: {why}, removed")], "{what}");
        assert!(!store.path(&store.layout.blob(&digest)).exists(), "{what}");
        assert!(store.path(&store.layout.blob_data(&digest_of(b"two"))).exists(), "{what}");
        assert_eq!(store.root.list(&store.layout.trash()).unwrap(), [""; 0], "{what}");
        assert_eq!(store.found(), [""; 0], "{what}");
    }
}

#[test]
fn links_that_name_nothing_or_something_else_go() {
    let (layer, manifest) = (digest_of(b"one"), digest_of(MANIFEST));
    let other = digest_of(b"two").to_string();
    for bytes in ["", "sha256:", "x", &format!("{layer}\n"), &other, &"x".repeat(1 << 20)] {
        let why = if bytes.is_empty() { "empty" } else { "does not name what it has to" };
        let store = Store::new();
        let link = store.layout.layer_link("a/b", &layer);
        store.put(&link, bytes.as_bytes());
        assert_eq!(store.found(), [format!("link of layer {layer} of a/b: {why}, removed")]);
        assert!(!store.path(&link).exists());
        store.put(&store.layout.revision_link("a/b", &manifest), bytes.as_bytes());
        assert_eq!(store.found(), [format!("link of manifest {manifest} of a/b: {why}, removed")]);
        {
            store.put(&store.layout.tag_link("a/b", "v1"), bytes.as_bytes());
            assert_eq!(store.found(), [format!("link of tag v1 of a/b: {why}, removed")]);
            assert!(!store.path(&store.layout.tag("a/b", "v1")).exists());
        }
        assert_eq!(store.found(), [""; 0]);
    }
}

#[test]
fn a_manifest_that_is_none_goes_with_its_link() {
    let store = Store::new();
    let digest = store.blob(b"<html>");
    let link = store.layout.revision_link("a/b", &digest);
    store.put(&link, digest.to_string().as_bytes());
    assert_eq!(store.found(), [format!("manifest {digest} of a/b: is no manifest, removed")]);
    assert!(!store.path(&link).exists() && !store.path(&store.layout.blob(&digest)).exists());
}

#[test]
fn what_is_missing_is_not_broken() {
    let store = Store::new();
    std::fs::remove_dir_all(store.path(&store.layout.blob(&digest_of(b"one")))).unwrap();
    assert_eq!(store.found(), [""; 0]);
}

#[test]
fn a_dry_run_changes_nothing() {
    let store = Store::new();
    let digest = digest_of(b"one");
    store.put(&store.layout.blob_data(&digest), b"");
    let report = store.scrub(&Options { dry_run: true, ..quick() });
    assert_eq!(report.left(), 1);
    assert!(store.path(&store.layout.blob_data(&digest)).exists());
    assert!(!store.path(&store.layout.own()).exists());
}

#[test]
fn what_is_written_while_it_is_looked_at_stays() {
    let store = Store::new();
    let (digest, large) = (digest_of(b"one"), store.blob(&vec![7; 100_000]));
    let data = store.path(&store.layout.blob_data(&digest));
    // In place, as Distribution 2 does.
    std::fs::write(&data, b"o").unwrap();
    let writer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        std::fs::write(&data, b"one").unwrap();
    });
    let report = store.scrub(&Options { settle: Duration::from_secs(3), ..quick() });
    writer.join().unwrap();
    assert_eq!(report.broken, []);
    assert!(store.path(&store.layout.blob_data(&large)).exists());
}

#[test]
fn a_pass_that_was_ended_goes_on_where_it_was() {
    let store = Store::new();
    for n in 0..20_u8 {
        store.blob(&[n]);
    }
    let ended = Options { limit: Duration::ZERO, ..quick() };
    let (mut blobs, mut links, mut runs) = (0, 0, 0);
    let last = loop {
        let report = store.scrub(&ended);
        blobs += report.blobs;
        links += report.links;
        runs += 1;
        if report.complete {
            break report;
        }
    };
    assert_eq!((blobs, links, last.resumed), (23, 5, true));
    assert!(runs > 20, "{runs}");
    let sum = State::read(&store.root, &store.layout).last.unwrap().sum;
    assert_eq!((sum.blobs, sum.links), (23, 5));
    assert!(!store.scrub(&quick()).resumed);
}

#[test]
fn from_the_start_means_all() {
    let store = Store::new();
    store.scrub(&Options { limit: Duration::ZERO, ..quick() });
    let report = store.scrub(&Options { from_start: true, ..quick() });
    assert_eq!((report.blobs, report.links, report.resumed), (3, 5, false));
}

#[test]
fn no_more_is_read_than_the_rate_allows() {
    let store = Store::new();
    store.blob(&vec![1; 200_000]);
    let started = Instant::now();
    store.scrub(&Options { rate: Some(400_000), ..quick() });
    assert!(started.elapsed() >= Duration::from_millis(450), "{:?}", started.elapsed());
}

#[test]
fn the_time_of_last_access_stays() {
    let store = Store::new();
    let data = store.path(&store.layout.blob_data(&digest_of(b"one")));
    let hour_ago = SystemTime::now() - Duration::from_secs(86_400 * 3);
    let times = std::fs::FileTimes::new().set_accessed(hour_ago);
    std::fs::File::options().append(true).open(&data).unwrap().set_times(times).unwrap();
    store.scrub(&quick());
    assert_eq!(accessed(&data), hour_ago);
}

fn accessed(path: &Path) -> SystemTime {
    std::fs::metadata(path).unwrap().accessed().unwrap()
}

#[test]
fn two_at_once_are_refused() {
    let store = Store::new();
    let held = store.root.lock(&store.layout.v2(), || false).unwrap();
    let error = scrub(&store.root, &store.layout, &quick()).unwrap_err();
    assert!(format!("{error:#}").contains("another larder is at work"), "{error:#}");
    drop(held);
}

#[test]
fn an_empty_store_is_sound() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::open(folder.path()).unwrap();
    assert!(scrub(&root, &Layout::new("/store"), &quick()).unwrap().complete);
}
