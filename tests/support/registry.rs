//! Real registries on loopback, and images for them.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]
#![allow(dead_code, reason = "each test file uses its own part")]

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use larder::store::{Digest, Layout};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest as _, Sha256};

/// The registry of a major version: `REGISTRY_2` or `REGISTRY_3`, else by its usual name.
pub fn registry(major: u32) -> Option<PathBuf> {
    let name = if major == 2 { "docker-registry" } else { "registry" };
    let path = std::env::var("PATH").unwrap_or_default();
    let found = std::env::var_os(format!("REGISTRY_{major}"))
        .map(PathBuf::from)
        .or_else(|| path.split(':').map(|folder| Path::new(folder).join(name)).find(|path| path.is_file()));
    if found.is_none() {
        // Past the test harness, which shows what a passing test prints to nobody.
        let text = format!("NOT RUN: no Distribution {major}.x here; set REGISTRY_{major}\n");
        std::io::stderr().write_all(text.as_bytes()).unwrap();
    }
    found
}

/// A registry that ends with the test. Its access log is where `larder unit run` has it.
pub struct Running {
    child: Child,
    pub address: SocketAddr,
}

impl Running {
    pub fn start(binary: &Path, store: &Path, address: &str, remote: Option<SocketAddr>) -> Self {
        std::fs::create_dir_all(store.join(".larder/trash")).unwrap();
        let proxy =
            remote.map_or(String::new(), |remote| format!("proxy: {{ remoteurl: \"http://{remote}\" }}\n"));
        let config = store.join("config.yml");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n  delete: {{ enabled: true }}\n\
             http: {{ addr: \"{address}\" }}\n{proxy}",
            store.display()
        );
        std::fs::write(&config, text).unwrap();
        let log: File =
            OpenOptions::new().create(true).append(true).open(store.join(".larder/access.log")).unwrap();
        let mut child = Command::new(binary)
            .arg("serve")
            .arg(&config)
            .env_clear()
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(log)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let listens = lines.find_map(|line| {
            let (_, after) = line.split_once("listening on ")?;
            after.split(['"', ' ', ',']).next()?.parse().ok()
        });
        // A full pipe would stop it.
        std::thread::spawn(move || lines.for_each(drop));
        let Some(address) = listens else {
            panic!("wanted {} to listen, got its end: {:?}", binary.display(), child.wait());
        };
        Self { child, address }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Status and body.
    pub fn get(&self, path: &str) -> (u16, Vec<u8>) {
        get(self.address, path)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Status and body; 0 where there was no whole answer.
pub fn get(address: SocketAddr, path: &str) -> (u16, Vec<u8>) {
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .new_agent();
    let answer =
        agent.get(format!("http://{address}{path}")).header("Accept", format!("{MANIFEST}, {INDEX}")).call();
    let Ok(mut answer) = answer else { return (0, Vec::new()) };
    let status = answer.status().as_u16();
    answer.body_mut().read_to_vec().map_or((0, Vec::new()), |body| (status, body))
}

pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest::new(Sha256::digest(bytes).into())
}

/// Numbers that are the same in every run (splitmix64).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// What pulling an image asks for: paths and digests, in order.
#[derive(Debug, Clone)]
pub struct Image {
    pub repository: String,
    pub tag: String,
    pub manifest: Digest,
    /// Configuration and layers.
    pub blobs: Vec<Digest>,
}

impl Image {
    pub fn requests(&self) -> Vec<(String, Digest)> {
        let Self { repository, tag, manifest, blobs } = self;
        let mut requests = vec![
            (format!("/v2/{repository}/manifests/{tag}"), *manifest),
            (format!("/v2/{repository}/manifests/{manifest}"), *manifest),
        ];
        requests.extend(blobs.iter().map(|blob| (format!("/v2/{repository}/blobs/{blob}"), *blob)));
        requests
    }

    /// Pulls all of it; what was not right.
    pub fn pull(&self, address: SocketAddr) -> Vec<String> {
        self.requests()
            .into_iter()
            .filter_map(|(path, digest)| {
                let (status, body) = get(address, &path);
                (status != 200 || digest_of(&body) != digest)
                    .then(|| format!("{path}: {status}, {} bytes, {}", body.len(), digest_of(&body)))
            })
            .collect()
    }
}

/// Writes images where a registry serves them from, as a push would.
pub struct Upstream<'u> {
    folder: &'u Path,
    layout: Layout,
}

impl<'u> Upstream<'u> {
    pub fn new(folder: &'u Path) -> Self {
        Self { folder, layout: Layout::new("") }
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        let path = self.folder.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = digest_of(bytes);
        self.put(&self.layout.blob_data(&digest), bytes);
        digest
    }

    pub fn image(&self, repository: &str, tag: &str, layers: &[Vec<u8>]) -> Image {
        let config = format!("{{\"architecture\":\"amd64\",\"os\":\"linux\",\"of\":\"{repository}:{tag}\"}}");
        let described = |kind: &str, bytes: &[u8]| {
            let digest = self.blob(bytes);
            self.put(&self.layout.layer_link(repository, &digest), digest.to_string().as_bytes());
            let media = format!("application/vnd.oci.image.{kind}");
            (
                digest,
                format!("{{\"mediaType\":\"{media}\",\"digest\":\"{digest}\",\"size\":{}}}", bytes.len()),
            )
        };
        let (config, config_text) = described("config.v1+json", config.as_bytes());
        let mut blobs = vec![config];
        let mut texts = Vec::new();
        for layer in layers {
            let (digest, text) = described("layer.v1.tar", layer);
            blobs.push(digest);
            texts.push(text);
        }
        let manifest = format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"{MANIFEST}\",\"config\":{config_text},\"layers\":[{}]}}",
            texts.join(",")
        );
        let manifest = self.blob(manifest.as_bytes());
        self.put(&self.layout.revision_link(repository, &manifest), manifest.to_string().as_bytes());
        self.put(&self.layout.tag_link(repository, tag), manifest.to_string().as_bytes());
        Image { repository: repository.to_owned(), tag: tag.to_owned(), manifest, blobs }
    }
}
