//! The one setting in containerd's `config.toml`, in place: everything else stays byte for byte.
//!
//! Which table it belongs in depends on the file's own `version` (containerd's docs, `PLUGINS.md`). What
//! would take CRI down beside it is refused with its line.

use toml_edit::{Document, DocumentMut, Item, Table, TableLike, value};

use crate::containerd::document::line_of;
use crate::facts::{CONTAINERD_CONFIG, Containerd};

/// CRI's section by config version 1, 2, and 3 or later.
pub(in crate::plan) const CRI_V1: &[&str] = &["plugins", "cri"];
pub(in crate::plan) const CRI_V2: &[&str] = &["plugins", "io.containerd.grpc.v1.cri"];
pub(in crate::plan) const CRI_V3: &[&str] = &["plugins", "io.containerd.cri.v1.images"];
/// In `disabled_plugins`; Docker's containerd.io package ships the first.
const CRI_NAMES: [&str; 3] = ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"];

/// The new file.
#[derive(Debug, PartialEq)]
pub struct Edit {
    pub text: String,
    pub warnings: Vec<String>,
}

/// Sets `config_path` to exactly `certs_dir`. Two directories would make containerd 2.1 and later ignore
/// every hosts.toml.
///
/// # Errors
/// Every reason why this configuration cannot take the setting, each with file and line.
pub fn set_config_path(installed: &Containerd, certs_dir: &str) -> Result<Edit, Vec<String>> {
    let original = installed.config.as_deref().unwrap_or_default();
    let document = parse(CONTAINERD_CONFIG, original).map_err(|reason| vec![reason])?;
    let section = section(&document, original, installed.major).map_err(|reason| vec![reason])?;
    let mut reasons = conflicts(CONTAINERD_CONFIG, original, &document);
    for (path, text) in &installed.imports {
        match parse(path, text) {
            Ok(import) => {
                reasons.extend(conflicts(path, text, &import));
                reasons.extend(import_conflicts(path, text, &import, installed.major, certs_dir));
            }
            Err(reason) => reasons.push(reason),
        }
    }
    if !reasons.is_empty() {
        return Err(reasons);
    }
    let mut edit = Edit { text: original.to_owned(), warnings: Vec::new() };
    let now = find(document.as_table(), section)
        .and_then(|cri| cri.get("registry")?.as_table_like()?.get("config_path")?.as_str());
    if now == Some(certs_dir) {
        return Ok(edit);
    }
    if let Some(other) = now.filter(|other| !other.is_empty()) {
        edit.warnings.push(format!(
            "/{CONTAINERD_CONFIG}: config_path was {other:?}: what is in there is no longer read"
        ));
    }
    edit.text = write(original, document, section, certs_dir)
        .ok_or_else(|| vec![format!("/{CONTAINERD_CONFIG}: {} is not a table", section.join("."))])?;
    Ok(edit)
}

pub(in crate::plan) fn parse(path: &str, text: &str) -> Result<Document<String>, String> {
    // toml_edit does not know a byte order mark, and containerd refuses it too.
    Document::parse(text.to_owned()).map_err(|error| {
        format!("/{path}: not TOML, containerd would not start: {}", error.to_string().trim_end())
    })
}

/// The CRI section for this file's version, if this containerd reads that version right.
pub(in crate::plan) fn section(
    document: &Document<String>,
    text: &str,
    major: Option<u32>,
) -> Result<&'static [&'static str], String> {
    let version = document.get("version");
    let line = version.and_then(Item::span).map_or(1, |span| line_of(text, span.start));
    let at = format!("/{CONTAINERD_CONFIG}:{line}");
    let bare = document.as_table().is_empty();
    match (version.map(|v| v.as_integer()), major) {
        (None, _) if bare => Ok(CRI_V2),
        (None | Some(Some(1)), Some(2..)) => Err(format!(
            "{at}: no `version = 2` or later, and containerd 2 loses CRI's registry settings from such a \
             file: run `containerd config migrate` and put its output there"
        )),
        (None | Some(Some(1)), _) => Ok(CRI_V1),
        (Some(Some(2)), _) => Ok(CRI_V2),
        (Some(Some(3 | 4)), Some(2..)) => Ok(CRI_V3),
        (Some(Some(found @ (3 | 4))), _) => {
            Err(format!("{at}: version = {found} is for containerd 2, which is not what is installed here"))
        }
        (Some(_), _) => Err(format!("{at}: this version is not known: wanted 1, 2, 3 or 4")),
    }
}

