#![allow(clippy::disallowed_methods, reason = "a test may")]

use proptest::prelude::*;

use super::*;

const V1_6: Version = Version::new(1, 6, 20);
const V1_7: Version = Version::new(1, 7, 24);
const V2_0: Version = Version::new(2, 0, 11);
const V2_1: Version = Version::new(2, 1, 9);
const V2_2: Version = Version::new(2, 2, 7);
const ALL: [Version; 6] = [V1_6, V1_7, Version::new(1, 7, 32), V2_0, V2_1, V2_2];
const ONE: [Version; 2] = [V1_6, V1_7];
const TWO: [Version; 3] = [V2_0, V2_1, V2_2];
const PEM: &str = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n";

const CONFIG: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";

fn resolve_with(version: Version, config: &str, host: &str, files: &[(&str, &str)]) -> Resolution {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("etc/containerd");
    std::fs::create_dir_all(base.join("certs.d")).unwrap();
    std::fs::write(base.join("config.toml"), config).unwrap();
    for (path, text) in files {
        let path = base.join("certs.d").join(path);
        if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            std::fs::create_dir_all(path).unwrap();
        } else {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }
    let root = Root::open(dir.path()).unwrap();
    let effective = Effective::read(&root, version).unwrap();
    assert!(effective.is_up(), "{version}: {:?} {:?}", effective.fatal, effective.cri_down);
    endpoints(&effective, &root, host).unwrap()
}

fn resolve(version: Version, host: &str, files: &[(&str, &str)]) -> Resolution {
    resolve_with(version, CONFIG, host, files)
}

/// The endpoints, each with what is unusual about it.
fn show(found: &Resolution) -> String {
    if found.fails.is_some() {
        return "fails".to_owned();
    }
    let show = |asked: &Asked| {
        let mut text = asked.url.replace("://", ":");
        if !asked.resolves() {
            text.push_str(" unasked");
        }
        if asked.then_http {
            text.push_str(" or http");
        }
        text
    };
    found.endpoints.iter().map(show).collect::<Vec<_>>().join(", ")
}

fn trapped(found: &Resolution, text: &str) -> bool {
    found.traps.iter().any(|note| note.to_string().contains(text))
}

const MIRROR: &str = "[host.\"http://m:5000\"]\ncapabilities = [\"pull\", \"resolve\"]\n";
const R: &str = "https:r.example/v2";

