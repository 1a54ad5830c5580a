//! A registry's image: what it says of itself, in a runtime's store or in an archive, without running it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{Facts, Registry, find_program};
use crate::host::Host;
use crate::node::{AbsolutePath, ContainerRuntime, Engine, ImageSource};
use crate::root::Root;

/// What `engine: auto` takes where no binary is: what Distribution's own images are called.
const USUAL: [&str; 2] = ["registry:3", "registry:2"];
/// Where each major version's image has its configuration (its Dockerfile).
const CONFIGS: [(&str, u32); 2] =
    [("/etc/distribution/config.yml", 3), ("/etc/docker/registry/config.yml", 2)];
const VERSION_LABEL: &str = "org.opencontainers.image.version";

/// Above what any image's configuration holds.
const LARGEST: u64 = 1 << 20;
/// Above what any archive's entries are, so that one that names itself ends.
const ENTRIES: usize = 10_000;
const BLOCK: u64 = 512;

/// A registry in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub runtime: ContainerRuntime,
    /// As the runtime shall run it: a name, or `sha256:` and the id of what an archive holds.
    pub image: String,
    /// Absolute: what it is loaded from.
    pub archive: Option<String>,
    /// Whether the runtime has it.
    pub is_there: bool,
}

/// What an image's configuration says, as far as it tells the registry's version (OCI image specification,
/// "config").
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Config {
    cmd: Option<Vec<String>>,
    labels: Option<std::collections::BTreeMap<String, String>>,
}

impl Config {
    fn major(&self) -> Option<u32> {
        let command = self.cmd.iter().flatten();
        let by_config = command
            .filter_map(|word| CONFIGS.iter().find(|(path, _)| path == word))
            .map(|(_, major)| *major)
            .next();
        by_config.or_else(|| leading_number(self.labels.as_ref()?.get(VERSION_LABEL)?))
    }
}

/// Distribution's major versions that there are.
fn leading_number(version: &str) -> Option<u32> {
    let version = version.strip_prefix('v').unwrap_or(version);
    let number = version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
    (2..=3).contains(&number).then_some(number)
}

/// What a name's tag promises: `registry:3.0.0`.
fn major_of_name(image: &str) -> Option<u32> {
    let last = image.rsplit('/').next()?;
    leading_number(last.split('@').next()?.split_once(':')?.1)
}

/// What `podman image inspect` and `docker image inspect` print: the version of the registry in the image.
fn major_of_inspected(json: &str) -> Option<u32> {
    #[derive(Deserialize)]
    struct Inspected {
        #[serde(rename = "Config")]
        config: Option<Config>,
    }
    let all: Vec<Inspected> = serde_json::from_str(json).ok()?;
    all.first()?.config.as_ref()?.major()
}

/// The version of the registry in an image, by what the runtime prints of it and else by its tag.
#[must_use]
pub fn major_of(inspected: &str, image: &str) -> Option<u32> {
    major_of_inspected(inspected).or_else(|| major_of_name(image))
}

/// The registry that runs in a container, or a problem.
pub(super) fn find(root: &Root, host: &dyn Host, engine: &Engine, facts: &mut Facts) -> Result<()> {
    match engine {
        Engine::Binary(_) => {}
        Engine::Auto => facts.registry = usual(root, host),
        Engine::Container { runtime, image } => {
            let name = runtime.name();
            let Some(program) = find_program(root, name) else {
                facts.problems.push(format!("cache.engine: no {name} here: install it"));
                return Ok(());
            };
            let program = format!("/{program}");
            facts.registry = match image {
                ImageSource::Name(image) => {
                    named(host, *runtime, program, image.as_str(), &mut facts.problems)
                }
                ImageSource::Archive(path) => {
                    archived(root, host, *runtime, program, path, &mut facts.problems)?
                }
            };
        }
    }
    Ok(())
}

