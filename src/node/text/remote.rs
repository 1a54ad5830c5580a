//! What is reached over the network: registries, caches, repositories, names.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Text, at_most, only, wanted};

text_type!(
    /// A registry host as image names spell it, `ghcr.io` or `registry.example.com:5000`: lower-case ASCII
    /// labels and an optional port. It is also a file name and a systemd instance name.
    UpstreamHost
);
text_type!(
    /// `http://` or `https://`, host, optional port, optional path; no user info, query or fragment.
    RemoteUrl
);
/// A repository path such as `library/busybox` (distribution spec, "Pulling manifests"), and a tag where one is
/// written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    path: String,
    tag: Option<String>,
}
text_type!(
    /// A DNS name of letters, digits and hyphens, in lower case.
    DomainName
);

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A cache as clients reach it: `http` unless it is written as `https://…`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CacheHost {
    pub name: CacheName,
    pub is_https: bool,
}

/// An address or a DNS name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CacheName {
    Address(IpAddr),
    Name(DomainName),
}

/// The longest host that still fits a file name (255 bytes) as `larder-registry@<host>.service.d`, with room
/// for the suffix of a temporary file.
const HOST_MAX: usize = 200;

impl Text for UpstreamHost {
    const DESCRIPTION: &'static str = "A registry host as image names spell it, with an optional port";
    const PATTERN: &'static str =
        "^(localhost|[a-z0-9-]+(\\.[a-z0-9-]+)+|[a-z0-9-]+(\\.[a-z0-9-]+)*:[1-9][0-9]{0,4})$";
    const EXAMPLES: &'static [&'static str] = &["ghcr.io", "registry.example.com:5000"];

    fn parse(text: &str) -> Result<Self, String> {
        wanted("a registry host such as `ghcr.io` or `registry.example.com:5000`", upstream_host(text))?;
        Ok(Self(text.to_owned()))
    }
}

fn upstream_host(text: &str) -> Result<(), String> {
    if text.contains("://") {
        return Err("got a URL: the host alone goes here, the URL into `remote`".to_owned());
    }
    if text.contains('/') {
        return Err("got a path: image names put the host before the first `/`".to_owned());
    }
    at_most(text, HOST_MAX)?;
    let (host, port) = split_port(text)?;
    lower_host(host)?;
    no_registry_host(host)?;
    // The distribution reference grammar takes `ghcr/x` for `docker.io/ghcr/x`.
    if port.is_none() && !host.contains('.') && host != "localhost" {
        return Err(format!(
            "got `{host}`: without a dot or a port, image names take it for a user of docker.io"
        ));
    }
    if host == "index.docker.io" {
        return Err("got `index.docker.io`, which containerd calls `docker.io`".to_owned());
    }
    Ok(())
}

/// `host` and `host:port`; an IPv6 literal must have been cut out before.
fn split_port(text: &str) -> Result<(&str, Option<u16>), String> {
    let Some((host, port)) = text.split_once(':') else { return Ok((text, None)) };
    if port.starts_with('0') || !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("got `{}` for a port", port.escape_debug()));
    }
    match port.parse() {
        Ok(port) => Ok((host, Some(port))),
        Err(_) => Err(format!("got `{port}` for a port (1 to 65535)")),
    }
}

/// A DNS name or an IPv4 address, in lower case.
fn lower_host(host: &str) -> Result<(), String> {
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!("got upper case: write `{}`", host.to_ascii_lowercase().escape_debug()));
    }
    domain(host)
}

/// A cloud answers its machines there, with their credentials, whatever network they are in: not link-local, so known
/// by heart (Alibaba, Azure, Oracle; Amazon and Google by IPv6).
const METADATA: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];
const METADATA_NAMES: [&str; 3] = ["metadata.google.internal", "metadata.goog", "instance-data.ec2.internal"];

/// What no registry has for an address. A cache passes on what it reaches, to whoever asks it: a link-local address is
/// where a cloud tells a machine its secrets.
///
/// # Errors
/// What it is, as the end of a sentence.
pub fn no_registry(ip: IpAddr) -> Result<(), String> {
    let what = match ip {
        _ if ip.is_unspecified() => "the address of none",
        _ if ip.is_multicast() => "a multicast address",
        _ if METADATA.contains(&ip) => "a cloud's metadata service, which no cache may pass on",
        IpAddr::V4(v4) if v4.is_link_local() => {
            "a link-local address: a cloud's metadata service is at one, which no cache may pass on"
        }
        IpAddr::V4(v4) if matches!(v4.octets(), [0 | 240.., ..]) => "a reserved address",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            "a link-local address, which means nothing without its interface"
        }
        IpAddr::V6(v6) => match inner(v6) {
            Some(v4) => return Err(format!("got `{ip}`, {v4} in IPv6 dress: write the IPv4 address")),
            None => return Ok(()),
        },
        IpAddr::V4(_) => return Ok(()),
    };
    Err(format!("got `{ip}`, {what}"))
}

