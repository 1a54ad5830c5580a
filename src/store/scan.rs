//! Reads a store whole: what is in it, what refers to what, how much it takes and when it was last used.
//!
//! Last use is the modification time: the registry's own when it fetched a blob, and that of its access log's reader
//! ([`super`]) since. Only names and times are looked at, but for manifests and tags. What appears or goes meanwhile
//! is as if it were not there.

use std::collections::HashMap;
use std::ffi::CStr;

use anyhow::Result;
use serde::Deserialize;

use super::layout::{Digest, Layout, V2};
use super::walk::{self, DEEPEST};
use crate::root::{Folder, Kind, Root};

/// Distribution takes no manifest above 4 MiB.
const LARGEST_MANIFEST: u64 = 8 << 20;
/// A link holds one digest.
const LARGEST_LINK: u64 = 256;

/// What a store holds. Bytes are those on disk, with the folders that go along.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Store {
    /// All of it, as `du` counts.
    pub bytes: u64,
    pub blobs: Vec<Blob>,
    /// By place in [`Self::blobs`].
    pub by_digest: HashMap<Digest, usize>,
    pub repositories: Vec<Repository>,
    /// What each manifest that could be read refers to.
    pub manifests: HashMap<Digest, Refers>,
    pub broken: Vec<Broken>,
}

/// A layer, a configuration or a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    pub digest: Digest,
    pub bytes: u64,
    /// Seconds since 1970, as all times here.
    pub used: u64,
}

/// What a repository says that it has.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Repository {
    pub name: String,
    pub revisions: Vec<Linked>,
    pub layers: Vec<Linked>,
    pub tags: Vec<Tag>,
    pub uploads: Vec<Upload>,
}

/// A digest of which a repository says that it has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linked {
    pub digest: Digest,
    pub bytes: u64,
    pub used: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    pub name: String,
    /// `None`: its link is empty, or gone.
    pub digest: Option<Digest>,
    pub bytes: u64,
    /// When it was last set.
    pub used: u64,
}

/// A blob on its way in, or what was left of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    pub name: String,
    pub bytes: u64,
    /// When something last arrived.
    pub used: u64,
}

/// What a manifest refers to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Refers {
    /// Of an index or list.
    pub manifests: Vec<Digest>,
    pub blobs: Vec<Digest>,
}

/// A manifest that is no part of what refers to what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub repository: String,
    pub digest: Digest,
    pub why: &'static str,
}

#[derive(Deserialize)]
struct Manifest {
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    /// An artifact's.
    #[serde(default)]
    blobs: Vec<Descriptor>,
    manifests: Option<Vec<Descriptor>>,
    /// Schema 1.
    #[serde(default, rename = "fsLayers")]
    fs_layers: Vec<FsLayer>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
}

#[derive(Deserialize)]
struct FsLayer {
    #[serde(rename = "blobSum")]
    digest: String,
}

/// What a manifest refers to, whatever type it claims to be: an OCI or Docker image, an index or list of them, an
/// artifact. `None`: it is none of these.
#[must_use]
pub fn parse(manifest: &[u8]) -> Option<Refers> {
    let manifest: Manifest = serde_json::from_slice(manifest).ok()?;
    let digests = |all: Vec<Descriptor>| {
        all.into_iter().filter_map(|one| Digest::parse(&one.digest)).collect::<Vec<_>>()
    };
    let is_one = manifest.config.is_some()
        || manifest.manifests.is_some()
        || !(manifest.layers.is_empty() && manifest.blobs.is_empty() && manifest.fs_layers.is_empty());
    let mut blobs = digests(manifest.config.into_iter().collect());
    blobs.extend(digests(manifest.layers));
    blobs.extend(digests(manifest.blobs));
    blobs.extend(manifest.fs_layers.iter().filter_map(|layer| Digest::parse(&layer.digest)));
    is_one.then(|| Refers { manifests: digests(manifest.manifests.unwrap_or_default()), blobs })
}

/// Reads the store at `layout`; one that is not there is empty.
///
/// # Errors
/// On I/O errors.
pub fn scan(root: &Root, layout: &Layout) -> Result<Store> {
    let mut scan = Scan::default();
    let Some(mut folder) = root.folder(layout.store())? else { return Ok(scan.store) };
    scan.store.bytes += folder.own()?.bytes;
    // Distribution's own folder is the end of a chain of three.
    scan.chain(&mut folder, V2)?;
    scan.read_manifests(root, layout)?;
    Ok(scan.store)
}

