//! Hostile text in every key of a profile that takes text. The keys are the schema's: a new one is covered without
//! being named here. Each value is refused, or stands in what is rendered as itself and changes the structure of
//! no file.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use larder::facts;
use larder::host::image::Image;
use larder::plan::{self, Resource};
use larder::profile::{self, Source};
use larder::root::Root;
use serde_json::{Map, Value, json};
use support::{Machine, text};

/// One step on the way to a value: a key of a map, any key of a map of the operator's own names, an item of a list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Key(String),
    Any,
    Item,
    /// The name itself, not what is behind it.
    Name,
}

#[derive(Debug, Clone)]
struct Place {
    steps: Vec<Step>,
    /// What the schema offers.
    examples: Vec<String>,
}

impl Place {
    fn shown(&self) -> String {
        let step = |step: &Step| match step {
            Step::Key(key) => format!(".{key}"),
            Step::Any => ".*".to_owned(),
            Step::Item => "[]".to_owned(),
            Step::Name => ".(name)".to_owned(),
        };
        self.steps.iter().map(step).collect()
    }
}

/// Every place of the schema that takes text.
fn places(schema: &Value, steps: &[Step], out: &mut Vec<Place>) {
    let with = |step: Step| [steps, &[step]].concat();
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if types.contains(&"string") || schema.get("enum").is_some() || schema["const"].is_string() {
        let examples = schema["examples"].as_array().into_iter().chain(schema["enum"].as_array()).flatten();
        let examples = examples.chain(schema.get("const")).filter_map(Value::as_str).map(str::to_owned);
        out.push(Place { steps: steps.to_vec(), examples: examples.collect() });
    }
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        places(inner, &with(Step::Key(key.clone())), out);
    }
    if schema["additionalProperties"].is_object() {
        let name = &schema["propertyNames"];
        let examples = name["examples"].as_array().into_iter().flatten().filter_map(Value::as_str);
        out.push(Place { steps: with(Step::Name), examples: examples.map(str::to_owned).collect() });
        places(&schema["additionalProperties"], &with(Step::Any), out);
    }
    if schema["items"].is_object() {
        places(&schema["items"], &with(Step::Item), out);
    }
    for one in ["oneOf", "anyOf"].iter().filter_map(|word| schema[word].as_array()).flatten() {
        places(one, steps, out);
    }
}

/// One step in one profile.
#[derive(Debug, Clone)]
enum Way {
    Key(String),
    /// A map of this key alone, whatever was there.
    Only(String),
    Item(usize),
    Rename(String),
}

/// Every way to a place in a profile.
fn ways(base: &Value, steps: &[Step]) -> Vec<Vec<Way>> {
    let Some((step, rest)) = steps.split_first() else { return vec![Vec::new()] };
    let on = |way: Way, inner: &Value| -> Vec<Vec<Way>> {
        ways(inner, rest).into_iter().map(|rest| [vec![way.clone()], rest].concat()).collect()
    };
    let empty = match rest.first() {
        Some(Step::Item) => json!([null]),
        _ => json!({}),
    };
    match step {
        Step::Key(key) => {
            let inner = base.get(key).filter(|inner| !inner.is_null()).unwrap_or(&empty);
            let mut all = if base.is_object() { on(Way::Key(key.clone()), inner) } else { Vec::new() };
            all.extend(on(Way::Only(key.clone()), &empty));
            all
        }
        Step::Any => base
            .as_object()
            .into_iter()
            .flatten()
            .flat_map(|(key, inner)| on(Way::Key(key.clone()), inner))
            .collect(),
        Step::Item => base
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
            .flat_map(|(n, inner)| on(Way::Item(n), inner))
            .collect(),
        Step::Name => {
            base.as_object().into_iter().flatten().map(|(key, _)| vec![Way::Rename(key.clone())]).collect()
        }
    }
}