pub(in crate::plan) fn find<'t>(table: &'t dyn TableLike, path: &[&str]) -> Option<&'t dyn TableLike> {
    path.iter().try_fold(table, |table, key| table.get(key)?.as_table_like())
}

/// What makes CRI fail, or ignore mirrors, beside `config_path`.
fn conflicts(path: &str, text: &str, document: &Document<String>) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some(disabled) = document.get("disabled_plugins").and_then(Item::as_array) {
        for plugin in disabled {
            if let Some(name) = plugin.as_str().filter(|name| CRI_NAMES.contains(name)) {
                reasons.push(format!(
                    "{}: disabled_plugins holds {name:?}, so no kubelet can pull here: take it out",
                    place(path, text, plugin.span())
                ));
            }
        }
    }
    for section in [CRI_V1, CRI_V2, CRI_V3] {
        let Some(registry) =
            find(document.as_table(), section).and_then(|cri| cri.get("registry")?.as_table_like())
        else {
            continue;
        };
        if let Some(mirrors) = registry.get("mirrors").and_then(Item::as_table_like) {
            for (host, item) in mirrors.iter() {
                reasons.push(format!(
                    "{}: registry.mirrors.{host:?} beside config_path takes CRI down: run `larder migrate \
                     --write`",
                    place(path, text, span_within(mirrors, host, item))
                ));
            }
        }
        if let Some(configs) = registry.get("configs").and_then(Item::as_table_like) {
            for (host, item) in configs.iter() {
                let Some(config) = item.as_table_like() else { continue };
                if let Some(tls) = config.get("tls") {
                    reasons.push(format!(
                        "{}: registry.configs.{host:?}.tls beside config_path takes CRI down on containerd 1 \
                         and is ignored on 2: run `larder migrate --write`",
                        place(path, text, span_within(config, "tls", tls))
                    ));
                }
            }
        }
    }
    reasons
}

/// What an imported file does to the setting in the main file.
fn import_conflicts(
    path: &str,
    text: &str,
    document: &Document<String>,
    major: Option<u32>,
    certs_dir: &str,
) -> Vec<String> {
    let mut reasons = Vec::new();
    for section in [CRI_V1, CRI_V2, CRI_V3] {
        let Some(cri) = find(document.as_table(), section) else { continue };
        let item = cri.get("registry").and_then(|r| r.as_table_like()?.get("config_path"));
        match item.and_then(Item::as_str) {
            Some(same) if same == certs_dir => {}
            Some(other) => reasons.push(format!(
                "{}: this imported file sets config_path to {other:?} and wins over the main file: remove it",
                place(path, text, item.and_then(Item::span))
            )),
            None if major.is_none_or(|major| major < 2) => reasons.push(format!(
                "/{path}: this imported file has a CRI section, and containerd 1 takes that in place of the \
                 main file's: move it into /{CONTAINERD_CONFIG}"
            )),
            None => {}
        }
    }
    reasons
}

/// A header's or key's place; implicit tables have none of their own, so what is in them stands for them.
fn span_within(table: &dyn TableLike, key: &str, item: &Item) -> Option<std::ops::Range<usize>> {
    item.span()
        .or_else(|| table.get_key_value(key).and_then(|(key, _)| key.span()))
        .or_else(|| item.as_table_like()?.iter().find_map(|(_, inner)| inner.span()))
}

pub(in crate::plan) fn place(path: &str, text: &str, span: Option<std::ops::Range<usize>>) -> String {
    match span {
        Some(span) => format!("/{path}:{}", line_of(text, span.start)),
        None => format!("/{path}"),
    }
}

