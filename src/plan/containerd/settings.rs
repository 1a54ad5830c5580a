//! What containerd's own configuration has to say, and the file that it goes into: `config.toml` in place or,
//! where that imports a folder of drop-ins and this containerd merges them, a drop-in of ours.
//!
//! A drop-in that touches CRI replaces the whole of CRI's section before containerd 2.0. From then on they are
//! merged, and one has to carry the main file's own `version`.

use std::collections::BTreeMap;
use std::time::Duration;

use toml_edit::{Document, DocumentMut, Item, Table, TableLike, Value};
use zeroize::Zeroizing;

use super::config::{CRI_V1, CRI_V2, CRI_V3, set_config_path};
use super::endpoints::{authority, contacted};
use crate::containerd::hosts::HEADER;
use crate::facts::{CONTAINERD_CONFIG, Containerd as Installed, is_containerd_config};
use crate::node::{Containerd, Node};
use crate::plan::Content;

const TRANSFER: &[&str] = &["plugins", "io.containerd.transfer.v1.local"];

/// The file to write; `None`: what is there says all of it already.
#[derive(Debug, Default)]
pub(super) struct Settings {
    pub(super) file: Option<(String, String, u32, Content)>,
    pub(super) warnings: Vec<String>,
}

/// One setting by the tables that lead to it.
struct Setting {
    path: Vec<String>,
    value: Value,
}

/// What this node's configuration has to say, and where.
///
/// # Errors
/// Every reason why this configuration cannot take it, each with file and line.
pub(super) fn settings(
    node: &Node,
    client: &Containerd,
    installed: &Installed,
) -> Result<Settings, Vec<String>> {
    let ours = installed.drop_in.as_deref();
    // Where a drop-in of ours has no place any more, it goes.
    let others: Vec<&(String, String)> =
        installed.imports.iter().filter(|(path, _)| !is_containerd_config(path)).collect();
    let bare = Installed {
        major: installed.major,
        config: installed.config.clone(),
        imports: others.iter().map(|import| (*import).clone()).collect(),
        ..Installed::default()
    };
    let edit = set_config_path(&bare, client.certs_dir.as_str())?;
    let main = edit.text.parse::<DocumentMut>().map_err(|error| vec![error.to_string()])?;
    let documents: Vec<(&str, Document<String>)> = others
        .iter()
        .filter_map(|(path, text)| Some((path.as_str(), Document::parse(text.clone()).ok()?)))
        .collect();
    let version = main.get("version").and_then(Item::as_integer);
    let tables: Vec<&dyn TableLike> = std::iter::once(main.as_table())
        .chain(documents.iter().map(|(_, document)| document.as_table()))
        .map(|table| table as &dyn TableLike)
        .collect();
    let mut settings = Settings { file: None, warnings: Vec::new() };
    let wanted = wanted(node, client, installed, version, &tables, &mut settings.warnings);
    let is_secret = wanted.iter().any(|setting| setting.path.iter().any(|key| key == "auth"));
    let Some(path) = ours else {
        settings.warnings.extend(edit.warnings);
        return in_place(installed, main, &wanted, &documents, is_secret, settings);
    };
    // Whatever is last has the say; our own drop-in's name is.
    let original = Document::parse(installed.config.clone().unwrap_or_default()).ok();
    let said = |setting: &Setting| {
        let all = original.iter().map(Document::as_table).chain(documents.iter().map(|(_, d)| d.as_table()));
        all.filter_map(|table| find(table, &setting.path))
            .next_back()
            .is_some_and(|now| same(now, &setting.value))
    };
    let registry = Setting {
        path: keys(cri(version), &["registry", "config_path"]),
        value: client.certs_dir.as_str().into(),
    };
    let all: Vec<Setting> = std::iter::once(registry).chain(wanted).collect();
    if all.iter().all(said) {
        return Ok(settings);
    }
    settings.warnings.extend(edit.warnings);
    let mut text = Zeroizing::new(format!("{HEADER}version = {}\n\n", version.unwrap_or(2)));
    let mut document = DocumentMut::new();
    for setting in &all {
        set(&mut document, setting).map_err(|reason| vec![format!("/{path}: {reason}")])?;
    }
    text.push_str(document.to_string().trim_start_matches('\n'));
    let (mode, content) = if is_secret { (0o600, Content::Secret) } else { (0o644, Content::Ours) };
    settings.file = Some((path.to_owned(), text.to_string(), mode, content));
    Ok(settings)
}

