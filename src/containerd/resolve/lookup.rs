//! From a registry host to its directory, its file and its endpoints (`ConfigureHosts`).

use anyhow::Result;

use super::url::{self, Url};
use super::{Asked, CERTS_D, Capability, Entry, Resolution, Role, read};
use crate::containerd::config::{Effective, MAIN, Note, Origin};
use crate::containerd::{Version, glob};
use crate::root::Root;

pub(super) struct Resolver<'a> {
    pub(super) effective: &'a Effective,
    pub(super) root: &'a Root,
    pub(super) host: &'a str,
    pub(super) found: Resolution,
}

/// What a path leads to, as Go's `os.Stat` and `os.ReadFile` see it.
enum Stat {
    Absent,
    Directory,
    /// Also a broken path: a file in the place of a folder.
    Other,
}

impl Resolver<'_> {
    fn trap(&mut self, origin: &Origin, text: impl Into<String>) {
        self.found.traps.push(Note::new(origin, text));
    }

    fn fail(&mut self, origin: &Origin, text: impl Into<String>) {
        self.found.fails.get_or_insert_with(|| Note::new(origin, text));
    }

    fn config_path_origin(&self) -> Origin {
        let otherwise = || Origin::file(MAIN);
        self.effective.config_path.origin.clone().unwrap_or_else(otherwise)
    }

    /// `HostDirFromRoot`, for each root in turn.
    pub(super) fn look_up(&mut self) -> Result<()> {
        let config_path = self.effective.config_path.value.clone();
        let directories: Vec<String> =
            self.effective.directories().iter().map(|dir| glob::clean(dir)).collect();
        if directories.len() == 1 && config_path.contains(':') {
            let set = self.effective.config_path.origin.is_some();
            let meant = |dir: &str| {
                names(self.host).iter().any(|name| self.root.exists(&format!("{}/{name}", glob::clean(dir))))
            };
            // What is built in does no harm where nobody has written anything.
            if set || config_path.split(':').any(meant) {
                let by = if set { "is" } else { "is, built in," };
                self.trap(
                    &self.config_path_origin(),
                    format!(
                        "config_path {by} {config_path:?}, which containerd takes for one directory: no hosts.toml \
                         is read"
                    ),
                );
            }
        }
        for directory in &directories {
            for name in names(self.host) {
                let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
                match stat(self.root, &path)? {
                    Stat::Absent => {}
                    Stat::Directory => {
                        self.found.directory = Some(path.clone());
                        if path.ends_with("/_default") {
                            self.other_names(directory);
                        }
                        return self.load(directory, &path);
                    }
                    Stat::Other => {
                        self.fail(&Origin::file(&path), "no directory: every pull fails");
                        return Ok(());
                    }
                }
            }
        }
        for directory in &directories {
            self.other_names(directory);
        }
        self.unread(&directories);
        self.finish(vec![Entry::default()])
    }

    /// What people take for the host's directory, and containerd does not.
    fn other_names(&mut self, directory: &str) {
        if self.host == "docker.io" {
            for other in ["registry-1.docker.io", "index.docker.io", "hub.docker.com"] {
                let path = format!("{directory}/{other}");
                if self.root.exists(&path) {
                    self.trap(&Origin::file(&path), "images of Docker Hub look only in docker.io");
                }
            }
        }
        if let Some((name, _)) = url::split_port(self.host) {
            let path = format!("{directory}/{name}");
            if self.root.exists(&path) {
                self.trap(
                    &Origin::file(&path),
                    format!("not looked at for {}, whose name has a port", self.host),
                );
            }
        }
    }

    /// The usual place, where it is not the one.
    pub(super) fn unread(&mut self, looked: &[String]) {
        if looked.iter().any(|directory| directory == CERTS_D) {
            return;
        }
        let config_path = &self.effective.config_path.value;
        for name in names(self.host) {
            let path = format!("{CERTS_D}/{name}");
            if self.root.exists(&path) {
                let why = match config_path.as_str() {
                    "" => "config_path is not set".to_owned(),
                    other => format!("config_path is {other}"),
                };
                self.trap(&Origin::file(&path), format!("not looked at: {why}"));
                return;
            }
        }
    }

    /// `loadHostDir`.
    fn load(&mut self, directory: &str, path: &str) -> Result<()> {
        let file = format!("{path}/hosts.toml");
        let origin = Origin::file(&file);
        let bytes = match (self.root.read(&file)?, stat(self.root, &file)?) {
            (Some(bytes), _) => bytes,
            (None, Stat::Absent) => Vec::new(),
            (None, _) => {
                self.fail(&origin, "no file: every pull fails");
                return Ok(());
            }
        };
        let present = self.root.exists(&file);
        if bytes.is_empty() {
            let entry = self.certificates(path)?;
            if entry.ca.is_none() && entry.client.is_empty() {
                let (at, what) = match present {
                    true => (origin, "an empty hosts.toml"),
                    false => (Origin::file(path), "no hosts.toml and no certificate"),
                };
                self.says_nothing(&at, what, directory, path);
            }
            return self.finish(vec![entry]);
        }
        match read::read(&file, &bytes, self.effective.version) {
            Ok(mut hosts) => {
                self.found.file = Some(file);
                let server = &hosts.server;
                if hosts.traps.is_empty()
                    && hosts.hosts.is_empty()
                    && server.url.host.is_empty()
                    && server.places.is_empty()
                {
                    self.says_nothing(&origin, "a hosts.toml that names no endpoint", directory, path);
                }
                self.found.traps.append(&mut hosts.traps);
                self.found.ignored.append(&mut hosts.ignored);
                for name in self.root.list(path)? {
                    if name.ends_with(".crt") || name.ends_with(".cert") {
                        self.trap(
                            &Origin::file(&format!("{path}/{name}")),
                            "not looked at beside a hosts.toml",
                        );
                    }
                }
                let mut entries = hosts.hosts;
                entries.push(hosts.server);
                self.resolve_paths(path, &mut entries);
                self.finish(entries)
            }
            Err(read::Refused { note, crash: true, .. }) => {
                self.fail(
                    &note.origin,
                    format!("{}: containerd {} crashes at every pull", note.text, self.effective.version),
                );
                Ok(())
            }
            Err(read::Refused { note, syntax, .. }) => {
                let mut text = format!("containerd takes nothing of this file: {}", note.text);
                // Its go-toml panics over some of what it cannot read (Debian 12's 1.6.20: `server = ` and a table).
                if syntax && self.effective.version < Version::new(1, 7, 0) {
                    text.push_str("; some builds of containerd 1.6 even crash at a pull");
                }
                self.trap(&note.origin, text);
                let entry = self.certificates(path)?;
                self.finish(vec![entry])
            }
        }
    }

    /// A directory is there, and the host has no mirror for that very reason.
    fn says_nothing(&mut self, at: &Origin, what: &str, directory: &str, path: &str) {
        let default = format!("{directory}/_default");
        let masks = path != default && self.root.exists(&default);
        let end = if masks { format!(", and /{default} is not looked at") } else { String::new() };
        self.trap(at, format!("{what}: only the registry itself is asked{end}"));
    }

    /// Paths in a hosts.toml start at its folder.
    fn resolve_paths(&self, folder: &str, entries: &mut [Entry]) {
        let absolute = |path: &mut String| {
            if !path.starts_with('/') {
                *path = format!("/{}", glob::clean(&format!("{folder}/{path}")));
            }
        };
        for entry in entries {
            entry.ca.iter_mut().flatten().for_each(absolute);
            for (certificate, key) in &mut entry.client {
                absolute(certificate);
                key.iter_mut().for_each(absolute);
            }
        }
    }

    /// `loadCertFiles`: Docker's layout.
    fn certificates(&mut self, path: &str) -> Result<Entry> {
        let mut entry = Entry::default();
        let names = self.root.list(path)?;
        for name in &names {
            let file = format!("{path}/{name}");
            if matches!(stat(self.root, &file)?, Stat::Directory) {
                continue;
            }
            if name.ends_with(".crt") {
                entry.ca.get_or_insert_default().push(format!("/{file}"));
            }
            if let Some(stem) = name.strip_suffix(".cert") {
                let key = format!("{path}/{stem}.key");
                let key = self.root.exists(&key).then(|| format!("/{key}"));
                entry.client.push((format!("/{file}"), key));
            }
            if let Some(stem) = name.strip_suffix(".key")
                && !names.iter().any(|other| other.strip_suffix(".cert") == Some(stem))
            {
                self.trap(&Origin::file(&file), format!("not looked at without {stem}.cert"));
            }
        }
        if entry.ca.is_some() || !entry.client.is_empty() {
            entry.origin = Some(Origin::file(path));
        }
        Ok(entry)
    }

    /// `ConfigureHosts`: what the last entry means where it names no host, and how each is asked.
    pub(super) fn finish(&mut self, mut entries: Vec<Entry>) -> Result<()> {
        let (host, version) = (self.host, self.effective.version);
        let last = entries.len().saturating_sub(1);
        for (index, mut entry) in std::mem::take(&mut entries).into_iter().enumerate() {
            let mut role = if index == last { Role::Server } else { Role::Mirror };
            if index == last && entry.url.host.is_empty() {
                role = Role::Upstream;
                let all = entry.capabilities == Capability::all(version);
                if let Some(origin) = entry.places.get("capabilities").filter(|_| !all) {
                    let text = "capabilities above the tables belong to `server`, which is missing: they are ignored";
                    self.found.traps.push(Note::new(origin, text));
                }
                default_server(&mut entry, host, version);
            } else if entry.url.host.is_empty() {
                // It is asked, and fails at once.
                self.found.traps.push(Note::new(
                    &entry.origin.clone().unwrap_or_else(|| Origin::file("")),
                    "no host in this URL: asking it fails at once",
                ));
                continue;
            }
            self.check_files(&entry)?;
            let asked = self.asked(entry, role);
            self.found.endpoints.push(asked);
        }
        Ok(())
    }

    fn asked(&mut self, entry: Entry, role: Role) -> Asked {
        let version = self.effective.version;
        let tls = entry.ca.is_some() || !entry.client.is_empty() || entry.skip_verify.is_some();
        // 2.0's dial_timeout made a transport with TLS settings of its own.
        let dials = entry.dial_timeout.is_some() && version < Version::new(2, 1, 0);
        let then_http = entry.url.scheme == "http"
            && (tls || dials)
            && version >= Version::new(1, 7, 0)
            && entry.url.port() != "80";
        if entry.url.scheme == "http" && role != Role::Upstream && (then_http || tls) {
            let what = match (&entry.ca, entry.skip_verify) {
                (_, Some(_)) => "skip_verify",
                (Some(_), _) => "ca",
                _ if !entry.client.is_empty() => "client",
                _ => "dial_timeout",
            };
            let does = if then_http {
                format!("makes containerd {version} try https first")
            } else {
                "has no meaning".to_owned()
            };
            if let Some(origin) = entry.place(what).cloned() {
                self.trap(&origin, format!("{what} on an http:// endpoint {does}"));
            }
        }
        let scheme = if then_http { "https" } else { entry.url.scheme.as_str() };
        let docker = self.host == "docker.io" && entry.url.host == "registry-1.docker.io";
        let proxied = self.host != entry.url.host && !docker;
        let mut address = format!("{scheme}://{}{}", entry.url.host, entry.url.path.trim_end_matches('/'));
        if entry.url.host.ends_with(':') {
            // A misread URL has its user in the path.
            address = url::shown(&address);
        }
        Asked {
            url: address,
            then_http,
            role,
            capabilities: entry.capabilities,
            namespace: proxied.then(|| self.host.to_owned()),
            ca: entry.ca.unwrap_or_default(),
            client: entry.client,
            skip_verify: entry.skip_verify.unwrap_or(false),
            headers: entry.headers,
            override_path: entry.override_path,
            dial_timeout: entry.dial_timeout,
            origin: if role == Role::Upstream { None } else { entry.origin },
        }
    }

    /// containerd reads them before it asks anybody.
    fn check_files(&mut self, entry: &Entry) -> Result<()> {
        for path in entry.ca.iter().flatten() {
            self.check_pem(entry, "ca", path, "CERTIFICATE")?;
        }
        for (certificate, key) in &entry.client {
            self.check_pem(entry, "client", certificate, "CERTIFICATE")?;
            self.check_pem(entry, "client", key.as_ref().unwrap_or(certificate), "PRIVATE KEY")?;
        }
        Ok(())
    }

    fn check_pem(&mut self, entry: &Entry, key: &str, path: &str, label: &str) -> Result<()> {
        let reason = match self.read(path)? {
            None => format!("{key}: {path} cannot be read: every pull fails"),
            Some(text) if !has_pem(&text, label) => {
                format!("{key}: no {} in {path}: every pull fails", label.to_lowercase())
            }
            Some(_) => return Ok(()),
        };
        let origin = entry.place(key).cloned().unwrap_or_else(|| Origin::file(glob::clean(path).as_str()));
        self.fail(&origin, reason);
        Ok(())
    }

    fn read(&self, path: &str) -> Result<Option<String>> {
        let bytes = self.root.read(&glob::clean(path))?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// `getTLSConfig` of containerd 1.
    pub(super) fn check_legacy_tls(&mut self) -> Result<()> {
        let authorities: Vec<String> =
            self.found.endpoints.iter().map(|asked| authority(&asked.url)).collect();
        for authority in authorities {
            let Some(tls) = self.effective.configs.get(&authority).and_then(|config| config.tls.as_ref())
            else {
                continue;
            };
            let origin = tls.origin.clone().unwrap_or_else(|| Origin::file(MAIN));
            let tls = &tls.value;
            if tls.cert_file.is_empty() != tls.key_file.is_empty() {
                self.fail(&origin, "cert_file and key_file go together: every pull fails");
                continue;
            }
            let client =
                (!tls.cert_file.is_empty()).then(|| (tls.cert_file.clone(), Some(tls.key_file.clone())));
            if !tls.ca_file.is_empty() && self.read(&tls.ca_file)?.is_none() {
                self.fail(&origin, format!("ca_file: {} cannot be read: every pull fails", tls.ca_file));
            }
            let entry =
                Entry { client: client.into_iter().collect(), origin: Some(origin), ..Entry::default() };
            self.check_files(&entry)?;
        }
        Ok(())
    }
}

