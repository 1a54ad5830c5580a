//! docs/profile.md and larder-profile(5) say what the code takes: they are made from its schema, and what they give as
//! examples and defaults is tried.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    reason = "a test may"
)]

use std::collections::BTreeMap;
use std::path::Path;

use larder::node::{Node, schema};
use larder::profile::{self, Source};
use serde_json::{Value, json};

#[path = "../examples/profile_reference/keys.rs"]
mod keys;
#[path = "../examples/profile_reference/man.rs"]
mod man;
#[path = "../examples/profile_reference/markdown.rs"]
mod markdown;

use keys::{Block, Key, Need, flow};

fn reference() -> (Vec<Block>, BTreeMap<String, String>) {
    let schema = schema();
    (keys::blocks(&schema), keys::kinds(&schema))
}

#[test]
fn the_page_in_docs_is_made_from_the_schema() {
    let (blocks, kinds) = reference();
    let made = markdown::page(&blocks, &kinds);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/profile.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == made,
        "docs/profile.md is not what the schema says: `UPDATE=1 cargo test --test profile_reference`"
    );
}

#[test]
fn the_manual_page_names_every_key_and_has_no_request_by_accident() {
    let (blocks, kinds) = reference();
    let page = man::page(&blocks, &kinds);
    let known = [".TH", ".SH", ".nf", ".fi", ".B", ".BR", ".TP", ".PP", ".br"];
    for line in page.lines().filter(|line| line.starts_with(['.', '\''])) {
        let request = line.split(' ').next().unwrap();
        assert!(known.contains(&request), "wanted one of {known:?}, got `{line}`");
    }
    for key in blocks.iter().flat_map(|block| &block.keys) {
        assert!(page.contains(&format!("\n.B {}\n", key.name)), "no entry for {}", key.name);
    }
}

#[test]
fn every_key_says_what_is_so_without_it() {
    for block in reference().0 {
        for key in block.keys {
            let is_said = !matches!(&key.need, Need::Otherwise(words) if words.is_empty());
            assert!(is_said, "{}.{}: neither required nor `default` nor `otherwise`", block.path, key.name);
        }
    }
}

#[test]
fn every_example_passes_larder_check() {
    let (blocks, _) = reference();
    for block in &blocks {
        for key in &block.keys {
            let profile = with(block, key, Some(&key.example));
            if let Err(problems) = node(&profile) {
                panic!("{}.{}: {problems}\n{profile:#}", block.path, keys::line(&blocks, key));
            }
        }
    }
}

#[test]
fn a_default_that_is_written_down_changes_nothing() {
    for block in reference().0 {
        for key in &block.keys {
            let Need::Default(default) = &key.need else { continue };
            let path = format!("{}.{}: {}", block.path, key.name, flow(&[], default, false));
            let written = node(&with(&block, key, Some(default))).unwrap_or_else(|e| panic!("{path}: {e}"));
            let absent = node(&with(&block, key, None)).unwrap_or_else(|e| panic!("{path}: {e}"));
            assert!(written == absent, "{path}: not what is so without it");
        }
    }
}

fn node(profile: &Value) -> Result<Node, String> {
    let text = flow(&[], profile, false);
    // Every reader of YAML takes quoted text for text.
    let source = Source::Text { name: "profile.yaml".to_owned(), text };
    let loaded = profile::load(&source).map_err(|problems| problems.to_string())?;
    loaded.node().map(|(node, _)| node).map_err(|problems| problems.to_string())
}

/// The smallest profile that has this key, or its block without it.
fn with(block: &Block, key: &Key, value: Option<&Value>) -> Value {
    let mut profile = json!({
        "version": 1, "upstreams": { "docker.io": { "port": 5000 } }, "cache": {}, "containerd": {},
    });
    let schema = schema();
    let mut at = &mut profile;
    let mut known = &schema;
    for step in block.path.split('.').filter(|step| !step.is_empty()) {
        let (name, is_list) = step.strip_suffix("[]").map_or((step, false), |name| (name, true));
        let name = if name == "NAME" { "docker.io" } else { name };
        if !at.is_object() {
            *at = json!({});
        }
        let (next, seen) = enter(at, known, name);
        (at, known) = (next, seen);
        if is_list {
            *at = json!([{}]);
            (at, known) = (&mut at[0], &known["items"]);
        }
    }
    known = map_of(known, &key.name);
    if at.is_null() {
        *at = json!({});
    }
    complete(at, known, &key.name);
    let fields = at.as_object_mut().unwrap();
    if keys::line(&[], key) == "override_path: true" && value == Some(&key.example) {
        fields.insert("url".to_owned(), json!("https://harbor.example.com/v2/proxy"));
    }
    match value {
        Some(value) => fields.insert(key.name.clone(), value.clone()),
        None => fields.remove(&key.name),
    };
    profile
}

fn enter<'a, 'b>(at: &'a mut Value, known: &'b Value, name: &str) -> (&'a mut Value, &'b Value) {
    let known = map_of(known, name);
    complete(at, known, name);
    let below = known["properties"].get(name).unwrap_or(&known["additionalProperties"]);
    (&mut at[name], below)
}

/// The form of a value that has this key.
fn map_of<'a>(schema: &'a Value, name: &str) -> &'a Value {
    let has = |option: &&Value| option["properties"].get(name).is_some();
    schema["oneOf"].as_array().into_iter().flatten().find(has).unwrap_or(schema)
}

/// Writes what has to stand beside a key.
fn complete(at: &mut Value, known: &Value, name: &str) {
    let fields = at.as_object_mut().unwrap();
    let mut beside: Vec<&str> = Vec::new();
    let list = |names: &'_ Value| -> Vec<String> {
        names.as_array().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    let required = list(&known["required"]);
    let dependent = list(&known["dependentRequired"][name]);
    beside.extend(required.iter().chain(&dependent).map(String::as_str));
    // What only the parser knows.
    beside.extend(match name {
        "accesskey" => &["secretkey"][..],
        "secretkey" => &["accesskey"],
        "clientid" => &["tenantid", "secret"],
        "tenantid" => &["clientid", "secret"],
        "secret" => &["clientid", "tenantid"],
        "container" if known["properties"].get("binary").is_some() => &["image"],
        "image" => &["container"],
        _ => &[],
    });
    if name == "credentials" {
        fields.remove("accountkey");
    }
    if ["clientid", "tenantid", "secret"].contains(&name) {
        fields.insert("type".to_owned(), json!("client_secret"));
    }
    for name in beside {
        let schema = &known["properties"][name];
        fields.entry(name).or_insert_with(|| schema["examples"][0].clone());
    }
}