/// The IPv4 address that packets to this one end at: mapped (RFC 4291), by NAT64 (RFC 6052) or 6to4 (RFC 3056).
fn inner(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

/// The same for a host as it is written.
fn no_registry_host(host: &str) -> Result<(), String> {
    if let Ok(ip) = host.parse() {
        return no_registry(ip);
    }
    if METADATA_NAMES.iter().any(|name| host.eq_ignore_ascii_case(name)) {
        return Err(format!("got `{host}`, a cloud's metadata service, which no cache may pass on"));
    }
    Ok(())
}

/// RFC 1123 section 2.1, and a number as the last label only as part of an IPv4 address: `0xa9fea9fe` is one to the C
/// library (inet_aton(3)).
fn domain(name: &str) -> Result<(), String> {
    only(name, |c| c.is_ascii_alphanumeric() || c == '-' || c == '.')?;
    if name.is_empty() {
        return Err("got nothing".to_owned());
    }
    at_most(name, 253)?;
    for label in name.split('.') {
        if label.is_empty() {
            return Err("got an empty label (a dot at an end or two in a row)".to_owned());
        }
        if label.len() > 63 {
            return Err(format!("got a label of {} characters of at most 63", label.len()));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(format!("got `{label}`, a label with a hyphen at its end"));
        }
    }
    let number = |label: &str| {
        let hex = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
        label.bytes().all(|b| b.is_ascii_digit())
            || hex.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    if name.rsplit('.').next().is_some_and(number) && name.parse::<Ipv4Addr>().is_err() {
        return Err(format!("got `{name}`, which is neither a name nor an IPv4 address"));
    }
    Ok(())
}

impl Text for RemoteUrl {
    const DESCRIPTION: &'static str =
        "A URL: http or https, host, optional port, optional path; no credentials in it";
    const PATTERN: &'static str = "^https?://[a-z0-9.:\\[\\]-]+(/[A-Za-z0-9._~/-]*)?$";
    const EXAMPLES: &'static [&'static str] = &["https://registry-1.docker.io"];

    fn parse(text: &str) -> Result<Self, String> {
        wanted("a URL such as `https://registry.example.com`", remote_url(text))?;
        Ok(Self(text.strip_suffix('/').unwrap_or(text).to_owned()))
    }
}

fn remote_url(text: &str) -> Result<(), String> {
    let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else {
        return Err("got no `https://` or `http://` at its start".to_owned());
    };
    at_most(text, 1024)?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err("got credentials in it: they go into `username` and `password`".to_owned());
    }
    match authority.strip_prefix('[') {
        Some(literal) => {
            let Some((address, port)) = literal.split_once(']') else {
                return Err("got `[` without `]`".to_owned());
            };
            let Ok(ip) = address.parse::<Ipv6Addr>() else {
                return Err("got no IPv6 address in the brackets".to_owned());
            };
            no_registry(ip.into())?;
            if !split_port(port)?.0.is_empty() {
                return Err("got text after the brackets".to_owned());
            }
        }
        None => {
            let host = split_port(authority)?.0;
            lower_host(host)?;
            no_registry_host(host)?;
        }
    }
    only(path, |c| c.is_ascii_alphanumeric() || "/._~-".contains(c))?;
    let inner = path.strip_suffix('/').unwrap_or(path);
    if inner.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")) {
        return Err("got an empty, `.` or `..` part in its path".to_owned());
    }
    Ok(())
}

impl RemoteUrl {
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.0.starts_with("https://")
    }

    /// What follows the host and the port; empty, or with a slash at its start.
    #[must_use]
    pub fn path(&self) -> &str {
        let rest = self.0.split_once("://").map_or(self.as_str(), |(_, rest)| rest);
        rest.find('/').and_then(|slash| rest.get(slash..)).unwrap_or_default()
    }

    /// The host without brackets, and the port, the scheme's own where none is written.
    #[must_use]
    pub fn host_and_port(&self) -> (&str, u16) {
        let (default, rest) = match self.0.strip_prefix("https://") {
            Some(rest) => (443, rest),
            None => (80, self.0.strip_prefix("http://").unwrap_or(&self.0)),
        };
        let authority = rest.split('/').next().unwrap_or(rest);
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        (host, port.and_then(|port| port.parse().ok()).unwrap_or(default))
    }
}

impl Text for Repository {
    const DESCRIPTION: &'static str =
        "A repository without the registry's host; with a tag it is also what `verify --pull` pulls";
    const PATTERN: &'static str =
        "^[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?$";
    const EXAMPLES: &'static [&'static str] = &["library/busybox"];

    fn parse(text: &str) -> Result<Self, String> {
        let path = wanted("a repository such as `library/busybox`", repository(text))?.to_owned();
        Ok(Self { path, tag: text.split_once(':').map(|(_, tag)| tag.to_owned()) })
    }
}