/// One hosts.toml of r.example each: on which containerds, the endpoints, and a word of a trap.
const HOSTS: [(&str, &str, &[Version], &str, &str); 41] = [
    ("a mirror", MIRROR, &ALL, "http:m:5000/v2, https:r.example/v2", ""),
    ("and a server", "server = \"https://s\"\n[host.\"http://m\"]\n", &ALL, "http:m/v2, https:s/v2", ""),
    (
        "in the file's order",
        "[host.\"http://b\"]\n[host.\"http://a\"]\n",
        &ALL,
        "http:b/v2, http:a/v2, https:r.example/v2",
        "",
    ),
    ("a server alone", "server = \"https://s\"\n", &[V1_6, V1_7], R, "containerd takes nothing of this file"),
    (
        "a server alone",
        "server = \"https://s\"\n",
        &[Version::new(1, 7, 32), V2_0, V2_1, V2_2],
        "https:s/v2",
        "",
    ),
    ("no TOML", "server = \n", &ALL, R, ":1: containerd takes nothing of this file"),
    (
        "an unknown capability",
        "[host.\"http://m\"]\ncapabilities = [\"pul\"]\n",
        &ALL,
        R,
        ":2: containerd takes nothing of this file: unknown capability \"pul\"",
    ),
    (
        "referrers",
        "[host.\"http://m\"]\ncapabilities = [\"pull\", \"resolve\", \"referrers\"]\n",
        &[V1_6, V1_7, V2_0, V2_1],
        R,
        "unknown capability",
    ),
    (
        "referrers",
        "[host.\"http://m\"]\ncapabilities = [\"PULL\", \"resolve\", \"referrers\"]\n",
        &[V2_2],
        "http:m/v2, https:r.example/v2",
        "",
    ),
    (
        "capabilities as a text",
        "[host.\"http://m\"]\ncapabilities = \"pull\"\n",
        &ALL,
        R,
        "capabilities: wanted a list of texts, got a text",
    ),
    (
        "skip_verify as a text",
        "[host.\"http://m\"]\nskip_verify = \"yes\"\n",
        &ALL,
        R,
        "skip_verify: wanted true or false",
    ),
    ("a header of numbers", "[host.\"http://m\".header]\nX = 1\n", &ALL, R, "header.X: wanted"),
    (
        "an endpoint for blobs",
        "[host.\"http://m\"]\ncapabilities = [\"pull\"]\n",
        &ALL,
        "http:m/v2 unasked, https:r.example/v2",
        "",
    ),
    ("no capability", "[host.\"http://m\"]\ncapabilities = []\n", &ALL, "http:m/v2, https:r.example/v2", ""),
    (
        "a server that is only pushed to",
        "server = \"https://s\"\ncapabilities = [\"push\"]\n[host.\"http://m\"]\n",
        &ALL,
        "http:m/v2, https:s/v2 unasked",
        "",
    ),
    (
        "capabilities of no server",
        "capabilities = [\"push\"]\n[host.\"http://m\"]\n",
        &ALL,
        "http:m/v2, https:r.example/v2",
        "belong to `server`, which is missing",
    ),
    ("a path", "[host.\"http://m/p/\"]\n", &ALL, "http:m/p/v2, https:r.example/v2", ""),
    ("a path that ends in v2", "[host.\"http://m/p/v2/\"]\n", &ALL, "http:m/p/v2, https:r.example/v2", ""),
    (
        "a whole path",
        "[host.\"http://m/v2/p\"]\noverride_path = true\n",
        &ALL,
        "http:m/v2/p, https:r.example/v2",
        "",
    ),
    (
        "a whole path without saying so",
        "[host.\"http://m/v2/p\"]\n",
        &ALL,
        "http:m/v2/p/v2, https:r.example/v2",
        "override_path = true",
    ),
    ("no path at all", "[host.\"http://m\"]\noverride_path = true\n", &ALL, "http:m, https:r.example/v2", ""),
    ("a slash", "[host.\"http://m/\"]\n", &ALL, "http:m/v2, https:r.example/v2", ""),
    ("no scheme", "[host.\"m:5000\"]\n", &ALL, "https:m:5000/v2, https:r.example/v2", ""),
    (
        "a name that begins like a scheme",
        "[host.\"httpd.example:5000\"]\n",
        &ALL,
        R,
        "is not the URL that it seems to be",
    ),
    (
        "a scheme in upper case",
        "server = \"HTTPS://s\"\n[host.\"http://m\"]\n",
        &ALL,
        "http:m/v2, https:HTTPS:/s/v2",
        "is not the URL that it seems to be",
    ),
    (
        "user and query",
        "[host.\"http://u:p@m/?x=1\"]\n",
        &ALL,
        "http:m/v2, https:r.example/v2",
        "containerd drops",
    ),
    ("an IPv6 address", "[host.\"http://[::1]:5000\"]\n", &ONE, R, "IPv6"),
    ("an IPv6 address", "[host.\"http://[::1]:5000\"]\n", &TWO, "http:[::1]:5000/v2, https:r.example/v2", ""),
    (
        "an IPv6 server",
        "server = \"http://[::1]:5000\"\n[host.\"http://m\"]\n",
        &ALL,
        "http:m/v2, http:[::1]:5000/v2",
        "",
    ),
    ("an inline host", "host = { \"http://m\" = {} }\n", &TWO, R, "only hosts with a [host.\"URL\"] header"),
    ("an inline host", "host = { \"http://m\" = {} }\n", &ONE, "http:m/v2, https:r.example/v2", ""),
    (
        "dotted keys",
        "host.\"http://m\".skip_verify = false\n",
        &TWO,
        R,
        "only hosts with a [host.\"URL\"] header",
    ),
    (
        "below [host]",
        "[host]\n\"http://b\".override_path = false\n\"http://a\" = {}\n",
        &ONE,
        "http:a/v2, http:b/v2, https:r.example/v2",
        "",
    ),
    (
        "a table after another host's",
        "[host.\"http://a\"]\n[host.\"http://b\"]\n[host.\"http://a\".header]\nX = \"y\"\n",
        &TWO,
        "http:a/v2, http:b/v2, http:a/v2, https:r.example/v2",
        "ask it twice",
    ),
    (
        "a table after another host's",
        "[host.\"http://a\"]\n[host.\"http://b\"]\n[host.\"http://a\".header]\nX = \"y\"\n",
        &ONE,
        "http:a/v2, http:b/v2, https:r.example/v2",
        "",
    ),
    (
        "a header table first",
        "[host.\"http://a\".header]\n[host.\"http://b\"]\n[host.\"http://a\"]\n",
        &ONE,
        "http:a/v2, http:b/v2, https:r.example/v2",
        "",
    ),
    ("no table at all", "host = \"http://m\"\n", &ALL, R, "host: wanted a table"),
    ("two that are no tables", "[host]\na = 1\nb = 2\n", &ONE, "fails", ""),
    (
        "server below a table",
        "[host.\"http://m\"]\nserver = \"https://s\"\n",
        &ALL,
        "http:m/v2, https:r.example/v2",
        "server stands below",
    ),
    (
        "a key that nobody knows",
        "[host.\"http://m\"]\nauth = { credHelper = \"x\" }\n",
        &ALL,
        "http:m/v2, https:r.example/v2",
        "auth: containerd knows no such key",
    ),
    ("a mark", "\u{feff}[host.\"http://m\"]\n", &TWO, R, "byte order mark"),
];