fn in_place(
    installed: &Installed,
    mut main: DocumentMut,
    wanted: &[Setting],
    imports: &[(&str, Document<String>)],
    is_secret: bool,
    mut settings: Settings,
) -> Result<Settings, Vec<String>> {
    let original = installed.config.as_deref().unwrap_or_default();
    let mut reasons = Vec::new();
    for setting in wanted {
        if let Err(reason) = set(&mut main, setting) {
            reasons.push(format!("/{CONTAINERD_CONFIG}: {reason}"));
        }
        for (path, import) in imports {
            if find(import.as_table(), &setting.path).is_some_and(|now| !same(now, &setting.value)) {
                reasons.push(format!(
                    "/{path}: this imported file sets {} and wins over the main file: remove it",
                    setting.path.last().map_or("", String::as_str)
                ));
            }
        }
    }
    if !reasons.is_empty() {
        return Err(reasons);
    }
    let mut text = main.to_string();
    if original.contains("\r\n") {
        text = text.replace("\r\n", "\n").replace('\n', "\r\n");
    }
    if installed.is_conffile && text != original {
        settings.warnings.push(format!(
            "/{CONTAINERD_CONFIG} is a configuration file of containerd's package: an upgrade that brings another \
             one asks once, and to keep this one is right"
        ));
    }
    let (mode, content) = if is_secret { (0o600, Content::EditedSecret) } else { (0o644, Content::Edited) };
    settings.file = Some((CONTAINERD_CONFIG.to_owned(), text, mode, content));
    Ok(settings)
}

/// Everything but `config_path`.
fn wanted(
    node: &Node,
    client: &Containerd,
    installed: &Installed,
    version: Option<i64>,
    tables: &[&dyn TableLike],
    warnings: &mut Vec<String>,
) -> Vec<Setting> {
    let mut wanted = Vec::new();
    let running = installed.version();
    let cri = cri(version);
    let has_transfer = running.has_transfer_service() && !pulls_locally(tables, cri);
    if let Some(downloads) = client.max_concurrent_downloads {
        // In CRI's section it would switch the transfer service off.
        let section = if has_transfer { TRANSFER } else { cri };
        wanted.push(Setting {
            path: keys(section, &["max_concurrent_downloads"]),
            value: i64::from(downloads).into(),
        });
    }
    if let Some(timeout) = client.image_pull_progress_timeout {
        if running.has_pull_progress_timeout() {
            wanted.push(Setting {
                path: keys(cri, &["image_pull_progress_timeout"]),
                value: go_duration(timeout).into(),
            });
        } else if installed.version.is_some() {
            warnings.push(format!(
                "containerd.image_pull_progress_timeout: containerd {running} has none: nothing ends a pull that hangs"
            ));
        }
    }
    if running.has_transfer_service() {
        // In hosts.toml: CRI's own setting would switch the transfer service off.
        return wanted;
    }
    let mut by_host = BTreeMap::new();
    for (host, credentials) in &client.auth {
        // What could not be read is a problem that the facts have told already.
        let Some(password) = installed.secret(&credentials.password) else { continue };
        let url = contacted(node, host.as_str()).unwrap_or_default();
        by_host.insert(authority(&url).to_owned(), (&credentials.username, password));
    }
    for (host, (username, password)) in by_host {
        let path = |key| keys(cri, &["registry", "configs", &host, "auth", key]);
        wanted.push(Setting { path: path("username"), value: username.as_str().into() });
        wanted.push(Setting { path: path("password"), value: password.as_str().into() });
    }
    wanted
}

/// CRI's images section by the main file's version.
fn cri(version: Option<i64>) -> &'static [&'static str] {
    match version {
        None | Some(..=1) => CRI_V1,
        Some(2) => CRI_V2,
        Some(_) => CRI_V3,
    }
}

fn keys(section: &[&str], rest: &[&str]) -> Vec<String> {
    section.iter().chain(rest).map(|key| (*key).to_owned()).collect()
}

/// Whether something here makes containerd 2.1 and later pull as 2.0 did: by CRI itself, with CRI's limits
/// (CheckLocalImagePullConfigs).
fn pulls_locally(tables: &[&dyn TableLike], cri: &[&str]) -> bool {
    let at = |rest: &[&str]| tables.iter().filter_map(|table| find(*table, &keys(cri, rest))).next_back();
    let filled = |item: &Item| item.as_table_like().is_some_and(|table| !table.is_empty());
    let is_true = |key| at(&[key]).is_some_and(|item| item.as_bool() == Some(true));
    is_true("use_local_image_pull")
        || is_true("discard_unpacked_layers")
        || is_true("image_pull_with_sync_fs")
        || at(&["disable_snapshot_annotations"]).is_some_and(|item| item.as_bool() == Some(false))
        || at(&["max_concurrent_downloads"]).is_some_and(|item| item.as_integer() != Some(3))
        || ["mirrors", "configs", "auths"].iter().any(|key| at(&["registry", key]).is_some_and(filled))
}