#[derive(Default)]
struct Scan {
    store: Store,
    path: Vec<u8>,
}

impl Scan {
    /// Follows `chain`; all that is beside it is only measured.
    fn chain(&mut self, folder: &mut Folder, chain: &str) -> Result<()> {
        let (next, rest) = chain.split_once('/').unwrap_or((chain, ""));
        for (name, is_folder) in folder.names()? {
            if is_folder && !next.is_empty() && name.to_bytes() == next.as_bytes() {
                let Some(mut child) = folder.open(&name)? else { continue };
                self.store.bytes += child.own()?.bytes;
                if rest.is_empty() { self.v2(&mut child)? } else { self.chain(&mut child, rest)? }
            } else {
                self.other(folder, &name)?;
            }
        }
        Ok(())
    }

    fn other(&mut self, folder: &Folder, name: &CStr) -> Result<()> {
        self.store.bytes += walk::size_of(folder, name)?.bytes;
        Ok(())
    }

    fn v2(&mut self, folder: &mut Folder) -> Result<()> {
        for (name, is_folder) in folder.names()? {
            match name.to_bytes() {
                b"blobs" if is_folder => self.blobs(folder, &name)?,
                b"repositories" if is_folder => {
                    let Some(mut child) = folder.open(&name)? else { continue };
                    self.store.bytes += child.own()?.bytes;
                    self.repositories(&mut child, "", DEEPEST)?;
                }
                _ => self.other(folder, &name)?,
            }
        }
        Ok(())
    }

    /// `blobs/sha256/xx/HEX/data`.
    fn blobs(&mut self, folder: &Folder, name: &CStr) -> Result<()> {
        let Some(mut blobs) = folder.open(name)? else { return Ok(()) };
        self.store.bytes += blobs.own()?.bytes;
        for (name, is_folder) in blobs.names()? {
            if !is_folder || name.to_bytes() != b"sha256" {
                self.other(&blobs, &name)?;
                continue;
            }
            let Some(mut algorithm) = blobs.open(&name)? else { continue };
            self.store.bytes += algorithm.own()?.bytes;
            for (name, is_folder) in algorithm.names()? {
                if !is_folder {
                    self.other(&algorithm, &name)?;
                    continue;
                }
                let Some(mut first) = algorithm.open(&name)? else { continue };
                self.store.bytes += first.own()?.bytes;
                for (name, is_folder) in first.names()? {
                    let found = if is_folder { self.leaf(&first, &name, b"data")? } else { None };
                    let Some(Linked { digest, bytes, used }) = found else {
                        self.other(&first, &name)?;
                        continue;
                    };
                    self.store.by_digest.insert(digest, self.store.blobs.len());
                    self.store.blobs.push(Blob { digest, bytes, used });
                }
            }
        }
        Ok(())
    }

    /// A folder that a digest names, with one file in it: two questions instead of the six that opening it takes.
    /// Where it is anything else, `None`, and nothing is counted.
    fn leaf(&mut self, folder: &Folder, name: &CStr, file: &[u8]) -> Result<Option<Linked>> {
        let Some(digest) = Digest::from_hex(name.to_bytes()) else { return Ok(None) };
        let Some(own) = folder.stat(name)? else { return Ok(None) };
        self.path.clear();
        self.path.extend_from_slice(name.to_bytes());
        self.path.push(b'/');
        self.path.extend_from_slice(file);
        let Some(data) = folder.stat(self.path.as_slice())?.filter(|data| data.kind == Kind::File) else {
            return Ok(None);
        };
        let bytes = own.bytes + data.bytes;
        self.store.bytes += bytes;
        Ok(Some(Linked { digest, bytes, used: data.modified }))
    }

    fn repositories(&mut self, folder: &mut Folder, name: &str, depth: usize) -> Result<()> {
        let mut repository = Repository { name: name.to_owned(), ..Repository::default() };
        let mut is_one = false;
        for (entry, is_folder) in folder.names()? {
            let text = entry.to_str().ok().filter(|_| is_folder);
            let part = match text {
                Some("_manifests" | "_layers" | "_uploads") => folder.open(&entry)?,
                Some(part) if !part.starts_with('_') && depth > 0 => {
                    let Some(mut child) = folder.open(&entry)? else { continue };
                    self.store.bytes += child.own()?.bytes;
                    let name = if name.is_empty() { part.to_owned() } else { format!("{name}/{part}") };
                    self.repositories(&mut child, &name, depth - 1)?;
                    continue;
                }
                _ => {
                    self.other(folder, &entry)?;
                    continue;
                }
            };
            let Some(mut part) = part else { continue };
            is_one = true;
            self.store.bytes += part.own()?.bytes;
            match text {
                Some("_manifests") => self.manifests(&mut part, &mut repository)?,
                Some("_layers") => repository.layers = self.links(&mut part)?,
                _ => self.uploads(&mut part, &mut repository)?,
            }
        }
        if is_one {
            self.store.repositories.push(repository);
        }
        Ok(())
    }

