//! What one version of containerd takes from its `config.toml` and from what that imports: the rules of
//! `LoadConfig` and of the CRI plugin's own checks, version by version.

use std::collections::{BTreeSet, VecDeque};

use anyhow::Result;
use indexmap::IndexMap;

pub use super::document::Origin;
use super::document::{Node, Value, parse};
use super::{Version, glob};
use crate::root::{Root, folder_of};

/// The main file.
pub const MAIN: &str = "etc/containerd/config.toml";
/// What containerd 2.2 and later look for where nothing is set.
pub const DOCKER_TOO: &str = "/etc/containerd/certs.d:/etc/docker/certs.d";

/// CRI's section in files without a version and of version 1, of version 2, and of 3 and later.
const V1: &str = "cri";
const V2: &str = "io.containerd.grpc.v1.cri";
const V3: &str = "io.containerd.cri.v1.images";
const SECTIONS: [&str; 3] = [V1, V2, V3];
const RUNTIME: &str = "io.containerd.cri.v1.runtime";
const TRANSFER: &str = "io.containerd.transfer.v1.local";

/// containerd's configuration as this version of it sees it.
#[derive(Debug)]
pub struct Effective {
    pub version: Version,
    /// `None`: containerd runs with what it was built with.
    pub main: Option<SourceFile>,
    /// The main file, then the imported ones, in the order in which they are merged.
    pub files: Vec<SourceFile>,
    /// The main file's `version`; `None` where it says nothing.
    pub header: Option<i64>,
    /// The CRI section that decides.
    pub section: &'static str,
    pub config_path: Setting<String>,
    /// In no order that containerd knows: by namespace.
    pub mirrors: IndexMap<String, Setting<Vec<String>>>,
    pub configs: IndexMap<String, HostConfig>,
    /// The keys of `registry.auths`.
    pub auths: IndexMap<String, Origin>,
    /// The names of `registry.headers`; values may be secrets.
    pub headers: IndexMap<String, Origin>,
    pub pull: Pull,
    /// containerd would not start.
    pub fatal: Vec<Note>,
    /// containerd starts, and no kubelet can pull.
    pub cri_down: Vec<Note>,
    /// Set, but without effect.
    pub ignored: Vec<Note>,
}

/// One file that was read.
pub struct SourceFile {
    /// Below the root.
    pub path: String,
    pub text: String,
    /// Its own `version`.
    pub version: Option<i64>,
}

impl std::fmt::Debug for SourceFile {
    /// The text may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceFile").field("path", &self.path).field("version", &self.version).finish()
    }
}

/// A value and who set it; no origin where it is built in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<T> {
    pub value: T,
    pub origin: Option<Origin>,
}

/// `registry.configs.HOST`.
#[derive(Debug, Default)]
pub struct HostConfig {
    /// containerd 1 only.
    pub tls: Option<Setting<Tls>>,
    pub auth: Option<Setting<()>>,
}

/// `registry.configs.HOST.tls`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tls {
    pub ca_file: String,
    pub cert_file: String,
    pub key_file: String,
    pub insecure_skip_verify: bool,
}

/// Who pulls for CRI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pull {
    /// CRI itself, for the reason given. It splits `config_path` at colons.
    Local(Option<Note>),
    /// The transfer service, which takes `config_path` for one directory.
    Transfer,
}

/// A line for the operator, with its place.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Note {
    #[serde(flatten)]
    pub origin: Origin,
    pub text: String,
}

impl Note {
    pub fn new(origin: &Origin, text: impl Into<String>) -> Self {
        Self { origin: origin.clone(), text: text.into() }
    }
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.origin, self.text)
    }
}

impl Effective {
    /// Reads what containerd of this version would read.
    ///
    /// # Errors
    /// When a file that is there cannot be read. What containerd would refuse is no error: it is a note.
    pub fn read(root: &Root, version: Version) -> Result<Self> {
        let mut loader = Loader::new(version);
        loader.load(root)?;
        Ok(loader.finish())
    }