/// No image is pulled that nobody named.
fn usual(root: &Root, host: &dyn Host) -> Option<Registry> {
    [ContainerRuntime::Podman, ContainerRuntime::Docker].into_iter().find_map(|runtime| {
        let program = format!("/{}", find_program(root, runtime.name())?);
        USUAL.into_iter().find_map(|image| {
            let major = major_of(&host.image(runtime, image)?, image)?;
            let container = Container { runtime, image: image.to_owned(), archive: None, is_there: true };
            Some(Registry { program: program.clone(), major, container: Some(container) })
        })
    })
}

fn named(
    host: &dyn Host,
    runtime: ContainerRuntime,
    program: String,
    image: &str,
    problems: &mut Vec<String>,
) -> Option<Registry> {
    let inspected = host.image(runtime, image);
    let said = inspected.as_deref().and_then(major_of_inspected);
    let Some(major) = said.or_else(|| major_of_name(image)) else {
        let name = runtime.name();
        problems.push(match inspected {
            Some(_) => format!(
                "cache.engine: {image} does not say which Distribution is in it: write a tag such as \"registry:3\""
            ),
            None => format!(
                "cache.engine: {image} is not here, and its tag does not say which Distribution is in it: `{name} pull \
                 {image}`, or write a tag such as \"registry:3\""
            ),
        });
        return None;
    };
    let is_there = inspected.is_some();
    let container = Container { runtime, image: image.to_owned(), archive: None, is_there };
    Some(Registry { program, major, container: Some(container) })
}

fn archived(
    root: &Root,
    host: &dyn Host,
    runtime: ContainerRuntime,
    program: String,
    path: &AbsolutePath,
    problems: &mut Vec<String>,
) -> Result<Option<Registry>> {
    let Some(file) = root.open_file(path.as_str().trim_start_matches('/'))? else {
        problems.push(format!("cache.engine: {path} is not there: write it with `{} save`", runtime.name()));
        return Ok(None);
    };
    let (image, major) = match read_archive(&file) {
        Ok((image, Some(major))) => (image, major),
        Ok((_, None)) => {
            problems.push(format!(
                "cache.engine: {path} does not say which Distribution is in it: save one of its own images"
            ));
            return Ok(None);
        }
        Err(error) => {
            problems.push(format!(
                "cache.engine: {path} is no image archive: {error:#}: write it with `{} save`",
                runtime.name()
            ));
            return Ok(None);
        }
    };
    let is_there = host.image(runtime, &image).is_some();
    let container = Container { runtime, image, archive: Some(path.to_string()), is_there };
    Ok(Some(Registry { program, major, container: Some(container) }))
}

/// An archive's one image by its id, and the version of the registry in it (docker's image specification v1.2,
/// "Combined Image JSON + Filesystem Changeset Format").
fn read_archive(file: &File) -> Result<(String, Option<u32>)> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Manifest {
        config: String,
    }
    #[derive(Deserialize)]
    struct Image {
        config: Option<Config>,
    }
    let manifest = read_entry(file, "manifest.json")?.context("there is no manifest.json in it")?;
    let manifest: Vec<Manifest> = serde_json::from_slice(&manifest).context("its manifest.json")?;
    let [one] = manifest.as_slice() else { bail!("it holds {} images, not one", manifest.len()) };
    let config = read_entry(file, &one.config)?.context("its image has no configuration")?;
    let image: Image = serde_json::from_slice(&config).context("its image's configuration")?;
    let id: String = Sha256::digest(&config).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((format!("sha256:{id}"), image.config.and_then(|config| config.major())))
}

