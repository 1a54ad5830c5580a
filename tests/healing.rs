//! Real registries and what looks after their stores: the scrub, the fold of the access log, and refresh.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use larder::root::Root;
use larder::store::refresh::{self, refresh};
use larder::store::scrub::{Kind, Options, scrub};
use larder::store::usage::fold;
use larder::store::{Digest, Layout};

#[path = "support/registry.rs"]
mod registry;
use registry::{Image, Numbers, Running, Upstream, digest_of, get, registry};

/// A cache in front of an upstream, both real.
struct Pair {
    folder: tempfile::TempDir,
    binary: PathBuf,
    images: Vec<Image>,
    upstream: Option<Running>,
    cache: Running,
    root: Root,
    layout: Layout,
}

impl Pair {
    /// `None` where there is no such registry.
    fn new(major: u32, fill: impl FnOnce(&Upstream) -> Vec<Image>) -> Option<Self> {
        let binary = registry(major)?;
        let folder = tempfile::tempdir().unwrap();
        let far = folder.path().join("upstream");
        let images = fill(&Upstream::new(&far));
        let upstream = Running::start(&binary, &far, "127.0.0.1:0", None);
        let cache =
            Running::start(&binary, &folder.path().join("cache"), "127.0.0.1:0", Some(upstream.address));
        let root = Root::open(folder.path()).unwrap();
        let layout = Layout::new("/cache");
        Some(Self { folder, binary, images, upstream: Some(upstream), cache, root, layout })
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// Pulls everything, and waits until it is stored: Distribution 2 answers first.
    fn fill(&self) {
        self.pull_all("cold");
        let deadline = Instant::now() + Duration::from_secs(60);
        let stored = |repository: &str, blob| {
            self.root.exists(&self.layout.blob_data(blob))
                && self.root.exists(&self.layout.layer_link(repository, blob))
        };
        let missing = || {
            self.images.iter().find(|image| image.blobs.iter().any(|blob| !stored(&image.repository, blob)))
        };
        while let Some(missing) = missing() {
            assert!(Instant::now() < deadline, "not stored: {missing:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        // It is renamed into place before its link is written whole.
        std::thread::sleep(Duration::from_millis(500));
    }

    fn pull_all(&self, when: &str) {
        let wrong: Vec<String> =
            self.images.iter().flat_map(|image| image.pull(self.cache.address)).collect();
        assert_eq!(wrong, [""; 0], "{when}");
    }

    fn upstream_goes(&mut self) -> String {
        let upstream = self.upstream.take().unwrap();
        upstream.address.to_string()
    }

    fn upstream_is_back(&mut self, address: &str) {
        self.upstream = Some(Running::start(&self.binary, &self.path("upstream"), address, None));
    }
}

/// All files of a store that hold data or links.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), found);
        } else if matches!(entry.file_name().to_str(), Some("data" | "link")) {
            found.push(entry.path());
        }
    }
}

/// Three sorts of harm.
fn damage(path: &Path, numbers: &mut Numbers) {
    let bytes = std::fs::read(path).unwrap();
    let harmed = match numbers.below(3) {
        0 => Vec::new(),
        1 => bytes.get(..numbers.below(bytes.len())).unwrap().to_vec(),
        _ => {
            let at = numbers.below(bytes.len());
            bytes.iter().enumerate().map(|(n, byte)| if n == at { byte ^ 0x55 } else { *byte }).collect()
        }
    };
    std::fs::write(path, harmed).unwrap();
}

fn a_hundred_broken_files_are_found_and_healed(major: u32) {
    let mut numbers =
        Numbers(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64);
    println!("seed {}", numbers.0);
    let fill = |upstream: &Upstream| {
        let shared = Numbers(1).bytes(3_000);
        let layers = |n: u64| {
            let mut numbers = Numbers(n);
            vec![shared.clone(), numbers.bytes(20_000), numbers.bytes(500)]
        };
        (0..24)
            .map(|n| upstream.image(&format!("library/image{}", n / 2), &format!("v{n}"), &layers(n)))
            .collect()
    };
    let Some(mut pair) = Pair::new(major, fill) else { return };
    pair.fill();

    let mut all = Vec::new();
    files(&pair.path("cache/docker"), &mut all);
    all.sort();
    assert!(all.len() > 200, "{}", all.len());
    let mut broken = BTreeSet::new();
    while broken.len() < 100 {
        broken.insert(all.get(numbers.below(all.len())).unwrap().clone());
    }
    broken.iter().for_each(|path| damage(path, &mut numbers));

    // A request for broken data changes nothing; one for a broken link might put it in order.
    let shows = |image: &Image, blob: &Digest| {
        let link = pair.path(&pair.layout.layer_link(&image.repository, blob));
        let data = pair.path(&pair.layout.blob_data(blob));
        broken.contains(&data) && !broken.contains(&link) && {
            let (status, body) = pair.cache.get(&format!("/v2/{}/blobs/{blob}", image.repository));
            status == 200 && digest_of(&body) != *blob
        }
    };
    let wrong = |image: &Image| image.blobs.iter().filter(|blob| shows(image, blob)).count();
    let wrong: usize = pair.images.iter().map(wrong).sum();
    assert_ne!(wrong, 0, "wanted the harm to show");

    let options = Options { rate: None, settle: Duration::from_millis(200), ..Options::default() };
    let dry = Options { dry_run: true, ..options.clone() };
    let found = scrub(&pair.root, &pair.layout, &dry).unwrap();
    let data = broken.iter().filter(|path| path.ends_with("data")).count();
    let blobs = found.broken.iter().filter(|broken| broken.kind == Kind::Blob).count();
    assert_eq!((blobs, found.broken.len()), (data, 100), "{broken:#?}");
    assert!(broken.iter().all(|path| path.exists()), "a dry run removed something");

    let report = scrub(&pair.root, &pair.layout, &options).unwrap();
    assert_eq!((report.broken.len(), report.left()), (100, 0), "{:?}", report.broken);
    assert!(!broken.iter().any(|path| path.exists()), "something broken is still there");
    let all = all.len();
    println!("{major}.x: 100 of {all} files broken, {wrong} wrong answers; found and removed: 100");

    // What has to be fetched again cannot be had; nothing wrong is served in its place.
    let address = pair.upstream_goes();
    for (path, digest) in pair.images.iter().flat_map(Image::requests) {
        let (status, body) = get(pair.cache.address, &path);
        assert!(status != 200 || digest_of(&body) == digest, "{path}: {status}, {} bytes", body.len());
    }
    pair.upstream_is_back(&address);
    pair.fill();
    let _ = pair.upstream_goes();
    pair.pull_all("from the cache alone");
    let again = scrub(&pair.root, &pair.layout, &options).unwrap();
    assert_eq!(again.broken, []);
}