/// The edit itself; `None` where something else than a table is in the way.
pub(in crate::plan) fn write(
    original: &str,
    document: Document<String>,
    section: &[&str],
    certs_dir: &str,
) -> Option<String> {
    let carriage_returns = original.contains("\r\n");
    let fresh = document.as_table().is_empty();
    let mut document: DocumentMut = document.into_mut();
    if fresh {
        document.insert("version", value(2));
    }
    let mut table: &mut dyn TableLike = document.as_table_mut();
    for key in section {
        if !table.contains_key(key) {
            let mut parent = Table::new();
            parent.set_implicit(true);
            table.insert(key, Item::Table(parent));
        }
        table = table.get_mut(key)?.as_table_like_mut()?;
    }
    if !table.contains_key("registry") {
        let mut registry = Table::new();
        registry.decor_mut().set_prefix(format!("\n{}", child_indent(original, section)));
        table.insert("registry", Item::Table(registry));
    }
    // So far only a part of other headers' names: it gets its own, indented as they are.
    if let Some(registry) = table.get_mut("registry").and_then(Item::as_table_mut)
        && registry.is_implicit()
        && !registry.is_dotted()
    {
        registry.set_implicit(false);
        registry.decor_mut().set_prefix(format!("\n{}", child_indent(original, section)));
    }
    let registry = table.get_mut("registry")?.as_table_like_mut()?;
    set(registry, certs_dir, original, section);
    let mut text = document.to_string();
    if carriage_returns {
        text = text.replace("\r\n", "\n").replace('\n', "\r\n");
    }
    Some(text)
}

fn set(registry: &mut dyn TableLike, certs_dir: &str, original: &str, section: &[&str]) {
    if let Some(old) = registry.get_mut("config_path").and_then(Item::as_value_mut) {
        let decor = old.decor().clone();
        *old = certs_dir.into();
        *old.decor_mut() = decor;
        return;
    }
    let sibling = registry.iter().find_map(|(key, item)| item.is_value().then(|| key.to_owned()));
    let prefix =
        sibling.and_then(|key| registry.key(&key)?.leaf_decor().prefix()?.as_str().map(str::to_owned));
    // A key's prefix also holds the comments above it; the indentation is what follows the last line end.
    let indent = match prefix {
        Some(prefix) => prefix.rsplit('\n').next().unwrap_or_default().to_owned(),
        None => match child_indent(original, section) {
            indent if indent.is_empty() => indent,
            indent => format!("{indent}  "),
        },
    };
    registry.insert("config_path", value(certs_dir));
    if let Some(mut key) = registry.key_mut("config_path") {
        key.leaf_decor_mut().set_prefix(indent);
    }
}