/// One small file of a tar (POSIX.1, "ustar Interchange Format"), whose name fits its header.
fn read_entry(file: &File, wanted: &str) -> Result<Option<Vec<u8>>> {
    let end = file.metadata().context("read it")?.len();
    let mut at = 0;
    for _ in 0..ENTRIES {
        if at + BLOCK > end {
            return Ok(None);
        }
        let mut header = [0; BLOCK as usize];
        file.read_exact_at(&mut header, at).context("read it")?;
        let field = |range: std::ops::Range<usize>| {
            let bytes = header.get(range).unwrap_or_default();
            let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            std::str::from_utf8(text).unwrap_or_default()
        };
        let name = field(0..100);
        if name.is_empty() {
            return Ok(None);
        }
        ensure!(field(257..263).starts_with("ustar"), "it is no tar");
        // Beyond 8 GiB a size is not written in digits; no image of a registry has such a layer.
        let size = u64::from_str_radix(field(124..136).trim(), 8).ok().context("it is no tar")?;
        if name.trim_start_matches("./") == wanted {
            ensure!(size <= LARGEST, "its {wanted} is too large");
            let mut bytes = vec![0; usize::try_from(size)?];
            file.read_exact_at(&mut bytes, at + BLOCK).context("it ends early")?;
            return Ok(Some(bytes));
        }
        at = size
            .checked_next_multiple_of(BLOCK)
            .and_then(|size| at.checked_add(BLOCK + size))
            .context("it is no tar")?;
    }
    bail!("it has more than {ENTRIES} entries")
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may")]
mod tests {
    use super::*;

    fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = Vec::new();
        for (name, content) in entries {
            let mut header = vec![0_u8; 512];
            header.get_mut(..name.len()).unwrap().copy_from_slice(name.as_bytes());
            header.get_mut(124..135).unwrap().copy_from_slice(format!("{:011o}", content.len()).as_bytes());
            header.get_mut(257..262).unwrap().copy_from_slice(b"ustar");
            tar.extend(header);
            tar.extend(*content);
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        tar.resize(tar.len() + 1024, 0);
        tar
    }

    fn read(bytes: &[u8]) -> Result<(String, Option<u32>)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        std::fs::write(&path, bytes).unwrap();
        read_archive(&File::open(&path).unwrap())
    }

    const THREE: &[u8] = br#"{"config":{"Cmd":["serve","/etc/distribution/config.yml"]}}"#;

    #[test]
    fn an_archive_tells_its_image_and_version() {
        let manifest = br#"[{"Config":"blobs/sha256/ab","RepoTags":["registry:3"],"Layers":[]}]"#;
        let layer = vec![7; 70_000];
        let bytes = tar(&[("layer.tar", &layer), ("blobs/sha256/ab", THREE), ("manifest.json", manifest)]);
        let id: String = Sha256::digest(THREE).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(read(&bytes).unwrap(), (format!("sha256:{id}"), Some(3)));
    }

    #[test]
    fn what_is_no_archive_is_an_error_and_no_panic() {
        let manifest = br#"[{"Config":"c"}]"#;
        let whole = tar(&[("c", THREE), ("manifest.json", manifest)]);
        let mut cases = vec![Vec::new(), b"\x1f\x8b gzip".to_vec(), vec![0xff; 4096], tar(&[("a", b"b")])];
        cases.extend([tar(&[("manifest.json", b"[]")]), tar(&[("manifest.json", manifest)])]);
        cases.push(whole.get(..700).unwrap().to_vec());
        // A size that leads nowhere.
        let mut endless = whole.clone();
        endless.get_mut(124..135).unwrap().copy_from_slice(b"77777777777");
        cases.push(endless);
        for (i, case) in cases.iter().enumerate() {
            assert!(read(case).is_err(), "case {i}");
        }
        assert!(read(&whole).is_ok());
    }

    #[test]
    fn versions_come_from_the_command_the_label_or_the_tag() {
        let inspected = |config: &str| major_of_inspected(&format!("[{{\"Id\":\"x\",\"Config\":{config}}}]"));
        assert_eq!(inspected(r#"{"Cmd":["/etc/docker/registry/config.yml"],"Labels":null}"#), Some(2));
        assert_eq!(inspected(r#"{"Labels":{"org.opencontainers.image.version":"v3.1.1"}}"#), Some(3));
        assert_eq!(
            inspected(r#"{"Cmd":["nginx"],"Labels":{"org.opencontainers.image.version":"1.27"}}"#),
            None
        );
        assert_eq!(major_of_name("registry.example.com:5000/x/registry:2.8.3@sha256:00"), Some(2));
        assert_eq!(major_of_name("registry:3"), Some(3));
        for unknown in ["registry", "registry:latest", "registry.example.com:3000/registry", "registry:30"] {
            assert_eq!(major_of_name(unknown), None, "{unknown}");
        }
    }
}
