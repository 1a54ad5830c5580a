//! The documents that Larder writes: `units/` as they are, `templates/` with their slots filled.
//!
//! A slot is escaped by the file's type, so that no value changes a file's structure; what YAML readers make
//! of a rendered registry config is compared with what went in before it counts.

use std::fmt::{self, Write};

use anyhow::{Context, Result, ensure};
use askama::Template;
use askama::filters::Escaper;

pub mod network;

/// A unit that ships static, by its file name.
pub struct ShippedUnit {
    pub name: &'static str,
    pub text: &'static str,
}

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        &[$(ShippedUnit { name: $name, text: include_str!(concat!("../units/", $name)) }),*]
    };
}

/// Every file of `units/`.
pub const UNITS: &[ShippedUnit] = shipped![
    "larder.service",
    "larder-network.service",
    "larder-registry@.service",
    "larder-registry@.socket",
    "larder-gc@.service",
    "larder-gc@.timer",
    "larder-scrub@.service",
    "larder-scrub@.timer",
    "larder-restart@.service",
    "larder-restart@.timer",
    "larder-tend.service",
    "larder-tend.timer",
    "larder-watch.service",
    "larder-watch.timer",
    "larder-access.service",
    "larder-metrics.service",
    "larder-metrics.timer",
    "larder-tls.path",
    "larder-tls.service",
    "larder-tls.timer",
];

/// The file of a unit, or of the template that it is an instance of; `None` for others' units.
#[must_use]
pub fn shipped(unit: &str) -> Option<&'static ShippedUnit> {
    let template = unit.split_once('@').and_then(|(start, rest)| {
        let (instance, end) = rest.rsplit_once('.')?;
        (!instance.is_empty()).then(|| format!("{start}@.{end}"))
    });
    UNITS.iter().find(|one| one.name == template.as_deref().unwrap_or(unit))
}

/// YAML scalars as JSON strings: valid double-quoted scalars for every YAML reader, whatever is in them.
#[derive(Clone, Copy)]
pub struct Yaml;

impl Escaper for Yaml {
    fn write_escaped_str<W: Write>(&self, mut dest: W, text: &str) -> fmt::Result {
        dest.write_str(&serde_json::to_string(text).map_err(|_| fmt::Error)?)
    }
}

/// systemd unit values: `%` doubled (systemd.unit(5), "Specifiers"); a control character has no safe form.
#[derive(Clone, Copy)]
pub struct Unit;

impl Escaper for Unit {
    fn write_escaped_str<W: Write>(&self, mut dest: W, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                c if c.is_control() => return Err(fmt::Error),
                '%' => dest.write_str("%%")?,
                c => dest.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// One registry's configuration (distribution docs, "Configuring a registry").
#[derive(Template)]
#[template(path = "registry.yml")]
pub struct Registry<'a> {
    pub host: &'a str,
    /// The folder of its data, or its place in the object store.
    pub store: &'a str,
    /// Present: where `store` is.
    pub objects: Option<Objects<'a>>,
    pub listen: &'a str,
    pub remote: &'a str,
    /// The engine's major version.
    pub major: u32,
    /// Whether it asks us for its credentials.
    pub is_asking: bool,
    /// Who knows the credentials.
    pub credential_helper: Option<&'a str>,
    /// Where its own metrics are, if anywhere: address and port.
    pub debug: Option<String>,
    /// Whether it serves https, with what the TLS drop-in brings.
    pub tls: bool,
}

impl Registry<'_> {
    /// Where the unit has a credential (systemd.exec(5), "LoadCredential=").
    fn credential(&self, name: &str) -> String {
        format!("/run/credentials/larder-registry@{}.service/{name}", self.host)
    }
}

/// What brings a certificate and its key.
#[derive(Template)]
#[template(path = "tls.conf")]
pub struct TlsDropIn<'a> {
    pub certificate: &'a str,
    pub key: &'a str,
}

/// What is looked at for a renewal.
#[derive(Template)]
#[template(path = "tls-path.conf")]
pub struct TlsPath<'a> {
    pub certificate: &'a str,
    pub key: &'a str,
}

/// Who may ask the registries (nft(8)). Numbers and networks that were parsed, nothing else.
#[derive(Template)]
#[template(path = "access.nft", escape = "none")]
pub struct AccessTable {
    /// Comma-separated.
    pub ports: String,
    /// Each as `ip saddr 10.0.20.0/24`.
    pub networks: Vec<String>,
}

/// Binds the registries to that table.
#[derive(Template)]
#[template(path = "access.conf")]
pub struct AccessDropIn;

/// Another folder for what is told to Prometheus.
#[derive(Template)]
#[template(path = "metrics.conf")]
pub struct Metrics<'a> {
    pub textfile: &'a str,
}