/// A profile like `base` with `value` there.
fn with(base: &Value, way: &[Way], value: &str) -> Value {
    let Some((step, rest)) = way.split_first() else { return Value::from(value) };
    let map = || base.as_object().cloned().unwrap_or_default();
    match step {
        Way::Key(key) => {
            let mut map = map();
            let inner = with(map.get(key).unwrap_or(&json!([null])), rest, value);
            map.insert(key.clone(), inner);
            Value::Object(map)
        }
        Way::Only(key) => Value::Object(Map::from_iter([(key.clone(), with(&json!([null]), rest, value))])),
        Way::Item(n) => {
            let mut list = base.as_array().cloned().unwrap_or_default();
            if let Some(inner) = list.get_mut(*n) {
                *inner = with(inner, rest, value);
            }
            Value::Array(list)
        }
        Way::Rename(name) => Value::Object(
            map()
                .into_iter()
                .map(|(key, inner)| (if key == *name { value.to_owned() } else { key }, inner))
                .collect(),
        ),
    }
}

/// What is there.
fn text_at<'v>(base: &'v Value, way: &'v [Way]) -> Option<&'v str> {
    match way.split_first() {
        None => base.as_str(),
        Some((Way::Rename(name), _)) => Some(name),
        Some((Way::Key(key), rest)) => text_at(base.get(key)?, rest),
        Some((Way::Item(n), rest)) => text_at(base.get(n)?, rest),
        Some((Way::Only(_), _)) => None,
    }
}

/// Does the parser take it, and what does it say? JSON is YAML.
fn read(profile: &Value) -> Result<(), profile::Problems> {
    let source = Source::Text { name: "profile.yaml".to_owned(), text: profile.to_string() };
    profile::load(&source).and_then(|loaded| loaded.node()).map(drop)
}

/// Profiles that are right, and between them hold every key.
fn bases() -> Vec<Value> {
    let yaml = |text: &str| -> Value { serde_yaml::from_str(text).unwrap() };
    let file = |name: &str| fs::read_to_string(format!("tests/profiles/{name}.yaml")).unwrap();
    let mut bases = vec![yaml(
        "version: 1\nupstreams: { ghcr.io: { port: 5010 } }\ncache: { listen: 127.0.0.1, storage: { azure: { accountname: a, container: b, accountkey: { env: KEY } } } }\n",
    )];
    for case in ["007-ipv6", "005-mirrors", "186-objects-azure", "187-objects-gcs", "240-face", "262-up-3"] {
        bases.push(yaml(&fs::read_to_string(format!("tests/cases/{case}/profile.yaml")).unwrap()));
    }
    let engine = "version: 1\nupstreams: { ghcr.io: { port: 5010 } }\ncache: { engine: { ENGINE } }\n";
    bases.push(yaml(&engine.replace("ENGINE", "binary: /usr/local/bin/registry")));
    bases.push(yaml(&engine.replace("ENGINE", "container: podman, image: \"registry:3\"")));
    bases.push(yaml(support::SEED));
    bases.push(yaml(
        "version: 1\nupstreams: { ghcr.io: { port: 5010 } }\nnetwork: { addresses: [10.0.20.10/24] }\ncache: {}\ncontainerd: {}\n",
    ));
    bases.extend(["objects", "whole"].map(|name| yaml(&file(name))));
    // The small ones are read in less time.
    bases.sort_by_key(|base| base.to_string().len());
    bases
}

