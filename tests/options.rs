//! What the plan writes, read back as each containerd reads it: by code that knows nothing of profiles.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod support;

use larder::containerd::Version;
use larder::containerd::config::Effective;
use larder::containerd::resolve::{Resolution, endpoints};
use larder::root::Root;

use support::{CONTAINERD_1, CONTAINERD_2, DEBIAN_CONTAINERD, Machine};

const VERSIONS: [&str; 6] = ["1.6.20", "1.7.24", "2.0.11", "2.1.9", "2.2.7", "2.3.4"];
const PEM: &str = "-----BEGIN CERTIFICATE-----\nMIIBhTCCASugAwIBAgIQIRi6zePL6mKjOipn+dNuaTAKBggqhkjOPQQDAjASMRAw\nDgYDVQQKEwdBY21lIENvMB4XDTE3MTAyMDE5NDMwNloXDTE4MTAyMDE5NDMwNlow\n-----END CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n";

fn profile(fallback: bool) -> String {
    let pem: String = PEM.lines().map(|line| format!("          {line}\n")).collect();
    format!(
        "version: 1
upstreams:
  docker.io: {{ port: 5000 }}
  ghcr.io: {{ port: 5010 }}
containerd:
  caches: [10.0.0.1, cache.lab]
  fallback: {fallback}
  max_concurrent_downloads: 6
  image_pull_progress_timeout: 2m
  mirrors:
    docker.io:
      - https://mirror.gcr.io
      - url: https://harbor.example.com/v2/hub
        override_path: true
        client: [/etc/ssl/client.pem, /etc/ssl/client.key]
        headers: {{ X-A: {{ file: /etc/larder/secrets/one }} }}
        ca: |
{pem}    ghcr.io: [{{ url: https://m.example.com/ghcr, skip_verify: true, capabilities: [pull] }}]
    private.example.com: [\"http://m.example.com:8080\"]
    _default: [\"http://10.0.0.9:5000\"]
  auth:
    docker.io: {{ username: u, password: {{ file: /etc/larder/secrets/one }} }}
    r.example.com:5000: {{ username: u, password: {{ file: /etc/larder/secrets/one }} }}
"
    )
}

/// A machine with this containerd, and what that makes of its files.
fn applied(version: &str, config: &str, profile: &str) -> (Machine, Effective) {
    let machine = Machine::bare();
    let package = if version.starts_with('1') { CONTAINERD_1 } else { CONTAINERD_2 };
    machine.program("usr/bin/containerd", &format!("{package} v{version}"));
    machine.write("etc/containerd/config.toml", config);
    machine.write("etc/ssl/client.pem", PEM);
    machine.write("etc/ssl/client.key", KEY);
    machine.write("etc/larder/secrets/one", "hunter2\n");
    machine.apply(profile);
    let root = Root::open(machine.root()).unwrap();
    let effective = Effective::read(&root, Version::parse(version).unwrap()).unwrap();
    assert!(effective.is_up(), "{version}: {:?} {:?}", effective.fatal, effective.cri_down);
    (machine, effective)
}

fn resolve(machine: &Machine, effective: &Effective, host: &str) -> Resolution {
    let found = endpoints(effective, &Root::open(machine.root()).unwrap(), host).unwrap();
    assert!(found.fails.is_none(), "{host}: {:?}", found.fails);
    assert!(found.ignored.is_empty(), "{host}: {:?}", found.ignored);
    found
}

fn urls(found: &Resolution) -> Vec<&str> {
    found.endpoints.iter().map(|asked| asked.url.as_str()).collect()
}

#[test]
fn every_containerd_asks_what_the_profile_says() {
    let cached = |port: u16| [format!("http://10.0.0.1:{port}/v2"), format!("http://cache.lab:{port}/v2")];
    for version in VERSIONS {
        for fallback in [true, false] {
            let what = format!("containerd {version}, fallback {fallback}");
            let (machine, effective) = applied(version, DEBIAN_CONTAINERD, &profile(fallback));
            let check = |host: &str, mirrors: &[&str], server: &str| {
                let found = resolve(&machine, &effective, host);
                let last = if fallback { server } else { mirrors.last().unwrap() };
                let wanted: Vec<&str> = mirrors.iter().copied().chain([last]).collect();
                assert_eq!(urls(&found), wanted, "{what}: {host}");
                found
            };
            let [one, two] = cached(5000);
            let harbor = "https://harbor.example.com/v2/hub";
            let hub = "https://registry-1.docker.io/v2";
            let docker = check("docker.io", &[&one, &two, "https://mirror.gcr.io/v2", harbor], hub);
            let new = version >= "2.1";
            let secret = docker.endpoints.iter().map(|asked| asked.headers.join(" ")).collect::<Vec<_>>();
            let server = match (fallback, new) {
                (true, true) => "Authorization",
                (true, false) => "",
                (false, _) => "X-A",
            };
            assert_eq!(secret, ["", "", "", "X-A", server], "{what}: headers");
            let with_ca =
                docker.endpoints.iter().filter(|asked| !asked.ca.is_empty() && !asked.client.is_empty());
            assert_eq!(with_ca.count(), if fallback { 1 } else { 2 }, "{what}: CA and client certificate");
            let dials = docker.endpoints.iter().filter(|asked| asked.dial_timeout.is_some()).count();
            assert_eq!(dials, if new { 2 } else { 0 }, "{what}: dial_timeout");
            let [one, two] = cached(5010);
            let ghcr = check("ghcr.io", &[&one, &two, "https://m.example.com/ghcr/v2"], "https://ghcr.io/v2");
            assert!(ghcr.endpoints.iter().take(2).all(larder::containerd::resolve::Asked::resolves));
            check("private.example.com", &["http://m.example.com:8080/v2"], "https://private.example.com/v2");
            check("other.example.com", &["http://10.0.0.9:5000/v2"], "https://other.example.com/v2");
            check("r.example.com:5000", &["http://10.0.0.9:5000/v2"], "https://r.example.com:5000/v2");
            let in_config: Vec<_> = effective
                .configs
                .iter()
                .filter(|(_, one)| one.auth.is_some())
                .map(|(host, _)| host.as_str())
                .collect();
            let wanted: &[&str] = if new { &[] } else { &["r.example.com:5000", "registry-1.docker.io"] };
            assert_eq!(in_config, wanted, "{what}: credentials in config.toml");
        }
    }
}

#[test]
fn a_drop_in_says_the_same_as_the_main_file() {
    for version in VERSIONS.iter().filter(|version| version.starts_with('2')) {
        let main = format!("imports = [\"/etc/containerd/conf.d/*.toml\"]\n{DEBIAN_CONTAINERD}");
        let (machine, effective) = applied(version, &main, &profile(true));
        assert_eq!(machine.read("etc/containerd/config.toml"), main);
        assert_eq!(effective.config_path.value, "/etc/containerd/certs.d", "{version}");
        let (plain, in_place) = applied(version, DEBIAN_CONTAINERD, &profile(true));
        for host in ["docker.io", "ghcr.io", "other.example.com"] {
            let (one, two) = (resolve(&machine, &effective, host), resolve(&plain, &in_place, host));
            assert_eq!(urls(&one), urls(&two), "{version}: {host}");
        }
    }
}
