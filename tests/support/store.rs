//! Stores as Distribution lays them out, made file by file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

pub const V2: &str = "docker/registry/v2";

pub struct Store {
    pub folder: PathBuf,
    /// By reference, the digest of its manifest.
    pub images: BTreeMap<String, String>,
}

/// `sha256:` and the rest.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap()
}

/// Contents that no other seed has.
pub fn content(seed: &str, size: usize) -> Vec<u8> {
    let mut bytes = seed.as_bytes().to_vec();
    bytes.extend(std::iter::repeat_n(b'.', size.saturating_sub(seed.len())));
    bytes
}

impl Store {
    pub fn new(folder: &Path) -> Self {
        for part in ["repositories", "blobs"] {
            fs::create_dir_all(folder.join(V2).join(part)).unwrap();
        }
        Self { folder: folder.to_owned(), images: BTreeMap::new() }
    }

    pub fn v2(&self) -> PathBuf {
        self.folder.join(V2)
    }

    pub fn repository(&self, name: &str) -> PathBuf {
        self.v2().join("repositories").join(name)
    }

    pub fn blob_folder(&self, digest: &str) -> PathBuf {
        self.v2().join("blobs/sha256").join(&hex(digest)[..2]).join(hex(digest))
    }

    fn file(&self, path: &Path, bytes: &[u8], age: u64) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    }

    pub fn blob(&self, bytes: &[u8], age: u64) -> String {
        let digest = digest(bytes);
        self.file(&self.blob_folder(&digest).join("data"), bytes, age);
        digest
    }

    pub fn link(&self, repository: &str, kind: &str, digest: &str, age: u64) {
        let path = self.repository(repository).join(kind).join("sha256").join(hex(digest)).join("link");
        self.file(&path, digest.as_bytes(), age);
    }

    pub fn manifest(&self, repository: &str, text: &str, age: u64) -> String {
        let digest = self.blob(text.as_bytes(), age);
        self.link(repository, "_manifests/revisions", &digest, age);
        digest
    }

    pub fn tag(&mut self, repository: &str, tag: &str, digest: &str, age: u64) {
        let folder = self.repository(repository).join("_manifests/tags").join(tag);
        self.file(&folder.join("current/link"), digest.as_bytes(), age);
        let index = folder.join("index/sha256").join(hex(digest)).join("link");
        self.file(&index, digest.as_bytes(), age);
        self.images.insert(format!("{repository}:{tag}"), digest.to_owned());
    }

    /// An image of one platform, without a tag: a configuration and one layer for each of `layers`.
    pub fn platform(&self, repository: &str, layers: &[(&str, usize)], age: u64) -> String {
        let descriptor = |media: &str, bytes: &[u8]| {
            let digest = self.blob(bytes, age);
            self.link(repository, "_layers", &digest, age);
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.{media}","digest":"{digest}","size":{}}}"#,
                bytes.len()
            )
        };
        let config = content(&format!("{{\"of\":\"{repository}\",\"layers\":\"{layers:?}\"}}"), 0);
        let config = descriptor("config.v1+json", &config);
        let layers: Vec<String> = layers
            .iter()
            .map(|(seed, size)| descriptor("layer.v1.tar+gzip", &content(seed, *size)))
            .collect();
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{config},"layers":[{}]}}"#,
            layers.join(",")
        );
        self.manifest(repository, &text, age)
    }

    pub fn image(&mut self, repository: &str, tag: &str, layers: &[(&str, usize)], age: u64) -> String {
        let digest = self.platform(repository, layers, age);
        self.tag(repository, tag, &digest, age);
        digest
    }

    pub fn index(&mut self, repository: &str, tag: &str, platforms: &[String], age: u64) -> String {
        let platforms: Vec<String> = platforms
            .iter()
            .map(|digest| {
                let size = fs::metadata(self.blob_folder(digest).join("data")).map_or(1, |data| data.len());
                format!(
                    r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{size},"platform":{{"os":"linux","architecture":"amd64"}}}}"#
                )
            })
            .collect();
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{}]}}"#,
            platforms.join(",")
        );
        let digest = self.manifest(repository, &text, age);
        self.tag(repository, tag, &digest, age);
        digest
    }

    pub fn upload(&self, repository: &str, name: &str, size: usize, age: u64) {
        let folder = self.repository(repository).join("_uploads").join(name);
        self.file(&folder.join("data"), &vec![0; size], age);
        self.file(&folder.join("startedat"), b"2026-01-01T00:00:00Z", age);
    }
}

/// What `du` says that a tree takes.
pub fn du(path: &Path) -> u64 {
    let out = std::process::Command::new("du").args(["-s", "-B1"]).arg(path).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}
