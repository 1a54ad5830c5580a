use std::net::IpAddr;

use super::*;
use crate::profile::{Source, load};

fn node(text: &str) -> Node {
    let source = Source::Text { name: "profile.yaml".to_owned(), text: text.to_owned() };
    let result = load(&source).and_then(|loaded| loaded.node());
    result.unwrap_or_else(|problems| panic!("wanted a node, got\n{problems}")).0
}

fn upstreams(block: &str) -> Vec<Upstream> {
    node(&format!("version: 1\nupstreams:\n{block}\ncache: {{}}\n")).upstreams
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn the_seed_profile_becomes_its_node() {
    let node = node(include_str!("../../templates/profile.example.yaml"));
    let ports: Vec<_> = node.upstreams.iter().map(|u| (u.host.as_str(), u.port.get())).collect();
    let wanted = [
        ("docker.io", 5000),
        ("ghcr.io", 5010),
        ("quay.io", 5020),
        ("registry.k8s.io", 5030),
        ("reg.kyverno.io", 5040),
    ];
    assert_eq!(ports, wanted);
    let network = node.network.unwrap();
    assert_eq!(network.interface, InterfaceMatch::Name(InterfaceName::parse("eth0").unwrap()));
    assert_eq!(network.addresses, ["10.0.20.10/24".parse().unwrap()]);
    assert_eq!(network.routes, [Route { to: None, via: ip("10.0.20.1") }]);
    assert_eq!(network.nameservers, [ip("10.0.20.1")]);
    let cache = node.cache.unwrap();
    assert_eq!(cache.listen, Listen::Address(ip("10.0.20.10")));
    assert_eq!((cache.engine, cache.storage.as_str()), (Engine::Auto, "/var/lib/larder"));
    assert_eq!(node.containerd.unwrap().caches, [CacheHost::parse("10.0.20.10").unwrap()]);
    assert_eq!(node.verify, Verify { timeout: Duration::from_secs(60), upstreams: UpstreamPolicy::Warn });
}

#[test]
fn what_is_not_written_has_its_default() {
    let node = node(include_str!("../../templates/profile.minimal.yaml"));
    assert_eq!(node.network, None);
    assert_eq!(node.cache.unwrap().listen, Listen::Any);
    let containerd = node.containerd.unwrap();
    assert_eq!(containerd.caches, []);
    assert_eq!(containerd.certs_dir.as_str(), "/etc/containerd/certs.d");
    let upstream = node.upstreams.first().unwrap();
    assert_eq!(upstream.remote.as_str(), "https://registry-1.docker.io");
    assert_eq!(upstream.probe.as_ref().unwrap().as_str(), "library/busybox");
    assert_eq!(
        [&upstream.gc, &upstream.scrub, &upstream.restart],
        [Period::Weekly, Period::Monthly, Period::Hourly].map(Schedule::Every).each_ref()
    );
    let unknown = upstreams("  r.example.com:5000: { port: 5000 }");
    let unknown = unknown.first().unwrap();
    assert_eq!((unknown.remote.as_str(), &unknown.probe), ("https://r.example.com:5000", &None));
}

#[test]
fn every_known_probe_is_a_repository() {
    for (host, repository) in super::upstream::PROBES {
        let upstream = upstreams(&format!("  {host}: {{ port: 5000 }}"));
        let probe = upstream.first().unwrap().probe.as_ref().unwrap();
        assert_eq!(probe.image().unwrap_or_else(|| probe.as_str().to_owned()), repository);
    }
}

#[test]
fn a_schedule_is_one_upstreams_or_all_of_them() {
    let node = node(
        "version: 1\nupstreams:\n  a.io: { port: 5000 }\n  b.io: { port: 5010, gc: \"Sun 03:00\", restart: never }\n  \
         c.io: { port: 5020, gc: monthly, scrub: never }\ncache: { gc: \"22:22\", scrub: weekly, restart: daily }\n",
    );
    let at = |text| Calendar::parse(text).unwrap();
    let schedules: Vec<_> = node.upstreams.into_iter().map(|u| [u.gc, u.scrub, u.restart]).collect();
    assert_eq!(
        schedules,
        [
            [Schedule::AllAt(at("22:22")), Schedule::Every(Period::Weekly), Schedule::Every(Period::Daily)],
            [Schedule::At(at("Sun 03:00")), Schedule::Every(Period::Weekly), Schedule::Never],
            [Schedule::Every(Period::Monthly), Schedule::Never, Schedule::Every(Period::Daily)],
        ]
    );
}

#[test]
fn a_secret_is_a_text_or_where_it_is() {
    let block = "\n    port: 5000\n    username: bot\n    password: ";
    for (written, wanted) in [
        ("\"010\"", SecretSource::Literal("010".to_owned().into())),
        ("{ file: /etc/larder/secrets/x }", SecretSource::File("/etc/larder/secrets/x".into())),
        ("{ credential: x }", SecretSource::Credential("x".to_owned())),
        ("{ env: X }", SecretSource::Env("X".to_owned())),
    ] {
        let got = upstreams(&format!("  a.io:{block}{written}"));
        assert_eq!(got.first().unwrap().credentials.as_ref().unwrap().password, wanted, "{written}");
    }
}

#[test]
fn unquoted_ipv6_is_read_where_yaml_leaves_it_whole() {
    let node = node(
        "version: 1\nnetwork:\n  addresses: [fd00:20::10/64, 10.0.20.10/24]\n  routes:\n    - { to: default, via: fe80::1 }\n    \
         - { to: fd00:30::/64, via: fd00:20::1 }\n",
    );
    let routes = node.network.unwrap().routes;
    let wanted = [
        Route { to: None, via: ip("fe80::1") },
        Route { to: Some("fd00:30::/64".parse().unwrap()), via: ip("fd00:20::1") },
    ];
    assert_eq!(routes, wanted);
}

#[test]
fn listening_is_everywhere_or_at_one_address() {
    for (listen, wanted) in [
        ("0.0.0.0", Listen::Any),
        ("\"::\"", Listen::Any),
        ("127.0.0.1", Listen::Address(ip("127.0.0.1"))),
        ("10.0.20.10", Listen::Address(ip("10.0.20.10"))),
        ("fd00:20::10", Listen::Address(ip("fd00:20::10"))),
    ] {
        let node = node(&format!(
            "version: 1\nupstreams: {{ a.io: {{ port: 5000 }} }}\nnetwork:\n  addresses: [\"fd00:20::10/64\", \
             10.0.20.10/24]\ncache:\n  listen: {listen}\n"
        ));
        assert_eq!(node.cache.unwrap().listen, wanted, "{listen}");
    }
}
