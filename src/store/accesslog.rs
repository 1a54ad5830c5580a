//! One line of Distribution's access log: what was asked for, when, and with what result.
//!
//! It is Apache's combined format, as gorilla/handlers writes it. The method, the path, the referrer and the user
//! agent are the client's text; a user name in an absolute URL goes into it even unescaped, a newline among it. So a
//! client can write any line. All that a line can do is to name something by Distribution's own grammar, which
//! never is a path out of the store, as used no later than now: what a pull of the same client would do as well.

use super::Digest;

/// A request that was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'l> {
    /// Seconds since 1970: when it began.
    pub at: u64,
    pub method: Method,
    pub status: u16,
    /// Of the answer's body; of a HEAD it is what GET would have sent, or nothing.
    pub bytes: u64,
    pub repository: &'l str,
    pub of: Subject<'l>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'l> {
    Blob(Digest),
    Manifest(Digest),
    /// The manifest that a tag stands for.
    Tag(&'l str),
}

/// Longer ones are none (distribution's `reference.RepositoryNameTotalLengthMax`).
const LONGEST_REPOSITORY: usize = 255;

impl<'l> Request<'l> {
    /// `None` for whatever is not a manifest or a blob that was served: also for what is no such line at all.
    #[must_use]
    pub fn parse(line: &'l [u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let (_, rest) = line.split_once(" - - [")?;
        let (at, rest) = rest.split_once("] \"")?;
        // A quote in the path is escaped, and no name that we take has one.
        let (request, rest) = rest.split_once("\" ")?;
        let mut words = request.split(' ');
        let method = match words.next()? {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            _ => return None,
        };
        let target = words.next()?;
        if !words.next()?.starts_with("HTTP/") || words.next().is_some() {
            return None;
        }
        let mut numbers = rest.split(' ');
        let status = numbers.next()?.parse().ok().filter(|status| matches!(status, 200 | 206 | 304))?;
        let bytes = numbers.next()?.parse().ok()?;
        let (repository, of) = subject(target)?;
        Some(Self { at: time(at)?, method, status, bytes, repository, of })
    }
}

/// `/v2/NAME/manifests/REFERENCE` or `/v2/NAME/blobs/DIGEST`; containerd adds `?ns=`.
fn subject(target: &str) -> Option<(&str, Subject<'_>)> {
    let path = target.split('?').next()?.strip_prefix("/v2/")?;
    let (rest, reference) = path.rsplit_once('/')?;
    let (repository, kind) = rest.rsplit_once('/')?;
    if !is_repository(repository) {
        return None;
    }
    let of = match (kind, Digest::parse(reference)) {
        ("blobs", Some(digest)) => Subject::Blob(digest),
        ("manifests", Some(digest)) => Subject::Manifest(digest),
        ("manifests", None) if is_tag(reference) => Subject::Tag(reference),
        _ => return None,
    };
    Some((repository, of))
}

/// Distribution's grammar of a repository's name (`reference/regexp.go`): components of lower-case letters and
/// digits, with one period, one or two underscores, or any number of hyphens between them.
#[must_use]
pub fn is_repository(name: &str) -> bool {
    let component = |text: &str| {
        let alphanumeric = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let mut between = 0..0;
        let bytes = text.as_bytes();
        let ends = bytes.first().zip(bytes.last());
        ends.is_some_and(|(first, last)| alphanumeric(*first) && alphanumeric(*last))
            && bytes.iter().enumerate().all(|(at, c)| {
                if alphanumeric(*c) {
                    let separator = bytes.get(between.clone()).unwrap_or_default();
                    between = at + 1..at + 1;
                    matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|c| *c == b'-')
                } else {
                    between.end = at + 1;
                    matches!(c, b'.' | b'_' | b'-')
                }
            })
    };
    name.len() <= LONGEST_REPOSITORY && name.split('/').all(component)
}

/// Distribution's grammar of a tag.
#[must_use]
pub fn is_tag(tag: &str) -> bool {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|c| word(c) || matches!(c, b'.' | b'-'))
}

/// `21/Nov/2026:15:08:53 +0000`, as seconds since 1970.
fn time(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (text, zone) = text.split_once(' ')?;
    let (day, rest) = text.split_once('/')?;
    let (month, rest) = rest.split_once('/')?;
    let day = digits(day).filter(|day| (1..32).contains(day))?;
    let month = i64::try_from(MONTHS.iter().position(|name| *name == month)?).ok()?;
    let mut parts = rest.split(':');
    let mut number = |below: i64| digits(parts.next()?).filter(|number| *number < below);
    let (year, hour, minute, second) = (number(10_000)?, number(24)?, number(60)?, number(61)?);
    let sign = match zone.get(..1)? {
        "+" => 1,
        "-" => -1,
        _ => return None,
    };
    let offset = sign * (digits(zone.get(1..3)?)? * 60 + digits(zone.get(3..)?)?) * 60;
    // Days since 1970 of the proleptic Gregorian calendar, years beginning in March
    // (https://howardhinnant.github.io/date_algorithms.html, days_from_civil).
    let year = if month < 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 10) % 12) + 2) / 5 + day - 1;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + of_year - 719_468;
    u64::try_from(days * 86_400 + hour * 3_600 + minute * 60 + second - offset).ok()
}