    /// The directories in which this containerd looks for `HOST/hosts.toml`, as it spells them; none where the
    /// legacy settings decide.
    #[must_use]
    pub fn directories(&self) -> Vec<&str> {
        let path = self.config_path.value.as_str();
        match (&self.pull, path) {
            (_, "") => Vec::new(),
            (Pull::Local(_), path) => path.split(':').collect(),
            (Pull::Transfer, path) => vec![path],
        }
    }

    /// Whether an image can be pulled at all.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.fatal.is_empty() && self.cri_down.is_empty()
    }
}

/// How files become one configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// 1.6 and 1.7: a file's plugin section takes the place of the one before.
    Replace,
    /// 2.0 to 2.2: merged as written, then migrated by the last version that was said.
    MergeThenMigrate,
    /// 2.3 and later: each file is migrated, then merged.
    MigrateThenMerge,
}

struct Loader {
    version: Version,
    rules: Rules,
    files: Vec<SourceFile>,
    roots: Vec<Node>,
    /// The merged configuration's version.
    merged: i64,
    plugins: IndexMap<String, Node>,
    /// `disabled_plugins`, with the names that they end up as.
    disabled: Vec<(String, Origin)>,
    required: Vec<(String, Origin)>,
    fatal: Vec<Note>,
}

#[derive(Debug, Clone, Copy)]
enum Shape {
    Text,
    Integer,
    Boolean,
    Texts,
    Table,
}

impl Shape {
    fn fits(self, node: &Node) -> bool {
        match self {
            Self::Text => node.text().is_some(),
            Self::Integer => node.integer().is_some(),
            Self::Boolean => node.boolean().is_some(),
            Self::Texts => node.texts().is_some(),
            Self::Table => node.table().is_some(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::Integer => "a number",
            Self::Boolean => "true or false",
            Self::Texts => "a list of texts",
            Self::Table => "a table",
        }
    }
}

/// The top level (containerd's `config.go`, `Config`).
const TOP: [(&str, Shape); 18] = [
    ("version", Shape::Integer),
    ("root", Shape::Text),
    ("state", Shape::Text),
    ("temp", Shape::Text),
    ("plugin_dir", Shape::Text),
    ("grpc", Shape::Table),
    ("ttrpc", Shape::Table),
    ("debug", Shape::Table),
    ("metrics", Shape::Table),
    ("disabled_plugins", Shape::Texts),
    ("required_plugins", Shape::Texts),
    ("plugins", Shape::Table),
    ("oom_score", Shape::Integer),
    ("cgroup", Shape::Table),
    ("proxy_plugins", Shape::Table),
    ("timeouts", Shape::Table),
    ("imports", Shape::Texts),
    ("stream_processors", Shape::Table),
];

impl Loader {
    fn new(version: Version) -> Self {
        let rules = match (version.major, version.minor) {
            (..2, _) => Rules::Replace,
            (2, ..3) => Rules::MergeThenMigrate,
            _ => Rules::MigrateThenMerge,
        };
        Self {
            version,
            rules,
            files: Vec::new(),
            roots: Vec::new(),
            merged: match rules {
                Rules::Replace => 0,
                Rules::MergeThenMigrate => 3,
                Rules::MigrateThenMerge => 4,
            },
            plugins: IndexMap::new(),
            disabled: Vec::new(),
            required: Vec::new(),
            fatal: Vec::new(),
        }
    }

    fn refuse(&mut self, origin: &Origin, text: impl Into<String>) {
        self.fatal.push(Note::new(origin, text));
    }

