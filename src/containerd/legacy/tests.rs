use super::*;

const V1: Version = Version::new(1, 7, 24);
const V2: Version = Version::new(2, 1, 9);

fn legacy(mirrors: &[(&str, &[&str])]) -> Legacy {
    let own = |(host, list): &(&str, &[&str])| {
        ((*host).to_owned(), list.iter().map(|one| (*one).to_owned()).collect())
    };
    Legacy { mirrors: mirrors.iter().map(own).collect(), ..Legacy::default() }
}

fn asked(legacy: &Legacy, host: &str) -> Vec<String> {
    legacy.endpoints(host, V1).unwrap().iter().map(ToString::to_string).collect()
}

/// The rendered file, without its first line.
fn file(tree: &Tree, host: &str) -> String {
    let text = tree.hosts[host].render(host).unwrap();
    text.split_once('\n').unwrap().1.to_owned()
}

fn same(legacy: &Legacy, host: &str) {
    let tree = legacy.tree(V1).unwrap();
    let (before, after) = (legacy.endpoints(host, V1).unwrap(), tree.endpoints(host));
    assert_eq!(distinct(&before), distinct(&after), "{host}: {before:?} {after:?}");
}

#[test]
fn the_registry_itself_comes_last_unless_it_is_named() {
    let one = legacy(&[("docker.io", &["http://m:5000"]), ("r.example:5", &["m", "https://r.example:5/p"])]);
    assert_eq!(asked(&one, "docker.io"), ["http://m:5000/v2", "https://registry-1.docker.io/v2"]);
    assert_eq!(asked(&one, "r.example:5"), ["https://m/v2", "https://r.example:5/p"]);
    assert_eq!(asked(&one, "quay.io"), ["https://quay.io/v2"]);
    assert_eq!(asked(&one, "localhost:5000"), ["http://localhost:5000/v2"]);
    // Docker's own name is another than its registry's: it is asked twice.
    let twice = legacy(&[("docker.io", &["https://registry-1.docker.io"])]);
    assert_eq!(asked(&twice, "docker.io").len(), 2);
}

#[test]
fn an_exact_key_hides_the_wildcard() {
    let one = legacy(&[("*", &["http://all:5000"]), ("quay.io", &[])]);
    assert_eq!(asked(&one, "ghcr.io"), ["http://all:5000/v2", "https://ghcr.io/v2"]);
    assert_eq!(asked(&one, "quay.io"), ["https://quay.io/v2"]);
    assert_eq!(asked(&one, "all:5000"), ["http://all:5000/v2"]);
    let tree = one.tree(V1).unwrap();
    assert_eq!(tree.hosts.keys().collect::<Vec<_>>(), ["_default", "all:5000", "quay.io"]);
    for host in ["ghcr.io", "quay.io", "all:5000", "docker.io"] {
        same(&one, host);
    }
    assert_eq!(
        file(&tree, "_default"),
        "[host.\"http://all:5000\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
    );
    assert_eq!(
        file(&tree, "quay.io"),
        "server = \"https://quay.io\"\n\n[host.\"https://quay.io\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
    );
}

#[test]
fn endpoints_as_operators_write_them() {
    for (text, url) in [
        ("mirror.example", "https://mirror.example/v2"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
        ("localhost", "http://localhost/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("HTTP://m:5000/", "http://m:5000/"),
        ("https://h/v2/proxy/", "https://h/v2/proxy"),
        ("https://u:p@h:8443/x?y=1#z", "https://h:8443/x"),
        ("https://h/v2", "https://h/v2"),
    ] {
        assert_eq!(Asked::parse(text).unwrap().url(), url, "{text}");
    }
    for text in ["", "ftp://h", "https://", "http://h:port", "http://a b/", "h:99999"] {
        assert!(Asked::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_path_is_taken_as_it_stands() {
    let harbor = legacy(&[("docker.io", &["https://h/v2/proxy"])]);
    assert_eq!(
        file(&harbor.tree(V1).unwrap(), "docker.io"),
        "server = \"https://registry-1.docker.io\"\n\n[host.\"https://h/v2/proxy\"]\ncapabilities = \
             [\"pull\", \"resolve\"]\noverride_path = true\n"
    );
    same(&harbor, "docker.io");
}

#[test]
fn the_last_endpoint_is_the_server_where_one_is_the_registry_itself() {
    let one = legacy(&[("r.example", &["https://r.example", "https://b.example/x"])]);
    let tree = one.tree(V1).unwrap();
    assert_eq!(
        file(&tree, "r.example"),
        "server = \"https://b.example/x\"\noverride_path = true\n\n[host.\"https://r.example\"]\n\
             capabilities = [\"pull\", \"resolve\"]\n"
    );
    same(&one, "r.example");
}

#[test]
fn tls_follows_the_host_and_port_that_is_asked() {
    let mut one = legacy(&[("docker.io", &["https://m:8443", "http://m:8443"])]);
    let tls = Tls { ca_file: "/ca.pem".to_owned(), ..Tls::default() };
    one.tls.insert("m:8443".to_owned(), tls);
    let client = Tls {
        cert_file: "c.pem".into(),
        key_file: "/k.pem".into(),
        insecure_skip_verify: true,
        ..Tls::default()
    };
    one.tls.insert("registry-1.docker.io".to_owned(), client);
    let tree = one.tree(V1).unwrap();
    assert_eq!(tree.hosts.keys().collect::<Vec<_>>(), ["docker.io", "m:8443", "registry-1.docker.io"]);
    assert_eq!(
        file(&tree, "docker.io"),
        r#"server = "https://registry-1.docker.io"
client = [["/c.pem", "/k.pem"]]
skip_verify = true

[host."https://m:8443"]
capabilities = ["pull", "resolve"]
ca = "/ca.pem"

[host."http://m:8443"]
capabilities = ["pull", "resolve"]
"#
    );
    assert_eq!(asked(&one, "m:8443"), ["https://m:8443/v2, ca /ca.pem"]);
    let said: Vec<_> = one.endpoints("docker.io", V2).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(said, ["https://m:8443/v2", "http://m:8443/v2", "https://registry-1.docker.io/v2"]);
    assert!(one.tree(V2).unwrap().notes[0].contains("holds again"));
}

#[test]
fn what_cannot_be_said_is_refused_by_name() {
    let mut one = legacy(&[("a.io", &["ftp://x"]), ("b.io", &["http://[::1]:5000"])]);
    one.tls.insert("c.io".to_owned(), Tls { cert_file: "/c".into(), ..Tls::default() });
    let reasons = one.tree(V1).unwrap_err();
    assert_eq!(reasons.len(), 3, "{reasons:#?}");
    assert!(reasons.iter().any(|(_, reason)| reason.contains("IPv6")), "{reasons:#?}");
    assert!(legacy(&[("b.io", &["http://[::1]:5000"])]).tree(V2).is_ok());
}

#[test]
fn keys_that_no_image_has_are_named() {
    let tree = legacy(&[("docker.io/library", &["http://m"]), ("mirror", &["http://m"])]).tree(V1).unwrap();
    assert!(tree.hosts.is_empty());
    assert_eq!(tree.notes.iter().filter(|note| note.contains("never had an effect")).count(), 2);
}