fn hostile() -> Vec<String> {
    let mut values: Vec<String> = [
        // White space and what ends a line somewhere.
        "",
        " ",
        "\t",
        "\n",
        "\r\n",
        "a\nb",
        "a\rb",
        "a\r\nb",
        "\na",
        "a\n",
        "a\u{85}b",
        "a\u{2028}b",
        "a\u{2029}b",
        "a\u{b}b",
        "a\u{c}b",
        "a b",
        " a",
        "a ",
        "a\u{a0}b",
        "a\u{3000}b",
        "/a\n/b",
        "/a b",
        // Structure of systemd's files, INI, TOML, YAML, JSON, nftables, shells.
        "a\n[Service]\nExecStart=/bin/sh",
        "/a\nExecStart=/bin/sh",
        "a]\n[b",
        "a\\\nb",
        "a\\",
        "%i",
        "%n",
        "%%",
        "a%Hb",
        "/a%t",
        "$HOME",
        "${HOME}",
        "`id`",
        "$(id)",
        "a;b",
        "a#b",
        "#a",
        "; a",
        "a=b",
        "[a]",
        "{a}",
        "{{ a }}",
        "{% a %}",
        "a'b",
        "a\"b",
        "'",
        "\"",
        "\"\"\"",
        "'''",
        "a\"\n[b]\nc=\"d",
        "a: b",
        "- a",
        "? a",
        "&a",
        "*a",
        "!!python/object/apply:os.system [id]",
        "!a",
        "|",
        ">",
        "---",
        "...",
        "<<",
        "a\n---\nb",
        "null",
        "~",
        "true",
        "yes",
        "no",
        "on",
        "off",
        "010",
        "0x1f",
        "1e3",
        "22:22",
        "12:34:56",
        ".inf",
        "1_000",
        "2026-11-21",
        "-",
        "--",
        "-a",
        "--help",
        "-rf",
        "@a",
        "@/etc/passwd",
        "a,b",
        "a|b",
        "a&b",
        "a>b",
        "a<b",
        "a*",
        "a?",
        "a!b",
        "(a)",
        "}",
        "drop; }",
        "accept } chain x {",
        // Paths.
        "..",
        ".",
        "/",
        "//",
        "/..",
        "../../etc/passwd",
        "/etc/../etc/shadow",
        "/a/./b",
        "/a//b",
        "a/b",
        "./a",
        "~/a",
        "/proc/self/root",
        "/proc/1/environ",
        "/dev/mem",
        "/dev/stdin",
        "/dev/zero",
        "/etc",
        "/usr",
        "/etc/passwd/",
        "/a\0b",
        "file:/etc/passwd",
        "file:///etc/passwd",
        "file:../x.tar",
        "file:",
        "unix:///run/docker.sock",
        "unix:/run/systemd/private",
        "C:\\a",
        "\\\\a\\b",
        // Characters that are not what they seem.
        "\0",
        "a\0b",
        "\u{1b}[31m",
        "\u{1b}]0;x\u{7}",
        "\u{7f}",
        "\u{9b}31m",
        "\u{feff}a",
        "a\u{200b}b",
        "a\u{200d}b",
        "a\u{ad}b",
        "\u{202e}moc.rchg",
        "a\u{2066}b",
        "gһcr.io",
        "ɡhcr.io",
        "ｇhcr.io",
        "ghcr。io",
        "ghcr․io",
        "ghcr.іo",
        "docker.ιo",
        "ghcr.io\u{301}",
        "ﬁle",
        "ß",
        "İ",
        "\u{fffd}",
        "\u{10ffff}",
        "😀",
        "٥",
        "xn--a",
        "GHCR.IO",
        "Ghcr.io",
        // Hosts and URLs.
        "localhost",
        "ghcr.io.",
        ".ghcr.io",
        "ghcr..io",
        "a_b.io",
        "-a.io",
        "a-.io",
        "ghcr.io:0",
        "ghcr.io:65536",
        "ghcr.io:",
        "ghcr.io:5000:5000",
        "ghcr.io/x",
        "user@ghcr.io",
        "ghcr.io@evil.io",
        "http://",
        "https://",
        "http:///",
        "https://a b",
        "https://a\nb",
        "https://a/../b",
        "https://a/%2e%2e/b",
        "https://a/b?c=d",
        "https://a/b#c",
        "https://user:pw@a.io",
        "https://a.io\\@b.io",
        "https://a.io:0",
        "https://a.io:99999",
        "https://a.io:80:80",
        "https://[::1",
        "https://::1",
        "https://[::1]x",
        "https://[fe80::1%eth0]",
        "https://[fe80::1%25eth0]",
        "http://169.254.169.254",
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:169.254.169.254]",
        "http://[::ffff:a9fe:a9fe]",
        "http://[64:ff9b::a9fe:a9fe]",
        "http://[2002:a9fe:a9fe::]",
        "http://2852039166",
        "http://0xa9fea9fe",
        "http://0251.0376.0251.0376",
        "http://169.254.0xa9fe",
        "http://0.0.0.0:5000",
        "http://[::]:5000",
        "http://metadata.google.internal",
        "http://100.100.100.200",
        "http://[fd00:ec2::254]",
        "http://localhost:5000",
        "http://127.0.0.1:5000",
        "http://127.1:5000",
        "http://0177.0.0.1:5000",
        "http://[::1]:5000",
        "http://224.0.0.1",
        "ftp://a.io",
        "gopher://a.io",
        "javascript:alert(1)",
        "https://a.io\r\nHost: b.io",
        "HTTPS://a.io",
        "https:a.io",
        "https:/a.io",
        "//a.io",
        "https://a.io./",
        "https://xn--/",
        "https://é.io",
        // Addresses and numbers.
        "0",
        "-1",
        "+1",
        "00",
        "1.5",
        "99999999999999999999999999",
        "18446744073709551616",
        "0.0.0.0",
        "0.0.0.0/0",
        "::/0",
        "::",
        "255.255.255.255",
        "255.255.255.255/32",
        "127.0.0.1",
        "127.0.0.1/8",
        "::1",
        "::1/128",
        "169.254.169.254",
        "169.254.169.254/16",
        "224.0.0.1",
        "224.0.0.1/4",
        "ff02::1",
        "fe80::1%eth0",
        "fe80::1%25eth0/64",
        "::ffff:10.0.20.10",
        "::ffff:10.0.20.10/120",
        "10.0.20.010/24",
        "10.0.20/24",
        "10.0.20.10/33",
        "10.0.20.10/-1",
        "10.0.20.10/024",
        "10.0.20.10/255.255.255.0",
        "1:2:3",
        "999.1.1.1",
        "00:00:00:00:00:00",
        "ff:ff:ff:ff:ff:ff",
        "52:54:00:12:34",
        "eth0\0",
        "eth0:1",
        "all",
        "default",
        "lo",
        "eth*",
        "../eth0",
        "GiB",
        "0GiB",
        "-1GiB",
        "1e9GiB",
        "99999999999999999999GiB",
        "18446744073709551615TiB",
        "1 GiB x",
        "0s",
        "-1s",
        "1000000h",
        "1s1s1s1s",
        "Sun 03:00; reboot",
        "*-*-* *:*:*\nUnit=reboot.target",
        "minutely",
        "Sun 99:99",
        "@0",
        "2020-01-01",
        "* * * * *",
        "-----BEGIN CERTIFICATE-----",
        "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n[Service]\n",
        "registry:3 --privileged",
        "--privileged",
        "-v/:/host registry:3",
        "registry:3\n--privileged",
        "registry:3@",
        "docker://x",
        "LD_PRELOAD",
        "PATH",
        "A=B",
        "X-A: b",
        "Host",
        "Content-Length",
    ]
    .map(str::to_owned)
    .to_vec();
    values.extend(
        ["a", "/a", "https://a.io/", "a.", "9", " ", "\n", "[", "{", "\""]
            .map(|one| one.repeat(4096 / one.len())),
    );
    values.push("a".repeat(300));
    values.push(format!("{}.io", "a".repeat(64)));
    // Every control character, alone in the midst of what is right.
    values.extend((0..32_u8).map(|c| format!("/a{}b", c as char)));
    values
}

