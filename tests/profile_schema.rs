//! The schema against an independent validator, and against the parser.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may"
)]

use std::path::{Path, PathBuf};

use larder::profile::{self, Source};
use serde_json::Value;

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn node(path: &Path) -> Result<larder::node::Node, profile::Problems> {
    let text = std::fs::read_to_string(path).unwrap();
    profile::load(&Source::Text { name: "profile.yaml".to_owned(), text })
        .and_then(|l| l.node())
        .map(|(node, _)| node)
}

/// By another YAML reader than ours; `None` where it has no use for the text.
fn json(path: &Path) -> Option<Value> {
    serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).ok()
}

fn validator() -> jsonschema::Validator {
    jsonschema::draft202012::options().build(&larder::node::schema()).unwrap()
}

#[test]
fn the_schema_is_a_schema() {
    let schema = larder::node::schema();
    jsonschema::draft202012::meta::validate(&schema).unwrap_or_else(|e| panic!("{e}"));
    // What an editor shows: every key says what it is for.
    fn descend(path: &str, schema: &Value) {
        for (key, value) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{key}");
            assert!(
                value["description"].as_str().is_some_and(|text| text.len() > 3),
                "{path} has no description"
            );
            descend(&path, value);
        }
        for nested in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get(nested) {
                descend(path, inner);
            }
        }
        for option in schema["oneOf"].as_array().into_iter().flatten() {
            descend(path, option);
        }
    }
    descend("", &schema);
}

#[test]
fn shipped_profiles_are_valid_to_both() {
    for name in ["example", "minimal"] {
        let path = here().join(format!("templates/profile.{name}.yaml"));
        let node = node(&path).unwrap_or_else(|problems| panic!("{problems}"));
        assert!(node.upstreams.len() >= 2);
        validator()
            .validate(&json(&path).unwrap())
            .unwrap_or_else(|e| panic!("{name}: {e} at {}", e.instance_path()));
    }
}

#[test]
fn the_user_data_example_brings_the_minimal_profile() {
    let read = |path: &str| std::fs::read_to_string(here().join(path)).unwrap();
    let user_data: Value = serde_yaml::from_str(&read("packaging/cloud-init/both.yaml")).unwrap();
    let file = &user_data["write_files"][0];
    assert_eq!(file["path"], "/etc/larder/profile.yaml");
    assert_eq!(file["content"], read("templates/profile.minimal.yaml"));
    assert_eq!(user_data["runcmd"], serde_json::json!([["larder", "apply"]]));
}

#[test]
fn the_whole_format_is_valid_to_the_schema() {
    let path = here().join("tests/profiles/whole.yaml");
    validator().validate(&json(&path).unwrap()).unwrap_or_else(|e| panic!("{e} at {}", e.instance_path()));
    node(&path).unwrap_or_else(|problems| panic!("{problems}"));
}

#[test]
fn an_object_store_is_valid_to_both() {
    let path = here().join("tests/profiles/objects.yaml");
    validator().validate(&json(&path).unwrap()).unwrap_or_else(|e| panic!("{e} at {}", e.instance_path()));
    node(&path).unwrap_or_else(|problems| panic!("{problems}"));
}

/// Refused by the parser for reasons that a schema cannot know, or that are gone once YAML has been read.
const BEYOND: &[&str] = &[
    "duplicate-key",
    "duplicate-block",
    "alias",
    "tag",
    "empty-block",
    "port-float",
    "port-twice",
    "host-other-name",
    "remote-own-cache",
    "folders-of-the-system",
    "open-credentials",
    "probe-with-host",
    "probe-library",
    "gc-misspelt",
    "gc-base60",
    "gc-hour",
    "restart-no",
    "address-is-network",
    "address-is-broadcast",
    "address-loopback",
    "address-twice",
    "gateway-out-of-reach",
    "gateway-other-family",
    "gateway-own-address",
    "gateway-and-route",
    "route-host-bits",
    "route-two-families",
    "mtu-ipv6",
    "listen-not-mine",
    "listen-unknown",
    "storage-etc",
    "storage-azure",
    "objects-bounds",
    "two-sources",
    "max-size",
    "engine-archive",
    "not-yet-upstream",
    "not-yet-cache",
    "caches-none",
    "caches-twice",
    "caches-any",
    "no-upstreams",
    "idle",
    "timeout-long",
    "storage-root",
    "certs-dir-root",
    "nameserver-none",
    "gateway-is-broadcast",
    "route-twice",
    "host-own-cache",
    "mirror-v2-path",
    "mirror-override-no-path",
    "mirror-override-no-v2",
    "metrics-open",
    "mirror-tls-on-http",
    "mirror-skip-and-ca",
    "mirror-own-cache",
    "mirror-other-cache",
    "mirror-twice",
    "mirror-is-upstream",
    "mirror-dial-timeout",
    "mirror-header-newline",
    "mirror-multicast",
    "mirror-http-headers",
    "fallback-nobody",
    "auth-twice",
    "ca-http",
    "remote-metadata",
    "remote-loopback",
];

#[test]
fn the_schema_and_the_parser_agree() {
    let validator = validator();
    let mut wrong = Vec::new();
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(here().join("tests/cases")).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    for case in cases {
        if case.join("root").exists() {
            continue;
        }
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let (Some((_, rule)), Some(value)) = (name.split_once("-bad-"), json(&case.join("profile.yaml")))
        else {
            continue;
        };
        let is_refused = !validator.is_valid(&value);
        if is_refused == BEYOND.contains(&rule) {
            wrong.push(format!("{rule}: the schema {}", if is_refused { "refuses it" } else { "takes it" }));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
