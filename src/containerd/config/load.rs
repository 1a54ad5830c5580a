//! The files, and how they become one configuration (`LoadConfig`).

use std::collections::{BTreeSet, VecDeque};

use anyhow::Result;
use indexmap::IndexMap;

use super::registry::{IMAGES, array, is_cri, keys, pull};
use super::shape::{Shape, TOP, shapes};
use super::{
    Effective, Files, MAIN, Note, Origin, Pull, SECTIONS, Setting, SourceFile, TRANSFER, V1, V2, V3,
};
use crate::containerd::document::{Node, Value, parse};
use crate::containerd::{Version, glob};
use crate::root::folder_of;

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

pub(super) struct Loader {
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

impl Loader {
    pub(super) fn new(version: Version) -> Self {
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

    pub(super) fn load(&mut self, root: &dyn Files) -> Result<()> {
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
    fn resolve_import(&self, root: &dyn Files, importer: &str, pattern: &str) -> Result<Option<Vec<String>>> {
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

    pub(super) fn finish(mut self) -> Effective {
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
            let placebo = root.get(&["plugins", TRANSFER, "config_path"]);
            // `config default` writes an empty one.
            if let Some(placebo) = placebo.filter(|node| node.text() != Some("")) {
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

fn origin_of(node: &Node, path: &[&str]) -> Origin {
    node.get(path).unwrap_or(node).origin.clone()
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
