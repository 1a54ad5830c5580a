#![allow(clippy::disallowed_methods, reason = "upstreams that fail on demand")]

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use super::*;
use crate::node::certificates;

const LIMIT: Duration = Duration::from_secs(30);

/// What a server says: status, headers, body.
type Says = (u16, Vec<(&'static str, String)>, &'static str);

/// Answers every request by `says`, which is given its first line and its headers in lower case.
fn server(says: impl Fn(&str, SocketAddr) -> Says + Clone + Send + 'static) -> SocketAddr {
    serve(None, says)
}

fn serve(
    tls: Option<Arc<rustls::ServerConfig>>,
    says: impl Fn(&str, SocketAddr) -> Says + Clone + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (says, tls) = (says.clone(), tls.clone());
            thread::spawn(move || {
                let stream = stream.unwrap();
                match tls {
                    None => answer(stream, address, says),
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(config).unwrap();
                        answer(rustls::StreamOwned::new(connection, stream), address, says);
                    }
                }
            });
        }
    });
    address
}

fn answer(mut stream: impl Read + Write, address: SocketAddr, says: impl Fn(&str, SocketAddr) -> Says) {
    let mut request = Vec::new();
    let mut byte = [0];
    loop {
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => request.push(byte[0]),
                _ => return,
            }
        }
        let text = String::from_utf8(std::mem::take(&mut request)).unwrap();
        let (status, headers, body) = says(&text, address);
        let mut head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let body = if text.starts_with("HEAD") { "" } else { body };
        if stream.write_all(format!("{head}\r\n{body}").as_bytes()).is_err() {
            return;
        }
    }
}

fn question(address: SocketAddr) -> Question {
    Question {
        remote: format!("http://{address}"),
        repository: Some("library/busybox".to_owned()),
        tag: Some("latest".to_owned()),
        login: None,
        ca: None,
    }
}

fn login() -> Option<Login> {
    Some(Login { username: "bot".to_owned(), password: Zeroizing::new("s3cret".to_owned()) })
}

fn ask(question: &Question) -> Answer {
    let answer = Direct::default().ask(question, LIMIT);
    let shown = format!("{answer:?} {question:?}");
    assert!(!shown.contains("s3cret") && !shown.contains("czNjcmV0"), "the password shows: {shown}");
    answer
}

/// A registry behind a token server that takes `bot` and `s3cret`, and then says `status` of what is asked for.
fn behind_tokens(status: u16, headers: &'static [(&'static str, &'static str)]) -> SocketAddr {
    server(move |request, address| {
        let request = request.to_lowercase();
        // base64 of bot:s3cret
        if request.starts_with("get /token?") {
            let right = request.contains("authorization: basic ym90onmzy3jlda==");
            let asked = request.contains("service=a%20b")
                && request.contains("scope=repository%3alibrary%2fbusybox%3apull")
                && request.contains("account=bot");
            return match (right, asked) {
                (true, true) => (200, vec![], "{\"token\": \"t\"}"),
                (true, false) => (400, vec![], ""),
                (false, _) => (401, vec![], ""),
            };
        }
        if !request.contains("authorization: bearer t\r\n") {
            let challenge = format!("Bearer realm=\"http://{address}/token\",service=\"a b\"");
            return (401, vec![("www-authenticate", challenge)], "");
        }
        (status, headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(), "")
    })
}

#[test]
fn an_upstream_that_serves_is_good_and_its_allowance_shown() {
    let address =
        behind_tokens(200, &[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "76;w=21600")]);
    let answer = ask(&Question { login: login(), ..question(address) });
    assert_eq!(answer.cause, None, "got {answer:?}");
    assert_eq!(answer.text, "200, 76 of 100 pulls left");
}

#[test]
fn wrong_credentials_are_told_from_right_ones_that_open_nothing() {
    let wrong = Some(Login { username: "bot".to_owned(), password: Zeroizing::new("other".to_owned()) });
    let answer = ask(&Question { login: wrong, ..question(behind_tokens(200, &[])) });
    assert_eq!(answer.cause, Some(Cause::Credentials), "got {answer:?}");
    assert_eq!(answer.text, "401: its token server refuses the credentials of `bot`");
    let answer = ask(&Question { login: login(), ..question(behind_tokens(401, &[])) });
    assert_eq!(answer.cause, Some(Cause::Forbidden), "got {answer:?}");
}