    fn load(&mut self, root: &Root) -> Result<()> {
        if !root.exists(MAIN) {
            return Ok(());
        }
        let mut pending = VecDeque::from([(MAIN.to_owned(), Origin::file(MAIN))]);
        let mut loaded = BTreeSet::new();
        let mut highest = 0;
        while let Some((path, named_at)) = pending.pop_front() {
            if !loaded.insert(path.clone()) {
                continue;
            }
            let Some(bytes) = root.read(&path)? else {
                let what = if root.exists(&path) { "is no file" } else { "does not exist" };
                self.refuse(&named_at, format!("/{path} {what}: containerd does not start without it"));
                return Ok(());
            };
            let document = match parse(&path, &bytes, self.version) {
                Ok(document) => document.root,
                Err(syntax) => {
                    let origin = Origin { line: syntax.line, ..Origin::file(&path) };
                    self.refuse(&origin, format!("not TOML, containerd does not start: {}", syntax.text));
                    return Ok(());
                }
            };
            let said = document.get(&["version"]).and_then(Node::integer);
            self.files.push(SourceFile {
                path: path.clone(),
                text: String::from_utf8_lossy(&bytes).into_owned(),
                version: said,
            });
            self.check_shapes(&document);
            if self.rules == Rules::MigrateThenMerge && self.version < Version::new(2, 4, 0) {
                let number = said.unwrap_or(0);
                if highest == 0 {
                    highest = number;
                }
                if number > highest {
                    self.refuse(
                        &origin_of(&document, &["version"]),
                        format!(
                            "drop-in config version {number} higher than root config version {highest}: \
                             containerd does not start"
                        ),
                    );
                    return Ok(());
                }
            }
            self.merge(&document, said.unwrap_or(0));
            for import in document.get(&["imports"]).and_then(array).unwrap_or_default() {
                let Some(pattern) = import.text() else { continue };
                match self.resolve_import(root, &path, pattern)? {
                    Some(paths) => {
                        pending.extend(paths.into_iter().map(|path| (path, import.origin.clone())))
                    }
                    None => self.refuse(
                        &import.origin,
                        format!("{pattern}: no pattern that can be read: containerd does not start"),
                    ),
                }
            }
            self.roots.push(document);
        }
        Ok(())
    }

    /// The files that one import names; `None` for a broken pattern.
    fn resolve_import(&self, root: &Root, importer: &str, pattern: &str) -> Result<Option<Vec<String>>> {
        // 1.6 looks for a relative pattern where containerd runs, which is `/` for a unit of systemd.
        let runs_in_root = self.version < Version::new(1, 7, 0) && pattern.contains('*');
        let path = match pattern.strip_prefix('/') {
            Some(absolute) => glob::clean(absolute),
            None if runs_in_root => glob::clean(pattern),
            None => glob::clean(&format!("{}/{pattern}", folder_of(importer))),
        };
        if path.contains('*') { glob::find(root, &path) } else { Ok(Some(vec![path])) }
    }

    fn check_shapes(&mut self, document: &Node) {
        let mut notes = Vec::new();
        shapes(document, &TOP, &mut notes);
        for section in document.get(&["plugins"]).and_then(Node::table).into_iter().flat_map(IndexMap::values)
        {
            if section.table().is_none() {
                notes
                    .push(Note::new(&section.origin, format!("wanted a table, got {}", section.type_name())));
            }
        }
        self.fatal.extend(notes.into_iter().map(does_not_start));
    }

    fn merge(&mut self, document: &Node, said: i64) {
        let mut plugins: IndexMap<String, Node> =
            document.get(&["plugins"]).and_then(Node::table).cloned().unwrap_or_default();
        let names = |key: &str| -> Vec<(String, Origin)> {
            let nodes = document.get(&[key]).and_then(array).unwrap_or_default();
            nodes.iter().filter_map(|node| Some((node.text()?.to_owned(), node.origin.clone()))).collect()
        };
        let (mut disabled, mut required) = (names("disabled_plugins"), names("required_plugins"));
        if self.rules != Rules::Replace && said < 2 {
            // `v1Migrate`; what it makes of other plugins' names does not matter here.
            plugins = plugins.into_iter().map(|(id, node)| (v1_name(id), node)).collect();
            for (name, _) in disabled.iter_mut().chain(&mut required) {
                *name = v1_name(std::mem::take(name));
            }
        }
        match self.rules {
            Rules::Replace => {
                if said != 0 {
                    self.merged = said;
                }
                self.plugins.extend(plugins);
            }
            Rules::MergeThenMigrate => {
                if said >= 2 {
                    self.merged = said;
                }
                merge_tables(&mut self.plugins, plugins);
            }
            Rules::MigrateThenMerge => {
                if said < 4 {
                    migrate(&mut plugins);
                }
                self.merged = self.merged.max(said);
                merge_tables(&mut self.plugins, plugins);
            }
        }
        self.disabled.append(&mut disabled);
        self.required.append(&mut required);
    }

