//! `larder migrate`: random older configurations ask the same endpoints afterwards, by a reader of hosts.toml
//! that shares nothing with the writer; and what a sequence of runs does to a machine's files.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::thread::sleep;
use std::time::Duration;

use indexmap::IndexMap;
use larder::containerd::config::Effective;
use larder::containerd::legacy::{Asked, Tls};
use larder::containerd::{Version, resolve};
use larder::facts::{CONTAINERD_CONFIG, Containerd};
use larder::plan::Resource;
use larder::plan::migration::{Held, Migration, Present, migration};
use larder::root::Root;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde::Deserialize;
use support::{CONTAINERD_2, Machine, SEED, text};

// ---- the reader

#[derive(Deserialize)]
struct File {
    server: Option<String>,
    #[serde(flatten)]
    own: Keys,
    #[serde(default)]
    host: IndexMap<toml::Spanned<String>, Keys>,
}

#[derive(Deserialize, Clone, Default)]
struct Keys {
    ca: Option<String>,
    client: Option<Vec<(String, String)>>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
}

/// `scheme://host/path` and how it is trusted.
type Endpoint = (String, Keys2);
type Keys2 = (String, String, String, bool);

fn endpoint(url: &str, keys: &Keys) -> Endpoint {
    let (scheme, rest) = url.split_once("://").unwrap_or_else(|| panic!("{url}: no scheme"));
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    // containerd: cleaned, and /v2 after it unless it ends so or override_path is set.
    let path = match path.trim_end_matches('/') {
        "" if keys.override_path => "/".to_owned(),
        "" => "/v2".to_owned(),
        path if keys.override_path || path.ends_with("/v2") => path.to_owned(),
        path => format!("{path}/v2"),
    };
    let (cert, key) = keys.client.as_ref().map_or_else(Default::default, |pairs| pairs[0].clone());
    let trust = (keys.ca.clone().unwrap_or_default(), cert, key, keys.skip_verify);
    assert!(scheme == "https" || trust == Keys2::default(), "{url}: TLS on http is tried as https");
    (format!("{scheme}://{host}{path}"), trust)
}

/// What containerd asks for `host` with these files, the last one included.
fn read_tree(files: &BTreeMap<String, String>, host: &str) -> Vec<Endpoint> {
    let implied = match host {
        "docker.io" => "https://registry-1.docker.io".to_owned(),
        host if host.starts_with("localhost") || host.starts_with("127.") => format!("http://{host}"),
        host => format!("https://{host}"),
    };
    let found = [host, "_default"]
        .iter()
        .find_map(|name| files.get(&format!("etc/containerd/certs.d/{name}/hosts.toml")));
    let Some(text) = found else { return vec![endpoint(&implied, &Keys::default())] };
    let file: File = toml::from_str(text).unwrap();
    assert!(!file.host.is_empty(), "1.6 refuses it:\n{text}");
    let mut hosts: Vec<_> = file.host.iter().collect();
    hosts.sort_by_key(|(url, _)| url.span().start);
    let mut asked: Vec<_> = hosts.into_iter().map(|(url, keys)| endpoint(url.get_ref(), keys)).collect();
    asked.push(endpoint(file.server.as_ref().unwrap_or(&implied), &file.own));
    asked
}

fn before(asked: &[Asked]) -> Vec<Endpoint> {
    let trust = |tls: &Tls| {
        (tls.ca_file.clone(), tls.cert_file.clone(), tls.key_file.clone(), tls.insecure_skip_verify)
    };
    asked.iter().map(|one| (one.url(), one.tls.as_ref().map(trust).unwrap_or_default())).collect()
}

/// A question that was put before finds nothing new.
fn distinct(asked: Vec<Endpoint>) -> Vec<Endpoint> {
    let mut seen = BTreeSet::new();
    asked.into_iter().filter(|(url, _)| seen.insert(url.clone())).collect()
}

// ---- random configurations

