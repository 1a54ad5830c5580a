//! `hosts.toml` as containerd reads it (`remotes/docker/config/hosts.go`, `parseHostsFile`): the whole file, or
//! nothing of it.

use crate::containerd::config::Note;
use crate::containerd::document::{Document, Node, Origin, Value, parse};
use crate::containerd::{Version, duration};

use super::url::{Url, clean, shown};
use super::{Capability, Entry};

/// A file that is in effect.
#[derive(Debug, Default)]
pub struct HostsFile {
    /// In the order in which they are asked.
    pub hosts: Vec<Entry>,
    /// `server`, with what stands beside it; without a host where none is written.
    pub server: Entry,
    pub traps: Vec<Note>,
    pub ignored: Vec<Note>,
}

/// Why containerd takes nothing of a file.
#[derive(Debug)]
pub struct Refused {
    pub note: Note,
    /// containerd itself dies of it.
    pub crash: bool,
    /// It is not TOML.
    pub syntax: bool,
}

impl From<Note> for Refused {
    fn from(note: Note) -> Self {
        Self { note, crash: false, syntax: false }
    }
}

/// The keys of a `[host."URL"]` table, and of the top level for `server`.
const KEYS: [&str; 7] =
    ["capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"];

/// Reads a file as this containerd does.
///
/// # Errors
/// Why it takes nothing of the file.
pub fn read(file: &str, bytes: &[u8], version: Version) -> Result<HostsFile, Refused> {
    let document = parse(file, bytes, version).map_err(|syntax| Refused {
        note: Note { origin: Origin { line: syntax.line, ..Origin::file(file) }, text: syntax.text },
        crash: false,
        syntax: true,
    })?;
    let mut reader = Reader { version, found: HostsFile::default() };
    let names = reader.order(file, &document)?;
    let root = &document.root;
    let hosts = root.get(&["host"]);
    for (name, table) in hosts.and_then(Node::table).into_iter().flatten() {
        check_types(table, version)?;
        reader.unknown(table, &format!("host.{:?}", shown(name)));
    }
    check_types(root, version)?;
    let server = field(root, "server", version);
    if let Some(node) = server.filter(|node| node.text().is_none()) {
        return Err(wrong(node, "server", "a text").into());
    }
    let empty = Node::empty_table(file);
    for (name, origin) in names {
        let node = root.get(&["host", &name]).unwrap_or(&empty);
        let entry = reader.entry(&name, node, origin)?;
        reader.found.hosts.push(entry);
    }
    let origin = server.map_or_else(|| root.origin.clone(), |node| node.origin.clone());
    reader.found.server = reader.entry(server.and_then(Node::text).unwrap_or_default(), root, origin)?;
    reader.top_level(root);
    Ok(reader.found)
}

struct Reader {
    version: Version,
    found: HostsFile,
}

impl Reader {
    fn trap(&mut self, origin: &Origin, text: impl Into<String>) {
        self.found.traps.push(Note::new(origin, text));
    }

    /// The hosts, in the order in which they are asked (`getSortedHosts`).
    fn order(&mut self, file: &str, document: &Document) -> Result<Vec<(String, Origin)>, Refused> {
        let host = document.root.get(&["host"]);
        if let Some(host) = host.filter(|host| host.table().is_none()) {
            return Err(wrong(host, "host", "a table").into());
        }
        let hosts = host.and_then(Node::table);
        if self.version.major >= 2 {
            return self.order_of_headers(file, document);
        }
        let Some(hosts) = hosts else {
            if self.version >= Version::new(1, 7, 32) {
                return Ok(Vec::new());
            }
            let text = "no [host.\"URL\"] table: containerd before 1.7.32 refuses a file without one";
            return Err(Note::new(&Origin::file(file), text).into());
        };
        if let Some((name, node)) = hosts.iter().find(|(_, node)| node.table().is_none()) {
            let note = wrong(node, &format!("host.{:?}", shown(name)), "a table");
            return Err(Refused { note, crash: hosts.len() > 1, syntax: false });
        }
        let inline = |name: &str| {
            document.inline.iter().any(|path| {
                matches!(path.as_slice(), [first, rest @ ..] if first == "host"
                    && rest.first().is_none_or(|second| second == name) && rest.len() < 2)
            })
        };
        let headers = |name: &str| {
            let of =
                document.headers.iter().filter(move |(path, _)| path.get(1).is_some_and(|one| one == name));
            of.filter(|(path, _)| path.first().is_some_and(|one| one == "host")).map(|(_, line)| *line).min()
        };
        let mut names: Vec<(usize, &String, &Node)> = hosts
            .iter()
            .map(|(name, node)| {
                let line = if inline(name) { 0 } else { headers(name).or(node.origin.line).unwrap_or(0) };
                (line, name, node)
            })
            .collect();
        names.sort_by_key(|(line, ..)| *line);
        if names.iter().filter(|(line, ..)| *line == 0).count() > 1
            && let Some((_, _, node)) = names.first()
        {
            self.trap(
                &node.origin,
                "hosts in inline tables are asked in no fixed order: give each its [host.\"URL\"]",
            );
        }
        Ok(names.into_iter().map(|(_, name, node)| (name.clone(), node.origin.clone())).collect())
    }