    /// `ValidateV2` and `ValidateVersion`.
    fn validate(&mut self) {
        let version = self.version;
        let highest = match self.rules {
            Rules::Replace => 2,
            Rules::MergeThenMigrate => 3,
            Rules::MigrateThenMerge => 4,
        };
        let checks_version = version >= Version::new(1, 7, 17) || (version.minor == 6 && version.patch >= 39);
        if self.merged > highest && (checks_version || version.major >= 2) {
            let origin = self.said_version(self.merged);
            self.refuse(
                &origin,
                format!(
                    "version = {}: containerd {version} takes {highest} at most and does not start",
                    self.merged
                ),
            );
        }
        if version.major < 2 && self.merged < 2 {
            return;
        }
        let bad = |id: &str| match version.major {
            2.. => !id.contains('.'),
            _ if version.minor >= 7 => !id.starts_with("io.containerd.") || id.split('.').count() < 4,
            _ => id.split('.').count() < 4,
        };
        let mut notes = Vec::new();
        for (key, names) in [("disabled_plugins", &self.disabled), ("required_plugins", &self.required)] {
            for (name, origin) in names.iter().filter(|(name, _)| bad(name)) {
                notes.push(Note::new(
                    origin,
                    format!("{key} holds {name:?}, and wants ids such as {V2:?}: containerd does not start"),
                ));
            }
        }
        if version.major < 2 {
            for (id, node) in self.plugins.iter().filter(|(id, _)| bad(id)) {
                notes.push(Note::new(
                    &node.origin,
                    format!("plugins.{id} in a file of version 2, which wants ids such as {V2:?}: containerd does not start"),
                ));
            }
        }
        self.fatal.append(&mut notes);
    }

    /// Where this version was said last.
    fn said_version(&self, number: i64) -> Origin {
        let said = self.roots.iter().rev().filter_map(|root| root.get(&["version"]));
        said.into_iter()
            .find(|node| node.integer() == Some(number))
            .map_or_else(|| Origin::file(MAIN), |node| node.origin.clone())
    }

    fn finish(mut self) -> Effective {
        self.validate();
        let version = self.version;
        let section = match self.rules {
            Rules::Replace if self.merged < 2 => V1,
            Rules::Replace => V2,
            _ => V3,
        };
        if self.rules == Rules::MergeThenMigrate && self.merged < 3 {
            migrate(&mut self.plugins);
        }
        let images = self.plugins.get(section).cloned().unwrap_or_else(|| Node::empty_table(MAIN));
        let empty = Node::empty_table(MAIN);
        let registry = images.get(&["registry"]).unwrap_or(&empty);
        let mut effective = Effective {
            version,
            main: None,
            files: Vec::new(),
            header: None,
            section,
            config_path: Setting { value: String::new(), origin: None },
            mirrors: IndexMap::new(),
            configs: IndexMap::new(),
            auths: keys(registry, "auths"),
            headers: keys(registry, "headers"),
            pull: Pull::Transfer,
            fatal: Vec::new(),
            cri_down: Vec::new(),
            ignored: Vec::new(),
        };
        let mut notes = Vec::new();
        shapes(&images, &[("registry", Shape::Table)], &mut notes);
        shapes(&images, &IMAGES, &mut notes);
        effective.read_registry(registry, &mut notes);
        self.fatal.extend(notes.into_iter().map(does_not_start));
        effective.pull = pull(version, &images);
        effective.check(&images, &self.disabled);
        effective.ignored.extend(self.lost(section, registry));
        effective.fatal = self.fatal;
        effective.header = self.files.first().and_then(|main| main.version);
        effective.main = self.files.first().map(|main| SourceFile {
            path: main.path.clone(),
            text: main.text.clone(),
            version: main.version,
        });
        effective.files = self.files;
        for (name, origin) in &self.required {
            if is_cri(name) && !effective.cri_down.is_empty() {
                effective.fatal.push(Note::new(
                    origin,
                    "required_plugins wants CRI, which is down: containerd does not start",
                ));
            }
        }
        effective
    }

