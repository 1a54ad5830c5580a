//! What `containerd config dump` passes and containerd itself then stumbles over.

use anyhow::Result;
use toml::{Table, Value};
use toml_edit::{Array, DocumentMut, value};

use crate::facts::CONTAINERD_CONFIG;
use crate::root::{Access, Root, Staged, folder_of};

/// CRI's images by plugin id: containerd 2's own first, then 1.x's.
const SECTIONS: [&str; 2] = ["io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"];

/// The main file beside itself with one import more, where `path` is a drop-in that is tried; it goes with the
/// value.
pub(super) fn with_import<'r>(root: &'r Root, path: &str) -> Result<Option<Staged<'r>>> {
    if folder_of(path) == folder_of(CONTAINERD_CONFIG) {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&root.read(CONTAINERD_CONFIG)?.unwrap_or_default()).into_owned();
    let Ok(mut document) = text.parse::<DocumentMut>() else { return Ok(None) };
    let imports = document.entry("imports").or_insert_with(|| value(Array::new()));
    let Some(imports) = imports.as_array_mut() else { return Ok(None) };
    imports.push(root.show(path));
    let text = document.to_string();
    root.stage(CONTAINERD_CONFIG, text.as_bytes(), Access::root(0o600)).map(Some)
}

/// What stands against the file at `path`, given what containerd made of it.
pub(super) fn objections(root: &Root, path: &str, dump: &str) -> Result<Vec<String>> {
    let text = String::from_utf8_lossy(&root.read(path)?.unwrap_or_default()).into_owned();
    let mut objections: Vec<String> = literal_imports(&text)
        .into_iter()
        .filter(|import| !root.exists(import))
        .map(|import| format!("it imports /{import}, which is not there: containerd would not start"))
        .collect();
    objections.extend(conflicts(dump));
    Ok(objections)
}

/// The files that have to be there; a glob may match none. containerd 2's dump does not mind a missing one.
fn literal_imports(text: &str) -> Vec<String> {
    let Ok(table) = text.parse::<Table>() else { return Vec::new() };
    let imports = table.get("imports").and_then(Value::as_array);
    let names = imports.into_iter().flatten().filter_map(Value::as_str).filter(|name| !name.contains('*'));
    names
        .map(|name| match name.strip_prefix('/') {
            Some(absolute) => absolute.to_owned(),
            None => format!("etc/containerd/{name}"),
        })
        .collect()
}

/// Registry settings that only the plugin looks at: containerd starts, and has no CRI.
fn conflicts(dump: &str) -> Vec<String> {
    let Ok(dump) = dump.parse::<Table>() else { return Vec::new() };
    let Some(plugins) = dump.get("plugins").and_then(Value::as_table) else { return Vec::new() };
    let found = SECTIONS.iter().find_map(|section| {
        let registry = plugins.get(*section)?.get("registry")?;
        Some((*section, registry.as_table()?))
    });
    let Some((section, registry)) = found else { return Vec::new() };
    let set = |name: &str| registry.get(name).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
    let tables = |name: &str| registry.get(name).and_then(Value::as_table).into_iter().flatten();
    let mut objections = Vec::new();
    if !set("config_path") {
        return objections;
    }
    for (host, _) in tables("mirrors") {
        objections.push(format!("registry.mirrors.{host:?} beside config_path takes CRI down"));
    }
    // containerd 2 has no such key.
    if section == "io.containerd.grpc.v1.cri" {
        let with_tls = tables("configs").filter(|(_, config)| config.get("tls").is_some());
        for (host, _) in with_tls {
            objections.push(format!("registry.configs.{host:?}.tls beside config_path takes CRI down"));
        }
    }
    objections
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may")]
mod tests {
    use super::*;

    #[test]
    fn what_a_dump_lets_pass() {
        let of = |section: &str, rest: &str| {
            conflicts(&format!("version = 2\n[plugins.\"{section}\".registry]\nconfig_path = \"/c\"\n{rest}"))
        };
        let mirrors = |section: &str| {
            of(section, &format!("[plugins.\"{section}\".registry.mirrors.\"a.io\"]\nendpoint = []\n"))
        };
        let tls = |section: &str| {
            of(section, &format!("[plugins.\"{section}\".registry.configs.\"a.io\".tls]\nca_file = \"x\"\n"))
        };
        let [new, old] = SECTIONS;
        let said = "registry.mirrors.\"a.io\" beside config_path takes CRI down";
        assert_eq!((mirrors(new), mirrors(old)), (vec![said.to_owned()], vec![said.to_owned()]));
        assert_eq!((tls(new).len(), tls(old).len()), (0, 1));
        assert_eq!(of(old, ""), [""; 0]);
        assert_eq!(conflicts("not TOML ="), [""; 0]);
    }

    #[test]
    fn a_drop_in_is_tried_with_the_main_file() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        std::fs::create_dir_all(dir.path().join("etc/containerd/conf.d")).unwrap();
        std::fs::write(dir.path().join("etc/containerd/config.toml"), "version = 2\nimports = [\"a\"]\n")
            .unwrap();
        assert!(with_import(&root, "etc/containerd/config.toml").unwrap().is_none());
        let path = "etc/containerd/conf.d/.new";
        let whole = with_import(&root, path).unwrap().unwrap();
        let text = root.read(&whole.trial_path()).unwrap().unwrap();
        let wanted = format!("version = 2\nimports = [\"a\", \"{}\"]\n", root.show(path));
        assert_eq!(String::from_utf8(text).unwrap(), wanted);
        drop(whole);
        assert_eq!(root.list("etc/containerd").unwrap(), ["conf.d", "config.toml"]);
    }

    #[test]
    fn an_import_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        std::fs::create_dir_all(dir.path().join("etc/containerd")).unwrap();
        std::fs::write(dir.path().join("etc/containerd/here.toml"), "").unwrap();
        let text = "imports = [\"here.toml\", \"/etc/containerd/gone.toml\", \"conf.d/*.toml\"]\n";
        std::fs::write(dir.path().join("etc/containerd/new.toml"), text).unwrap();
        let said = objections(&root, "etc/containerd/new.toml", "").unwrap();
        assert_eq!(
            said,
            ["it imports /etc/containerd/gone.toml, which is not there: containerd would not start"]
        );
    }
}