    /// containerd 2 walks over the `[host."URL"]` headers of the file, and over nothing else.
    fn order_of_headers(
        &mut self,
        file: &str,
        document: &Document,
    ) -> Result<Vec<(String, Origin)>, Refused> {
        let mut names: Vec<(String, Origin)> = Vec::new();
        let mut last = "";
        for (path, line) in &document.headers {
            let [first, name, ..] = path.as_slice() else { continue };
            if first != "host" || name == last {
                continue;
            }
            last = name;
            let origin = Origin::line(file, *line);
            if names.iter().any(|(other, _)| other == name) {
                let hidden = shown(name);
                let text = format!(
                    "host.{hidden:?}: a table of it after another host's makes containerd 2 ask it twice"
                );
                self.trap(&origin, text);
            }
            names.push((name.clone(), origin));
        }
        for (name, node) in document.root.get(&["host"]).and_then(Node::table).into_iter().flatten() {
            if node.table().is_none() {
                return Err(wrong(node, &format!("host.{:?}", shown(name)), "a table").into());
            }
            if !names.iter().any(|(other, _)| other == name) {
                let hidden = shown(name);
                let text = format!(
                    "host.{hidden:?}: containerd 2 sees only hosts with a [host.\"URL\"] header of their own"
                );
                self.trap(&node.origin, text);
            }
        }
        Ok(names)
    }

    /// `parseHostConfig`.
    fn entry(&mut self, server: &str, node: &Node, origin: Origin) -> Result<Entry, Note> {
        let version = self.version;
        let get = |key| field(node, key, version);
        let override_path = get("override_path").and_then(Node::boolean).unwrap_or(false);
        let mut entry = Entry { origin: Some(origin.clone()), override_path, ..Entry::default() };
        if !server.is_empty() {
            entry.url = self.url(server, override_path, &origin)?;
        }
        for key in KEYS {
            if let Some(node) = get(key) {
                entry.places.insert(key, node.origin.clone());
            }
        }
        entry.skip_verify = get("skip_verify").and_then(Node::boolean);
        entry.capabilities = match get("capabilities").and_then(array) {
            None | Some([]) => Capability::all(version),
            Some(nodes) => capabilities(nodes, version)?,
        };
        if let Some(ca) = get("ca") {
            entry.ca = Some(match &ca.value {
                Value::Text(path) => vec![path.clone()],
                Value::Array(nodes) => texts(nodes, "ca")?,
                _ => return Err(wrong(ca, "ca", "a text or a list of texts")),
            });
        }
        if let Some(client) = get("client") {
            entry.client = match &client.value {
                Value::Text(path) => vec![(path.clone(), None)],
                Value::Array(nodes) => nodes.iter().map(client_pair).collect::<Result<_, _>>()?,
                _ => return Err(wrong(client, "client", "a text or a list")),
            };
        }
        for (name, values) in get("header").and_then(Node::table).into_iter().flatten() {
            match &values.value {
                Value::Text(_) => {}
                Value::Array(nodes) => texts(nodes, &format!("header.{name}")).map(drop)?,
                _ => return Err(wrong(values, &format!("header.{name}"), "a text or a list of texts")),
            }
            entry.headers.push(name.clone());
        }
        if let Some(node) = get("dial_timeout")
            && let Some(text) = node.text()
        {
            if version.has_dial_timeout() {
                if !text.is_empty() {
                    if duration::parse(text).is_none() {
                        return Err(Note::new(
                            &node.origin,
                            format!("dial_timeout: {text:?} is no duration such as \"1s\""),
                        ));
                    }
                    entry.dial_timeout = Some(text.to_owned());
                }
            } else {
                self.found
                    .ignored
                    .push(Note::new(&node.origin, "dial_timeout: containerd before 2.0.7 does not know it"));
            }
        }
        Ok(entry)
    }