    fn manifests(&mut self, folder: &mut Folder, repository: &mut Repository) -> Result<()> {
        for (name, is_folder) in folder.names()? {
            let part = match name.to_bytes() {
                b"revisions" | b"tags" if is_folder => folder.open(&name)?,
                _ => {
                    self.other(folder, &name)?;
                    continue;
                }
            };
            let Some(mut part) = part else { continue };
            self.store.bytes += part.own()?.bytes;
            if name.to_bytes() == b"revisions" {
                repository.revisions = self.links(&mut part)?;
            } else {
                self.tags(&mut part, repository)?;
            }
        }
        Ok(())
    }

    /// `sha256/HEX/link`.
    fn links(&mut self, folder: &mut Folder) -> Result<Vec<Linked>> {
        let mut links = Vec::new();
        for (name, is_folder) in folder.names()? {
            if !is_folder || name.to_bytes() != b"sha256" {
                self.other(folder, &name)?;
                continue;
            }
            let Some(mut algorithm) = folder.open(&name)? else { continue };
            self.store.bytes += algorithm.own()?.bytes;
            for (name, is_folder) in algorithm.names()? {
                match if is_folder { self.leaf(&algorithm, &name, b"link")? } else { None } {
                    Some(link) => links.push(link),
                    None => self.other(&algorithm, &name)?,
                }
            }
        }
        Ok(links)
    }

    fn tags(&mut self, folder: &mut Folder, repository: &mut Repository) -> Result<()> {
        for (name, is_folder) in folder.names()? {
            let size = walk::size_of(folder, &name)?;
            self.store.bytes += size.bytes;
            let Some(text) = name.to_str().ok().filter(|_| is_folder) else { continue };
            let link = folder.read(format!("{text}/current/link").as_str(), LARGEST_LINK)?;
            let digest = link.and_then(|link| Digest::parse(std::str::from_utf8(&link).ok()?.trim_end()));
            let used = last(folder, &name, size)?;
            repository.tags.push(Tag { name: text.to_owned(), digest, bytes: size.bytes, used });
        }
        Ok(())
    }

    fn uploads(&mut self, folder: &mut Folder, repository: &mut Repository) -> Result<()> {
        for (name, _) in folder.names()? {
            let size = walk::size_of(folder, &name)?;
            self.store.bytes += size.bytes;
            let Ok(text) = name.to_str() else { continue };
            let used = last(folder, &name, size)?;
            repository.uploads.push(Upload { name: text.to_owned(), bytes: size.bytes, used });
        }
        Ok(())
    }

    /// Each once, however many repositories have it.
    fn read_manifests(&mut self, root: &Root, layout: &Layout) -> Result<()> {
        let Some(blobs) = root.folder(&format!("{}/sha256", layout.blobs()))? else { return Ok(()) };
        let Store { repositories, manifests, by_digest, broken, .. } = &mut self.store;
        for repository in repositories {
            for Linked { digest, .. } in &repository.revisions {
                if manifests.contains_key(digest) {
                    continue;
                }
                let mut report = |why| {
                    broken.push(Broken { repository: repository.name.clone(), digest: *digest, why });
                };
                if !by_digest.contains_key(digest) {
                    report("it is linked, and not there");
                    continue;
                }
                let hex = digest.hex();
                let path = format!("{}/{hex}/data", hex.get(..2).unwrap_or_default());
                match blobs.read(path.as_str(), LARGEST_MANIFEST)?.as_deref().map(parse) {
                    Some(Some(refers)) => {
                        manifests.insert(*digest, refers);
                    }
                    Some(None) => report("it is no manifest of an image or an index"),
                    None => report("it cannot be read as a manifest"),
                }
            }
        }
        Ok(())
    }
}

/// When something in it last changed: where no file is in it, it has just begun, or is all but gone.
fn last(folder: &Folder, name: &CStr, size: walk::Size) -> Result<u64> {
    if size.modified > 0 {
        return Ok(size.modified);
    }
    Ok(folder.stat(name)?.map_or(0, |stat| stat.modified))
}