#[test]
fn distribution_2_serves_nothing_broken_after_a_scrub() {
    a_hundred_broken_files_are_found_and_healed(2);
}

#[test]
fn distribution_3_serves_nothing_broken_after_a_scrub() {
    a_hundred_broken_files_are_found_and_healed(3);
}

fn the_access_log_says_what_was_used_last(major: u32) {
    let fill = |upstream: &Upstream| {
        ["a/one", "a/two"]
            .map(|name| {
                upstream.image(
                    name,
                    "v1",
                    &[Numbers(digest_of(name.as_bytes()).bytes()[0].into()).bytes(900), name.into()],
                )
            })
            .into()
    };
    let Some(pair) = Pair::new(major, fill) else { return };
    pair.fill();
    let cold = fold(&pair.root, &pair.layout).unwrap();
    // Each image: a manifest by digest, a configuration, two layers. The one by its tag has fetched the manifest.
    assert_eq!(cold.hits + cold.misses, 8, "{cold:?}");
    let day_ago = SystemTime::now() - Duration::from_secs(86_400);
    let mut all = Vec::new();
    files(&pair.path("cache/docker"), &mut all);
    for path in &all {
        std::fs::File::options().append(true).open(path).unwrap().set_modified(day_ago).unwrap();
    }
    let [one, two] = pair.images.as_slice() else { panic!("wanted two images") };
    assert_eq!(one.pull(pair.cache.address), [""; 0]);
    let warm = fold(&pair.root, &pair.layout).unwrap();
    assert_eq!((warm.hits - cold.hits, warm.misses - cold.misses), (4, 0), "{warm:?}");
    let used = |path: &str| {
        let modified = std::fs::metadata(pair.path(path)).unwrap().modified().unwrap();
        modified > day_ago + Duration::from_secs(3600)
    };
    for (image, wanted) in [(one, true), (two, false)] {
        assert_eq!(used(&pair.layout.revision_link(&image.repository, &image.manifest)), wanted, "{image:?}");
        assert_eq!(used(&pair.layout.blob_data(&image.manifest)), wanted, "{image:?}");
        for blob in &image.blobs {
            assert_eq!(used(&pair.layout.layer_link(&image.repository, blob)), wanted, "{image:?}: {blob}");
            assert_eq!(used(&pair.layout.blob_data(blob)), wanted, "{image:?}: {blob}");
        }
    }
}

#[test]
fn the_access_log_of_distribution_2_says_what_was_used_last() {
    the_access_log_says_what_was_used_last(2);
}

#[test]
fn the_access_log_of_distribution_3_says_what_was_used_last() {
    the_access_log_says_what_was_used_last(3);
}

fn a_refreshed_tag_is_asked_for_again(major: u32) {
    let fill = |upstream: &Upstream| vec![upstream.image("library/busybox", "1", &[vec![1; 900]])];
    let Some(mut pair) = Pair::new(major, fill) else { return };
    pair.fill();
    let address = pair.upstream_goes();
    let tag = "/v2/library/busybox/manifests/1";
    assert_eq!(pair.cache.get(tag).0, 200, "stale, while its registry is away");
    let image = refresh::Image::parse("busybox:1").unwrap();
    let dropped = refresh(&pair.root, &pair.layout, &image).unwrap();
    assert_eq!(dropped.tags, ["1"]);
    assert_ne!(pair.cache.get(tag).0, 200, "forgotten");
    // Somebody has pushed another one.
    let new = Upstream::new(&pair.path("upstream")).image("library/busybox", "1", &[vec![2; 900]]);
    pair.upstream_is_back(&address);
    assert_eq!(digest_of(&pair.cache.get(tag).1), new.manifest);
    assert_eq!(new.pull(pair.cache.address), [""; 0]);
}

#[test]
fn distribution_2_asks_again_for_what_was_refreshed() {
    a_refreshed_tag_is_asked_for_again(2);
}

#[test]
fn distribution_3_asks_again_for_what_was_refreshed() {
    a_refreshed_tag_is_asked_for_again(3);
}