    /// Registry settings of some file that did not arrive.
    fn lost(&self, section: &str, registry: &Node) -> Vec<Note> {
        let mut notes = Vec::new();
        for (index, root) in self.roots.iter().enumerate() {
            let known = |key: &str| TOP.iter().any(|(name, _)| *name == key);
            for (key, node) in root.table().into_iter().flatten().filter(|(key, _)| !known(key)) {
                notes.push(Note::new(&node.origin, format!("{key}: containerd knows no such key here")));
            }
            if let Some(placebo) = root.get(&["plugins", TRANSFER, "config_path"]) {
                notes.push(Note::new(
                    &placebo.origin,
                    format!("config_path in {TRANSFER} is read by nothing: it belongs to {V3}'s registry"),
                ));
            }
            for id in SECTIONS {
                let Some(here) = root.get(&["plugins", id, "registry"]) else { continue };
                for path in leaves(here) {
                    let path: Vec<&str> = path.iter().map(String::as_str).collect();
                    let Some(node) = here.get(&path) else { continue };
                    let arrived = registry.get(&path);
                    if arrived.is_some_and(|arrived| arrived.origin == node.origin) {
                        continue;
                    }
                    let why = self.why_lost(index, id, section, arrived);
                    notes.push(Note::new(&node.origin, format!("registry.{}: {why}", path.join("."))));
                }
            }
        }
        notes
    }