/// The indentation of table headers below the CRI section in this file.
fn child_indent(original: &str, section: &[&str]) -> String {
    let Some(id) = section.last() else { return String::new() };
    let header = |line: &&str| {
        let inner = line.trim_start();
        inner.starts_with('[')
            && (inner.contains(&format!("\"{id}\".")) || inner.contains(&format!(".{id}.")))
    };
    original
        .lines()
        .find(header)
        .map(|line| line.chars().take_while(|c| c.is_whitespace()).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: &str = "/etc/containerd/certs.d";
    const DEBIAN: &str = r#"version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"#;

    fn installed(major: u32, config: &str) -> Containerd {
        Containerd { major: Some(major), config: Some(config.to_owned()), ..Containerd::default() }
    }

    fn edited(major: u32, config: &str) -> String {
        let edit = set_config_path(&installed(major, config), DIR).unwrap();
        let again = set_config_path(&installed(major, &edit.text), DIR).unwrap();
        assert_eq!(again.text, edit.text, "a second edit changes nothing");
        edit.text
    }

    fn refused(major: u32, config: &str) -> Vec<String> {
        set_config_path(&installed(major, config), DIR).unwrap_err()
    }

    /// The lines that only one side has.
    fn added<'a>(before: &'a str, after: &'a str) -> Vec<&'a str> {
        for line in before.lines() {
            assert!(after.lines().any(|other| other == line), "lost {line:?} in\n{after}");
        }
        after.lines().filter(|line| !before.lines().any(|other| other == *line)).collect()
    }

    #[test]
    fn debians_file_keeps_every_line() {
        assert_eq!(
            added(DEBIAN, &edited(1, DEBIAN)),
            [
                r#"    [plugins."io.containerd.grpc.v1.cri".registry]"#,
                r#"      config_path = "/etc/containerd/certs.d""#
            ]
        );
    }

    #[test]
    fn an_absent_file_becomes_the_smallest_one() {
        let nothing = Containerd { major: Some(1), ..Containerd::default() };
        assert_eq!(
            set_config_path(&nothing, DIR).unwrap().text,
            "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"
        );
    }

    #[test]
    fn each_version_has_its_own_section() {
        assert!(edited(1, "root = \"/x\"\n").contains("[plugins.cri.registry]"));
        assert!(edited(1, "version = 2\n").contains("[plugins.\"io.containerd.grpc.v1.cri\".registry]"));
        assert!(edited(2, "version = 3\n").contains("[plugins.\"io.containerd.cri.v1.images\".registry]"));
        assert_eq!(
            refused(1, "version = 3\n"),
            [
                "/etc/containerd/config.toml:1: version = 3 is for containerd 2, which is not what is installed here"
            ]
        );
        assert!(refused(2, "root = \"/x\"\n")[0].contains("containerd config migrate"));
    }

    #[test]
    fn comments_order_and_inline_tables_stay() {
        let text = "version = 2 # mind this\n# above\n[plugins.\"io.containerd.grpc.v1.cri\"]\nregistry = { config_path = \"\" } # tail\nsandbox_image = \"x\"\n";
        assert_eq!(edited(1, text), text.replace("\"\" }", "\"/etc/containerd/certs.d\" }"));
        let dotted =
            "version = 2\nplugins.\"io.containerd.grpc.v1.cri\".registry.config_path = \"/old\" # tail\n";
        assert_eq!(edited(1, dotted), dotted.replace("/old", DIR));
    }

    #[test]
    fn line_ends_of_windows_stay() {
        let text = DEBIAN.replace('\n', "\r\n");
        let edit = edited(1, &text);
        assert_eq!(edit.matches('\n').count(), edit.matches("\r\n").count(), "{edit:?}");
    }

    #[test]
    fn another_directory_is_replaced_with_a_word() {
        let text = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/a:/b\"\n";
        let edit = set_config_path(&installed(1, text), DIR).unwrap();
        assert_eq!(
            edit.warnings,
            ["/etc/containerd/config.toml: config_path was \"/a:/b\": what is in there is no longer read"]
        );
    }

    #[test]
    fn legacy_mirrors_and_tls_are_named_by_line() {
        let text = r#"version = 2
[plugins."io.containerd.grpc.v1.cri".registry.mirrors]
  [plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
    endpoint = ["http://10.0.0.1:5000"]
[plugins."io.containerd.grpc.v1.cri".registry.configs."h:5".tls]
  insecure_skip_verify = true
[plugins."io.containerd.grpc.v1.cri".registry.configs."h:5".auth]
  username = "fine beside config_path"
"#;
        let reasons = refused(1, text);
        let places: Vec<_> = reasons.iter().map(|r| r.split(": ").next().unwrap()).collect();
        assert_eq!(places, ["/etc/containerd/config.toml:3", "/etc/containerd/config.toml:5"]);
    }

    #[test]
    fn an_empty_mirrors_table_is_fine() {
        edited(1, "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors]\n");
    }

    #[test]
    fn dockers_package_has_cri_switched_off() {
        assert_eq!(
            refused(1, "version = 2\ndisabled_plugins = [\"cri\"]\n"),
            [
                "/etc/containerd/config.toml:2: disabled_plugins holds \"cri\", so no kubelet can pull here: take it out"
            ]
        );
    }

    #[test]
    fn imports_that_would_win_are_refused() {
        let mut containerd = installed(1, "version = 2\nimports = [\"x.toml\"]\n");
        let cri =
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n";
        containerd.imports.push(("etc/containerd/x.toml".to_owned(), cri.to_owned()));
        assert!(set_config_path(&containerd, DIR).unwrap_err()[0].contains("takes that in place"));
        containerd.major = Some(2);
        assert!(set_config_path(&containerd, DIR).is_ok(), "containerd 2 merges");
    }

    #[test]
    fn broken_toml_is_named() {
        assert!(refused(1, "version = = 2")[0].starts_with("/etc/containerd/config.toml: not TOML"));
    }
}
