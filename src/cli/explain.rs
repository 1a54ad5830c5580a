//! `larder explain`: what containerd does for an image of one registry host, and which setting made it so.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Output, code, print, print_json, refused};
use crate::containerd::Version;
use crate::containerd::config::{Effective, Note, Origin, Pull};
use crate::containerd::resolve::{Asked, Resolution, Role, endpoints};
use crate::facts;
use crate::root::Root;

#[derive(Debug, clap::Args)]
pub(super) struct ExplainInput {
    /// The registry host as in an image's name, with its port where it has one: docker.io, ghcr.io
    host: String,
    /// Look at the image unpacked in DIR, not at the running machine
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// All that there is to say.
struct Explanation {
    host: String,
    /// `None` where no containerd was found; the oldest stands in for it.
    installed: Option<Version>,
    effective: Effective,
    found: Resolution,
}

pub(super) fn explain_command(input: &ExplainInput) -> Result<u8> {
    let host = registry_host(&input.host).map_err(refused)?;
    let directory = input.root.as_deref().unwrap_or(Path::new("/"));
    let directory =
        std::path::absolute(directory).with_context(|| format!("open {}", directory.display()))?;
    let root = Root::open(&directory)?;
    let installed = facts::containerd_version(&root)?;
    let effective = Effective::read(&root, installed.unwrap_or(Version::OLDEST))?;
    let found = endpoints(&effective, &root, &host)?;
    let explanation = Explanation { host, installed, effective, found };
    match input.output {
        Output::Text => print(&explanation.text()?)?,
        Output::Json => print_json(&explanation.json())?,
    };
    Ok(if explanation.as_written() { code::CONVERGED } else { code::DOWN })
}

/// What stands before the first slash of an image's name.
fn registry_host(text: &str) -> Result<String, String> {
    let fits = |character: char| character.is_ascii_alphanumeric() || ".-:[]_".contains(character);
    if text.is_empty() || !text.chars().all(fits) {
        return Err(format!("explain {text:?}: wanted a registry host such as docker.io or 10.0.0.1:5000"));
    }
    // As images are normalised before anybody is asked.
    Ok(if text == "index.docker.io" { "docker.io".to_owned() } else { text.to_owned() })
}

impl Explanation {
    /// Whether images can be pulled, and nothing written for this host is without its effect.
    fn as_written(&self) -> bool {
        self.effective.is_up() && self.found.fails.is_none() && self.found.traps.is_empty()
    }

    fn state(&self) -> &'static str {
        let effective = &self.effective;
        match (effective.fatal.is_empty(), effective.cri_down.is_empty(), &self.found.fails) {
            (false, ..) => "fatal",
            (_, false, _) => "cri_down",
            (.., Some(_)) => "pulls_fail",
            _ => "up",
        }
    }

    fn ignored(&self) -> impl Iterator<Item = &Note> {
        self.effective.ignored.iter().chain(&self.found.ignored)
    }