#[test]
fn each_status_has_its_own_cause() {
    for (status, wanted) in [
        (403, Cause::Forbidden),
        (429, Cause::RateLimit),
        (500, Cause::ServerError),
        (503, Cause::ServerError),
        (418, Cause::Unexpected),
    ] {
        let answer = ask(&Question { login: login(), ..question(behind_tokens(status, &[])) });
        assert_eq!(answer.cause, Some(wanted), "of {status}, got {answer:?}");
        assert!(answer.text.starts_with(&format!("{status}: ")), "got {answer:?}");
    }
}

#[test]
fn a_rate_limit_says_what_is_left_and_when_to_come_back() {
    let address = server(|_, _| {
        (429, vec![("retry-after", "30".into()), ("ratelimit-remaining", "0;w=60".into())], "")
    });
    let answer = ask(&question(address));
    assert_eq!(answer.cause, Some(Cause::RateLimit));
    assert_eq!(answer.text, "429: its rate limit, 0 pulls left, asks to wait 30s");
    assert_eq!(answer.allowance, Allowance { remaining: Some(0), limit: None, retry_after: Some(30) });
}

#[test]
fn a_date_to_come_back_at_is_read_too() {
    let since_1970 = httpdate("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
    let seconds = since_1970.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(seconds, 784_111_777);
    assert_eq!(httpdate("tomorrow"), None);
}

#[test]
fn a_repository_that_is_not_there_is_told_from_a_blob_and_a_tag() {
    for (body, wanted) in [
        ("{\"errors\": [{\"code\": \"BLOB_UNKNOWN\"}]}", None),
        ("", None),
        ("{\"errors\": [{\"code\": \"NAME_UNKNOWN\"}]}", Some(Cause::NotFound)),
    ] {
        for (tag, good) in [(None, "404"), (Some("1"), "404: it answers, and has no library/busybox:1")] {
            let address = server(move |request, _| {
                if request.starts_with("GET /v2/ ") { (200, vec![], "{}") } else { (404, vec![], body) }
            });
            let answer = ask(&Question { tag: tag.map(str::to_owned), ..question(address) });
            let text = if wanted.is_none() { good } else { "404: it has no repository library/busybox" };
            assert_eq!((answer.cause, answer.text.as_str()), (wanted, text), "of {body:?} and {tag:?}");
        }
    }
}

#[test]
fn basic_credentials_are_taken_or_refused() {
    let address = server(|request, _| {
        if request.to_lowercase().contains("authorization: basic ym90onmzy3jlda==") {
            (200, vec![], "")
        } else {
            (401, vec![("www-authenticate", "Basic realm=\"x\"".into())], "")
        }
    });
    let wrong = Some(Login { username: "other".to_owned(), password: Zeroizing::default() });
    for (login, repository, wanted) in [
        (login(), Some("a"), None),
        (login(), None, None),
        (wrong.clone(), Some("a"), Some(Cause::Credentials)),
        (wrong, None, Some(Cause::Credentials)),
        (None, None, Some(Cause::Unauthorized)),
    ] {
        let repository = repository.map(str::to_owned);
        let answer = ask(&Question { login, repository, ..question(address) });
        assert_eq!(answer.cause, wanted, "got {answer:?}");
    }
}

#[test]
fn credentials_that_nobody_asks_for_are_mentioned() {
    let address = server(|_, _| (200, vec![], ""));
    let answer = ask(&Question { login: login(), ..question(address) });
    assert_eq!(answer.text, "200, and asks nobody for credentials: those of `bot` are not used");
}

#[test]
fn credentials_do_not_follow_a_redirect_to_another_host() {
    let other = server(|request, _| {
        assert!(!request.to_lowercase().contains("authorization"), "got {request}");
        (200, vec![], "")
    });
    let address = server(move |request, _| {
        if !request.to_lowercase().contains("authorization") {
            (401, vec![("www-authenticate", "Basic realm=\"x\"".into())], "")
        } else {
            // localhost is another name.
            (307, vec![("location", format!("http://localhost:{}/elsewhere", other.port()))], "")
        }
    });
    let answer = ask(&Question { login: login(), ..question(address) });
    assert_eq!(answer.cause, None, "got {answer:?}");
}

#[test]
fn a_network_that_fails_says_how() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let answer = ask(&question(closed));
    assert_eq!(answer.cause, Some(Cause::Refused), "got {answer:?}");

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let question_ = question(silent.local_addr().unwrap());
    let answer = Direct::default().ask(&question_, Duration::from_millis(300));
    assert_eq!(answer.cause, Some(Cause::Timeout), "got {answer:?}");

    let cut = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = cut.local_addr().unwrap();
    thread::spawn(move || cut.incoming().for_each(drop));
    let answer = ask(&question(address));
    assert_eq!(answer.cause, Some(Cause::Network), "got {answer:?}");

    let unknown = Question { remote: "http://name.invalid".to_owned(), ..question(closed) };
    let answer = ask(&unknown);
    assert_eq!(answer.cause, Some(Cause::Dns), "got {answer:?}");
}

