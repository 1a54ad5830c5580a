//! The registry settings of the CRI plugin, its own checks of them, and who pulls.

use indexmap::IndexMap;

use super::shape::{Shape, shapes, shapes_of_table};
use super::{DOCKER_TOO, Effective, HostConfig, MAIN, Note, Origin, Pull, RUNTIME, Setting, Tls, V1, V2, V3};
use crate::containerd::document::{Node, Value};
use crate::containerd::{Version, duration};

/// What the images section may hold, as far as it matters here.
pub(super) const IMAGES: [(&str, Shape); 7] = [
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
    pub(super) fn read_registry(&mut self, registry: &Node, notes: &mut Vec<Note>) {
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
                            "{name}.tls: containerd 2 does not read this any more: `larder migrate --write` turns \
                             it into hosts.toml"
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
    pub(super) fn check(&mut self, images: &Node, disabled: &[(String, Origin)]) {
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
                    format!("registry.mirrors.{host:?} beside {beside} takes CRI down: run `larder migrate --write`, which turns it into hosts.toml"),
                ));
            }
            for (host, config) in &self.configs {
                if let Some(Setting { origin: Some(origin), .. }) = &config.tls {
                    self.cri_down.push(Note::new(
                        origin,
                        format!("registry.configs.{host:?}.tls beside {beside} takes CRI down: run `larder migrate --write`, which turns it into hosts.toml"),
                    ));
                }
            }
        }
        if version >= Version::new(1, 7, 0)
            && let Some(node) = images.get(&["image_pull_progress_timeout"])
            && let Some(text) = node.text()
            && !text.is_empty()
            && duration::parse(text).is_none()
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

pub(super) fn is_cri(name: &str) -> bool {
    [V2, V3, RUNTIME].contains(&name) || name == V1
}

/// Who pulls (`CheckLocalImagePullConfigs`).
pub(super) fn pull(version: Version, images: &Node) -> Pull {
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

pub(super) fn keys(node: &Node, key: &str) -> IndexMap<String, Origin> {
    each(node, key).map(|(key, node)| (key.clone(), node.origin.clone())).collect()
}

pub(super) fn array(node: &Node) -> Option<&[Node]> {
    match &node.value {
        Value::Array(nodes) => Some(nodes),
        _ => None,
    }
}