#[test]
fn hosts_files() {
    for (what, text, versions, wanted, trap) in HOSTS {
        for version in versions {
            let found = resolve(*version, "r.example", &[("r.example/hosts.toml", text)]);
            assert_eq!(show(&found), wanted, "{what} on {version}");
            assert!(
                if trap.is_empty() { found.traps.is_empty() } else { trapped(&found, trap) },
                "{what} on {version}: wanted {trap:?}, got {:?}",
                found.traps
            );
        }
    }
}

#[test]
fn http_with_tls_settings_is_asked_by_https_first() {
    let with = |option: &str| format!("[host.\"http://m:5000\"]\n{option}\n");
    for (option, port, versions) in [
        ("skip_verify = false", "5000", &[V1_7, V2_0, V2_1, V2_2][..]),
        ("skip_verify = true", "80", &[]),
        ("ca = []", "5000", &[V1_7, V2_0, V2_1, V2_2]),
        ("dial_timeout = \"1s\"", "5000", &[V2_0]),
        ("header = { X = \"y\" }", "5000", &[]),
    ] {
        for version in [V1_6, V1_7, V2_0, V2_1, V2_2] {
            let text = with(option).replace("5000", port);
            let found = resolve(version, "r.example", &[("r.example/hosts.toml", &text)]);
            let wanted = versions.contains(&version);
            assert_eq!(
                found.endpoints[0].then_http,
                wanted,
                "{option} {port} on {version}: {}",
                show(&found)
            );
            assert!(!wanted || trapped(&found, "try https first"), "{option} on {version}");
        }
    }
}

#[test]
fn notes_stand_on_the_line_of_their_key() {
    let text = "capabilities = [\"push\"]\n[host.\"http://m:5000\"]\n\nskip_verify = true\n[host.\"https://n\"]\nca = 1\n";
    let lines = |text: &str| {
        let found = resolve(V1_7, "r.example", &[("r.example/hosts.toml", text)]);
        found.traps.iter().chain(&found.fails).filter_map(|note| note.origin.line).collect::<Vec<_>>()
    };
    assert_eq!(lines(&text.replace("ca = 1", "")), [4, 1]);
    assert_eq!(lines(text), [6]);
    assert_eq!(lines(&text.replace("ca = 1", "ca = \"/none\"")), [4, 1, 6]);
}