const KEYS: [&str; 8] = [
    "docker.io",
    "quay.io",
    "*",
    "localhost:5000",
    "r.example:5000",
    "mirror.example",
    "127.0.0.1:5001",
    "odd/key",
];
const ENDPOINTS: [&str; 18] = [
    "http://10.0.0.1:5000",
    "http://127.0.0.1:5001",
    "https://mirror.example",
    "https://mirror.example/",
    "https://mirror.example:8443/v2/proxy",
    "https://mirror.example:8443/v2/proxy/",
    "mirror.example:8443",
    "localhost:5000",
    "127.0.0.1:5001/v2",
    "https://registry-1.docker.io",
    "https://docker.io",
    "https://quay.io",
    "http://quay.io",
    "https://r.example:5000/a/b",
    "HTTPS://r.example:5000",
    "https://user:word@r.example:5000",
    "http://mirror.example//x/../y",
    "https://mirror.example/v2/",
];
const TLS: [&str; 7] = [
    "mirror.example",
    "mirror.example:8443",
    "registry-1.docker.io",
    "quay.io",
    "r.example:5000",
    "localhost:5000",
    "nobody.example",
];

fn tls() -> impl Strategy<Value = Tls> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(ca, client, skip)| Tls {
        ca_file: if ca { "/pki/ca.pem" } else { "" }.to_owned(),
        cert_file: if client { "/pki/cert.pem" } else { "" }.to_owned(),
        key_file: if client { "/pki/key.pem" } else { "" }.to_owned(),
        insecure_skip_verify: skip,
    })
}

#[derive(Debug, Clone)]
struct Config {
    version: Version,
    text: String,
}

#[derive(Debug, Clone, Copy)]
struct Style {
    indented: bool,
    crlf: bool,
    inline: bool,
    registry: bool,
    comments: bool,
    last_line_end: bool,
}

fn style() -> impl Strategy<Value = Style> {
    any::<[bool; 6]>().prop_map(|[indented, crlf, inline, registry, comments, last_line_end]| Style {
        indented,
        crlf,
        inline,
        registry,
        comments,
        last_line_end,
    })
}

prop_compose! {
    fn config()(
        (version, header) in select(vec![
            (Version::new(1, 6, 20), ""),
            (Version::new(1, 6, 20), "version = 1\n"),
            (Version::new(1, 7, 24), "version = 2 # unrelated: the version\n"),
            (Version::new(2, 1, 9), "version = 2\n"),
            (Version::new(2, 3, 4), "version = 3\n"),
        ]),
        keys in subsequence(KEYS.to_vec(), 0..=KEYS.len()).prop_shuffle(),
        endpoints in prop::collection::vec(subsequence(ENDPOINTS.to_vec(), 0..4).prop_shuffle(), KEYS.len()),
        tls in prop::collection::btree_map(select(TLS.to_vec()), tls(), 0..4),
        auth in prop::option::of(select(TLS.to_vec())),
        order in any::<u64>(),
        style in style(),
    ) -> Config {
        let section = match header {
            "" | "version = 1\n" => "cri",
            "version = 3\n" => "\"io.containerd.cri.v1.images\"",
            _ => "\"io.containerd.grpc.v1.cri\"",
        };
        Config { version, text: write(header, section, &keys, &endpoints, &tls, auth, order, style) }
    }
}

