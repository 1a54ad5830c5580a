use super::*;
use std::process::Command;

/// A certificate and its key by openssl, as the end-to-end tests make theirs.
fn made(extra: &[&str]) -> (Vec<u8>, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str| folder.path().join(name);
    #[allow(clippy::disallowed_methods, reason = "a test may")]
    let done = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"])
        .args(["-subj", "/CN=cache", "-keyout"])
        .arg(of("key"))
        .arg("-out")
        .arg(of("pem"))
        .args(extra)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    #[allow(clippy::disallowed_methods, reason = "a test may")]
    let read = |name| std::fs::read(of(name)).unwrap();
    (read("pem"), read("key"))
}

#[test]
fn it_says_until_when_it_is_good() {
    for (days, wanted) in [("30", 30), ("20000", 20_000)] {
        let (pem, _) = made(&["-days", days]);
        let certificate = Certificate::parse(&pem).unwrap();
        let left = certificate.not_after.duration_since(certificate.not_before).unwrap();
        assert_eq!(left.as_secs() / 86_400, wanted);
        let age = SystemTime::now().duration_since(certificate.not_before).unwrap_or_default();
        assert!(age < Duration::from_secs(3600), "{age:?}");
    }
}

#[test]
fn it_is_for_the_names_in_it_alone() {
    let (pem, _) =
        made(&["-addext", "subjectAltName=DNS:cache.lab,DNS:*.site.lab,IP:10.0.20.10,IP:fd00::10"]);
    let certificate = Certificate::parse(&pem).unwrap();
    let names = [
        "cache.lab",
        "x.site.lab",
        "10.0.20.10",
        "fd00::10",
        "10.0.20.11",
        "x.y.site.lab",
        "cache",
        "",
        "a b",
    ];
    let named = names.map(|name| certificate.names(name));
    assert_eq!(named, [true, true, true, true, false, false, false, false, false]);
}

#[test]
fn another_key_does_not_fit() {
    let ((one, key), (two, other)) = (made(&[]), made(&[]));
    let certificate = Certificate::parse(&one).unwrap();
    assert!(certificate.fits(&key).is_ok());
    assert_eq!(certificate.fits(&other).unwrap_err().to_string(), "it is another certificate's key");
    assert_eq!(certificate.fits(&two).unwrap_err().to_string(), "there is no private key in it");
}

#[test]
fn what_is_no_certificate_is_refused_with_a_reason() {
    let (pem, key) = made(&[]);
    for (text, wanted) in [
        (&b""[..], "there is no certificate in it"),
        (&key, "there is no certificate in it"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no certificate that TLS takes"),
        (&pem[..pem.len() / 2], "it is no PEM file"),
    ] {
        let got = Certificate::parse(text).unwrap_err().to_string();
        assert!(got.contains(wanted), "wanted {wanted:?}, got {got:?}");
    }
}

#[test]
fn no_bytes_make_the_reader_of_dates_fall_over() {
    let (pem, _) = made(&[]);
    let whole = Certificate::parse(&pem).unwrap().chain.swap_remove(0).to_vec();
    for end in 0..whole.len() {
        let mut cut = whole[..end].to_vec();
        assert_eq!(validity(&cut), None, "{end} bytes");
        cut.resize(whole.len(), 0xff);
        let _ = validity(&cut);
    }
}