/// As Go's time.ParseDuration reads it.
fn go_duration(duration: Duration) -> String {
    format!("{}ms", duration.as_millis()).replace("000ms", "s")
}

fn find<'t>(table: &'t dyn TableLike, path: &[String]) -> Option<&'t Item> {
    let (last, tables) = path.split_last()?;
    tables.iter().try_fold(table, |table, key| table.get(key)?.as_table_like())?.get(last)
}

fn same(now: &Item, wanted: &Value) -> bool {
    match wanted {
        Value::Integer(number) => now.as_integer() == Some(*number.value()),
        Value::String(text) => now.as_str() == Some(text.value()),
        _ => false,
    }
}

/// Sets one value and leaves all others as they are.
fn set(document: &mut DocumentMut, setting: &Setting) -> Result<(), String> {
    let Some((key, tables)) = setting.path.split_last() else { return Ok(()) };
    if find(document.as_table(), &setting.path).is_some_and(|now| same(now, &setting.value)) {
        return Ok(());
    }
    let blocked = || format!("{} is not a table", tables.join("."));
    let mut table: &mut dyn TableLike = document.as_table_mut();
    let mut indent = String::new();
    for (name, is_last) in tables.iter().zip(1..).map(|(name, nth)| (name, nth == tables.len())) {
        if !table.contains_key(name) {
            let mut fresh = Table::new();
            fresh.set_implicit(!is_last);
            fresh.decor_mut().set_prefix("\n");
            table.insert(name, Item::Table(fresh));
        }
        let item = table.get_mut(name).ok_or_else(blocked)?;
        if let Some(header) = item.as_table().and_then(|table| table.decor().prefix()?.as_str()) {
            // What follows the last line end is the header's own indentation.
            let own = header.rsplit('\n').next().unwrap_or_default();
            indent = if own.is_empty() { String::new() } else { format!("{own}  ") };
        }
        table = item.as_table_like_mut().ok_or_else(blocked)?;
    }
    if let Some(old) = table.get_mut(key).and_then(Item::as_value_mut) {
        let decor = old.decor().clone();
        *old = setting.value.clone();
        *old.decor_mut() = decor;
        return Ok(());
    }
    table.insert(key, Item::Value(setting.value.clone()));
    if let Some(mut key) = table.key_mut(key).filter(|_| !indent.is_empty()) {
        key.leaf_decor_mut().set_prefix(indent);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(text: &str, path: &[&str], value: impl Into<Value>) -> String {
        let mut document: DocumentMut = text.parse().unwrap();
        let setting = Setting { path: keys(path, &[]), value: value.into() };
        set(&mut document, &setting).unwrap();
        let once = document.to_string();
        set(&mut document, &setting).unwrap();
        assert_eq!(document.to_string(), once, "a second time changes nothing");
        assert!(find(document.as_table(), &setting.path).is_some_and(|now| same(now, &setting.value)));
        once
    }

    #[test]
    fn a_value_goes_into_its_table_and_nothing_else_changes() {
        let debian = "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/x\"\n";
        let key = ["plugins", "io.containerd.grpc.v1.cri", "max_concurrent_downloads"];
        assert_eq!(
            edited(debian, &key, 6),
            debian.replacen("cri\"]\n", "cri\"]\n    max_concurrent_downloads = 6\n", 1)
        );
        let there =
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  max_concurrent_downloads = 3 # few\n";
        assert_eq!(edited(there, &key, 6), there.replace("= 3", "= 6"));
        let auth =
            ["plugins", "io.containerd.grpc.v1.cri", "registry", "configs", "a.io:5", "auth", "password"];
        assert_eq!(
            edited("version = 2\n", &auth, "a\"b\\c"),
            "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"a.io:5\".auth]\npassword = 'a\"b\\c'\n"
        );
        let inline = "version = 2\nplugins = { \"io.containerd.grpc.v1.cri\" = { sandbox_image = \"x\" } }\n";
        assert!(
            edited(inline, &auth, "p").starts_with(
                "version = 2\nplugins = { \"io.containerd.grpc.v1.cri\" = { sandbox_image = \"x\""
            )
        );
        let blocked =
            set(&mut "plugins = 1\n".parse().unwrap(), &Setting { path: keys(&auth, &[]), value: 1.into() });
        assert!(blocked.unwrap_err().contains("not a table"));
    }

    #[test]
    fn durations_as_go_reads_them() {
        let spelt = [90_000, 1_500, 30_000].map(|ms| go_duration(Duration::from_millis(ms)));
        assert_eq!(spelt, ["90s", "1500ms", "30s"]);
    }
}