#[allow(clippy::too_many_arguments, reason = "one call")]
fn write(
    header: &str,
    section: &str,
    keys: &[&str],
    endpoints: &[Vec<&str>],
    tls: &BTreeMap<&str, Tls>,
    auth: Option<&str>,
    mut order: u64,
    style: Style,
) -> String {
    let mut blocks: Vec<(String, Vec<String>)> = vec![
        ("debug".to_owned(), vec!["level = \"info\" # unrelated 1".to_owned()]),
        (format!("plugins.{section}.cni"), vec!["bin_dir = \"/usr/lib/cni\"  # unrelated 2".to_owned()]),
        ("plugins.\"io.containerd.internal.v1.opt\"".to_owned(), vec!["path='/unrelated 3'".to_owned()]),
        (
            "plugins.\"io.containerd.internal.v1.x\"".to_owned(),
            vec!["y = \"\"\"".to_owned(), "# unrelated 4\"\"\"".to_owned()],
        ),
    ];
    let registry = format!("plugins.{section}.registry");
    if style.registry {
        blocks.push((registry.clone(), vec!["config_path = \"\"".to_owned()]));
        blocks.push((format!("{registry}.headers"), vec!["X-Unrelated = [\"unrelated 5\"]".to_owned()]));
    }
    let mut cri = vec!["sandbox_image = \"unrelated 6\"".to_owned()];
    let lists = keys.iter().zip(endpoints);
    if style.inline && !style.registry && tls.is_empty() && auth.is_none() {
        let inside: Vec<_> =
            lists.map(|(key, list)| format!("{key:?} = {{ endpoint = {list:?} }}")).collect();
        cri.push(format!("registry = {{ mirrors = {{ {} }}, config_path = \"\" }}", inside.join(", ")));
    } else {
        for (key, list) in lists {
            let mut lines = vec!["endpoint = [".to_owned()];
            lines.extend(list.iter().map(|one| format!("  {one:?}, # said")));
            lines.push("]".to_owned());
            blocks.push((format!("{registry}.mirrors.{key:?}"), lines));
        }
        for (host, tls) in tls {
            let mut lines = Vec::new();
            let files =
                [("ca_file", &tls.ca_file), ("cert_file", &tls.cert_file), ("key_file", &tls.key_file)];
            for (name, file) in files {
                if !file.is_empty() {
                    lines.push(format!("{name} = {file:?}"));
                }
            }
            if tls.insecure_skip_verify {
                lines.push("insecure_skip_verify = true".to_owned());
            }
            blocks.push((format!("{registry}.configs.{host:?}.tls"), lines));
        }
        if let Some(host) = auth {
            blocks.push((
                format!("{registry}.configs.{host:?}.auth"),
                vec!["username = \"unrelated 7\"".to_owned()],
            ));
        }
    }
    blocks.push((format!("plugins.{section}"), cri));
    // An order of its own: headers of one table need not stand together.
    for last in (1..blocks.len()).rev() {
        order = order.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        blocks.swap(last, (order >> 33) as usize % (last + 1));
    }
    let mut text = format!("# unrelated: the file\n{header}root = \"/unrelated\"\n");
    for (n, (name, lines)) in blocks.into_iter().enumerate() {
        let indent =
            if style.indented { "  ".repeat(name.matches('.').count().min(3)) } else { String::new() };
        if style.comments {
            text.push_str(&format!("\n{indent}# unrelated: apart {n}\n\n{indent}# about {n}\n"));
        }
        text.push_str(&format!("{indent}[{name}]\n"));
        for line in lines {
            let indent = if line.starts_with("# unrelated 4") { "" } else { &indent };
            text.push_str(&format!("{indent}{line}\n"));
        }
    }
    if !style.last_line_end {
        text.pop();
    }
    if style.crlf { text.replace('\n', "\r\n") } else { text }
}

// ---- the property

struct Everything;

impl Present for Everything {
    fn has_pem(&self, _path: &str, _what: &str) -> bool {
        true
    }
    fn hosts(&self, _certs_dir: &str) -> BTreeMap<String, bool> {
        BTreeMap::new()
    }
    fn held(&self, _certs_dir: &str, _host: &str) -> Result<Option<Held>, String> {
        Ok(None)
    }
}

fn migrated(version: Version, config: &str) -> Option<Migration> {
    let installed =
        Containerd { major: Some(version.major), config: Some(config.to_owned()), ..Containerd::default() };
    migration(&installed, version, &Everything).unwrap_or_else(|reasons| panic!("{reasons:#?}\n{config}"))
}

