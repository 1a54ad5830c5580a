//! One look at one thing: is it what its name says?

use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{Scrub, Why};
use crate::store::Digest;

const CHUNK: usize = 256 << 10;
const PAGE: u64 = 4096;
/// Distribution takes no larger manifest (`registry/handlers/manifests.go`).
const LARGEST_MANIFEST: i64 = 4 << 20;
/// `sha512:` and its digits is the longest.
const LONGEST_LINK: i64 = 256;

/// One thing to look at.
#[derive(Debug, Clone)]
pub(super) enum Target {
    Blob(Digest),
    Layer {
        repository: String,
        folder: String,
        digest: Option<Digest>,
        name: String,
    },
    Revision {
        repository: String,
        folder: String,
        digest: Option<Digest>,
        name: String,
    },
    Manifest {
        repository: String,
        digest: Digest,
    },
    Tag {
        repository: String,
        tag: String,
    },
    /// What the tag once stood for.
    Index {
        repository: String,
        tag: String,
        folder: String,
        digest: Digest,
    },
}

/// What a look showed. Something broken is known again by its file, its size and its contents.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    Sound,
    Gone,
    Broken { why: Why, inode: u64, size: i64, contents: Option<[u8; 32]> },
}

impl Scrub<'_> {
    pub(super) fn look(&mut self, target: &Target, first: bool) -> Result<Look> {
        let path = self.path(target);
        let (report, sum) = (&mut self.report, &mut self.pass.sum);
        let (file, stat) = match self.root.open_unseen(&path) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Ok(Look::Gone),
            Err(error) => match error.downcast_ref::<Errno>() {
                Some(errno) if is_lost(*errno) => {
                    return Ok(Look::Broken { why: Why::Unreadable, inode: 0, size: 0, contents: None });
                }
                _ => return Err(error),
            },
        };
        if first {
            match target {
                Target::Blob(_) => {
                    report.blobs += 1;
                    sum.blobs += 1;
                }
                Target::Manifest { .. } => {}
                _ => {
                    report.links += 1;
                    sum.links += 1;
                }
            }
        }
        let kept = match target {
            Target::Blob(_) => 0,
            Target::Manifest { .. } => LARGEST_MANIFEST,
            _ => LONGEST_LINK,
        };
        let broken = |why, contents| Look::Broken { why, inode: stat.st_ino, size: stat.st_size, contents };
        let (digest, bytes) = match self.read(file, kept, &path, matches!(target, Target::Blob(_)))? {
            Some(read) => read,
            None => return Ok(broken(Why::Unreadable, None)),
        };
        let why = match target {
            Target::Blob(name) if digest == *name.bytes() => None,
            Target::Blob(_) if stat.st_size == 0 => Some(Why::Empty),
            Target::Blob(_) => Some(Why::Digest),
            // Wrong data is found, and removed, as the blob that it is.
            Target::Manifest { digest: name, .. } if digest != *name.bytes() => None,
            Target::Manifest { .. } => (!is_manifest(&bytes)).then_some(Why::Manifest),
            _ if bytes.is_empty() => Some(Why::Empty),
            Target::Layer { digest: name, .. } | Target::Revision { digest: name, .. } => {
                (!names(&bytes, name.as_ref())).then_some(Why::Link)
            }
            Target::Index { digest: name, .. } => (!names(&bytes, Some(name))).then_some(Why::Link),
            Target::Tag { repository, tag } => match linked(&bytes) {
                // Distribution writes that first.
                Some(digest) => {
                    (!self.root.exists(&self.layout.tag_index(repository, tag, &digest))).then_some(Why::Link)
                }
                None => Some(Why::Link),
            },
        };
        Ok(why.map_or(Look::Sound, |why| broken(why, Some(digest))))
    }

    /// A file's digest and its first `kept` bytes, no faster than allowed; `None` where the disk has lost it.
    fn read(
        &mut self,
        mut file: File,
        kept: i64,
        path: &str,
        all: bool,
    ) -> Result<Option<([u8; 32], Vec<u8>)>> {
        let mut hash = Sha256::new();
        let mut bytes = Vec::new();
        let mut left = if all { u64::MAX } else { u64::try_from(kept).unwrap_or(0) + 1 };
        let mut chunk = vec![0; usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)];
        // The smallest file is a page to the disk.
        self.next_read += self.pause(PAGE);
        loop {
            self.wait();
            let size = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let read = match file.read(chunk.get_mut(..size).unwrap_or_default()) {
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error().is_some_and(|raw| is_lost(Errno::from_raw(raw))) => {
                    return Ok(None);
                }
                Err(error) => return Err(error).with_context(|| format!("read {}", self.root.show(path))),
            };
            if read == 0 {
                break;
            }
            let part = chunk.get(..read).unwrap_or_default();
            hash.update(part);
            if kept > 0 {
                bytes.extend_from_slice(part);
            }
            left = left.saturating_sub(read as u64);
            self.report.bytes += read as u64;
            self.pass.sum.bytes += read as u64;
            self.next_read += self.pause(read as u64);
        }
        if all {
            // Once a month each byte comes by here: the memory is for what is pulled.
            let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
        Ok(Some((hash.finalize().into(), bytes)))
    }

    /// What so many bytes have to take.
    fn pause(&self, bytes: u64) -> Duration {
        let Some(rate) = self.options.rate else { return Duration::ZERO };
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// Until the next byte may be read. What was not read in time is not made up for.
    fn wait(&mut self) {
        let now = Instant::now();
        match self.next_read.checked_duration_since(now) {
            Some(early) => std::thread::sleep(early),
            None => self.next_read = now,
        }
    }

    fn path(&self, target: &Target) -> String {
        match target {
            Target::Blob(digest) | Target::Manifest { digest, .. } => self.layout.blob_data(digest),
            Target::Layer { folder, .. } | Target::Revision { folder, .. } | Target::Index { folder, .. } => {
                format!("{folder}/link")
            }
            Target::Tag { repository, tag } => self.layout.tag_link(repository, tag),
        }
    }
}

/// The disk does not give it back, and never will.
fn is_lost(errno: Errno) -> bool {
    matches!(errno, Errno::EIO | Errno::EUCLEAN | Errno::EBADMSG | Errno::EACCES | Errno::EPERM)
}

/// The digest that a link holds. Data is always named by SHA-256, also what is linked by another digest.
fn linked(link: &[u8]) -> Option<Digest> {
    std::str::from_utf8(link).ok().and_then(Digest::parse)
}

fn names(link: &[u8], wanted: Option<&Digest>) -> bool {
    let digest = linked(link);
    digest.is_some() && wanted.is_none_or(|wanted| digest.as_ref() == Some(wanted))
}

/// Of any kind: all of them are JSON objects that say their `schemaVersion`.
fn is_manifest(bytes: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Manifest {
        #[serde(rename = "schemaVersion")]
        _version: serde::de::IgnoredAny,
    }
    serde_json::from_slice::<Manifest>(bytes).is_ok()
}