/// A machine with one manager of the network, and every program that a profile may name.
fn machine(manager: &str) -> Machine {
    let machine = Machine::debian();
    machine.program(
        "usr/local/bin/registry",
        "github.com/distribution/distribution/v3/cmd/registry v3.1.1+s3-aws+azure+gcs",
    );
    for name in ["usr/bin/podman", "usr/bin/docker", "usr/sbin/nft", "usr/bin/docker-credential-ecr-login"] {
        machine.program(name, "example.com/any");
    }
    match manager {
        "netplan" => machine.program("usr/sbin/netplan", "example.com/any"),
        "networkmanager" => {
            machine.program("usr/bin/nmcli", "example.com/any");
            machine.link(
                "etc/systemd/system/multi-user.target.wants/NetworkManager.service",
                "/lib/systemd/system/NetworkManager.service",
            );
        }
        "ifupdown" => {
            for name in ["ifup", "ifdown", "ifquery"] {
                machine.program(&format!("usr/sbin/{name}"), "example.com/any");
            }
            machine.write(
                "etc/network/interfaces",
                "source /etc/network/interfaces.d/*\nauto lo\niface lo inet loopback\n",
            );
        }
        _ => {}
    }
    for path in ["etc/larder/secrets/dockerhub", "etc/larder/secrets/example"] {
        machine.write(path, "secret");
    }
    machine
}

