//! What a Go program says of itself, read from its build information without running it: it also works on
//! an image for another machine, and costs four reads.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Start of the section (Go's debug/buildinfo, "buildInfoMagic").
const MAGIC: &[u8] = b"\xff Go buildinf:";
/// Strings follow the header inline since Go 1.18.
const INLINE: u8 = 2;
/// Offset of the strings.
const HEADER: usize = 32;
/// The module text stands between two sentinels of this length.
const SENTINEL: usize = 16;
/// Above what any program's section holds.
const LARGEST: u64 = 1 << 20;

/// The path of a Go program's main package, `github.com/docker/distribution/cmd/registry`.
#[must_use]
pub fn main_package(program: &File) -> Option<String> {
    read_build(program).map(|build| build.package)
}

/// What Go's toolchain wrote of how a program was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// The path of the main package.
    pub package: String,
    /// Of the main module: of `go install`, and of `go build` within a clean checkout since Go 1.24.
    pub module_version: Option<String>,
    /// What the build set the variable `version.Version` to; not kept with `-trimpath`.
    pub linked_version: Option<String>,
}

/// A Go program's build information (Go's debug/buildinfo).
#[must_use]
pub fn read_build(program: &File) -> Option<Build> {
    let section = section(program, b".go.buildinfo")?;
    if !section.starts_with(MAGIC) || section.get(15)? & INLINE == 0 {
        return None;
    }
    let (_go_version, rest) = string(section.get(HEADER..)?)?;
    let (module, _) = string(rest)?;
    let text = module.get(SENTINEL..module.len().checked_sub(SENTINEL)?)?;
    let text = std::str::from_utf8(text).ok()?;
    build(text)
}

/// The module text: a line for each fact, fields separated by tabs.
fn build(text: &str) -> Option<Build> {
    let package = text.lines().find_map(|line| line.strip_prefix("path\t"))?;
    let module = text.lines().find_map(|line| line.strip_prefix("mod\t"));
    let flags = text.lines().find_map(|line| line.strip_prefix("build\t-ldflags="));
    let linked = flags.and_then(|flags| {
        let (_, value) = flags.split_once("/version.Version=")?;
        value.split(['"', '\'', ' ', '\\']).next()
    });
    Some(Build {
        package: package.to_owned(),
        module_version: module.and_then(|module| module.split('\t').nth(1)).map(str::to_owned),
        linked_version: linked.map(str::to_owned),
    })
}

/// Whether a program holds these bytes. A Go program names the packages that it is made of, stripped or not.
///
/// # Errors
/// When it cannot be read.
pub fn holds(program: &File, wanted: &[u8]) -> std::io::Result<bool> {
    let mut buffer = vec![0; 1 << 20];
    let (mut at, mut kept) = (0, 0);
    loop {
        let Some(free) = buffer.get_mut(kept..) else { return Ok(false) };
        let read = program.read_at(free, at)?;
        let filled = buffer.get(..kept + read).unwrap_or_default();
        if memchr::memmem::find(filled, wanted).is_some() {
            return Ok(true);
        }
        if read == 0 {
            return Ok(false);
        }
        at += u64::try_from(read).unwrap_or(0);
        // It may stand across two reads.
        let rest = filled.len().saturating_sub(wanted.len());
        let end = filled.len();
        buffer.copy_within(rest..end, 0);
        kept = end - rest;
    }
}

/// The major version that a Go package path ends its module part with: `/v3/` or, before modules had such
/// a suffix, `before`.
#[must_use]
pub fn major(package: &str, before: u32) -> u32 {
    package.split('/').find_map(|part| part.strip_prefix('v')?.parse().ok()).unwrap_or(before)
}

/// A varint length and that many bytes.
fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length = 0_usize;
    for (i, byte) in bytes.iter().take(5).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return bytes.get(i + 1..)?.split_at_checked(length);
        }
    }
    None
}

/// The contents of a named section of a little-endian 64-bit ELF file (elf(5), "Section header").
fn section(program: &File, name: &[u8]) -> Option<Vec<u8>> {
    let header = read(program, 0, 64)?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let entry_size = number::<2>(&header, 58)?;
    let sections =
        read(program, number::<8>(&header, 40)?, entry_size.checked_mul(number::<2>(&header, 60)?)?)?;
    let nth = |i: u64| {
        let start = usize::try_from(i.checked_mul(entry_size)?).ok()?;
        sections.get(start..start.checked_add(64)?)
    };
    let contents = |section: &[u8]| read(program, number::<8>(section, 24)?, number::<8>(section, 32)?);
    let names = contents(nth(number::<2>(&header, 62)?)?)?;
    let found = (0..number::<2>(&header, 60)?).filter_map(nth).find(|section| {
        let start = number::<4>(section, 0).and_then(|at| usize::try_from(at).ok());
        let found =
            start.and_then(|start| names.get(start..)).and_then(|rest| rest.split(|b| *b == 0).next());
        found == Some(name)
    })?;
    contents(found)
}

fn read(program: &File, offset: u64, length: u64) -> Option<Vec<u8>> {
    if length > LARGEST {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    program.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let mut wide = [0; 8];
    wide.get_mut(..N)?.copy_from_slice(bytes.get(at..at.checked_add(N)?)?);
    Some(u64::from_le_bytes(wide))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may")]
mod tests {
    use super::*;

    #[test]
    fn major_versions_come_from_the_module_path() {
        assert_eq!(major("github.com/docker/distribution/cmd/registry", 2), 2);
        assert_eq!(major("github.com/distribution/distribution/v3/cmd/registry", 2), 3);
        assert_eq!(major("github.com/containerd/containerd/v2/cmd/containerd", 1), 2);
    }

    #[test]
    fn versions_come_from_the_module_or_the_linker() {
        let build = |lines: &str| build(&format!("path\tx/cmd/y\n{lines}")).unwrap();
        let installed = build("mod\tgithub.com/containerd/containerd/v2\tv2.3.4\th1:c2PJ=\n");
        assert_eq!((installed.module_version.as_deref(), installed.linked_version), (Some("v2.3.4"), None));
        let made = build(
            "mod\tx\t(devel)\t\nbuild\t-ldflags=\"-X github.com/containerd/containerd/v2/version.Version=v2.1.4 -X \
             github.com/containerd/containerd/v2/version.Revision=75cb2b7.m\"\n",
        );
        assert_eq!(made.linked_version.as_deref(), Some("v2.1.4"));
        assert_eq!(made.module_version.as_deref(), Some("(devel)"));
        assert_eq!(build("dep\tx\tv1\n").module_version, None);
    }

    #[test]
    fn no_program_is_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        for bytes in [&b""[..], b"#!/bin/sh\n", b"\x7fELF\x02\x01", &[0xff; 4096]] {
            let path = dir.path().join("x");
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(main_package(&File::open(&path).unwrap()), None);
        }
    }
}