fn files(made: &Migration) -> BTreeMap<String, String> {
    let file = |(path, resource): (&String, &Resource)| match resource {
        Resource::File { bytes, .. } => Some((path.clone(), String::from_utf8(bytes.clone()).unwrap())),
        _ => None,
    };
    made.plan.resources.iter().filter_map(file).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_same_is_asked_and_all_else_stays(config in config()) {
        let Some(made) = migrated(config.version, &config.text) else { return Ok(()) };
        let files = files(&made);
        let after = &files[CONTAINERD_CONFIG];

        // On 2.x the TLS settings have no effect: by hosts.toml they get the one that 1.x gives them.
        let rule = if config.version.major < 2 { config.version } else { Version::OLDEST };
        let mut hosts: BTreeSet<&str> = KEYS.into_iter().chain(TLS).filter(|key| !matches!(*key, "*" | "odd/key")).collect();
        hosts.extend(["ghcr.io", "mirror.example:8443", "10.0.0.1:5000", "localhost:7777"]);
        for host in hosts {
            let before = before(&made.legacy.endpoints(host, rule).unwrap());
            let wanted = distinct(before.clone());
            let got = read_tree(&files, host);
            prop_assert!(got.len() <= before.len().max(2), "{} is asked {:?}", host, got);
            prop_assert_eq!(wanted, distinct(got), "{}\n{}\n{:#?}", host, config.text, files);
        }

        let unrelated = |text: &str| -> Vec<String> {
            text.split_inclusive('\n').filter(|l| l.contains("unrelated")).map(|l| l.trim_end_matches(['\r', '\n']).to_owned()).collect()
        };
        prop_assert_eq!(unrelated(&config.text), unrelated(after));
        let mut rest = config.text.split('\n').map(|line| line.trim_end_matches('\r'));
        for line in after.split('\n').map(|line| line.trim_end_matches('\r')) {
            let new = line.is_empty() || line.contains("config_path") || line.trim_start().starts_with("[plugins.") && line.ends_with(".registry]");
            prop_assert!(new || rest.any(|other| other == line), "{:?} was not there\n{}\n---\n{}", line, config.text, after);
        }
        if config.text.contains("\r\n") {
            prop_assert_eq!(after.matches('\n').count(), after.matches("\r\n").count());
        }
        prop_assert!(migrated(config.version, after).is_none(), "a second one does nothing");

        // With config_path set beside them, and CRI down for it, the same is meant.
        let beside = beside(&config.text);
        if beside != config.text {
            let cured = migrated(config.version, &beside).unwrap();
            let down = !made.legacy.mirrors.is_empty() || config.version.major < 2;
            prop_assert_eq!(down, cured.down.is_some());
            for host in &cured.hosts {
                prop_assert!(!down || host.same && host.before.is_empty(), "{:?}", host);
            }
            let trimmed = |files: BTreeMap<String, String>| -> Vec<_> {
                // A line end at the end of the file comes with the edit.
                files.into_iter().map(|(path, text)| (path, text.trim_end().to_owned())).collect()
            };
            prop_assert_eq!(trimmed(files), trimmed(self::files(&cured)));
        }
    }
}

/// The state that takes CRI down.
fn beside(config: &str) -> String {
    config.replace("config_path = \"\"", "config_path = \"/etc/containerd/certs.d\"")
}