/// What a reader makes of a file: the way to each value, and the value.
fn leaves(path: &str, text: &str) -> Vec<(String, String)> {
    fn walk(at: String, value: &Value, out: &mut Vec<(String, String)>) {
        match value {
            Value::Object(map) => {
                map.iter().for_each(|(key, inner)| walk(format!("{at}\u{1}{key}"), inner, out))
            }
            Value::Array(list) => {
                list.iter().enumerate().for_each(|(n, inner)| walk(format!("{at}\u{1}{n}"), inner, out));
            }
            Value::String(text) => out.push((at, text.clone())),
            other => out.push((at, other.to_string())),
        }
    }
    let mut out = Vec::new();
    let end = path.rsplit('.').next().unwrap();
    match end {
        "yml" | "yaml" => walk(
            String::new(),
            &serde_yaml::from_str(text).unwrap_or_else(|e| panic!("{path}: {e}\n{text}")),
            &mut out,
        ),
        "json" => walk(
            String::new(),
            &serde_json::from_str(text).unwrap_or_else(|e| panic!("{path}: {e}")),
            &mut out,
        ),
        "toml" => walk(
            String::new(),
            &toml::from_str(text).unwrap_or_else(|e| panic!("{path}: {e}\n{text}")),
            &mut out,
        ),
        // systemd.syntax(7) and the key file format of GLib; systemd.exec(5), EnvironmentFile=.
        "service" | "socket" | "timer" | "path" | "conf" | "network" | "nmconnection" | "env" => {
            let mut section = String::new();
            let mut lines = text.lines();
            while let Some(line) = lines.next() {
                let mut line = line.to_owned();
                while line.ends_with('\\') && end != "env" {
                    line.push_str(lines.next().unwrap_or_default());
                }
                let line = line.trim_start();
                if line.is_empty() || line.starts_with(['#', ';']) {
                    continue;
                }
                if line.starts_with('[') {
                    section = line.to_owned();
                } else {
                    let (key, value) = line.split_once(['=', ' ']).unwrap_or((line, ""));
                    out.push((format!("{section}\u{1}{key}"), value.to_owned()));
                }
            }
        }
        _ => {
            for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
                let (word, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
                out.push((word.to_owned(), rest.to_owned()));
            }
        }
    }
    out
}

type Shape = BTreeMap<String, Vec<String>>;

/// Each file and the ways to its values, without the values, and without the text that was tried.
fn shape(files: &BTreeMap<String, String>, value: &str) -> Shape {
    let without = |text: &str| match value {
        "" => text.to_owned(),
        value => text.replace(value, "VALUE").replace(&value.to_ascii_lowercase(), "VALUE"),
    };
    files
        .iter()
        .filter(|(path, _)| {
            path.starts_with("etc/larder/registry/")
                || path.starts_with("etc/containerd/")
                || path.contains(".d/")
                || path.contains("/system-connections/")
        })
        .map(|(path, text)| {
            let mut all: Vec<String> = leaves(path, text).into_iter().map(|(at, _)| without(&at)).collect();
            all.sort();
            (without(path), all)
        })
        .collect()
}

/// Every file that shall be there.
fn rendered(machine: &Machine, profile: &Value) -> Result<BTreeMap<String, String>, String> {
    let source = Source::Text { name: "profile.yaml".to_owned(), text: profile.to_string() };
    let (node, _) = profile::load(&source).and_then(|loaded| loaded.node()).map_err(|p| p.to_string())?;
    let root = Root::open(machine.root()).unwrap();
    let facts = facts::read(&root, &Image::Tree, &node, None).map_err(|e| e.to_string())?;
    let plan = plan::plan(&node, &facts).map_err(|e| e.to_string())?;
    let text = |resource: Resource| match resource {
        Resource::File { bytes, .. } => Some(String::from_utf8(bytes).unwrap()),
        _ => None,
    };
    Ok(plan.resources.into_iter().filter_map(|(path, resource)| Some((path, text(resource)?))).collect())
}

fn all() -> Vec<Place> {
    let mut all = Vec::new();
    places(&larder::node::schema(), &[], &mut all);
    all.sort_by(|a, b| a.steps.cmp(&b.steps));
    all.dedup_by(|later, first| {
        let same = later.steps == first.steps;
        if same {
            first.examples.append(&mut later.examples);
        }
        same
    });
    all
}

/// A profile that is right with some text at the place: its own, or one of the schema's examples.
fn carrier(place: &Place, bases: &[Value]) -> Option<(Value, Vec<Way>, String)> {
    bases.iter().find_map(|base| {
        ways(base, &place.steps).into_iter().find_map(|way| {
            let own = text_at(base, &way).map(str::to_owned);
            let texts = own.iter().chain(&place.examples).map(String::as_str).chain([
                "any-text",
                "/etc/any",
                "a.example",
            ]);
            let text = texts.into_iter().find(|text| read(&with(base, &way, text)).is_ok())?.to_owned();
            Some((base.clone(), way, text))
        })
    })
}

