use super::*;

/// Every `good` is taken and shown as it was written; every `bad` is refused with a line that has the fragment.
fn hold<T: Text + std::fmt::Display>(good: &[&str], bad: &[(&str, &str)]) {
    for text in good {
        let got = T::parse(text).unwrap_or_else(|e| panic!("{text:?}: wanted it taken, got {e}"));
        assert_eq!(&got.to_string(), text);
    }
    for (text, fragment) in bad {
        match T::parse(text) {
            Ok(got) => panic!("{text:?}: wanted it refused, got `{got}`"),
            Err(e) => {
                assert!(e.contains(fragment), "{text:?}: wanted {fragment:?} in the error, got {e}");
                assert!(e.starts_with("wanted ") && !e.contains(char::is_control), "{e:?}");
            }
        }
    }
    for nasty in
        ["", " ", "a\nb", "a\"b", "a%b", "a b\t", "a'b", "a$b", "\u{0}", "\u{202e}a", "a\\b", "a`b", "ä"]
    {
        assert!(T::parse(nasty).is_err(), "{nasty:?}: wanted it refused");
    }
}

#[test]
fn upstream_hosts() {
    hold::<UpstreamHost>(
        &[
            "docker.io",
            "ghcr.io",
            "registry.example.com:5000",
            "localhost",
            "10.0.20.12:5000",
            "a-b.c1",
            "cache:443",
        ],
        &[
            ("GHCR.io", "write `ghcr.io`"),
            ("https://ghcr.io", "into `remote`"),
            ("ghcr.io/kyverno", "got a path"),
            ("ghcr", "user of docker.io"),
            ("gһcr.io", "U+04BB"),
            ("ghcr.io.", "empty label"),
            ("-a.io", "hyphen"),
            ("a_b.io", "got `_` in it"),
            ("ghcr.io:0", "for a port"),
            ("ghcr.io:080", "for a port"),
            ("ghcr.io:65536", "for a port"),
            ("ghcr.io:", "for a port"),
            ("1.2.3", "neither a name nor an IPv4"),
            ("index.docker.io", "calls `docker.io`"),
            ("_default", "got `_` in it"),
            ("::1", "for a port"),
            ("169.254.169.254", "link-local"),
            ("metadata.google.internal", "metadata service"),
            ("0xa9fea9fe", "neither a name nor an IPv4"),
        ],
    );
    let long = format!("{}.io", "a.".repeat(100));
    assert!(UpstreamHost::parse(&long).is_err(), "the host is part of file names");
}

#[test]
fn remote_urls() {
    hold::<RemoteUrl>(
        &[
            "https://registry-1.docker.io",
            "http://10.0.20.1:5000",
            "https://[fd00::1]:5000/v2/x",
            "http://h/p~1",
        ],
        &[
            ("registry-1.docker.io", "no `https://`"),
            ("HTTPS://x.io", "no `https://`"),
            ("ftp://x.io", "no `https://`"),
            ("https://bot:secret@x.io", "credentials"),
            ("https://X.io", "write `x.io`"),
            ("https://x.io?a=b", "got `?` in it"),
            ("https://x.io/a?b", "got `?` in it"),
            ("https://x.io/a#b", "got `#` in it"),
            ("https://x.io/a//b", "empty"),
            ("https://x.io/../b", "`..`"),
            ("https://[fd00::1", "`[` without `]`"),
            ("https://[fd00::1]x", "after the brackets"),
            ("https://[10.0.0.1]", "no IPv6"),
            ("https://", "got nothing"),
            ("https://x.io:70000", "for a port"),
        ],
    );
    assert_eq!(RemoteUrl::parse("https://x.io/").unwrap().as_str(), "https://x.io");
    for (url, host, port) in [
        ("https://x.io", "x.io", 443),
        ("http://x.io/p", "x.io", 80),
        ("http://x.io:5000/p", "x.io", 5000),
        ("https://[fd00::1]", "fd00::1", 443),
        ("https://[fd00::1]:5000/v2", "fd00::1", 5000),
    ] {
        assert_eq!(RemoteUrl::parse(url).unwrap().host_and_port(), (host, port), "{url}");
    }
}

#[test]
fn repositories() {
    hold::<Repository>(
        &["library/busybox", "pause", "a/b_c/d--e", "a__b", "a.b-c"],
        &[
            ("Library/x", "got `L` in it"),
            ("/x", "between slashes"),
            ("x//y", "between slashes"),
            ("x/", "between slashes"),
            ("a..b", "between slashes"),
            ("a___b", "between slashes"),
            ("x@sha256:00", "digest"),
            ("x:", "for a tag"),
            ("x:-a", "for a tag"),
        ],
    );
    let tagged = Repository::parse("library/busybox:1.36").unwrap();
    assert_eq!(
        (tagged.as_str(), tagged.image().as_deref()),
        ("library/busybox", Some("library/busybox:1.36"))
    );
    assert_eq!(Repository::parse("pause").unwrap().image(), None);
}