/// Where systemd listens for a registry (systemd.socket(5)).
#[derive(Template)]
#[template(path = "socket.conf")]
pub struct Socket<'a> {
    pub listen: &'a str,
}

/// Binds registries to their sockets.
#[derive(Template)]
#[template(path = "sockets.conf")]
pub struct Sockets;

/// Bounds on a registry's memory (systemd.resource-control(5)), in bytes.
#[derive(Template)]
#[template(path = "memory.conf")]
pub struct Memory {
    pub lines: Vec<(&'static str, u64)>,
    /// For Go's own collector (`GOMEMLIMIT`).
    pub go: u64,
}

/// One storage driver's section (distribution docs, "Storage drivers"), by its own names.
pub struct Objects<'a> {
    pub driver: &'a str,
    /// JSON, which is YAML too.
    pub settings: &'a serde_json::Map<String, serde_json::Value>,
}

/// An instance's instant (systemd.timer(5)).
#[derive(Template)]
#[template(path = "timer.conf")]
pub struct Timer<'a> {
    pub calendar: &'a str,
    /// Seconds.
    pub delay: u32,
}

/// Another registry binary than the one that the static units name. `%i` in the command must stay a
/// specifier, so the command's own text is escaped by the caller.
#[derive(Template)]
#[template(path = "engine.conf", escape = "none")]
pub struct EngineCommand<'a> {
    pub command: &'a str,
}

/// An image in place of a binary, by what runs it. Escaped by the caller, as [`EngineCommand`].
#[derive(Template)]
#[template(path = "container.conf", escape = "none")]
pub struct ContainerCommand<'a> {
    pub command: &'a str,
    pub engine: &'a str,
    /// `--archive PATH ` or nothing.
    pub archive: &'a str,
    /// The registry's unit, not the collector's.
    pub serves: bool,
    pub podman: bool,
}

/// A storage folder elsewhere.
#[derive(Template)]
#[template(path = "storage.conf")]
pub struct Storage<'a> {
    pub storage: &'a str,
    /// `/%i` where the unit is of one registry.
    pub below: &'static str,
}

/// What the collector needs where the data is in an object store.
#[derive(Template)]
#[template(path = "objects-gc.conf")]
pub struct ObjectsGc;

/// Where the hosts.toml files are, for the unit that changes them.
#[derive(Template)]
#[template(path = "certs-dir.conf")]
pub struct CertsDir<'a> {
    pub certs_dir: &'a str,
}

/// Whom one registry trusts besides the system's authorities: Go reads this file in place of the system's bundle, and
/// the system's folder all the same (crypto/x509, root_unix.go).
#[derive(Template)]
#[template(path = "registry-ca.conf")]
pub struct RegistryCa<'a> {
    pub path: &'a str,
}

/// Fills the slots; the text ends with one newline.
///
/// # Errors
/// When a value has no safe form in this type of file.
pub fn render(what: &str, template: &impl Template) -> Result<String> {
    let mut text =
        template.render().with_context(|| format!("render {what}: a value holds a control character"))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Renders a registry config and reads it back: what a YAML reader sees is what went in.
///
/// # Errors
/// As [`render`], and when the text reads back differently.
pub fn render_registry(registry: &Registry) -> Result<String> {
    let what = format!("the registry config of {}", registry.host);
    let text = render(&what, registry)?;
    let back = RegistryConfig::parse(&text).with_context(|| format!("read back {what}"))?;
    let storage = match &registry.objects {
        Some(objects) => back.storage.objects() == Some((objects.driver, objects.settings)),
        None => back.storage.folder() == Some(registry.store),
    };
    ensure!(
        storage && back.http.addr == registry.listen && back.proxy.remoteurl == registry.remote,
        "read back {what}: the values differ"
    );
    Ok(text)
}

/// The parts of a registry config that Larder's own unit commands need.
#[derive(serde::Deserialize)]
pub struct RegistryConfig {
    pub storage: StorageSection,
    pub http: HttpSection,
    pub proxy: ProxySection,
}

#[derive(serde::Deserialize)]
pub struct StorageSection {
    filesystem: Option<FilesystemSection>,
    s3: Option<serde_json::Map<String, serde_json::Value>>,
    azure: Option<serde_json::Map<String, serde_json::Value>>,
    gcs: Option<serde_json::Map<String, serde_json::Value>>,
}

impl StorageSection {
    /// The folder of the data; `None`: an object store has it.
    #[must_use]
    pub fn folder(&self) -> Option<&str> {
        self.filesystem.as_ref().map(|section| section.rootdirectory.as_str())
    }

    fn objects(&self) -> Option<(&str, &serde_json::Map<String, serde_json::Value>)> {
        [("s3", &self.s3), ("azure", &self.azure), ("gcs", &self.gcs)]
            .into_iter()
            .find_map(|(driver, section)| Some((driver, section.as_ref()?)))
    }
}

#[derive(serde::Deserialize)]
pub struct FilesystemSection {
    pub rootdirectory: String,
}

#[derive(serde::Deserialize)]
pub struct HttpSection {
    pub addr: String,
    /// Present: https.
    #[serde(default)]
    pub tls: Option<TlsSection>,
}

#[derive(serde::Deserialize)]
pub struct TlsSection {
    pub certificate: String,
}

#[derive(serde::Deserialize)]
pub struct ProxySection {
    pub remoteurl: String,
    /// Whom Distribution 3 asks for its credentials.
    #[serde(default)]
    pub exec: Option<ExecSection>,
}

#[derive(serde::Deserialize)]
pub struct ExecSection {
    pub command: String,
}

impl RegistryConfig {
    /// # Errors
    /// When the text is not such a config.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(serde_yaml::from_str(text)?)
    }
}