/// An authority and its certificate for `name`, until `year`.
struct Made {
    authority: String,
    config: Arc<rustls::ServerConfig>,
}

fn made(name: &str, year: i32) -> Made {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "authority");
    let authority = parameters.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(parameters, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
    let certificate = parameters.signed_by(&key, &issuer).unwrap().pem();
    Made { authority, config: config(&certificate, &key.serialize_pem()) }
}

/// What `openssl req -x509` makes: it may sign others, and is shown by the server itself.
fn self_signed(name: &str) -> Made {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = parameters.self_signed(&key).unwrap().pem();
    Made { config: config(&certificate, &key.serialize_pem()), authority: certificate }
}

fn config(certificate: &str, key: &str) -> Arc<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificate = certificates(certificate).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificate, key)
        .unwrap();
    Arc::new(config)
}

#[test]
fn tls_that_fails_says_why() {
    let trusted = |made: &Made| Some(Arc::from(made.authority.as_str()));
    let good = made("127.0.0.1", 2900);
    let other = made("other.example", 2900);
    let expired = made("127.0.0.1", 2021);
    let own = self_signed("127.0.0.1");
    let own_other = self_signed("other.example");
    for (what, made, ca, wanted) in [
        ("its own authority", &good, trusted(&good), None),
        ("nobody's authority", &good, None, Some(Cause::TlsAuthority)),
        ("another upstream's authority", &good, trusted(&other), Some(Cause::TlsAuthority)),
        ("another name", &other, trusted(&other), Some(Cause::TlsName)),
        ("expired", &expired, trusted(&expired), Some(Cause::TlsExpired)),
        ("self-signed", &own, trusted(&own), None),
        ("self-signed for another name", &own_other, trusted(&own_other), Some(Cause::TlsName)),
    ] {
        let address = serve(Some(Arc::clone(&made.config)), |_, _| (200, vec![], ""));
        let answer = ask(&Question { remote: format!("https://{address}"), ca, ..question(address) });
        assert_eq!(answer.cause, wanted, "{what}: got {answer:?}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let plain = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 512]);
            let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
        }
    });
    let answer = ask(&Question { remote: format!("https://{plain}"), ..question(plain) });
    assert_eq!(answer.cause, Some(Cause::Tls), "plain text: got {answer:?}");
}

#[test]
fn text_without_a_certificate_is_none() {
    for text in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "garbage"] {
        assert!(certificates(text).is_err(), "took {text:?}");
    }
    let authority = made("x", 2900).authority;
    let found = certificates(&format!("# ours\n{authority}\n{authority}")).unwrap();
    assert_eq!(
        crate::node::to_pem(&found).replace('\r', ""),
        format!("{authority}{authority}").replace('\r', "")
    );
}

#[test]
fn an_upstream_that_closes_after_each_answer_is_good() {
    // A server that answers and closes at once is a good one, too.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream: TcpStream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        }
    });
    assert_eq!(ask(&question(address)).cause, None);
}