    fn url(&mut self, server: &str, override_path: bool, origin: &Origin) -> Result<Url, Note> {
        let hidden = shown(server);
        let full = if server.starts_with("http") { server.to_owned() } else { format!("https://{server}") };
        let mut url =
            Url::parse(&full).map_err(|reason| Note::new(origin, format!("{hidden:?}: {reason}")))?;
        if url.host.is_empty() || url.host.ends_with(':') {
            self.trap(
                origin,
                format!("{hidden:?} is not the URL that it seems to be: write https:// or http:// in lower case before it"),
            );
        }
        if url.dropped {
            self.trap(origin, format!("{hidden:?}: containerd drops the user, query and fragment"));
        }
        if url.path.is_empty() {
            if !override_path {
                url.path = "/v2".to_owned();
            }
        } else {
            url.path = clean(&url.path);
            if !override_path && !url.path.ends_with("/v2") {
                if url.path.starts_with("/v2/") {
                    let text = format!(
                        "{hidden:?}: containerd asks for {}/v2: set `override_path = true` for a path that is whole",
                        url.path
                    );
                    self.trap(origin, text);
                }
                // `path.Clean` leaves "/" alone.
                url.path = format!("{}/v2", url.path.trim_end_matches('/'));
            }
        }
        Ok(url)
    }

    fn unknown(&mut self, node: &Node, name: &str) {
        for (key, node) in node.table().into_iter().flatten() {
            if !KEYS.iter().any(|known| same(known, key, self.version)) {
                self.trap(&node.origin, format!("{name}.{key}: containerd knows no such key here"));
            }
        }
    }

    fn top_level(&mut self, root: &Node) {
        for (key, node) in root.table().into_iter().flatten() {
            let known = KEYS.iter().chain(&["server", "host"]).any(|known| same(known, key, self.version));
            if !known {
                self.trap(&node.origin, format!("{key}: containerd knows no such key here"));
            }
        }
        for (name, table) in root.get(&["host"]).and_then(Node::table).into_iter().flatten() {
            if let Some(node) = table.get(&["server"]) {
                let hidden = shown(name);
                let text = format!(
                    "server stands below [host.{hidden:?}] and is lost: it belongs above the first table"
                );
                self.trap(&node.origin, text);
            }
        }
    }
}

/// Go's decoders look for a field's name in other cases too, each in its own way.
fn same(known: &str, key: &str, version: Version) -> bool {
    key == known
        || if version.major < 2 { key == known.to_uppercase() } else { key.eq_ignore_ascii_case(known) }
}

fn field<'n>(node: &'n Node, key: &str, version: Version) -> Option<&'n Node> {
    let table = node.table()?;
    table.get(key).or_else(|| table.iter().find(|(other, _)| same(key, other, version)).map(|(_, node)| node))
}

fn wrong(node: &Node, key: &str, wanted: &str) -> Note {
    Note::new(&node.origin, format!("{key}: wanted {wanted}, got {}", node.type_name()))
}

/// What the decoder itself refuses, in tables that are used and in those that are not.
fn check_types(node: &Node, version: Version) -> Result<(), Note> {
    type Fits = fn(&Node) -> bool;
    let wanted: [(&str, Fits, &str); 5] = [
        ("capabilities", |node| node.texts().is_some(), "a list of texts"),
        ("skip_verify", |node| node.boolean().is_some(), "true or false"),
        ("header", |node| node.table().is_some(), "a table"),
        ("override_path", |node| node.boolean().is_some(), "true or false"),
        ("dial_timeout", |node| node.text().is_some(), "a text such as \"1s\""),
    ];
    for (key, fits, name) in wanted {
        if key == "dial_timeout" && !version.has_dial_timeout() {
            continue;
        }
        if let Some(node) = field(node, key, version).filter(|node| !fits(node)) {
            return Err(wrong(node, key, name));
        }
    }
    Ok(())
}

fn array(node: &Node) -> Option<&[Node]> {
    match &node.value {
        Value::Array(nodes) => Some(nodes),
        _ => None,
    }
}

fn capabilities(nodes: &[Node], version: Version) -> Result<Vec<Capability>, Note> {
    let mut found = Vec::new();
    for node in nodes {
        let text = node.text().unwrap_or_default();
        let known = Capability::all(version).into_iter().find(|one| one.as_str().eq_ignore_ascii_case(text));
        found.push(known.ok_or_else(|| Note::new(&node.origin, format!("unknown capability {text:?}")))?);
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn texts(nodes: &[Node], key: &str) -> Result<Vec<String>, Note> {
    nodes
        .iter()
        .map(|node| node.text().map(str::to_owned).ok_or_else(|| wrong(node, key, "texts only")))
        .collect()
}

fn client_pair(node: &Node) -> Result<(String, Option<String>), Note> {
    match &node.value {
        Value::Text(path) => Ok((path.clone(), None)),
        Value::Array(nodes) => match texts(nodes, "client")?.as_slice() {
            [certificate, key] => Ok((certificate.clone(), Some(key.clone()))),
            _ => Err(Note::new(&node.origin, "client: wanted a pair of certificate and key")),
        },
        _ => Err(wrong(node, "client", "a text or a pair of texts")),
    }
}
