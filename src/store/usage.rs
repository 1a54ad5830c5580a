//! When what was used last: the fold of a registry's access log into the store.
//!
//! `larder unit run` makes the log the registry's standard output. Every so often the lines that are new are read,
//! and what they name gets the time of its use as its modification time. A fresh file's is that of its fetch, so it
//! always is the newer of the two; it needs no database, outlives every restart, and `noatime` is nothing to it.
//!
//! A touch puts whole seconds; a fetch hardly ever ends on one. That tells the two apart where hits are counted.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::accesslog::{Method, Request, Subject};
use super::{Digest, Layout, own_access};
use crate::root::Root;

/// A log that has been read whole is emptied from here on.
pub const LARGEST_LOG: u64 = 8 << 20;
/// Go's server takes a request of up to a megabyte; nothing that we look for is near to that.
const LONGEST_LINE: u64 = 16 << 10;
/// So much of the log is read before what it names is touched.
const BATCH: u64 = 16 << 20;
const VERSION: u32 = 1;

/// What the fold remembers, and what it has counted since it began.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    version: u32,
    /// Where in which log it goes on.
    inode: u64,
    offset: u64,
    /// Seconds since 1970.
    pub counted_since: u64,
    /// Blobs, and manifests by digest, that were asked for and here; `bytes` is what was sent of them.
    pub hits: u64,
    pub hit_bytes: u64,
    /// The same for what had to be fetched first.
    pub misses: u64,
    pub miss_bytes: u64,
    /// When something was last asked for and served, in seconds since 1970.
    pub last_pull: Option<u64>,
}

impl Usage {
    /// What the last fold left; a file that cannot be read is as good as none.
    #[must_use]
    pub fn read(root: &Root, layout: &Layout) -> Self {
        let bytes = root.read(&layout.usage()).ok().flatten().unwrap_or_default();
        serde_json::from_slice(&bytes)
            .ok()
            .filter(|usage: &Self| usage.version == VERSION)
            .unwrap_or_default()
    }

    fn write(&self, root: &Root, layout: &Layout) -> Result<()> {
        let bytes = serde_json::to_vec(self).context("write what was used")?;
        root.write(&layout.usage(), &bytes, own_access(0o640))
    }

    /// Of 1; `None` before the first pull.
    #[must_use]
    pub fn hit_rate(&self) -> Option<f64> {
        let all = self.hits.saturating_add(self.misses);
        #[expect(clippy::cast_precision_loss, reason = "a rate of two figures")]
        (all > 0).then(|| self.hits as f64 / all as f64)
    }
}

/// Reads what the access log has new. Where another fold is at work, that one does it.
///
/// Needs no lock of the store: it moves times on and removes nothing. A crash before the end repeats it.
///
/// # Errors
/// When the log cannot be read. What cannot be written (the disk is full) is told, and done by the next fold.
pub fn fold(root: &Root, layout: &Layout) -> Result<Usage> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    fold_at(root, layout, now)
}

fn fold_at(root: &Root, layout: &Layout, now: Duration) -> Result<Usage> {
    let before = Usage::read(root, layout);
    let context = || format!("read {}", root.show(&layout.access_log()));
    let Some((file, _)) = root.open_in_place(&layout.access_log())? else { return Ok(before) };
    let log = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(log) => log,
        Err((_, Errno::EWOULDBLOCK)) => return Ok(before),
        Err((_, errno)) => return Err(errno).with_context(context),
    };
    // Another fold may have ended since.
    let before = Usage::read(root, layout);
    let stat = nix::sys::stat::fstat(&*log).with_context(context)?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let mut usage = before.clone();
    if usage.version != VERSION {
        usage = Usage { version: VERSION, counted_since: now.as_secs(), ..Usage::default() };
    }
    if usage.inode != stat.st_ino || usage.offset > size {
        (usage.inode, usage.offset) = (stat.st_ino, 0);
    }
    let mut fold =
        Fold { root, layout, now: now.as_secs(), usage, blobs: HashMap::new(), touch: HashMap::new() };
    (&*log).seek(SeekFrom::Start(fold.usage.offset)).with_context(context)?;
    let mut reader = BufReader::with_capacity(64 << 10, &*log);
    while fold.batch(&mut reader).with_context(context)? {}
    let mut usage = fold.usage;
    if usage != before
        && let Err(error) = usage.write(root, layout)
    {
        warn!("{error:#}: the next reading of the access log counts this one's again");
        return Ok(usage);
    }
    if usage.offset >= LARGEST_LOG {
        // A line that comes in between is lost: its use was some microseconds before.
        let size = nix::sys::stat::fstat(&*log).with_context(context)?.st_size;
        if u64::try_from(size) == Ok(usage.offset) {
            log.set_len(0).with_context(|| format!("empty {}", root.show(&layout.access_log())))?;
            usage.offset = 0;
            if let Err(error) = usage.write(root, layout) {
                warn!("{error:#}");
            }
        }
    }
    Ok(usage)
}