impl Repository {
    /// # Errors
    /// What was wanted, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        <Self as Text>::parse(text)
    }

    /// Without the tag.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.path
    }

    /// The tag, where one is written.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// `library/busybox:latest`, where a tag is written.
    #[must_use]
    pub fn image(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("{}:{tag}", self.path))
    }
}

/// The repository without its tag.
fn repository(text: &str) -> Result<&str, String> {
    if text.contains('@') {
        return Err("got a digest: the repository alone goes here".to_owned());
    }
    let (path, tag) = text.split_once(':').unwrap_or((text, "latest"));
    at_most(path, 255)?;
    only(path, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || "/._-".contains(c))?;
    for part in path.split('/') {
        let ends_well = part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric());
        let separators = part.split(|c: char| c.is_ascii_alphanumeric());
        if !ends_well
            || !separators
                .into_iter()
                .all(|s| matches!(s, "" | "." | "_" | "__") || s.trim_matches('-').is_empty())
        {
            return Err(format!("got `{part}` between slashes"));
        }
    }
    let starts_well = tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    if !starts_well
        || tag.len() > 128
        || only(tag, |c| c.is_ascii_alphanumeric() || "._-".contains(c)).is_err()
    {
        return Err(format!("got `{}` for a tag", tag.escape_debug()));
    }
    Ok(path)
}

impl Text for DomainName {
    const DESCRIPTION: &'static str = "A DNS name";
    const PATTERN: &'static str = "^([A-Za-z0-9-]+\\.)*[A-Za-z0-9-]*[A-Za-z-][A-Za-z0-9-]*$";
    const EXAMPLES: &'static [&'static str] = &["lab.internal"];

    fn parse(text: &str) -> Result<Self, String> {
        let check = domain(text).and_then(|()| match text.parse::<Ipv4Addr>() {
            Ok(_) => Err("got an address".to_owned()),
            Err(_) => Ok(()),
        });
        wanted("a DNS name such as `lab.internal`", check)?;
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl Text for CacheHost {
    const DESCRIPTION: &'static str =
        "A cache as clients reach it: an address or a DNS name, after https:// where it serves that";
    const PATTERN: &'static str =
        "^((https://)?[A-Za-z0-9.-]+|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*|https://\\[[0-9A-Fa-f:.]+\\])$";
    const EXAMPLES: &'static [&'static str] =
        &["10.0.20.10", "cache.lab.internal", "https://cache.lab.internal"];

    fn parse(text: &str) -> Result<Self, String> {
        let (text, is_https) = match text.strip_prefix("https://") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let in_brackets = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).filter(|_| is_https);
        let address = match in_brackets {
            Some(v6) => v6.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            None => text.parse().ok().filter(|address: &IpAddr| !is_https || address.is_ipv4()),
        };
        if let Some(address) = address {
            return Ok(Self { name: CacheName::Address(address), is_https });
        }
        let check = if text.contains("://") {
            Err("got a URL: the name alone, or `https://` before it".to_owned())
        } else if text.contains('/') {
            Err("got a path: the name alone, or `https://` before it".to_owned())
        } else if is_https && text.parse::<Ipv6Addr>().is_ok() {
            Err(format!("got no brackets: `https://[{text}]`"))
        } else if text.matches(':').count() == 1 {
            Err("got a port: each upstream has its own".to_owned())
        } else if text.contains(':') {
            Err("got no valid IPv6 address".to_owned())
        } else {
            domain(text)
        };
        wanted("an address or a DNS name such as `cache.lab.internal`", check)?;
        DomainName::parse(text).map(|name| Self { name: CacheName::Name(name), is_https })
    }
}

impl CacheHost {
    /// # Errors
    /// What was wanted, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        <Self as Text>::parse(text)
    }

    /// Where it serves what is behind a port.
    #[must_use]
    pub fn url(&self, port: u16) -> String {
        let scheme = if self.is_https { "https" } else { "http" };
        match &self.name {
            CacheName::Address(ip) => format!("{scheme}://{}", SocketAddr::new(*ip, port)),
            CacheName::Name(name) => format!("{scheme}://{name}:{port}"),
        }
    }
}

/// As written in a profile: an IPv6 address has no brackets.
impl fmt::Display for CacheHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.is_https) {
            (CacheName::Address(address @ IpAddr::V6(_)), true) => write!(f, "https://[{address}]"),
            (name, true) => write!(f, "https://{name}"),
            (name, false) => name.fmt(f),
        }
    }
}

impl fmt::Display for CacheName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}
