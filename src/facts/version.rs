//! Which containerd this machine has, to the patch, without running it where that can be had.

use std::io::{BufRead, BufReader};

use anyhow::{Context, Result};
use toml_edit::DocumentMut;

use super::{CONTAINERD_CONFIG, CONTAINERD_DROP_IN, binary, find_program};
use crate::containerd::Version;
use crate::host::Host;
use crate::root::Root;

/// Debian's package and Docker's.
const PACKAGES: [&str; 2] = ["containerd", "containerd.io"];
const DPKG: &str = "var/lib/dpkg/status";
/// Where packages put programs: what is elsewhere is nobody's.
const PACKAGED: [&str; 2] = ["usr/bin/", "bin/"];
const CHUNK: usize = 16 << 10;

/// What the program and the package say.
struct Found {
    /// Absolute.
    program: String,
    version: Version,
    /// Not only the major one.
    exact: bool,
}

/// The version of the machine's containerd, read from its program or its package without running it, and the
/// oldest of its major version where neither says; `None` without one.
///
/// # Errors
/// When a file that is there cannot be read.
pub fn containerd_version(root: &Root) -> Result<Option<Version>> {
    Ok(find(root)?.map(|found| found.version))
}

/// The same, and asks the program itself where nothing else knows.
pub(super) fn ask(root: &Root, host: &dyn Host) -> Result<Option<Version>> {
    let Some(found) = find(root)? else { return Ok(None) };
    let said = if found.exact { None } else { host.containerd_version(&found.program) };
    let said = said.as_deref().and_then(parse_output).filter(|said| said.major == found.version.major);
    Ok(Some(said.unwrap_or(found.version)))
}

/// `containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7193e4e490e9fbdc236c0e811ccaba3376`
fn parse_output(text: &str) -> Option<Version> {
    text.lines().next()?.split_whitespace().skip(1).find_map(Version::parse)
}

fn find(root: &Root) -> Result<Option<Found>> {
    let Some(path) = find_program(root, "containerd") else { return Ok(None) };
    let Some(file) = root.open_file(&path)? else { return Ok(None) };
    let Some(build) = binary::read_build(&file) else { return Ok(None) };
    let major = binary::major(&build.package, 1);
    let said = [build.linked_version, build.module_version];
    // A build without a tag has v0.0.0 with a date.
    let fits = |version: &Version| version.major == major;
    let mut exact = said.iter().flatten().filter_map(|text| Version::parse(text)).find(fits);
    if exact.is_none() && PACKAGED.iter().any(|folder| path.starts_with(folder)) {
        exact = packaged(root)?.filter(fits);
    }
    let oldest = if major == 1 { Version::OLDEST } else { Version::new(major, 0, 0) };
    Ok(Some(Found { program: format!("/{path}"), version: exact.unwrap_or(oldest), exact: exact.is_some() }))
}

/// From dpkg's database, which is sorted by name: a fraction of it is read.
fn packaged(root: &Root) -> Result<Option<Version>> {
    let Some(file) = root.open_file(DPKG)? else { return Ok(None) };
    in_status(BufReader::with_capacity(CHUNK, file)).with_context(|| format!("read {}", root.show(DPKG)))
}

fn in_status(mut status: impl BufRead) -> std::io::Result<Option<Version>> {
    let mut line = Vec::with_capacity(256);
    let (mut ours, mut installed) = (false, false);
    loop {
        line.clear();
        if status.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        if let Some(name) = line.strip_prefix(b"Package: ") {
            installed = false;
            ours = PACKAGES.iter().any(|package| name.trim_ascii_end() == package.as_bytes());
        } else if ours && line.starts_with(b"Status: ") {
            // One that was removed leaves its settings and its stanza.
            installed = line.trim_ascii_end().ends_with(b" installed");
        } else if ours
            && installed
            && let Some(version) = line.strip_prefix(b"Version: ")
        {
            let text = String::from_utf8_lossy(version);
            let text = text.trim();
            return Ok(Version::parse(text.split_once(':').map_or(text, |(_epoch, rest)| rest)));
        }
    }
}