/// As `larder explain` resolves it; a loopback registry that no file names is tried by https first from 1.7 on,
/// and asked by http in the end.
fn explained(root: &Root, version: Version, host: &str) -> Vec<Endpoint> {
    let effective = Effective::read(root, version).unwrap();
    assert!(effective.is_up(), "{:?} {:?}", effective.fatal, effective.cri_down);
    let found = resolve::endpoints(&effective, root, host).unwrap();
    assert!(found.fails.is_none(), "{host}: {:?}", found.fails);
    let one = |mut asked: resolve::Asked| {
        // On the wire the path is joined with the repository's, and cleaned with it.
        asked.url = asked.url.replace("//x/../y", "/y").trim_end_matches('/').to_owned();
        if asked.then_http {
            return (asked.url.replace("https://", "http://"), Keys2::default());
        }
        let https = asked.url.starts_with("https://");
        let (cert, key) = asked.client.first().cloned().unwrap_or_default();
        let trust = (asked.ca.concat(), cert, key.unwrap_or_default(), asked.skip_verify);
        (asked.url, if https && version.major < 2 { trust } else { Keys2::default() })
    };
    distinct(found.endpoints.into_iter().map(one).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn explain_says_the_same_before_and_after(config in config()) {
        let machine = Machine::bare();
        machine.write(CONTAINERD_CONFIG, &config.text);
        for (name, what) in [("ca", "CERTIFICATE"), ("cert", "CERTIFICATE"), ("key", "PRIVATE KEY")] {
            machine.write(&format!("pki/{name}.pem"), pem(what));
        }
        let root = Root::open(machine.root()).unwrap();
        let Some(made) = migrated(config.version, &config.text) else { return Ok(()) };
        let hosts = KEYS.into_iter().chain(TLS).chain(["ghcr.io", "10.0.0.1:5000", "localhost:7777"]);
        let hosts: BTreeSet<_> = hosts.filter(|key| !matches!(*key, "*" | "odd/key")).collect();
        let before: Vec<_> = hosts.iter().map(|host| explained(&root, config.version, host)).collect();
        machine.write(CONTAINERD_CONFIG, beside(&config.text));
        let cured = migrated(config.version, &beside(&config.text)).unwrap_or_default();
        prop_assert_eq!(cured.down.is_none(), Effective::read(&root, config.version).unwrap().is_up());
        for (path, text) in files(&made) {
            machine.write(&path, text);
        }
        for (host, before) in hosts.iter().zip(before) {
            prop_assert_eq!(before, explained(&root, config.version, host), "{} {}\n{}", host, config.version, config.text);
        }
    }
}

fn pem(what: &str) -> String {
    format!("-----BEGIN {what}-----\n-----END {what}-----\n")
}

// ---- on a machine

const LEGACY: &str = r#"version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "registry.k8s.io/pause:3.9"
    [plugins."io.containerd.grpc.v1.cri".registry]
      [plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
        endpoint = ["http://10.0.20.10:5000"]
      [plugins."io.containerd.grpc.v1.cri".registry.mirrors."quay.io"]
        endpoint = ["https://mirror.example:8443/v2/quay"]
      [plugins."io.containerd.grpc.v1.cri".registry.configs."mirror.example:8443".tls]
        ca_file = "/etc/ssl/mirror.pem"
      [plugins."io.containerd.grpc.v1.cri".registry.configs."mirror.example:8443".auth]
        password = "hunter2-xyzzy"
"#;

fn machine() -> Machine {
    let machine = Machine::debian();
    machine.write(CONTAINERD_CONFIG, LEGACY);
    machine.write("etc/ssl/mirror.pem", pem("CERTIFICATE"));
    machine
}

fn migrate(machine: &Machine, arguments: &[&str], code: i32) -> String {
    let mut command = vec!["migrate"];
    command.extend(arguments);
    let output: Output = machine.command(&command).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", text(&output));
    assert!(!text(&output).contains("xyzzy"), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn shown_then_written_then_nothing() {
    let machine = machine();
    let before = machine.stamps();
    let shown = migrate(&machine, &[], 10);
    assert!(shown.contains("images of quay.io: same"), "{shown}");
    assert!(shown.contains("registry.configs.\"mirror.example:8443\".auth"), "{shown}");
    assert_eq!(machine.stamps(), before);
    let said = migrate(&machine, &["--write"], 0);
    let kept = "var/lib/larder/state/kept/etc/containerd/config.toml.before-migration";
    assert!(said.contains(kept), "{said}");
    assert_eq!(machine.read(kept), LEGACY);
    let after = machine.stamps();
    assert_eq!(migrate(&machine, &["--write"], 0), "nothing to migrate\n");
    assert_eq!(migrate(&machine, &[], 0), "nothing to migrate\n");
    assert_eq!(machine.stamps(), after);
}

#[test]
fn nothing_to_migrate_touches_nothing() {
    let machine = Machine::debian();
    let before = machine.stamps();
    assert_eq!(migrate(&machine, &["--write"], 0), "nothing to migrate\n");
    assert_eq!(machine.stamps(), before);
}

#[test]
fn for_machines_too() {
    let machine = machine();
    let shown: serde_json::Value =
        serde_json::from_str(&migrate(&machine, &["--output", "json"], 10)).unwrap();
    assert_eq!(shown["written"], false);
    assert_eq!(shown["hosts"][0]["host"], "docker.io");
    assert_eq!(shown["hosts"][0]["same"], true);
    let said: serde_json::Value =
        serde_json::from_str(&migrate(&machine, &["--write", "--output", "json"], 0)).unwrap();
    assert_eq!(said["written"], true);
    assert_eq!(said["kept"].as_array().unwrap().len(), 1);
}

#[test]
fn apply_refuses_until_then_and_leaves_the_operators_files_alone() {
    let machine = machine();
    let refused = machine.larder(&["apply"], SEED);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("run `larder migrate --write`"));
    migrate(&machine, &["--write"], 0);
    let quay = "etc/containerd/certs.d/quay.io/hosts.toml";
    let docker = "etc/containerd/certs.d/docker.io/hosts.toml";
    let (written, theirs) = (machine.read(quay), machine.read(docker));
    let said = machine.apply(SEED);
    // docker.io is the profile's now; what was there comes back when it leaves.
    assert!(said.contains("kept aside: "), "{said}");
    assert_ne!(machine.read(docker), theirs);
    assert_eq!(machine.read(quay), written);
    assert!(!machine.read("var/lib/larder/state/manifest.json").contains("quay.io"));
    assert_eq!(machine.apply(SEED), "nothing to change\n");
    machine.apply(&SEED.replace("containerd: {}\n", ""));
    assert_eq!(machine.read(docker), theirs);
    assert_eq!(machine.read(quay), written);
}

#[test]
fn a_file_of_an_earlier_apply_becomes_the_operators() {
    let machine = Machine::debian();
    machine.apply(SEED);
    let path = "etc/containerd/certs.d/docker.io/hosts.toml";
    // Somebody went back to the older way.
    machine.write(CONTAINERD_CONFIG, LEGACY);
    machine.write("etc/ssl/mirror.pem", pem("CERTIFICATE"));
    migrate(&machine, &["--write"], 0);
    let theirs = machine.read(path);
    assert!(theirs.contains("larder migrate"), "{theirs}");
    machine.apply(&SEED.replace("containerd: {}\n", ""));
    assert_eq!(machine.read(path), theirs, "it is not taken away with the role");
    assert!(machine.read(CONTAINERD_CONFIG).contains("config_path"));
}

#[test]
fn what_is_in_the_way_is_kept_aside_and_shown() {
    let machine = machine();
    machine.write("etc/containerd/certs.d/docker.io/hosts.toml", "# theirs\n");
    machine.write("etc/containerd/certs.d/ghcr.io/hosts.toml", "server = \"https://elsewhere\"\n");
    let shown = migrate(&machine, &[], 10);
    assert!(shown.contains("[not larder's: kept aside]"), "{shown}");
    assert!(shown.contains("certs.d/ghcr.io was not read before"), "{shown}");
    migrate(&machine, &["--write"], 0);
    let kept = "var/lib/larder/state/kept/etc/containerd/certs.d/docker.io/hosts.toml";
    assert_eq!(machine.read(kept), "# theirs\n");
    assert_eq!(machine.read("etc/containerd/certs.d/ghcr.io/hosts.toml"), "server = \"https://elsewhere\"\n");
}

/// config_path set, and what it was to replace left in.
fn beside_machine(certs_dir: &str) -> Machine {
    let machine = machine();
    let registry = "    [plugins.\"io.containerd.grpc.v1.cri\".registry]\n";
    let set = format!("{registry}      config_path = {certs_dir:?}\n");
    machine.write(CONTAINERD_CONFIG, LEGACY.replace(registry, &set));
    machine
}

#[test]
fn config_path_beside_the_mirrors_is_cured() {
    for containerd in [None, Some("2.0.11"), Some("2.1.9"), Some("2.2.7"), Some("2.3.4")] {
        let machine = beside_machine("/etc/containerd/certs.d");
        if let Some(version) = containerd {
            machine.program("usr/bin/containerd", &format!("{CONTAINERD_2} v{version}"));
        }
        let quay = "etc/containerd/certs.d/quay.io/hosts.toml";
        let theirs = "server = \"https://quay.io\"\n[host.\"http://elsewhere:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n";
        machine.write(quay, theirs);
        let down = |machine: &Machine| {
            let explained = machine.command(&["explain", "quay.io"]).output().unwrap();
            String::from_utf8_lossy(&explained.stdout).into_owned()
        };
        let trap = down(&machine);
        assert!(trap.contains("CRI IS DOWN") && trap.contains("run `larder migrate --write`"), "{trap}");
        let refused = machine.larder(&["apply"], SEED);
        assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
        assert!(text(&refused).contains("run `larder migrate --write`"), "{}", text(&refused));

        let before = machine.stamps();
        let shown = migrate(&machine, &[], 10);
        assert_eq!(machine.stamps(), before);
        assert!(
            shown.contains(
                "\nbefore: CRI down: config_path (/etc/containerd/config.toml:7) and registry.mirrors"
            ),
            "{shown}"
        );
        assert!(shown.contains("images of docker.io: same\n    written "), "{shown}");
        assert!(shown.contains("images of quay.io: differs"), "{shown}");
        assert!(
            shown.contains(
                "https://mirror.example:8443/v2/quay, ca /etc/ssl/mirror.pem  http://elsewhere:5000/v2"
            ),
            "{shown}"
        );
        assert!(
            shown.contains("certs.d/quay.io/hosts.toml stays, and replaces registry.mirrors.\"quay.io\""),
            "{shown}"
        );
        let json: serde_json::Value =
            serde_json::from_str(&migrate(&machine, &["--output", "json"], 10)).unwrap();
        assert!(json["cri_down"].as_str().unwrap().starts_with("config_path"), "{json}");
        assert_eq!(json["hosts"][0]["before"].as_array().unwrap().len(), 0);
        assert_eq!(json["hosts"][0]["written"], json["hosts"][0]["after"]);

        migrate(&machine, &["--write"], 0);
        assert!(!down(&machine).contains("CRI IS DOWN"));
        assert_eq!(machine.read(quay), theirs);
        assert!(
            machine.read("etc/containerd/certs.d/docker.io/hosts.toml").contains("http://10.0.20.10:5000")
        );
        assert_eq!(migrate(&machine, &["--write"], 0), "nothing to migrate\n");
        machine.apply(SEED);
    }
}

#[test]
fn a_broken_hosts_toml_beside_the_mirrors_is_kept_aside() {
    let machine = beside_machine("/etc/containerd/certs.d");
    machine.write("etc/containerd/certs.d/quay.io/hosts.toml", "server = \n");
    let shown = migrate(&machine, &[], 10);
    assert!(shown.contains("images of quay.io: same"), "{shown}");
    assert!(shown.contains("it is kept aside, and written anew"), "{shown}");
    migrate(&machine, &["--write"], 0);
    assert_eq!(
        machine.read("var/lib/larder/state/kept/etc/containerd/certs.d/quay.io/hosts.toml"),
        "server = \n"
    );
    assert!(machine.read("etc/containerd/certs.d/quay.io/hosts.toml").contains("mirror.example:8443"));
    // Certificates alone are in effect, and would not be beside a hosts.toml.
    let machine = beside_machine("/etc/containerd/certs.d");
    machine.write("etc/containerd/certs.d/quay.io/ca.crt", pem("CERTIFICATE"));
    let before = machine.stamps();
    migrate(&machine, &["--write"], 2);
    assert_eq!(machine.stamps(), before);
}

#[test]
fn two_folders_beside_the_mirrors() {
    let machine = beside_machine("/etc/containerd/certs.d:/etc/docker/certs.d");
    machine.write("etc/docker/certs.d/ghcr.io/hosts.toml", "server = \"https://elsewhere\"\n");
    let said = migrate(&machine, &["--write"], 0);
    assert!(said.contains("becomes /etc/docker/certs.d alone"), "{said}");
    assert!(machine.read(CONTAINERD_CONFIG).contains("config_path = \"/etc/docker/certs.d\"\n"));
    assert!(machine.has("etc/docker/certs.d/docker.io/hosts.toml"));
    let machine = beside_machine("/etc/containerd/certs.d:/etc/docker/certs.d");
    for folder in ["containerd", "docker"] {
        let path = format!("etc/{folder}/certs.d/{folder}.example/hosts.toml");
        machine.write(&path, "server = \"https://elsewhere\"\n");
    }
    let before = machine.stamps();
    migrate(&machine, &["--write"], 2);
    assert_eq!(machine.stamps(), before);
}

#[test]
fn a_refusal_touches_nothing() {
    let machine = machine();
    fs::remove_file(machine.path("etc/ssl/mirror.pem")).unwrap();
    let before = machine.stamps();
    for arguments in [&[][..], &["--write"]] {
        migrate(&machine, arguments, 2);
    }
    assert_eq!(machine.stamps(), before);
}

#[test]
fn on_containerd_2_what_begins_to_hold_again_is_said() {
    let machine = machine();
    machine.program("usr/bin/containerd", CONTAINERD_2);
    let shown = migrate(&machine, &[], 10);
    assert!(shown.contains("images of quay.io: differs"), "{shown}");
    assert!(shown.contains("hosts.toml makes it hold again"), "{shown}");
    assert!(shown.contains("images of docker.io: same"), "{shown}");
}

#[test]
fn modes_stay_and_new_files_can_be_read() {
    let machine = machine();
    fs::set_permissions(machine.path(CONTAINERD_CONFIG), fs::Permissions::from_mode(0o600)).unwrap();
    migrate(&machine, &["--write"], 0);
    let mode = |path: &str| machine.path(path).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(CONTAINERD_CONFIG), 0o600);
    assert_eq!(mode("etc/containerd/certs.d/quay.io/hosts.toml"), 0o644);
    assert_eq!(mode("var/lib/larder/state/kept/etc/containerd/config.toml.before-migration"), 0o600);
}

#[test]
fn a_run_that_is_killed_is_finished_by_the_next() {
    killed(machine);
}

#[test]
fn a_run_that_is_killed_while_cri_is_down_is_finished_by_the_next() {
    killed(|| beside_machine("/etc/containerd/certs.d"));
}

fn killed(machine: impl Fn() -> Machine) {
    let whole = machine();
    migrate(&whole, &["--write"], 0);
    let mut died = 0;
    for attempt in 0..30_u64 {
        let machine = machine();
        let mut child = machine
            .command(&["migrate", "--write"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        sleep(Duration::from_micros(400 * attempt));
        child.kill().unwrap();
        if child.wait().unwrap().code().is_none() {
            died += 1;
        }
        migrate(&machine, &["--write"], 0);
        let (wanted, got) = (whole.tree(), machine.tree());
        let differs = |path: &&String| wanted.get(*path) != got.get(*path);
        let differing: BTreeSet<_> = wanted.keys().chain(got.keys()).filter(differs).collect();
        let lines: Vec<_> = differing.iter().map(|path| (path, wanted.get(*path), got.get(*path))).collect();
        assert_eq!(lines, [], "killed after {} us", 400 * attempt);
        assert_eq!(migrate(&machine, &["--write"], 0), "nothing to migrate\n");
        assert!(!machine.read("var/lib/larder/state/manifest.json").contains("unfinished"));
        let temporary: Vec<_> =
            machine.stamps().into_keys().filter(|path| path.contains(".larder-new.")).collect();
        assert_eq!(temporary, [""; 0]);
    }
    assert!(died > 0, "none of the 30 runs was killed at work");
    println!("{died} of 30 runs were killed at work");
}