fn authority(url: &str) -> String {
    Url::parse(url).map(|url| url.host).unwrap_or_default()
}

fn has_pem(text: &str, label: &str) -> bool {
    text.lines().any(|line| line.starts_with("-----BEGIN ") && line.contains(label))
        && text.lines().any(|line| line.starts_with("-----END ") && line.contains(label))
}

/// Where a host's directory may be (`hostPaths`).
pub(super) fn names(host: &str) -> Vec<String> {
    let with_underscores = host.rsplit_once(':').filter(|(name, _)| !name.is_empty());
    let with_underscores = with_underscores.map(|(name, port)| format!("{name}_{port}_"));
    with_underscores.into_iter().chain([host.to_owned(), "_default".to_owned()]).collect()
}

fn stat(root: &Root, path: &str) -> Result<Stat> {
    if root.exists(path) {
        // A folder's own entry can be looked up, a file's cannot.
        return Ok(if root.exists(&format!("{path}/.")) { Stat::Directory } else { Stat::Other });
    }
    // Below a file Go finds another error than absence, and gives up.
    let mut above = path;
    while let Some((parent, _)) = above.rsplit_once('/') {
        if root.exists(parent) {
            return Ok(if root.exists(&format!("{parent}/.")) { Stat::Absent } else { Stat::Other });
        }
        above = parent;
    }
    Ok(Stat::Absent)
}

/// What is asked where no server is named.
fn default_server(entry: &mut Entry, host: &str, version: Version) {
    let url = |scheme: &str, host: &str| Url {
        scheme: scheme.to_owned(),
        host: host.to_owned(),
        path: "/v2".to_owned(),
        dropped: false,
    };
    entry.capabilities = Capability::all(version);
    entry.url = if host == "docker.io" {
        url("https", "registry-1.docker.io")
    } else if url::is_loopback(host) {
        let port = url::split_port(host).map_or("", |(_, port)| port);
        let old = version < Version::new(1, 7, 0);
        if old || port != "80" {
            entry.skip_verify = Some(true);
        }
        url(if !old && matches!(port, "" | "443") { "https" } else { "http" }, host)
    } else {
        url("https", host)
    };
}