#[test]
fn no_password_is_told() {
    for text in [
        "[host.\"http://u:geheim@m/v2/x\"]\nnonsense = 1\n",
        "[host.\"http://u:geheim@m:x\"]\n",
        "[host.\"HTTP://u:geheim@m\"]\n[host.\"http://n\"]\n[host.\"HTTP://u:geheim@m\".header]\n",
        "server = \"u:geheim@s\"\n[host]\n\"http://u:geheim@m\" = {}\n",
        "[host.\"http://m\".header]\nAuthorization = [\"geheim\", 1]\n",
    ] {
        for version in ALL {
            let found = resolve(version, "r.example", &[("r.example/hosts.toml", text)]);
            let told =
                format!("{:?} {:?} {:?} {:?}", found.traps, found.ignored, found.fails, found.endpoints);
            assert!(!told.contains("geheim"), "{version}: {told}");
        }
    }
}

#[test]
fn broken_toml_may_crash_1_6() {
    for version in ALL {
        let found = resolve(version, "r.example", &[("r.example/hosts.toml", "server = \n[host.\"a\"]\n")]);
        assert_eq!(trapped(&found, "even crash"), version == V1_6, "{version}: {:?}", found.traps);
    }
}

#[test]
fn dial_timeout_by_version() {
    let file = |value: &str| format!("[host.\"https://m\"]\ndial_timeout = {value}\n");
    for (value, old, new) in
        [("\"1s\"", true, true), ("\"1\"", true, false), ("5", true, false), ("\"\"", true, true)]
    {
        for version in ALL {
            let found = resolve(version, "r.example", &[("r.example/hosts.toml", &file(value))]);
            let read = found.endpoints.len() == 2;
            assert_eq!(read, if version.has_dial_timeout() { new } else { old }, "{value} on {version}");
        }
    }
    let found = resolve(V1_7, "r.example", &[("r.example/hosts.toml", &file("\"1s\""))]);
    assert!(found.endpoints[0].dial_timeout.is_none() && found.ignored.len() == 1 && found.traps.is_empty());
}

#[test]
fn directories_in_the_order_of_containerd() {
    let files = [
        ("r.example_5000_/hosts.toml", "[host.\"http://under\"]"),
        ("r.example:5000/hosts.toml", "[host.\"http://colon\"]"),
        ("_default/hosts.toml", "[host.\"http://default\"]"),
    ];
    for version in ALL {
        for (present, wanted) in [
            (&files[..], "http:under/v2"),
            (&files[1..], "http:colon/v2"),
            (&files[2..], "http:default/v2"),
            (&[], ""),
        ] {
            let found = resolve(version, "r.example:5000", present);
            let upstream = "https:r.example:5000/v2";
            let wanted =
                if wanted.is_empty() { upstream.to_owned() } else { format!("{wanted}, {upstream}") };
            assert_eq!(show(&found), wanted, "{version}");
        }
    }
}

#[test]
fn what_masks_the_default() {
    for (file, text, trap) in [
        ("r.example/", "", "certs.d/r.example: no hosts.toml"),
        ("r.example/hosts.toml", "", "hosts.toml: an empty hosts.toml"),
        ("r.example/hosts.toml", "# nothing\n", "hosts.toml: "),
    ] {
        for version in ALL {
            let found = resolve(version, "r.example", &[(file, text), ("_default/hosts.toml", MIRROR)]);
            assert_eq!(show(&found), R, "{file} on {version}");
            assert!(
                trapped(&found, trap)
                    && (trapped(&found, "_default is not looked at")
                        || trapped(&found, "takes nothing of this file")),
                "{:?}",
                found.traps
            );
        }
    }
}