    fn why_lost(&self, index: usize, id: &str, section: &str, arrived: Option<&Node>) -> String {
        if let Some(arrived) = arrived {
            return format!("{} says something else, and that counts", arrived.origin);
        }
        let version = self.version;
        let said = self.files.get(index).and_then(|file| file.version);
        if self.rules == Rules::Replace {
            let later = self.roots.iter().skip(index + 1).find_map(|root| root.get(&["plugins", id]));
            return match later {
                Some(later) if id == section => format!(
                    "lost: containerd 1 takes the whole CRI section of {} in place of this file's",
                    later.origin
                ),
                _ => {
                    format!("containerd {version} reads [plugins.{section:?}] here and does not know {id:?}")
                }
            };
        }
        match (id, said) {
            (V3, _) => "replaced by the registry table of an older section".to_owned(),
            (_, None | Some(..=1)) if self.rules == Rules::MergeThenMigrate => format!(
                "lost: containerd {version} takes no CRI registry setting from a file without `version = 2`: run \
                 `containerd config migrate`"
            ),
            (_, Some(2)) if self.rules == Rules::MergeThenMigrate => format!(
                "lost: {} makes containerd {version} read all as version {}",
                self.said_version(self.merged),
                self.merged
            ),
            _ => format!("containerd {version} reads [plugins.{section:?}] in such a file"),
        }
    }
}

/// What the images section may hold, as far as it matters here.
const IMAGES: [(&str, Shape); 7] = [
    ("max_concurrent_downloads", Shape::Integer),
    ("image_pull_progress_timeout", Shape::Text),
    ("image_pull_with_sync_fs", Shape::Boolean),
    ("snapshotter", Shape::Text),
    ("disable_snapshot_annotations", Shape::Boolean),
    ("discard_unpacked_layers", Shape::Boolean),
    ("use_local_image_pull", Shape::Boolean),
];
const REGISTRY: [(&str, Shape); 5] = [
    ("config_path", Shape::Text),
    ("mirrors", Shape::Table),
    ("configs", Shape::Table),
    ("auths", Shape::Table),
    ("headers", Shape::Table),
];
const MIRROR: [(&str, Shape); 1] = [("endpoint", Shape::Texts)];
const CONFIG: [(&str, Shape); 2] = [("auth", Shape::Table), ("tls", Shape::Table)];
const AUTH: [(&str, Shape); 4] = [
    ("username", Shape::Text),
    ("password", Shape::Text),
    ("auth", Shape::Text),
    ("identitytoken", Shape::Text),
];
const TLS: [(&str, Shape); 4] = [
    ("insecure_skip_verify", Shape::Boolean),
    ("ca_file", Shape::Text),
    ("cert_file", Shape::Text),
    ("key_file", Shape::Text),
];

impl Effective {
    fn read_registry(&mut self, registry: &Node, notes: &mut Vec<Note>) {
        shapes(registry, &REGISTRY, notes);
        self.unknown(registry, &REGISTRY, "registry");
        if let Some(node) = registry.get(&["config_path"])
            && let Some(path) = node.text()
        {
            self.config_path = Setting { value: path.to_owned(), origin: Some(node.origin.clone()) };
        }
        for (host, mirror) in each(registry, "mirrors") {
            shapes_of_table(mirror, &MIRROR, notes);
            self.unknown(mirror, &MIRROR, &format!("registry.mirrors.{host:?}"));
            let endpoints = mirror.get(&["endpoint"]).and_then(Node::texts).unwrap_or_default();
            let value = endpoints.into_iter().map(str::to_owned).collect();
            let origin = mirror.get(&["endpoint"]).unwrap_or(mirror).origin.clone();
            self.mirrors.insert(host.clone(), Setting { value, origin: Some(origin) });
        }
        for (host, node) in each(registry, "configs") {
            let name = format!("registry.configs.{host:?}");
            self.unknown(node, &CONFIG, &name);
            let mut config = HostConfig::default();
            shapes_of_table(node, if self.version.major < 2 { &CONFIG } else { &CONFIG[..1] }, notes);
            if let Some(auth) = node.get(&["auth"]) {
                shapes_of_table(auth, &AUTH, notes);
                self.unknown(auth, &AUTH, &format!("{name}.auth"));
                config.auth = Some(Setting { value: (), origin: Some(auth.origin.clone()) });
            }
            if let Some(tls) = node.get(&["tls"]) {
                if self.version.major < 2 {
                    shapes_of_table(tls, &TLS, notes);
                    self.unknown(tls, &TLS, &format!("{name}.tls"));
                    config.tls = Some(Setting { value: read_tls(tls), origin: Some(tls.origin.clone()) });
                } else {
                    self.ignored.push(Note::new(
                        &tls.origin,
                        format!(
                            "{name}.tls: containerd 2 does not read this any more: it belongs to hosts.toml"
                        ),
                    ));
                }
            }
            self.configs.insert(host.clone(), config);
        }
        for (_, auth) in each(registry, "auths") {
            shapes_of_table(auth, &AUTH, notes);
            self.unknown(auth, &AUTH, "registry.auths");
        }
        for (name, values) in each(registry, "headers") {
            if !Shape::Texts.fits(values) {
                let text =
                    format!("registry.headers.{name}: wanted a list of texts, got {}", values.type_name());
                notes.push(Note::new(&values.origin, text));
            }
        }
    }

    fn unknown(&mut self, node: &Node, known: &[(&str, Shape)], name: &str) {
        for (key, node) in node.table().into_iter().flatten() {
            if !known.iter().any(|(known, _)| known == key) {
                self.ignored.push(Note::new(
                    &node.origin,
                    format!("{name}.{key}: containerd knows no such key here"),
                ));
            }
        }
    }