fn carriers() -> Vec<(Place, Value, Vec<Way>, String)> {
    let bases = bases();
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for place in all() {
        match carrier(&place, &bases) {
            Some((base, way, text)) => found.push((place, base, way, text)),
            None => missing.push(place.shown()),
        }
    }
    assert!(missing.is_empty(), "no profile here is right with a text at {missing:#?}");
    found
}

#[test]
fn every_key_refuses_hostile_text_or_shows_it_as_itself() {
    let hostile = hostile();
    assert!(hostile.len() > 100);
    let carriers = carriers();
    assert!(carriers.len() > 50, "{} places: the schema has more", carriers.len());
    let mut wrong = Vec::new();
    let (mut refused, mut taken) = (0, BTreeMap::<String, BTreeSet<String>>::new());
    for (place, base, way, _) in &carriers {
        for value in &hostile {
            match read(&with(base, way, value)) {
                Err(report) => {
                    refused += 1;
                    let shown = |c: char| {
                        (c.is_control() && c != '\n') || "\u{202e}\u{2066}\u{200b}\u{feff}".contains(c)
                    };
                    // To show it takes longer than to read it.
                    if value.contains(shown) && report.to_string().contains(shown) {
                        wrong.push(format!("{} {value:?}: shown as it is", place.shown()));
                    }
                }
                Ok(()) => {
                    taken.entry(place.shown()).or_default().insert(value.clone());
                }
            }
        }
    }
    println!("{} places, {} values each: {refused} refused", carriers.len(), hostile.len());
    let mut shown = 0;
    let machines: BTreeMap<&str, Machine> = ["networkd", "netplan", "networkmanager", "ifupdown"]
        .into_iter()
        .map(|name| (name, machine(name)))
        .collect();
    for (place, base, way, own) in carriers.iter().filter(|(place, ..)| taken.contains_key(&place.shown())) {
        let managers: &[&str] = match place.steps.first() {
            Some(Step::Key(key)) if key == "network" => {
                &["networkd", "netplan", "networkmanager", "ifupdown"]
            }
            _ => &["networkd"],
        };
        for manager in managers {
            let machine = &machines[manager];
            // Other than the defaults, for which there may be no file at all.
            let others = ["/srv/any", "Sun 05:00"].map(str::to_owned);
            let texts: BTreeSet<&String> = [own].into_iter().chain(&place.examples).chain(&others).collect();
            let usual: Vec<_> = texts
                .into_iter()
                .filter(|text| read(&with(base, way, text)).is_ok())
                .filter_map(|text| Some((text, rendered(machine, &with(base, way, text)).ok()?)))
                .collect();
            if usual.is_empty() {
                continue;
            }
            for value in taken.get(&place.shown()).into_iter().flatten() {
                let Ok(files) = rendered(machine, &with(base, way, value)) else { continue };
                shown += 1;
                let name = place.shown();
                // Where the text is a part of names, the names are others.
                let got = [shape(&files, ""), shape(&files, value)];
                let same = usual
                    .iter()
                    .any(|(own, usual)| shape(usual, "") == got[0] || shape(usual, own) == got[1]);
                let is_in_others = usual.iter().any(|(_, files)| {
                    let words = [value.as_str(), &value.to_ascii_lowercase()];
                    let names = shape(files, "");
                    let mut names = names.iter().flat_map(|(path, keys)| [path].into_iter().chain(keys));
                    names.any(|name| words.iter().any(|word| name.contains(word)))
                });
                if !same && !is_in_others && !name.ends_with(".engine.image") {
                    let differs = usual.iter().map(|(own, usual)| difference(&shape(usual, own), &got[1]));
                    wrong.push(format!("{name} {manager} {value:?}: {:?}", differs.collect::<Vec<_>>()));
                }
                if is_verbatim(&name)
                    && !files.iter().any(|(path, text)| has(path, text, value))
                    && usual.iter().any(|(own, files)| files.iter().any(|(path, text)| has(path, text, own)))
                {
                    wrong.push(format!("{name}: {value:?} is in no file as itself"));
                }
            }
        }
    }
    println!("{shown} taken and rendered");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(shown > 50, "{shown}");
}