#[test]
fn names_and_caches() {
    hold::<DomainName>(&["lab.internal", "a"], &[("10.0.0.1", "got an address"), ("a..b", "empty label")]);
    assert_eq!(DomainName::parse("Lab.Internal").unwrap().as_str(), "lab.internal");
    hold::<CacheHost>(
        &["10.0.20.10", "fd00::1", "cache.lab.internal", "cache", "https://cache.lab", "https://[fd00::1]"],
        &[
            ("http://10.0.20.10:5000", "got a URL"),
            ("10.0.20.10:5000", "got a port"),
            ("https://10.0.20.10:5000", "got a port"),
            ("https://10.0.20.10/v2", "got a path"),
            ("https://fd00::1", "got no brackets"),
            ("10.0.20", "neither a name nor an IPv4"),
            ("fd00::1::2", "no valid IPv6"),
        ],
    );
}

#[test]
fn interfaces() {
    hold::<InterfaceName>(
        &["eth0", "enp1s0", "eth0.100", "br-lan", "_x", "wlan-0123456789"],
        &[
            ("eth0/1", "got `/` in it"),
            ("eth*", "got `*` in it"),
            ("wlan-0123456789a", "at most 15"),
            ("-x", "got `-x`"),
            ("..", "got `..`"),
            ("12", "no interface"),
            ("all", "no interface"),
            ("lo", "loopback"),
        ],
    );
    hold::<MacAddress>(
        &["52:54:00:12:34:56"],
        &[
            ("52-54-00-12-34-56", "got `-` in it"),
            ("52:54:00:12:34", "got `52:54"),
            ("52:54:00:12:34:567", "got `52:54"),
            ("53:54:00:12:34:56", "group address"),
            ("00:00:00:00:00:00", "tell apart"),
        ],
    );
    assert_eq!(MacAddress::parse("AE:54:00:12:34:56").unwrap().as_str(), "ae:54:00:12:34:56");
}

#[test]
fn paths() {
    hold::<AbsolutePath>(
        &["/", "/var/lib/larder", "/a/b.c_d@e+f,g=h~i-j"],
        &[
            ("var/lib", "does not start"),
            ("/var/../etc", "with .. in it"),
            ("/var/./etc", "with . in it"),
            ("/var//etc", "`//`"),
            ("/var/a b", "a space"),
            ("/var/a;b", "got `;` in it"),
        ],
    );
    assert_eq!(AbsolutePath::parse("/var/").unwrap().as_str(), "/var");
}

#[test]
fn calendars() {
    hold::<Calendar>(
        &[
            "weekly",
            "Sun 03:00",
            "Mon..Fri *-*-1..7 18:00:00",
            "Mon-Fri 22:22",
            "Sat,Sun 20:00 Europe/Berlin",
            "*-*-* 00/2:00",
            "*-02~03 05:00",
            "2026-01-01",
            "daily UTC",
            "*:0/15",
            "Thu",
            "12-25 10:00:00.5",
        ],
        &[
            ("weekyl", "got `weekyl`"),
            ("Sun 25:00", "for the hour"),
            ("Sun 03:60", "for the minute"),
            ("13-01 00:00", "for the month"),
            ("Sun 03:00 rm", "makes no sense"),
            ("Sunn 03:00", "got `Sunn`"),
            (" daily", "space at an end"),
            ("7..1:00", "for the hour"),
            ("*:0/0", "for the minute"),
        ],
    );
}

#[test]
fn numbers() {
    for text in ["1024", "5000", "65535"] {
        assert_eq!(Port::parse(text).unwrap().to_string(), text);
    }
    for text in ["", "0", "22", "1023", "65536", "05000", "+5000", "5000.0", "-1", "99999999999999999999999"]
    {
        assert!(Port::parse(text).is_err(), "{text:?}: wanted it refused");
    }
    assert_eq!(Mtu::parse("1500").unwrap().get(), 1500);
    for text in ["575", "65536", "010"] {
        assert!(Mtu::parse(text).is_err(), "{text:?}: wanted it refused");
    }
}

#[test]
fn urls_that_lead_to_a_metadata_service_are_refused_in_every_dress() {
    for host in [
        "169.254.169.254",
        "169.254.169.254:80",
        "169.254.170.2",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "[fd00:ec2::254]",
        "[fd20:ce::254]",
        "[fe80::1]",
        "[fe80::1%25eth0]",
        "[fe80::1%eth0]",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[::169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "2852039166",
        "0xa9fea9fe",
        "0xa9.0xfe.0xa9.0xfe",
        "169.254.0xa9fe",
        "0251.0376.0251.0376",
        "169.254.43518",
        "metadata.google.internal",
        "metadata.google.internal.",
        "metadata.goog",
        "instance-data.ec2.internal",
        "0.0.0.0",
        "0.0.0.0:5000",
        "[::]:5000",
        "0",
        "0x0",
        "224.0.0.1",
        "255.255.255.255",
        "[ff02::1]",
        "169.254.169.254@registry.example.com",
        "registry.example.com@169.254.169.254",
        "registry.example.com#@169.254.169.254",
        "registry.example.com\\@169.254.169.254",
    ] {
        for scheme in ["http", "https"] {
            let url = format!("{scheme}://{host}/");
            assert!(RemoteUrl::parse(&url).is_err(), "{url}: wanted it refused");
        }
    }
    for good in
        ["http://10.0.0.1:5000", "http://[fd00:20::1]:5000", "http://127.0.0.1:8080", "https://[2001:db8::1]"]
    {
        assert!(RemoteUrl::parse(good).is_ok(), "{good}: wanted it taken");
    }
}