    /// The CRI plugin's own checks, and its default for `config_path`.
    fn check(&mut self, images: &Node, disabled: &[(String, Origin)]) {
        let version = self.version;
        let built_in = match version {
            v if v < Version::new(2, 2, 0) => None,
            // 2.2.0 and 2.2.1 had it as a default below the file, which then met the file's mirrors.
            v if v < Version::new(2, 2, 2) => self.config_path.origin.is_none().then_some(DOCKER_TOO),
            _ => (self.config_path.value.is_empty() && self.mirrors.is_empty()).then_some(DOCKER_TOO),
        };
        if let Some(built_in) = built_in {
            self.config_path = Setting { value: built_in.to_owned(), origin: None };
        }
        if !self.config_path.value.is_empty() {
            let beside = match &self.config_path.origin {
                Some(origin) => format!("config_path ({origin})"),
                None => format!("the config_path that is built into containerd {version}"),
            };
            for (host, mirror) in &self.mirrors {
                let origin = mirror.origin.clone().unwrap_or_else(|| Origin::file(MAIN));
                self.cri_down.push(Note::new(
                    &origin,
                    format!("registry.mirrors.{host:?} beside {beside} takes CRI down: `larder migrate` turns it into hosts.toml"),
                ));
            }
            for (host, config) in &self.configs {
                if let Some(Setting { origin: Some(origin), .. }) = &config.tls {
                    self.cri_down.push(Note::new(
                        origin,
                        format!("registry.configs.{host:?}.tls beside {beside} takes CRI down: `larder migrate` turns it into hosts.toml"),
                    ));
                }
            }
        }
        if version >= Version::new(1, 7, 0)
            && let Some(node) = images.get(&["image_pull_progress_timeout"])
            && let Some(text) = node.text()
            && !text.is_empty()
            && super::duration::parse(text).is_none()
        {
            let text = format!(
                "image_pull_progress_timeout = {text:?} is no duration such as \"5m0s\": CRI does not come up"
            );
            self.cri_down.push(Note::new(&node.origin, text));
        }
        for (name, origin) in disabled {
            let meant = match self.section {
                V1 => name == V1,
                V2 => name == V2,
                _ => is_cri(name),
            };
            if meant {
                self.cri_down.push(Note::new(
                    origin,
                    format!("disabled_plugins holds {name:?}: no kubelet can pull here"),
                ));
            }
        }
    }
}

fn is_cri(name: &str) -> bool {
    [V2, V3, RUNTIME].contains(&name) || name == V1
}

/// Who pulls (`CheckLocalImagePullConfigs`).
fn pull(version: Version, images: &Node) -> Pull {
    if !version.has_transfer_service() {
        return Pull::Local(None);
    }
    let flag = |key: &'static str, wanted: bool| {
        images
            .get(&[key])
            .filter(|node| node.boolean() == Some(wanted))
            .map(|node| (key, node.origin.clone()))
    };
    let registry = |key: &'static str| {
        let node = images.get(&["registry", key])?;
        (!node.table()?.is_empty()).then(|| (key, node.origin.clone()))
    };
    let downloads = images
        .get(&["max_concurrent_downloads"])
        .filter(|node| node.integer().is_some_and(|number| number != 3))
        .map(|node| ("max_concurrent_downloads", node.origin.clone()));
    flag("use_local_image_pull", true)
        .or_else(|| flag("disable_snapshot_annotations", false))
        .or_else(|| flag("discard_unpacked_layers", true))
        .or_else(|| registry("mirrors"))
        .or_else(|| registry("configs"))
        .or_else(|| registry("auths"))
        .or(downloads)
        .or_else(|| flag("image_pull_with_sync_fs", true))
        .map_or(Pull::Transfer, |(key, origin)| {
            Pull::Local(Some(Note::new(&origin, format!("{key} keeps CRI from the transfer service"))))
        })
}

