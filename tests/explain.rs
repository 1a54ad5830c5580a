//! `larder explain` on trees that stand for machines: text, JSON, exit codes.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const CONFIG: &str = "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/etc/containerd/certs.d\"\n";
const HOSTS: &str = "server = \"https://registry-1.docker.io\"\n\n[host.\"http://10.0.20.10:5000\"]\ncapabilities = [\"pull\", \"resolve\"]\n\n[host.\"http://10.0.20.10:5000\".header]\nAuthorization = \"Basic c2VjcmV0\"\n";

fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join("etc/containerd").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn explain(root: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.arg("explain").args(arguments).arg("--root").arg(root).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_mirror_as_written() {
    let tree = tree(&[("config.toml", CONFIG), ("certs.d/docker.io/hosts.toml", HOSTS)]);
    let output = explain(tree.path(), &["docker.io"]);
    assert_eq!(
        text(&output),
        "containerd   none found: this is for 1.6.0, the oldest that Larder knows\n\
         config       /etc/containerd/config.toml, version 2\n\
         config_path  /etc/containerd/certs.d (/etc/containerd/config.toml:4)\n\
         file         /etc/containerd/certs.d/docker.io/hosts.toml\n\
         an image of docker.io is asked for, in this order:\n  \
         1. http://10.0.20.10:5000/v2  [pull resolve]  ns=docker.io  header=Authorization (hidden)  \
         /etc/containerd/certs.d/docker.io/hosts.toml:3\n  \
         2. https://registry-1.docker.io/v2  [pull resolve push]  server  \
         /etc/containerd/certs.d/docker.io/hosts.toml:1\n"
    );
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn json_is_complete_and_tells_no_secret() {
    let tree = tree(&[("config.toml", CONFIG), ("certs.d/docker.io/hosts.toml", HOSTS)]);
    let output = explain(tree.path(), &["docker.io", "--output", "json"]);
    assert!(!text(&output).contains("c2VjcmV0"), "{}", text(&output));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "config",
            "config_path",
            "containerd",
            "cri_down",
            "decided_by",
            "directory",
            "endpoints",
            "fails",
            "fatal",
            "file",
            "host",
            "ignored",
            "local_pull",
            "state",
            "traps",
            "version"
        ]
    );
    assert_eq!((&value["version"], &value["state"]), (&Value::from(1), &Value::from("up")));
    assert_eq!(value["endpoints"][0]["headers"], Value::from(vec!["Authorization"]));
}

#[test]
fn exit_codes() {
    let broken = HOSTS.replace("\"resolve\"", "\"reslove\"");
    for (what, config, hosts, host, code, says) in [
        ("no mirror", CONFIG, HOSTS, "ghcr.io", 0, "directory    none for ghcr.io"),
        (
            "a hosts.toml that is refused",
            CONFIG,
            &*broken,
            "docker.io",
            4,
            "hosts.toml:4: containerd takes nothing",
        ),
        (
            "not starting",
            "version = \"2\"\n",
            HOSTS,
            "docker.io",
            4,
            "DOES NOT START  /etc/containerd/config.toml:1",
        ),
        (
            "no CRI",
            "disabled_plugins = [\"cri\"]\n",
            HOSTS,
            "docker.io",
            4,
            "CRI IS DOWN  /etc/containerd/config.toml:1",
        ),
        ("no registry host", CONFIG, HOSTS, "docker.io/library", 2, ""),
    ] {
        let tree = tree(&[("config.toml", config), ("certs.d/docker.io/hosts.toml", hosts)]);
        let output = explain(tree.path(), &[host]);
        assert_eq!(output.status.code(), Some(code), "{what}: {output:?}");
        assert!(text(&output).contains(says), "{what}: wanted {says:?}, got {}", text(&output));
    }
}