#[test]
fn what_makes_every_pull_fail() {
    let ca = |value: &str| format!("[host.\"https://m\"]\nca = {value}\n");
    let client = |value: &str| format!("[host.\"https://m\"]\nclient = {value}\n");
    for (what, files, wanted) in [
        ("no CA file", vec![("r.example/hosts.toml", ca("\"/none.pem\""))], false),
        (
            "a CA file without certificate",
            vec![("r.example/hosts.toml", ca("\"x.pem\"")), ("r.example/x.pem", KEY.into())],
            false,
        ),
        (
            "a CA file",
            vec![("r.example/hosts.toml", ca("[\"x.pem\"]")), ("r.example/x.pem", PEM.into())],
            true,
        ),
        (
            "no client key",
            vec![("r.example/hosts.toml", client("\"x.pem\"")), ("r.example/x.pem", PEM.into())],
            false,
        ),
        (
            "a client pair",
            vec![
                ("r.example/hosts.toml", client("[[\"x.pem\", \"y.pem\"]]")),
                ("r.example/x.pem", PEM.into()),
                ("r.example/y.pem", KEY.into()),
            ],
            true,
        ),
        ("a file for a directory", vec![("r.example", String::new())], false),
        ("a directory for a file", vec![("r.example/hosts.toml/", String::new())], false),
    ] {
        for version in ALL {
            let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
            let found = resolve(version, "r.example", &files);
            assert_eq!(found.fails.is_none(), wanted, "{what} on {version}: {:?}", found.fails);
        }
    }
}

#[test]
fn client_of_three_is_rejected() {
    let text = "[host.\"https://m\"]\nclient = [[\"a\", \"b\", \"c\"]]\n";
    for version in ALL {
        let found = resolve(version, "r.example", &[("r.example/hosts.toml", text)]);
        assert!(trapped(&found, "wanted a pair") && show(&found) == R, "{version}");
    }
}

#[test]
fn certificates_as_docker_lays_them_out() {
    for version in ALL {
        let found = resolve(
            version,
            "r.example",
            &[
                ("r.example/ca.crt", PEM),
                ("r.example/c.cert", PEM),
                ("r.example/c.key", KEY),
                ("r.example/lost.key", KEY),
            ],
        );
        assert_eq!(show(&found), R);
        let asked = &found.endpoints[0];
        assert_eq!(asked.ca, ["/etc/containerd/certs.d/r.example/ca.crt"]);
        assert_eq!(asked.client.len(), 1);
        assert!(trapped(&found, "lost.key: not looked at"));
        let beside =
            resolve(version, "r.example", &[("r.example/ca.crt", PEM), ("r.example/hosts.toml", MIRROR)]);
        assert!(beside.endpoints[1].ca.is_empty() && trapped(&beside, "not looked at beside a hosts.toml"));
        let rejected =
            resolve(version, "r.example", &[("r.example/ca.crt", PEM), ("r.example/hosts.toml", "x")]);
        assert_eq!(rejected.endpoints[0].ca.len(), 1, "the certificates count where hosts.toml does not");
    }
}

#[test]
fn the_registry_itself() {
    for (host, old, new) in [
        ("docker.io", "https:registry-1.docker.io/v2", "https:registry-1.docker.io/v2"),
        ("ghcr.io", "https:ghcr.io/v2", "https:ghcr.io/v2"),
        ("127.0.0.1:5000", "http:127.0.0.1:5000/v2", "https:127.0.0.1:5000/v2 or http"),
        ("localhost:80", "http:localhost:80/v2", "http:localhost:80/v2"),
        ("localhost", "http:localhost/v2", "https:localhost/v2"),
        ("[::1]:443", "http:[::1]:443/v2", "https:[::1]:443/v2"),
    ] {
        for version in ALL {
            let wanted = if version == V1_6 { old } else { new };
            assert_eq!(show(&resolve(version, host, &[])), wanted, "{version}");
        }
    }
}

#[test]
fn without_config_path() {
    for (host, local, transfer) in [
        ("127.0.0.1:5000", "http:127.0.0.1:5000/v2", "https:127.0.0.1:5000/v2 or http"),
        ("docker.io", "https:registry-1.docker.io/v2", "https:registry-1.docker.io/v2"),
    ] {
        for version in [V1_6, V1_7, V2_0, V2_1] {
            let found = resolve_with(version, "version = 2\n", host, &[("_default/hosts.toml", MIRROR)]);
            assert_eq!(show(&found), if version < V2_1 { local } else { transfer }, "{version}");
        }
    }
}

