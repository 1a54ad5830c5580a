use super::*;

const HOSTS: &str = r#"server = "https://registry-1.docker.io"
ca = "/etc/ssl/a.pem"

[host."http://10.0.20.10:5000"]
capabilities = ["pull", "resolve"]
dial_timeout = "1s"

[host."https://harbor.example.com/v2/proxy/"]
capabilities = ["pull"]
override_path = true

[host."https://harbor.example.com/v2/proxy/".header]
X-Token = "a"
"#;

fn all(text: &str, host: &str) -> Vec<Endpoint> {
    endpoints(&text.parse().unwrap(), host, "https://remote")
}

#[test]
fn endpoints_in_their_order_with_the_upstream_last() {
    let found = all(HOSTS, "docker.io");
    let said: Vec<_> = found.iter().map(|one| (one.base.as_str(), one.upstream, one.ns)).collect();
    assert_eq!(
        said,
        [
            ("http://10.0.20.10:5000/v2", false, true),
            ("https://harbor.example.com/v2/proxy", false, true),
            ("https://registry-1.docker.io/v2", true, false),
        ]
    );
    let without = all("", "ghcr.io");
    assert_eq!(without.len(), 1);
    assert_eq!((without[0].base.as_str(), without[0].upstream), ("https://ghcr.io/v2", true));
}

#[test]
fn a_cache_that_is_its_own_server_is_no_upstream() {
    // The way to never ask the upstream itself.
    let found = all("server = \"http://c:1\"\n[host.\"http://c:1\"]\n", "ghcr.io");
    assert_eq!(found.iter().map(|one| one.upstream).collect::<Vec<_>>(), [false, false]);
}

#[test]
fn listeners_take_the_places_and_everything_else_stays() {
    let mut document: DocumentMut = HOSTS.parse().unwrap();
    let urls = ["http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3"].map(str::to_owned);
    redirect(&mut document, &urls).unwrap();
    assert_eq!(
        document.to_string(),
        r#"server = "http://127.0.0.1:3"
ca = "/etc/ssl/a.pem"

[host."http://127.0.0.1:1"]
capabilities = ["pull", "resolve"]
dial_timeout = "1s"

[host."http://127.0.0.1:2"]
capabilities = ["pull"]

[host."http://127.0.0.1:2".header]
X-Token = "a"
"#
    );
    let mut none = DocumentMut::new();
    redirect(&mut none, &urls[2..]).unwrap();
    assert_eq!(none.to_string(), "server = \"http://127.0.0.1:3\"\n\n[host.\"http://127.0.0.1:3\"]\n");
}

#[test]
fn sent_on_with_the_real_name() {
    let rest = "library/busybox/manifests/1";
    let ns = "ns=larder-pull-1-0.invalid";
    assert_eq!(
        forward("http://c:5000/v2", rest, ns, Some("docker.io")),
        "http://c:5000/v2/library/busybox/manifests/1?ns=docker.io"
    );
    assert_eq!(forward("https://u/v2", rest, ns, None), "https://u/v2/library/busybox/manifests/1");
    assert_eq!(forward("https://u/v2", "x", "a=b&ns=c", Some("r%3A5")), "https://u/v2/x?a=b&ns=r%3A5");
}

fn pulled(asked: &[(usize, &str, &str)], result: Result<(), String>) -> Pulled {
    let asked = asked.iter().map(|(endpoint, method, object)| Request {
        endpoint: *endpoint,
        method: (*method).to_owned(),
        object: (*object).to_owned(),
    });
    let text = "server = \"https://u\"\n[host.\"http://a\"]\n[host.\"http://b\"]\n";
    Pulled { endpoints: all(text, "x.io"), asked: asked.collect(), result }
}

#[test]
fn all_from_the_first_cache() {
    let asked = [
        (0, "HEAD", "manifests/1"),
        (0, "GET", "manifests/sha256:m"),
        (0, "GET", "blobs/sha256:c"),
        (0, "GET", "blobs/sha256:l"),
    ];
    let seen = judge("p:1", true, &pulled(&asked, Ok(())));
    assert_eq!(seen, Seen::Good("pulled p:1: manifest from http://a, 2 blobs from http://a".to_owned()));
}