fn digits(text: &str) -> Option<i64> {
    let plain = !text.is_empty() && text.len() <= 4 && text.bytes().all(|c| c.is_ascii_digit());
    plain.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "d8d0d98c541383df21a1d5d0d766f9cb6d5d11b931ad753c69d6e0338adb277c";

    fn line(request: &str) -> String {
        format!("127.0.0.1 - - [21/Nov/2026:15:08:53 +0000] \"{request}\" 200 414 \"\" \"containerd/1.7\"")
    }

    fn parsed(request: &str) -> Option<(Method, String, String)> {
        let line = line(request);
        let request = Request::parse(line.as_bytes())?;
        let of = match request.of {
            Subject::Blob(digest) => format!("blob {digest}"),
            Subject::Manifest(digest) => format!("manifest {digest}"),
            Subject::Tag(tag) => format!("tag {tag}"),
        };
        Some((request.method, request.repository.to_owned(), of))
    }

    #[test]
    fn real_lines_of_both_majors_are_understood() {
        let blob = format!(
            "127.0.0.1 - - [21/Nov/2026:15:08:57 +0000] \"GET /v2/a/b/blobs/sha256:{HEX}?ns=docker.io HTTP/1.1\" \
             206 16 \"\" \"Python-urllib/3.11\""
        );
        let wanted = Request {
            at: 1_795_273_737,
            method: Method::Get,
            status: 206,
            bytes: 16,
            repository: "a/b",
            of: Subject::Blob(Digest::from_hex(HEX.as_bytes()).unwrap()),
        };
        assert_eq!(Request::parse(blob.as_bytes()), Some(wanted));
        let tag = line("HEAD /v2/library/busybox/manifests/1.37 HTTP/1.1");
        let request = Request::parse(tag.as_bytes()).unwrap();
        assert_eq!((request.method, request.of), (Method::Head, Subject::Tag("1.37")));
        let six =
            format!("fd00::1{}", line(&format!("GET /v2/x/manifests/sha256:{HEX} HTTP/2.0")).split_off(9));
        assert!(Request::parse(six.as_bytes()).is_some(), "{six}");
    }

    #[test]
    fn other_requests_are_none() {
        for request in [
            "GET /v2/ HTTP/1.1",
            "GET / HTTP/1.1",
            "GET /v2/_catalog HTTP/1.1",
            "GET /v2/a/tags/list HTTP/1.1",
            "PUT /v2/a/manifests/1 HTTP/1.1",
            "GET /v2/a/blobs/uploads/ HTTP/1.1",
        ] {
            assert_eq!(parsed(request), None, "{request}");
        }
    }

    #[test]
    fn what_failed_is_no_use() {
        let text = line("GET /v2/a/manifests/1 HTTP/1.1");
        for status in ["404", "500", "301", "400", "0", "-1", "2000", "x"] {
            let text = text.replace(" 200 ", &format!(" {status} "));
            assert_eq!(Request::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn no_line_names_a_path_out_of_the_store() {
        for name in [
            "..",
            ".",
            "a/..",
            "../a",
            "a//b",
            "/a",
            "a/",
            "_uploads",
            "a/_layers",
            "a/.b",
            "a/b.",
            "A",
            "ä",
            "a%2fb",
            "a\\\"b",
            "a..b",
            "a___b",
            "a._b",
            "a/-b",
            "",
            "a/\\x00",
        ] {
            let blob = format!("GET /v2/{name}/blobs/sha256:{HEX} HTTP/1.1");
            assert_eq!(parsed(&blob), None, "{name:?}");
        }
        for tag in ["..", ".", "-1", "1/..", "a b", "a%2f", "", &"a".repeat(129), "sha256:00", "ä"] {
            assert_eq!(parsed(&format!("GET /v2/a/manifests/{tag} HTTP/1.1")), None, "{tag:?}");
        }
        let digest = format!("GET /v2/a/blobs/sha256:{}/.. HTTP/1.1", &HEX[3..]);
        assert_eq!(parsed(&digest), None);
    }

    #[test]
    fn distributions_names_are_taken() {
        for name in ["a", "library/busybox", "a-b/c_d/e__f/g.h", "a---b", "0/1", &"a".repeat(255)] {
            assert!(is_repository(name), "{name}");
        }
        assert!(!is_repository(&"a".repeat(256)));
        for tag in ["1", "_", "V1.2-rc_3", &"a".repeat(128)] {
            assert!(is_tag(tag), "{tag}");
        }
    }

    #[test]
    fn a_user_agent_that_looks_like_a_request_is_none() {
        let text = line("GET /v2/ HTTP/1.1").replace(
            "containerd/1.7",
            &format!(
                "\\\" - - [21/Nov/2026:15:08:53 +0000] \\\"GET /v2/a/blobs/sha256:{HEX} HTTP/1.1\\\" 200 1"
            ),
        );
        assert_eq!(Request::parse(text.as_bytes()), None, "{text}");
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (text, wanted) in [
            ("01/Jan/1970:00:00:00 +0000", Some(0)),
            ("29/Feb/2024:23:59:59 +0000", Some(1_709_251_199)),
            ("01/Mar/2024:00:00:00 +0000", Some(1_709_251_200)),
            ("31/Dec/2026:23:30:00 -0130", Some(1_798_765_200)),
            ("01/Jan/2027:02:00:00 +0100", Some(1_798_765_200)),
            ("31/Dec/1969:23:59:59 +0000", None),
            ("32/Jan/2026:00:00:00 +0000", None),
            ("01/Foo/2026:00:00:00 +0000", None),
            ("01/Jan/2026:24:00:00 +0000", None),
            ("01/Jan/99999:00:00:00 +0000", None),
            ("01/Jan/2026:00:00:00", None),
            ("", None),
        ] {
            assert_eq!(time(text), wanted, "{text}");
        }
    }
}