fn read_tls(tls: &Node) -> Tls {
    let text = |key: &str| tls.get(&[key]).and_then(Node::text).unwrap_or_default().to_owned();
    Tls {
        ca_file: text("ca_file"),
        cert_file: text("cert_file"),
        key_file: text("key_file"),
        insecure_skip_verify: tls.get(&["insecure_skip_verify"]).and_then(Node::boolean).unwrap_or(false),
    }
}

fn each<'n>(node: &'n Node, key: &str) -> impl Iterator<Item = (&'n String, &'n Node)> {
    node.get(&[key]).and_then(Node::table).into_iter().flatten()
}

fn keys(node: &Node, key: &str) -> IndexMap<String, Origin> {
    each(node, key).map(|(key, node)| (key.clone(), node.origin.clone())).collect()
}

fn array(node: &Node) -> Option<&[Node]> {
    match &node.value {
        Value::Array(nodes) => Some(nodes),
        _ => None,
    }
}

fn origin_of(node: &Node, path: &[&str]) -> Origin {
    node.get(path).unwrap_or(node).origin.clone()
}

/// Go's decoders take no value of another type.
fn shapes(node: &Node, wanted: &[(&str, Shape)], notes: &mut Vec<Note>) {
    for (key, shape) in wanted {
        if let Some(node) = node.get(&[key]).filter(|node| !shape.fits(node)) {
            let text = format!("{key}: wanted {}, got {}", shape.name(), node.type_name());
            notes.push(Note::new(&node.origin, text));
        }
    }
}

fn shapes_of_table(node: &Node, wanted: &[(&str, Shape)], notes: &mut Vec<Note>) {
    if node.table().is_none() {
        notes.push(Note::new(&node.origin, format!("wanted a table, got {}", node.type_name())));
    }
    shapes(node, wanted, notes);
}

fn does_not_start(note: Note) -> Note {
    Note { text: format!("{}: containerd does not start", note.text), ..note }
}

/// Name by name what each setting of a registry table is called.
fn leaves(registry: &Node) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for (key, node) in registry.table().into_iter().flatten() {
        match (key.as_str(), node.table()) {
            ("mirrors" | "configs", Some(hosts)) => {
                for (host, config) in hosts {
                    let inner = config.table().into_iter().flat_map(IndexMap::keys);
                    paths.extend(inner.map(|inner| vec![key.clone(), host.clone(), inner.clone()]));
                }
            }
            ("auths" | "headers", Some(names)) => {
                paths.extend(names.keys().map(|name| vec![key.clone(), name.clone()]));
            }
            _ => paths.push(vec![key.clone()]),
        }
    }
    paths
}

fn v1_name(id: String) -> String {
    if id == V1 { V2.to_owned() } else { id }
}

/// mergo's deep merge: tables by key, all else replaced.
fn merge_tables(to: &mut IndexMap<String, Node>, from: IndexMap<String, Node>) {
    for (key, mut node) in from {
        if let Value::Table(inner) = &mut node.value
            && let Some(Node { value: Value::Table(present), .. }) = to.get_mut(&key)
        {
            merge_tables(present, std::mem::take(inner));
        } else {
            to.insert(key, node);
        }
    }
}

/// The image plugin's `configMigration`: its keys move from the section of version 2, whole.
fn migrate(plugins: &mut IndexMap<String, Node>) {
    let Some(old) = plugins.get(V2).cloned() else { return };
    let new = plugins
        .entry(V3.to_owned())
        .or_insert_with(|| Node { origin: old.origin.clone(), value: Value::Table(IndexMap::new()) });
    let Value::Table(new) = &mut new.value else { return };
    for key in
        ["registry", "max_concurrent_downloads", "image_pull_progress_timeout", "image_pull_with_sync_fs"]
    {
        if let Some(node) = old.get(&[key]) {
            new.insert(key.to_owned(), node.clone());
        }
    }
    // It returns before these where no runtime is configured.
    if old.get(&["containerd", "runtimes"]).is_some() {
        for key in ["snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers"] {
            if let Some(node) = old.get(&["containerd", key]) {
                new.insert(key.to_owned(), node.clone());
            }
        }
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