/// One file of a store.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Used {
    Blob(Digest),
    Layer(String, Digest),
    Revision(String, Digest),
}

struct Fold<'f> {
    root: &'f Root,
    layout: &'f Layout,
    now: u64,
    usage: Usage,
    /// What a blob was before this batch: its time in nanoseconds and its size.
    blobs: HashMap<Digest, Option<(i128, u64)>>,
    touch: HashMap<Used, u64>,
}

impl Fold<'_> {
    /// Whether there may be more.
    fn batch(&mut self, log: &mut impl BufRead) -> std::io::Result<bool> {
        let end = self.usage.offset + BATCH;
        let mut line = Vec::new();
        let more = loop {
            if self.usage.offset >= end {
                break true;
            }
            line.clear();
            let mut read = log.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? as u64;
            let mut whole = line.last() == Some(&b'\n');
            let long = !whole && read == LONGEST_LINE;
            while long && !whole {
                line.clear();
                let rest = log.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? as u64;
                if rest == 0 {
                    break;
                }
                whole = line.last() == Some(&b'\n');
                read += rest;
            }
            // The registry is about to write the rest.
            if !whole {
                break false;
            }
            self.usage.offset += read;
            if !long && let Some(request) = Request::parse(line.trim_ascii_end()) {
                self.count(&request);
            }
        };
        self.apply();
        Ok(more)
    }

    fn count(&mut self, request: &Request) {
        let at = request.at.min(self.now);
        let repository = request.repository;
        let digest = match request.of {
            Subject::Blob(digest) | Subject::Manifest(digest) => digest,
            Subject::Tag(tag) => {
                let link = self.root.read(&self.layout.tag_link(repository, tag)).ok().flatten();
                let digest = link.and_then(|link| Digest::parse(std::str::from_utf8(&link).ok()?));
                let Some(digest) = digest else { return };
                digest
            }
        };
        let link = match request.of {
            Subject::Blob(_) => Used::Layer(repository.to_owned(), digest),
            _ => Used::Revision(repository.to_owned(), digest),
        };
        for used in [Used::Blob(digest), link] {
            let last = self.touch.entry(used).or_insert(at);
            *last = at.max(*last);
        }
        if request.method == Method::Head || request.status == 304 {
            return;
        }
        self.usage.last_pull = self.usage.last_pull.max(Some(at));
        if matches!(request.of, Subject::Tag(_)) {
            // Which manifest it was then is not known.
            return;
        }
        let blob = *self.blobs.entry(digest).or_insert_with(|| {
            let stat = self.root.file_stat(&self.layout.blob_data(&digest)).ok().flatten()?;
            let time = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
            Some((time, u64::try_from(stat.st_size).unwrap_or(0)))
        });
        let start = i128::from(at) * 1_000_000_000;
        let usage = &mut self.usage;
        let (count, bytes) = match blob {
            Some((time, _)) if time < start || time % 1_000_000_000 == 0 => {
                (&mut usage.hits, &mut usage.hit_bytes)
            }
            _ => (&mut usage.misses, &mut usage.miss_bytes),
        };
        *count = count.saturating_add(1);
        let largest = blob.map_or(u64::MAX, |(_, size)| size);
        *bytes = bytes.saturating_add(request.bytes.min(largest));
    }

    fn apply(&mut self) {
        let mut told = false;
        for (used, at) in self.touch.drain() {
            let path = match &used {
                Used::Blob(digest) => self.layout.blob_data(digest),
                Used::Layer(repository, digest) => self.layout.layer_link(repository, digest),
                Used::Revision(repository, digest) => self.layout.revision_link(repository, digest),
            };
            if let Err(error) = self.root.touch(&path, at)
                && !told
            {
                told = true;
                warn!("{error:#}: what is used may be evicted as if it were not");
            }
        }
        self.blobs.clear();
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test looks at the files themselves")]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const HEX: &str = "d8d0d98c541383df21a1d5d0d766f9cb6d5d11b931ad753c69d6e0338adb277c";
    const MANIFEST: &str = "cf568ae09c7c7fc748c1b2e74806a5c00b9798037134c64bedfd9a39dc08d3db";
    /// 15:00:00 on the day of the lines below.
    const NOON: u64 = 1_795_273_200;

    struct Store {
        folder: tempfile::TempDir,
        root: Root,
        layout: Layout,
    }

    impl Store {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store =
                Self { root: Root::open(folder.path()).unwrap(), folder, layout: Layout::new("/store") };
            super::super::prepare_own(&store.root, &store.layout).unwrap();
            let (blob, manifest) = (digest(HEX), digest(MANIFEST));
            for path in [
                store.layout.blob_data(&blob),
                store.layout.blob_data(&manifest),
                store.layout.layer_link("a/b", &blob),
                store.layout.revision_link("a/b", &manifest),
            ] {
                store.put(&path, b"0123456789");
            }
            store.put(&store.layout.tag_link("a/b", "v1"), format!("sha256:{MANIFEST}").as_bytes());
            store
        }

        fn path(&self, path: &str) -> PathBuf {
            self.folder.path().join(path)
        }

        /// A file of an hour before.
        fn put(&self, path: &str, bytes: &[u8]) {
            let path = self.path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, bytes).unwrap();
            fetched(&path, NOON - 3600);
        }

        fn log(&self, lines: &[String]) {
            use std::io::Write;
            let path = self.path(&self.layout.access_log());
            let mut log = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
            log.write_all(lines.concat().as_bytes()).unwrap();
        }

        fn fold(&self) -> Usage {
            fold_at(&self.root, &self.layout, Duration::from_secs(NOON + 1800)).unwrap()
        }

        fn used(&self, path: &str) -> u64 {
            let time = std::fs::metadata(self.path(path)).unwrap().modified().unwrap();
            time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
        }
    }

    fn fetched(path: &std::path::Path, seconds: u64) {
        let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, 123_456_789);
        std::fs::File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
    }

    fn digest(hex: &str) -> Digest {
        Digest::from_hex(hex.as_bytes()).unwrap()
    }

    /// `at`: minutes after [`NOON`].
    fn line(method: &str, of: &str, at: u32) -> String {
        format!(
            "::1 - - [21/Nov/2026:15:{at:02}:00 +0000] \"{method} /v2/a/b/{of} HTTP/1.1\" 200 10 \"\" \"x\"\n"
        )
    }

    #[test]
    fn a_pull_moves_the_times_of_what_it_used() {
        let store = Store::new();
        store.log(&[
            line("HEAD", "manifests/v1", 1),
            line("GET", &format!("blobs/sha256:{HEX}"), 3),
            line("GET", &format!("blobs/sha256:{HEX}"), 2),
        ]);
        store.fold();
        let (blob, manifest) = (digest(HEX), digest(MANIFEST));
        assert_eq!(store.used(&store.layout.blob_data(&blob)), NOON + 180);
        assert_eq!(store.used(&store.layout.layer_link("a/b", &blob)), NOON + 180);
        assert_eq!(store.used(&store.layout.blob_data(&manifest)), NOON + 60);
        assert_eq!(store.used(&store.layout.revision_link("a/b", &manifest)), NOON + 60);
    }

    #[test]
    fn times_never_go_back_nor_into_the_future() {
        let store = Store::new();
        let blob = digest(HEX);
        fetched(&store.path(&store.layout.blob_data(&blob)), NOON + 600);
        store.log(&[line("GET", &format!("blobs/sha256:{HEX}"), 1)]);
        store.fold();
        assert_eq!(store.used(&store.layout.blob_data(&blob)), NOON + 600);
        store.log(&[line("GET", &format!("blobs/sha256:{HEX}"), 59)]);
        store.fold();
        assert_eq!(store.used(&store.layout.blob_data(&blob)), NOON + 1800);
    }

    #[test]
    fn what_was_there_before_the_request_is_a_hit() {
        let store = Store::new();
        let get = |hex: &str, at| line("GET", &format!("blobs/sha256:{hex}"), at);
        fetched(&store.path(&store.layout.blob_data(&digest(HEX))), NOON + 61);
        store.log(&[get(HEX, 1), get(HEX, 2), get(HEX, 3), get(&"0".repeat(64), 4)]);
        let usage = store.fold();
        assert_eq!((usage.hits, usage.misses), (2, 2));
        assert_eq!((usage.hit_bytes, usage.miss_bytes), (20, 20));
        assert_eq!(usage.last_pull, Some(NOON + 240));
        // Logged late, because it was long: it began before what the last fold put.
        store.log(&[get(HEX, 2)]);
        assert_eq!(store.fold().hits, 3);
    }

    #[test]
    fn a_head_is_a_use_and_no_hit() {
        let store = Store::new();
        store.log(&[line("HEAD", &format!("blobs/sha256:{HEX}"), 1), line("GET", "manifests/v1", 2)]);
        let usage = store.fold();
        assert_eq!((usage.hits, usage.misses, usage.last_pull), (0, 0, Some(NOON + 120)));
    }

    #[test]
    fn each_line_counts_once() {
        let store = Store::new();
        let get = line("GET", &format!("blobs/sha256:{HEX}"), 1);
        let (half, rest) = get.split_at(40);
        store.log(&[get.clone(), half.to_owned()]);
        assert_eq!(store.fold().hits, 1);
        assert_eq!(store.fold().hits, 1);
        store.log(&[rest.to_owned()]);
        assert_eq!(store.fold().hits, 2);
    }

    #[test]
    fn a_log_that_was_emptied_or_replaced_is_read_from_its_start() {
        let store = Store::new();
        let get = || line("GET", &format!("blobs/sha256:{HEX}"), 1);
        store.log(&[get(), get()]);
        store.fold();
        let path = store.path(&store.layout.access_log());
        std::fs::write(&path, get()).unwrap();
        assert_eq!(store.fold().hits, 3);
        std::fs::rename(&path, path.with_extension("old")).unwrap();
        store.log(&[get(), get(), get()]);
        assert_eq!(store.fold().hits, 6);
    }

    #[test]
    fn a_large_log_is_emptied_once_it_is_read() {
        let store = Store::new();
        let get = line("GET", &format!("blobs/sha256:{HEX}"), 1);
        let count = usize::try_from(LARGEST_LOG).unwrap() / get.len() + 1;
        store.log(&vec![get.clone(); count]);
        assert_eq!(store.fold().hits, count as u64);
        assert_eq!(std::fs::metadata(store.path(&store.layout.access_log())).unwrap().len(), 0);
        store.log(&[get]);
        assert_eq!(store.fold().hits, count as u64 + 1);
    }

    #[test]
    fn a_line_without_end_is_passed_over() {
        let store = Store::new();
        let get = line("GET", &format!("blobs/sha256:{HEX}"), 1);
        let long = line("GET", &format!("blobs/sha256:{HEX}?{}", "x".repeat(1 << 20)), 1);
        store.log(&[long, get]);
        assert_eq!(store.fold().hits, 1);
    }

    #[test]
    fn nothing_new_writes_nothing() {
        let store = Store::new();
        store.log(&[line("GET", "manifests/v1", 1)]);
        store.fold();
        let inode = || {
            use std::os::unix::fs::MetadataExt;
            std::fs::metadata(store.path(&store.layout.usage())).unwrap().ino()
        };
        let first = inode();
        store.fold();
        assert_eq!(inode(), first);
    }

    #[test]
    fn without_a_log_nothing_is_known() {
        let store = Store::new();
        assert_eq!(store.fold(), Usage::default());
    }
}