#[test]
fn two_directories() {
    let config = CONFIG.replace("/certs.d\"", "/certs.d:/etc/docker/certs.d\"");
    for version in ALL {
        let found = resolve_with(version, &config, "r.example", &[("r.example/hosts.toml", MIRROR)]);
        let transfer = version >= V2_1;
        assert_eq!(found.endpoints.len(), if transfer { 1 } else { 2 }, "{version}");
        assert_eq!(
            trapped(&found, "/config.toml:3: config_path is"),
            transfer,
            "{version}: {:?}",
            found.traps
        );
    }
    let built_in = resolve_with(V2_2, "version = 3\n", "r.example", &[("r.example/hosts.toml", MIRROR)]);
    assert!(trapped(&built_in, "built in") && built_in.decided_by.is_none());
}

#[test]
fn the_namespace_that_is_sent() {
    let text =
        "server = \"https://registry-1.docker.io\"\n[host.\"http://m\"]\n[host.\"https://docker.io\"]\n";
    for version in ALL {
        let found = resolve(version, "docker.io", &[("docker.io/hosts.toml", text)]);
        let sent: Vec<_> = found.endpoints.iter().map(|asked| asked.namespace.as_deref()).collect();
        assert_eq!(sent, [Some("docker.io"), None, None], "{version}");
    }
}

#[test]
fn directories_that_nobody_looks_at() {
    let unset = "version = 2\n";
    let other = CONFIG.replace("/etc/containerd/certs.d", "/etc/other");
    let legacy =
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"*\"]\nendpoint = []\n";
    for (what, config, host, directory, trap) in [
        ("Docker Hub by another name", CONFIG, "docker.io", "registry-1.docker.io", "look only in docker.io"),
        ("a host without its port", CONFIG, "r.example:5000", "r.example", "whose name has a port"),
        (
            "no config_path",
            unset,
            "r.example",
            "r.example",
            "certs.d/r.example: not looked at: config_path is",
        ),
        ("another config_path", &*other, "r.example", "_default", "not looked at: config_path is /etc/other"),
        ("legacy mirrors", legacy, "r.example", "r.example", "not looked at: config_path is not set"),
    ] {
        for version in ALL {
            let file = format!("{directory}/hosts.toml");
            let found = resolve_with(version, config, host, &[(&file, MIRROR)]);
            assert!(trapped(&found, trap), "{what} on {version}: wanted {trap:?}, got {:?}", found.traps);
        }
    }
    for version in ALL {
        assert_eq!(resolve_with(version, unset, "r.example", &[("other/", "")]).traps, [], "{version}");
    }
}

#[test]
fn legacy_mirrors() {
    let mirrors = |body: &str| {
        format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors]\n{body}\n")
    };
    for (what, body, host, wanted) in [
        (
            "one",
            "\"r.example\".endpoint = [\"http://m:5000\"]",
            "r.example",
            "http:m:5000/v2, https:r.example/v2",
        ),
        ("a path", "\"r.example\".endpoint = [\"http://m/p/\"]", "r.example", "http:m/p, https:r.example/v2"),
        (
            "the host itself",
            "\"r.example\".endpoint = [\"https://r.example\", \"http://m\"]",
            "r.example",
            "https:r.example/v2, http:m/v2",
        ),
        (
            "docker's other name",
            "\"docker.io\".endpoint = [\"https://registry-1.docker.io\"]",
            "docker.io",
            "https:registry-1.docker.io/v2, https:registry-1.docker.io/v2",
        ),
        ("all", "\"*\".endpoint = [\"http://m\"]", "r.example", "http:m/v2, https:r.example/v2"),
        (
            "its own before all",
            "\"*\".endpoint = [\"http://m\"]\n\"r.example\".endpoint = []",
            "r.example",
            "https:r.example/v2",
        ),
        (
            "no scheme",
            "\"*\".endpoint = [\"m:5000\", \"127.0.0.1:5000\"]",
            "r.example",
            "https:m:5000/v2, http:127.0.0.1:5000/v2, https:r.example/v2",
        ),
        ("loopback", "\"*\".endpoint = []", "localhost:5000", "http:localhost:5000/v2"),
        ("no URL", "\"*\".endpoint = [\"http://m:x\"]", "r.example", "fails"),
    ] {
        for version in ALL {
            let found = resolve_with(version, &mirrors(body), host, &[("_default/hosts.toml", MIRROR)]);
            assert_eq!(show(&found), wanted, "{what} on {version}");
        }
    }
    let decided =
        resolve_with(V1_7, &mirrors("\"*\".endpoint = [\"http://m\"]"), "r.example", &[]).decided_by;
    assert_eq!(decided.unwrap().to_string(), "/etc/containerd/config.toml:3");
}

