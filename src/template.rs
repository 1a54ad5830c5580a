//! The documents that Larder writes: `units/` as they are, `templates/` with their slots filled.
//!
//! A slot is escaped by the file's type, so that no value changes a file's structure; what YAML readers make
//! of a rendered registry config is compared with what went in before it counts.

use std::fmt::{self, Write};

use anyhow::{Context, Result, ensure};
use askama::Template;
use askama::filters::Escaper;

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
    "larder-registry@.service",
    "larder-gc@.service",
    "larder-gc@.timer",
    "larder-restart@.service",
    "larder-restart@.timer",
    "larder-watch.service",
    "larder-watch.timer",
];

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
    pub store: &'a str,
    pub listen: &'a str,
    pub remote: &'a str,
    /// The engine's major version.
    pub major: u32,
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

/// A storage folder elsewhere.
#[derive(Template)]
#[template(path = "storage.conf")]
pub struct Storage<'a> {
    pub storage: &'a str,
}

/// Where the hosts.toml files are, for the unit that changes them.
#[derive(Template)]
#[template(path = "certs-dir.conf")]
pub struct CertsDir<'a> {
    pub certs_dir: &'a str,
}

/// A static address for systemd-networkd (systemd.network(5)).
#[derive(Template)]
#[template(path = "link.network")]
pub struct Link<'a> {
    pub interface: &'a str,
    pub mtu: Option<u32>,
    pub addresses: Vec<String>,
    pub nameservers: Vec<String>,
    /// Space-separated.
    pub search: String,
    pub routes: Vec<LinkRoute>,
}

/// `to` is absent for a default route.
pub struct LinkRoute {
    pub to: Option<String>,
    pub via: String,
}

/// Tells cloud-init to leave the network alone.
#[derive(Template)]
#[template(path = "cloud-init.cfg")]
pub struct CloudInit;

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
    ensure!(
        back.storage.filesystem.rootdirectory == registry.store
            && back.http.addr == registry.listen
            && back.proxy.remoteurl == registry.remote,
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
    pub filesystem: FilesystemSection,
}

#[derive(serde::Deserialize)]
pub struct FilesystemSection {
    pub rootdirectory: String,
}

#[derive(serde::Deserialize)]
pub struct HttpSection {
    pub addr: String,
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

/// The environment file that hands a registry its upstream's credentials (systemd.exec(5),
/// "EnvironmentFile="). Distribution parses such values as YAML, so each is a JSON string, in single
/// quotes, in which systemd leaves everything as it is.
#[must_use]
pub fn registry_env(username: &str, password: &str) -> zeroize::Zeroizing<String> {
    let quote = |value: &str| {
        zeroize::Zeroizing::new(serde_json::Value::from(value).to_string().replace('\'', "\\u0027"))
    };
    zeroize::Zeroizing::new(format!(
        "# Made by larder from the node profile. Change the profile, then run `larder apply`.\n\
         REGISTRY_PROXY_USERNAME='{}'\nREGISTRY_PROXY_PASSWORD='{}'\n",
        *quote(username),
        *quote(password)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry<'a>(host: &'a str, remote: &'a str, major: u32) -> Registry<'a> {
        Registry { host, store: "/var/lib/larder/x", listen: "10.0.20.10:5000", remote, major }
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
            let env = registry_env("bot", password);
            let line = env.lines().find_map(|l| l.strip_prefix("REGISTRY_PROXY_PASSWORD=")).unwrap();
            let inner = line.strip_prefix('\'').unwrap().strip_suffix('\'').unwrap();
            assert!(!inner.contains('\''), "{inner}");
            assert_eq!(serde_yaml::from_str::<String>(inner).unwrap(), password);
        }
    }
}