/// A login as `larder get` reads it.
#[must_use]
pub fn login(username: &str, password: &str) -> zeroize::Zeroizing<String> {
    let quote = |value: &str| zeroize::Zeroizing::new(serde_json::Value::from(value).to_string());
    zeroize::Zeroizing::new(format!(
        "{{\"username\":{},\"password\":{}}}\n",
        *quote(username),
        *quote(password)
    ))
}

/// The environment file that hands a registry its secrets (systemd.exec(5), "EnvironmentFile="). Distribution
/// parses such values as YAML, so each is JSON, in single quotes, in which systemd leaves everything as it is.
#[must_use]
pub fn registry_env(values: &[(&str, Json<'_>)]) -> zeroize::Zeroizing<String> {
    let mut text = zeroize::Zeroizing::new(
        "# Made by larder from the node profile. Change the profile, then run `larder apply`.\n".to_owned(),
    );
    for (name, value) in values {
        let json = zeroize::Zeroizing::new(match value {
            Json::Text(text) => serde_json::Value::from(*text).to_string(),
            Json::Map(map) => (*map).to_string(),
        });
        let quoted = zeroize::Zeroizing::new(json.replace('\'', "\\u0027"));
        text.push_str(&format!("{name}='{}'\n", *quoted));
    }
    text
}

/// What Distribution makes of one variable.
#[derive(Clone, Copy)]
pub enum Json<'a> {
    Text(&'a str),
    Map(&'a serde_json::Value),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry<'a>(host: &'a str, remote: &'a str, major: u32) -> Registry<'a> {
        let (store, listen) = ("/var/lib/larder/x", "10.0.20.10:5000");
        Registry {
            host,
            store,
            objects: None,
            listen,
            remote,
            major,
            is_asking: major >= 3,
            debug: None,
            tls: false,
            credential_helper: None,
        }
    }

    #[test]
    fn hostile_text_stays_a_value() {
        let remote = "https://x\"\n  username: evil\n#%i'";
        let text = render_registry(&registry("docker.io", remote, 2)).unwrap();
        assert_eq!(RegistryConfig::parse(&text).unwrap().proxy.remoteurl, remote);
        assert!(!text.contains("\n  username"), "{text}");
    }

    #[test]
    fn only_version_3_has_a_ttl() {
        let ttl = |major| render_registry(&registry("a.io", "https://a.io", major)).unwrap().contains("ttl:");
        assert_eq!((ttl(2), ttl(3)), (false, true));
    }

    #[test]
    fn unit_values_cannot_start_a_line_or_a_specifier() {
        let timer = |calendar| render("a timer", &Timer { calendar, delay: 0 });
        assert!(timer("daily\nUnit=evil.service").is_err());
        assert!(timer("%h").unwrap().contains("OnCalendar=%%h\n"));
    }

    #[test]
    fn passwords_survive_yaml_and_systemd_quoting() {
        for password in ["a #b", "it's", "x: y", "~", "\"q\" \\ $HOME %i", "line\nbreak", "ünï"] {
            let env = registry_env(&[("REGISTRY_PROXY_PASSWORD", Json::Text(password))]);
            let line = env.lines().find_map(|l| l.strip_prefix("REGISTRY_PROXY_PASSWORD=")).unwrap();
            let inner = line.strip_prefix('\'').unwrap().strip_suffix('\'').unwrap();
            assert!(!inner.contains('\''), "{inner}");
            assert_eq!(serde_yaml::from_str::<String>(inner).unwrap(), password);
        }
    }
}
