//! The part of Go's `url.Parse` that containerd uses.

/// `scheme://host/path`, decoded; user, query and fragment are dropped as containerd drops them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Url {
    pub scheme: String,
    pub host: String,
    pub path: String,
    /// There was a user or a query, which containerd does not send.
    pub dropped: bool,
}

impl Url {
    /// # Errors
    /// What Go says against it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
            return Err("invalid control character in URL");
        }
        let (text, fragment) = text.split_once('#').map_or((text, false), |(before, _)| (before, true));
        let (scheme, rest) = split_scheme(text)?;
        let (rest, query) = rest.split_once('?').map_or((rest, false), |(before, _)| (before, true));
        let mut url = Self { scheme, dropped: query || fragment, ..Self::default() };
        if !rest.starts_with('/') {
            if !url.scheme.is_empty() {
                return Ok(url); // opaque
            }
            if rest.split('/').next().is_some_and(|first| first.contains(':')) {
                return Err("first path segment in URL cannot contain colon");
            }
        }
        let mut path = rest;
        if let Some(after) =
            rest.strip_prefix("//").filter(|_| !url.scheme.is_empty() || !rest.starts_with("///"))
        {
            let end = after.find('/').unwrap_or(after.len());
            let (authority, remaining) = after.split_at_checked(end).unwrap_or((after, ""));
            path = remaining;
            let host = match authority.rsplit_once('@') {
                Some((_, host)) => {
                    url.dropped = true;
                    host
                }
                None => authority,
            };
            check_host(host)?;
            url.host = unescape(host).ok_or("invalid URL escape")?;
        }
        url.path = unescape(path).ok_or("invalid URL escape")?;
        Ok(url)
    }

    /// The port, where one is written.
    #[must_use]
    pub fn port(&self) -> &str {
        split_port(&self.host).map_or("", |(_, port)| port)
    }
}

fn split_scheme(text: &str) -> Result<(String, &str), &'static str> {
    for (at, character) in text.char_indices() {
        match character {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if at > 0 => {}
            ':' if at == 0 => return Err("missing protocol scheme"),
            ':' => {
                let (scheme, rest) = text.split_at_checked(at).unwrap_or((text, ""));
                return Ok((scheme.to_ascii_lowercase(), rest.get(1..).unwrap_or_default()));
            }
            _ => break,
        }
    }
    Ok((String::new(), text))
}

fn check_host(host: &str) -> Result<(), &'static str> {
    let after = if host.starts_with('[') {
        let Some((_, after)) = host.rsplit_once(']') else { return Err("missing ']' in host") };
        after
    } else {
        host.rfind(':').and_then(|at| host.get(at..)).unwrap_or_default()
    };
    let digits = after.strip_prefix(':').unwrap_or(after);
    if !after.is_empty() && (!after.starts_with(':') || !digits.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err("invalid port after host");
    }
    if host
        .bytes()
        .any(|byte| matches!(byte, b' ' | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}'))
    {
        return Err("invalid character in host name");
    }
    Ok(())
}

fn unescape(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            other => other,
        });
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Go's `net.SplitHostPort`; `None` where it finds an error, such as no port.
#[must_use]
pub fn split_port(host: &str) -> Option<(&str, &str)> {
    let (name, port) = host.rsplit_once(':')?;
    match name.strip_prefix('[') {
        Some(inner) => Some((inner.strip_suffix(']')?, port)),
        None if name.contains([':', '[', ']']) => None,
        None => Some((name, port)),
    }
}

/// Go's `path.Clean` of a path that starts with a slash, or is empty.
#[must_use]
pub fn clean(path: &str) -> String {
    format!("/{}", crate::containerd::glob::clean(path))
}

/// containerd's `IsLocalhost`.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let name = split_port(host).map_or(host, |(name, _)| name);
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// A URL without what may be a password.
#[must_use]
pub fn shown(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        (None, Some((_, host))) => format!("…@{host}"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_as_go_reads_them() {
        for (text, wanted) in [
            ("https://h:5/a/b", Ok(("https", "h:5", "/a/b"))),
            ("http://h", Ok(("http", "h", ""))),
            ("https://HTTPS://h", Ok(("https", "HTTPS:", "//h"))),
            ("httpbin.example:5000", Ok(("httpbin.example", "", ""))),
            ("httpbin.example/x", Ok(("", "", "httpbin.example/x"))),
            ("http_x:5000", Err("first path segment in URL cannot contain colon")),
            ("http://[::1]:5000/v2", Ok(("http", "[::1]:5000", "/v2"))),
            ("http://[::1/v2", Err("missing ']' in host")),
            ("http://h:x", Err("invalid port after host")),
            ("http://h h", Err("invalid character in host name")),
            ("http://u:p@h/x?y=1#z", Ok(("http", "h", "/x"))),
            ("http://h/%4", Err("invalid URL escape")),
            ("http://h/\n", Err("invalid control character in URL")),
            (":x", Err("missing protocol scheme")),
        ] {
            let found = Url::parse(text);
            let found =
                found.as_ref().map(|url| (&*url.scheme, &*url.host, &*url.path)).map_err(|error| *error);
            assert_eq!(found, wanted, "{text}");
        }
    }

    #[test]
    fn loopback_as_containerd_sees_it() {
        for (host, wanted) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.9.9.9", true),
            ("[::1]:5000", true),
            ("[::1]", false),
            ("10.0.0.1:5000", false),
            ("localhost.example", false),
        ] {
            assert_eq!(is_loopback(host), wanted, "{host}");
        }
    }
}