/// Where a drop-in of ours is read after all others: in the last folder that the main file imports whole.
pub(super) fn drop_in(major: Option<u32>, config: &str) -> Option<String> {
    if major.is_none_or(|major| major < 2) {
        return None;
    }
    let document = config.parse::<DocumentMut>().ok()?;
    let patterns = document.get("imports")?.as_array()?;
    let patterns: Vec<&toml_edit::Value> = patterns.iter().collect();
    patterns.into_iter().rev().find_map(|pattern| {
        let (folder, name) = pattern.as_str()?.rsplit_once('/').unwrap_or(("", pattern.as_str()?));
        let (start, end) = name.split_once('*')?;
        let fits = CONTAINERD_DROP_IN.starts_with(start)
            && CONTAINERD_DROP_IN.ends_with(end)
            && CONTAINERD_DROP_IN.len() >= start.len() + end.len();
        let folder = match folder.strip_prefix('/') {
            Some(absolute) => absolute.to_owned(),
            None => format!("etc/containerd/{folder}").trim_end_matches('/').to_owned(),
        };
        let plain =
            folder.starts_with("etc/") && !folder.split('/').any(|part| matches!(part, "" | "." | ".."));
        (fits && plain && !folder.contains('*')).then(|| format!("{folder}/{CONTAINERD_DROP_IN}"))
    })
}

/// Whether the main file is a conffile of containerd's package (deb-conffiles(5)).
pub(super) fn is_conffile(root: &Root) -> Result<bool> {
    for package in PACKAGES {
        let list = root.read(&format!("var/lib/dpkg/info/{package}.conffiles"))?.unwrap_or_default();
        let main = format!("/{CONTAINERD_CONFIG}");
        if String::from_utf8_lossy(&list).lines().any(|line| line.trim_end() == main) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dpkg_says_the_version_of_what_is_installed() {
        let stanza = |name: &str, status: &str, version: &str| {
            format!(
                "Package: {name}\nStatus: {status}\nPriority: optional\nVersion: {version}\nDescription: x\n Version: 9.9.9\n\n"
            )
        };
        let found = |text: &str| in_status(text.as_bytes()).unwrap().map(|version| version.to_string());
        let ok = "install ok installed";
        let other = stanza("containerd-shim", ok, "5.0.0");
        let debian = stanza("containerd", ok, "1.7.24~ds1-6+deb13u1");
        assert_eq!(found(&format!("{other}{debian}")).as_deref(), Some("1.7.24"));
        let gone = stanza("containerd", "deinstall ok config-files", "1.6.20~ds1-1");
        let docker = stanza("containerd.io", ok, "5:2.1.4-1~debian.13~trixie");
        assert_eq!(found(&format!("{gone}{docker}")).as_deref(), Some("2.1.4"));
        assert_eq!(found(&other), None);
        assert_eq!(found(&gone), None);
    }

    #[test]
    fn the_program_says_its_version() {
        let said = "containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7193e4e490e9fbdc236c0e811ccaba3376\n";
        assert_eq!(parse_output(said), Some(Version::new(2, 1, 4)));
        assert_eq!(
            parse_output("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n"),
            Some(Version::new(1, 6, 20))
        );
        assert_eq!(parse_output(""), None);
    }

    #[test]
    fn a_drop_in_goes_where_it_is_read_last() {
        let path =
            |major, imports: &str| drop_in(Some(major), &format!("version = 2\nimports = {imports}\n"));
        assert_eq!(
            path(2, "[\"/etc/containerd/conf.d/*.toml\"]").as_deref(),
            Some("etc/containerd/conf.d/zz-larder.toml")
        );
        assert_eq!(
            path(2, "[\"conf.d/*\", \"one.toml\"]").as_deref(),
            Some("etc/containerd/conf.d/zz-larder.toml")
        );
        assert_eq!(path(2, "[\"*.toml\"]").as_deref(), Some("etc/containerd/zz-larder.toml"));
        for (major, imports) in [
            (1, "[\"/etc/containerd/conf.d/*.toml\"]"),
            (2, "[\"/etc/containerd/conf.d/5*.toml\", \"/run/x/*.toml\", \"../x/*.toml\", \"one.toml\"]"),
            (2, "[]"),
        ] {
            assert_eq!(path(major, imports), None, "{imports}");
        }
        assert_eq!(drop_in(Some(2), "not toml ="), None);
    }
}