#[test]
fn a_second_cache_is_as_good_and_a_blob_from_the_upstream_is_a_warning() {
    let second = [
        (0, "HEAD", "manifests/1"),
        (1, "HEAD", "manifests/1"),
        (0, "GET", "manifests/sha256:m"),
        (1, "GET", "manifests/sha256:m"),
    ];
    let got = "pulled p:1: manifest from http://b, its blobs are already on this node, nothing fetched; http://a did not \
               serve it (503)";
    let mut shown = pulled(&second, Ok(()));
    shown.endpoints[0].said = Some("503".to_owned());
    assert_eq!(judge("p:1", true, &shown), Seen::Good(got.to_owned()));
    let blob = [
        (0, "HEAD", "manifests/1"),
        (0, "GET", "manifests/sha256:m"),
        (0, "GET", "blobs/sha256:c"),
        (0, "GET", "blobs/sha256:l"),
        (1, "GET", "blobs/sha256:l"),
        (2, "GET", "blobs/sha256:l"),
    ];
    let got = "pulled p:1: manifest from http://a, 1 blob from http://a, 1 blob from the upstream itself, https://u; \
               http://a did not serve it, http://b did not serve it";
    assert_eq!(judge("p:1", true, &pulled(&blob, Ok(()))), Seen::Warned(got.to_owned()));
}

#[test]
fn what_is_here_already_still_says_who_named_it() {
    let seen = judge("p:1", true, &pulled(&[(0, "HEAD", "manifests/1")], Ok(())));
    let got = "pulled p:1: its digest from http://a, its blobs are already on this node, nothing fetched";
    assert_eq!(seen, Seen::Good(got.to_owned()));
}

#[test]
fn a_pull_that_fails_and_one_that_goes_elsewhere() {
    let failed = judge("p:1", true, &pulled(&[(0, "HEAD", "manifests/1")], Err("not found".to_owned())));
    assert_eq!(failed, Seen::Settled("p:1 not pulled: not found; http://a did not serve it".to_owned()));
    for result in [Ok(()), Err("no such host".to_owned())] {
        let seen = judge("p:1", true, &pulled(&[], result));
        let Seen::Settled(got) = seen else { panic!("{seen:?}") };
        assert!(got.contains("asked none of the listeners"), "{got}");
    }
}

#[test]
fn a_blob_that_nobody_has_is_not_the_manifests_fault() {
    let asked = [
        (0, "HEAD", "manifests/1"),
        (1, "HEAD", "manifests/1"),
        (1, "GET", "blobs/sha256:l"),
        (2, "GET", "blobs/sha256:l"),
    ];
    let shown = pulled(&asked, Err("gone".to_owned()));
    let passed: Vec<_> = (0..3).map(|index| shown.passed(index)).collect();
    assert_eq!(passed[0].as_deref(), Some("manifests/1"));
    assert_eq!([passed[1].as_deref(), passed[2].as_deref()], [Some("blobs/sha256:l"); 2]);
}

#[test]
fn a_header_that_a_redirect_loses() {
    let with = |header: &str| format!("[host.\"http://a\"]\n[host.\"http://a\".header]\n{header} = \"x\"\n");
    assert_eq!(authorized(&with("AuthoriZation").parse().unwrap()).as_deref(), Some("http://a"));
    assert_eq!(authorized(&with("X-Token").parse().unwrap()), None);
    assert_eq!(
        authorized(&"[header]\nauthorization = \"x\"".parse().unwrap()).as_deref(),
        Some("the server")
    );
}

#[test]
fn an_upstream_that_stands_in_for_its_caches_is_no_cache() {
    // What the watchdog leaves of the file once they are all out.
    let text = "server = \"https://remote\"\n[host.\"https://remote\"]\n";
    let asked = |object: &str| Request { endpoint: 0, method: "GET".to_owned(), object: object.to_owned() };
    let shown = Pulled {
        endpoints: all(text, "x.io"),
        asked: vec![asked("manifests/1"), asked("blobs/sha256:l")],
        result: Ok(()),
    };
    let got = "pulled p:1: manifest from the upstream itself, https://remote, 1 blob from the upstream itself, \
               https://remote";
    assert_eq!(judge("p:1", false, &shown), Seen::Good(got.to_owned()));
    let got = format!("{got}; its hosts.toml names no cache now (see `larder status`)");
    assert_eq!(judge("p:1", true, &shown), Seen::Warned(got));
}
