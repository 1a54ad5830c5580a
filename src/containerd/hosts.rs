//! `hosts.toml` as Larder writes it (containerd's docs, `hosts.md`): only what every containerd from 1.6 on
//! reads the same way.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use toml_edit::{Array, DocumentMut, Item, Table, Value, value};
use zeroize::Zeroizing;

/// The first line of each file of ours.
pub const HEADER: &str =
    "# Made by larder from the node profile. Change the profile, then run `larder apply`.\n";

/// One registry host's endpoints.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hosts {
    /// containerd asks it last, whether it is written or not; absent in `_default`. Its capabilities are not
    /// written.
    pub server: Option<Endpoint>,
    /// In the order in which they are tried. At least one: 1.6, and 1.7 before .32, refuse a file without.
    pub hosts: Vec<Endpoint>,
}

/// One endpoint and what goes with it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Endpoint {
    /// `scheme://host[:port][/path]`, the scheme in lower case.
    pub url: String,
    #[serde(skip_serializing_if = "is_default")]
    pub capabilities: Vec<Capability>,
    /// PEM files that are trusted, absolute.
    #[serde(skip_serializing_if = "is_default")]
    pub ca: Vec<String>,
    /// PEM files: a certificate, and its key where that is a file of its own.
    #[serde(skip_serializing_if = "is_default")]
    pub client: Vec<(String, Option<String>)>,
    #[serde(skip_serializing_if = "is_default")]
    pub skip_verify: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub headers: IndexMap<String, Vec<Zeroizing<String>>>,
    /// The URL's path is the whole path, `/v2` included.
    #[serde(skip_serializing_if = "is_default")]
    pub override_path: bool,
    /// Ignored by containerd before 2.0.7.
    #[serde(skip_serializing_if = "is_default")]
    pub dial_timeout: Option<Duration>,
}

/// What an endpoint is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Capability {
    Pull,
    Resolve,
    Push,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Capability {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Resolve => "resolve",
            Self::Push => "push",
        }
    }
}

impl Endpoint {
    /// A cache: it is never pushed to.
    #[must_use]
    pub fn mirror(url: impl Into<String>) -> Self {
        Self { url: url.into(), capabilities: vec![Capability::Pull, Capability::Resolve], ..Self::default() }
    }

    /// Whether a file with this endpoint in it has to be hidden from other users.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        !self.headers.is_empty()
    }

    fn write(&self, table: &mut Table) {
        let one_or_more = |texts: &[String]| match texts {
            [one] => value(one),
            more => value(more.iter().collect::<Array>()),
        };
        if !self.ca.is_empty() {
            table.insert("ca", one_or_more(&self.ca));
        }
        if !self.client.is_empty() {
            let pairs = self.client.iter().map(|(certificate, key)| {
                Value::from(std::iter::once(certificate).chain(key).collect::<Array>())
            });
            table.insert("client", value(pairs.collect::<Array>()));
        }
        if self.skip_verify {
            table.insert("skip_verify", value(true));
        }
        if self.override_path {
            table.insert("override_path", value(true));
        }
        if let Some(timeout) = self.dial_timeout {
            table.insert("dial_timeout", value(format!("{}ms", timeout.as_millis())));
        }
        if !self.headers.is_empty() {
            let mut header = Table::new();
            for (name, values) in &self.headers {
                let values: Array = values.iter().map(|value| value.as_str()).collect();
                header.insert(name, value(values));
            }
            table.insert("header", Item::Table(header));
        }
    }
}