#[test]
fn legacy_tls() {
    let config = |tls: &str| {
        format!(
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nmirrors.\"*\".endpoint = [\"https://m:5\"]\n\
             configs.\"m:5\".tls = {tls}\n"
        )
    };
    for (what, tls, wanted) in [
        ("no verifying", "{ insecure_skip_verify = true }", true),
        ("no CA file", "{ ca_file = \"/none\" }", false),
        ("half a pair", "{ cert_file = \"/none\" }", false),
    ] {
        for version in ALL {
            let found = resolve_with(version, &config(tls), "r.example", &[]);
            let reads = version.major == 1;
            assert_eq!(found.fails.is_none(), wanted || !reads, "{what} on {version}");
            assert_eq!(
                found.endpoints.iter().any(|asked| asked.skip_verify),
                wanted && reads,
                "{what} on {version}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// `migrate` reads the older settings by itself.
    #[test]
    fn both_readers_of_legacy_mirrors_agree(
        mirrors in proptest::collection::btree_map(
            prop::sample::select(vec!["r.example", "*", "docker.io", "localhost:5000", "10.0.0.1:5000"]),
            proptest::collection::vec(prop::sample::select(vec![
                "http://m:5000", "https://m/p/", "https://m/v2/p", "http://m/", "m:5000", "127.0.0.1:5000", "https://r.example",
                "https://registry-1.docker.io", "http://localhost:5000", "http://[::1]:5000", "[::1]:5000", "https://docker.io/x",
                "http://m:x", "//m", "http://u:p@m", "r.example",
            ]), 0..4),
            0..4,
        ),
        host in prop::sample::select(vec!["r.example", "docker.io", "localhost:5000", "10.0.0.1:5000", "other.example"]),
    ) {
        use crate::containerd::legacy::Legacy;
        let mirrors: indexmap::IndexMap<String, Vec<String>> = mirrors
            .into_iter()
            .map(|(key, urls)| (key.to_owned(), urls.into_iter().map(str::to_owned).collect()))
            .collect();
        let mut config = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors]\n\"none\".endpoint = []\n".to_owned();
        for (key, urls) in &mirrors {
            config.push_str(&format!("{key:?}.endpoint = {urls:?}\n"));
        }
        for version in [V1_7, V2_1] {
            let found = resolve_with(version, &config, host, &[]);
            let ours: Vec<String> = found.endpoints.iter().map(|asked| asked.url.clone()).collect();
            let legacy = Legacy { mirrors: mirrors.clone(), ..Legacy::default() };
            // It refuses more than containerd does.
            if let Ok(theirs) = legacy.endpoints(host, version) {
                let theirs: Vec<String> =
                    theirs.iter().map(|asked| asked.url().trim_end_matches('/').to_owned()).collect();
                prop_assert_eq!(ours, theirs, "{} of {:?} on {}", host, mirrors, version);
            }
        }
    }

    #[test]
    fn no_bytes_are_a_panic(any in any::<Vec<u8>>(), case in 0..HOSTS.len(), patch in ".{0,8}", at in 0..80_usize, host in ".{0,12}") {
        let mut near = HOSTS[case].1.to_owned();
        let at = (0..=at.min(near.len())).rev().find(|at| near.is_char_boundary(*at)).unwrap();
        near.insert_str(at, &patch);
        for version in [V1_6, V2_2] {
            let _ = read::read("x", &any, version);
            let _ = read::read("x", near.as_bytes(), version);
        }
        let _ = Url::parse(&patch);
        let _ = Url::parse(&format!("http{host}"));
        let _ = url::is_loopback(&host);
        let _ = lookup::names(&host);
    }
}