    fn json(&self) -> Value {
        let (effective, found) = (&self.effective, &self.found);
        let slash = |path: &String| format!("/{path}");
        json!({
            "version": 1,
            "host": self.host,
            "state": self.state(),
            "containerd": { "version": effective.version.to_string(), "installed": self.installed.is_some() },
            "config": {
                "files": effective.files.iter().map(|file| slash(&file.path)).collect::<Vec<_>>(),
                "version": effective.header,
                "section": effective.section,
            },
            "config_path": effective.config_path.value,
            "decided_by": found.decided_by,
            "local_pull": matches!(effective.pull, Pull::Local(_)),
            "directory": found.directory.as_ref().map(slash),
            "file": found.file.as_ref().map(slash),
            "endpoints": found.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
            "fatal": effective.fatal,
            "cri_down": effective.cri_down,
            "fails": found.fails,
            "traps": found.traps,
            "ignored": self.ignored().collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> Result<String> {
        let (effective, found) = (&self.effective, &self.found);
        let mut text = String::new();
        let version = effective.version;
        match self.installed {
            Some(_) => writeln!(text, "containerd   {version}")?,
            None => writeln!(
                text,
                "containerd   none found: this is for {version}, the oldest that Larder knows"
            )?,
        }
        match (&effective.main, effective.header) {
            (None, _) => {
                writeln!(text, "config       no /{}: built-in settings", crate::containerd::config::MAIN)?
            }
            (Some(main), None) => writeln!(text, "config       /{}, without a version", main.path)?,
            (Some(main), Some(number)) => writeln!(text, "config       /{}, version {number}", main.path)?,
        }
        for import in effective.files.iter().skip(1) {
            writeln!(text, "import       /{}", import.path)?;
        }
        let by = found.decided_by.as_ref().map_or("built in".to_owned(), Origin::to_string);
        match (effective.config_path.value.as_str(), &found.decided_by) {
            ("", Some(by)) if Some(by) == effective.config_path.origin.as_ref() => {
                writeln!(text, "config_path  empty ({by}): no hosts.toml is read")?;
            }
            ("", Some(by)) => writeln!(text, "mirrors      registry.mirrors ({by}); config_path is not set")?,
            ("", None) => writeln!(text, "config_path  not set: no hosts.toml is read")?,
            (path, _) => writeln!(text, "config_path  {path} ({by})")?,
        }
        match (&found.file, &found.directory) {
            (Some(file), _) => writeln!(text, "file         /{file}")?,
            (None, Some(directory)) => writeln!(text, "directory    /{directory}, no hosts.toml in effect")?,
            (None, None) if effective.config_path.value.is_empty() => {}
            (None, None) => writeln!(text, "directory    none for {}, and no _default", self.host)?,
        }
        for note in &effective.fatal {
            writeln!(text, "DOES NOT START  {note}")?;
        }
        for note in &effective.cri_down {
            writeln!(text, "CRI IS DOWN  {note}")?;
        }
        if let Some(note) = &found.fails {
            writeln!(text, "PULLS FAIL   {note}")?;
        }
        if !found.endpoints.is_empty() {
            let would = if effective.is_up() { "is asked for" } else { "would be asked for" };
            writeln!(text, "an image of {} {would}, in this order:", self.host)?;
        }
        for (index, asked) in found.endpoints.iter().enumerate() {
            writeln!(text, "  {}. {}", index + 1, line(asked))?;
        }
        for note in &found.traps {
            writeln!(text, "trap         {note}")?;
        }
        for note in self.ignored() {
            writeln!(text, "ignored      {note}")?;
        }
        Ok(text)
    }
}

fn endpoint(asked: &Asked) -> Value {
    let mut value = json!(asked);
    if let Some(object) = value.as_object_mut() {
        object.insert("resolves".to_owned(), json!(asked.resolves()));
    }
    value
}

fn line(asked: &Asked) -> String {
    let mut line = asked.url.clone();
    if asked.then_http {
        line.push_str(", then by http");
    }
    let capabilities: Vec<_> = asked.capabilities.iter().map(|one| one.as_str()).collect();
    line.push_str(&format!("  [{}]", capabilities.join(" ")));
    if !asked.resolves() {
        line.push_str(" (not for tags, yet for blobs)");
    }
    match asked.role {
        Role::Mirror => {}
        Role::Server => line.push_str("  server"),
        Role::Upstream => line.push_str("  the registry itself"),
    }
    let mut option = |name: &str, value: String| line.push_str(&format!("  {name}={value}"));
    if let Some(namespace) = &asked.namespace {
        option("ns", namespace.clone());
    }
    for path in &asked.ca {
        option("ca", path.clone());
    }
    for (certificate, key) in &asked.client {
        option("client", key.as_ref().map_or(certificate.clone(), |key| format!("{certificate},{key}")));
    }
    if asked.skip_verify {
        option("skip_verify", "true".to_owned());
    }
    if asked.override_path {
        option("override_path", "true".to_owned());
    }
    if let Some(timeout) = &asked.dial_timeout {
        option("dial_timeout", timeout.clone());
    }
    for name in &asked.headers {
        option("header", format!("{name} (hidden)"));
    }
    if let Some(origin) = &asked.origin {
        line.push_str(&format!("  {origin}"));
    }
    line
}