impl Hosts {
    /// Whether the file has to be hidden from other users.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        self.server.iter().chain(&self.hosts).any(Endpoint::is_secret)
    }

    /// The same without the endpoints that are `out` for the moment. Where that leaves none, it still says what
    /// every version takes: the registry itself or, without `fallback`, the first endpoint all the same.
    #[must_use]
    pub fn without(&self, out: &BTreeSet<String>, fallback: bool) -> Self {
        let mut hosts: Vec<Endpoint> =
            self.hosts.iter().filter(|endpoint| !out.contains(&endpoint.url)).cloned().collect();
        if hosts.len() == self.hosts.len() {
            return self.clone();
        }
        if hosts.is_empty() {
            let capabilities = vec![Capability::Pull, Capability::Resolve];
            let itself = self.server.clone().filter(|_| fallback);
            let itself = itself.map(|server| Endpoint { capabilities, ..server });
            hosts.extend(itself.or_else(|| self.hosts.first().cloned()));
        }
        // containerd always asks a server last, and the upstream where none is written: so without fallback
        // that is an endpoint, too.
        let server = if fallback { self.server.clone() } else { hosts.last().cloned() };
        Self { server, hosts }
    }

    /// The file: `server` with what goes with it first, then a table for each host, each followed by its own
    /// header. `what` names it in errors.
    ///
    /// # Errors
    /// When the text does not read back as what was written, or the file would be refused: no host, or one
    /// twice.
    pub fn render(&self, what: &str) -> Result<String> {
        ensure!(!self.hosts.is_empty(), "render {what}: no endpoint");
        let mut document = DocumentMut::new();
        if let Some(server) = &self.server {
            document.insert("server", value(&server.url));
            server.write(document.as_table_mut());
        }
        let mut hosts = Table::new();
        hosts.set_implicit(true);
        for host in &self.hosts {
            ensure!(!hosts.contains_key(&host.url), "render {what}: {} is there twice", host.url);
            let mut table = Table::new();
            let capabilities: Array = host.capabilities.iter().map(|one| one.as_str()).collect();
            table.insert("capabilities", value(capabilities));
            host.write(&mut table);
            hosts.insert(&host.url, Item::Table(table));
        }
        document.insert("host", Item::Table(hosts));
        let text = format!("{HEADER}{document}");
        let _: DocumentMut = text.parse().with_context(|| format!("read back {what}"))?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_in_the_order_that_every_version_reads() {
        let mut harbor = Endpoint::mirror("https://harbor.example.com/v2/proxy");
        harbor.override_path = true;
        harbor.ca = vec!["/etc/ssl/a.pem".to_owned()];
        harbor.client = vec![("/c".to_owned(), Some("/k".to_owned()))];
        harbor.dial_timeout = Some(Duration::from_secs(1));
        harbor.headers.insert("X-Token".to_owned(), vec![Zeroizing::new("a\"b".to_owned())]);
        let server = Endpoint {
            url: "https://registry-1.docker.io".to_owned(),
            ca: vec!["/a".to_owned(), "/b".to_owned()],
            ..Endpoint::default()
        };
        let hosts =
            Hosts { server: Some(server), hosts: vec![Endpoint::mirror("http://10.0.20.10:5000"), harbor] };
        assert_eq!(
            hosts.render("x").unwrap().strip_prefix(HEADER).unwrap(),
            r#"server = "https://registry-1.docker.io"
ca = ["/a", "/b"]

[host."http://10.0.20.10:5000"]
capabilities = ["pull", "resolve"]

[host."https://harbor.example.com/v2/proxy"]
capabilities = ["pull", "resolve"]
ca = "/etc/ssl/a.pem"
client = [["/c", "/k"]]
override_path = true
dial_timeout = "1000ms"

[host."https://harbor.example.com/v2/proxy".header]
X-Token = ['a"b']
"#
        );
        assert!(hosts.is_secret());
    }

    #[test]
    fn endpoints_that_are_out_leave_a_file_that_every_version_takes() {
        let out = |urls: &[&str]| urls.iter().map(|url| (*url).to_owned()).collect::<BTreeSet<_>>();
        let shown = |hosts: &Hosts| {
            let urls: Vec<_> = hosts.hosts.iter().chain(&hosts.server).map(|e| e.url.as_str()).collect();
            urls.join(" ")
        };
        let server = Endpoint { url: "https://u".to_owned(), ..Endpoint::default() };
        let hosts = vec![Endpoint::mirror("http://a"), Endpoint::mirror("http://b")];
        let open = Hosts { server: Some(server), hosts: hosts.clone() };
        assert_eq!(shown(&open.without(&out(&["http://a"]), true)), "http://b https://u");
        let none = open.without(&out(&["http://a", "http://b"]), true);
        assert_eq!(shown(&none), "https://u https://u");
        assert!(
            none.render("x")
                .unwrap()
                .contains("[host.\"https://u\"]\ncapabilities = [\"pull\", \"resolve\"]")
        );
        let closed = Hosts { server: hosts.last().cloned(), hosts };
        assert_eq!(shown(&closed.without(&out(&["http://b"]), false)), "http://a http://a");
        assert_eq!(shown(&closed.without(&out(&["http://b", "http://a"]), false)), "http://a http://a");
        assert_eq!(closed.without(&out(&["http://c"]), false), closed);
    }

    #[test]
    fn a_file_that_containerd_would_refuse_is_not_rendered() {
        let twice =
            Hosts { server: None, hosts: vec![Endpoint::mirror("http://a"), Endpoint::mirror("http://a")] };
        assert_eq!(twice.render("x").unwrap_err().to_string(), "render x: http://a is there twice");
        assert_eq!(Hosts::default().render("x").unwrap_err().to_string(), "render x: no endpoint");
    }
}