/// Texts that may hold anything, and have to arrive as they are.
fn is_verbatim(name: &str) -> bool {
    name.ends_with(".password")
        || name.ends_with("key")
        || name.ends_with(".headers.*")
        || name.ends_with(".secret")
}

fn has(path: &str, text: &str, value: &str) -> bool {
    path.starts_with("etc/")
        && ["yml", "yaml", "toml", "env"].contains(&path.rsplit('.').next().unwrap_or_default())
        && leaves(path, text).iter().any(|(_, leaf)| {
            // systemd.exec(5), EnvironmentFile=: single quotes keep all that is in them.
            let leaf = leaf.strip_prefix('\'').and_then(|leaf| leaf.strip_suffix('\'')).unwrap_or(leaf);
            leaf == value
        })
}

fn difference(usual: &Shape, got: &Shape) -> Vec<String> {
    let paths: BTreeSet<&String> = usual.keys().chain(got.keys()).collect();
    paths.into_iter().filter(|path| usual.get(*path) != got.get(*path)).cloned().collect()
}

#[test]
fn what_is_refused_touches_nothing() {
    let machine = machine("networkd");
    let before = machine.tree();
    let hostile = hostile();
    let mut seen = 0;
    // Another text for each key: together they are all tried.
    for (n, (place, base, way, _)) in carriers().iter().enumerate() {
        for value in hostile.iter().skip(n % 40).step_by(40) {
            let profile = with(base, way, value);
            if read(&profile).is_ok() {
                continue;
            }
            let output = machine.larder(&["apply"], &profile.to_string());
            assert_eq!(output.status.code(), Some(2), "{} {value:?}: {}", place.shown(), text(&output));
            seen += 1;
        }
    }
    assert_eq!(machine.tree(), before, "a refused profile has touched something");
    assert!(seen > 300, "{seen}");
}

#[test]
fn what_is_too_large_or_too_deep_is_refused_at_once() {
    let many = |count: usize, one: &dyn Fn(usize) -> String| (0..count).map(one).collect::<String>();
    let laughs = format!(
        "a: &a [x]\n{}",
        many(30, &|n| format!("b{n}: &b{n} [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n"))
    );
    for (what, text) in [
        ("lists", "[".repeat(100_000)),
        ("maps", "{a: ".repeat(100_000)),
        ("blocks", many(10_000, &|n| format!("{}a:\n", " ".repeat(n.min(2_000))))),
        ("sequences", "- ".repeat(100_000)),
        ("aliases", laughs),
        ("values", format!("a: [{}]", "0,".repeat(200_000))),
        ("keys", many(150_000, &|n| format!("k{n}: 1\n"))),
        ("a long key", format!("{}: 1", "k".repeat(900_000))),
        ("a long value", format!("version: {}", "1".repeat(900_000))),
        ("anchors", many(50_000, &|n| format!("a{n}: &a{n} 1\n"))),
        ("tags", many(50_000, &|n| format!("a{n}: !!str 1\n"))),
        ("documents", "---\na: 1\n".repeat(50_000)),
        ("comments", "#\n".repeat(400_000)),
        ("quotes", format!("a: \"{}", "\\x41".repeat(200_000))),
        ("folds", format!("a: >\n{}", "  x\n\n".repeat(100_000))),
        ("duplicates", "a: 1\n".repeat(150_000)),
    ] {
        // No more is ever read.
        let text = text.chars().take(1 << 20).collect();
        let source = Source::Text { name: "profile.yaml".to_owned(), text };
        let started = support::own_time();
        let report = match profile::load(&source).and_then(|loaded| loaded.node()) {
            Ok(_) => panic!("{what}: taken"),
            Err(problems) => problems.to_string(),
        };
        assert!(report.len() < 1 << 20, "{what}: a report of {} bytes", report.len());
        let took = support::own_time() - started;
        println!("{what}: {took:?}");
        // Without optimisation: seconds. What is not bounded takes hours.
        assert!(took.as_secs() < 60, "{what}: {took:?}");
    }
    let machine = Machine::debian();
    machine.write("large.yaml", "# \n".repeat(400_000));
    let output =
        machine.command(&["check"]).arg("--profile").arg(machine.path("large.yaml")).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}
