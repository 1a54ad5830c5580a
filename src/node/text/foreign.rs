//! Types of other crates that a profile spells as text, each in one spelling only.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::{Text, only, wanted};

impl Text for IpAddr {
    const DESCRIPTION: &'static str = "An IPv4 or IPv6 address";
    const PATTERN: &'static str = "^([0-9]{1,3}(\\.[0-9]{1,3}){3}|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*)$";
    const EXAMPLES: &'static [&'static str] = &["10.0.20.1", "fd00:20::1"];

    fn parse(text: &str) -> Result<Self, String> {
        wanted("an address such as `10.0.20.1`", address(text))
    }
}

fn address(text: &str) -> Result<IpAddr, String> {
    only(text, |c| c.is_ascii_hexdigit() || ":./%[]".contains(c))?;
    if text.contains('/') {
        return Err(format!("got `{text}`: no prefix length here"));
    }
    if text.contains(['[', ']']) {
        return Err(format!("got `{text}`: no brackets here"));
    }
    match text.parse() {
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => {
            Err(format!("got `{text}`, an IPv4 address in IPv6 dress: write the IPv4 address"))
        }
        Ok(address) => Ok(address),
        Err(_) => Err(format!("got `{text}`")),
    }
}

impl Text for IpNetwork {
    const DESCRIPTION: &'static str = "An IPv4 or IPv6 address with its prefix length";
    const PATTERN: &'static str = "^([0-9]{1,3}(\\.[0-9]{1,3}){3}/([0-9]|[12][0-9]|3[0-2])|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*/[0-9]{1,3})$";
    const EXAMPLES: &'static [&'static str] = &["10.0.20.10/24", "fd00:20::10/64"];

    fn parse(text: &str) -> Result<Self, String> {
        wanted("an address with its prefix length such as `10.0.20.10/24`", network(text))
    }
}

fn network(text: &str) -> Result<IpNetwork, String> {
    let Some((ip, prefix)) = text.split_once('/') else {
        address(text)?;
        return Err(format!("got `{text}` without `/` and a prefix length"));
    };
    let ip = address(ip)?;
    let is_number = prefix == "0" || (!prefix.starts_with('0') && prefix.bytes().all(|b| b.is_ascii_digit()));
    let bad = || format!("got `/{}` for the prefix length", prefix.escape_debug());
    let prefix = prefix.parse().ok().filter(|_| is_number).ok_or_else(bad)?;
    IpNetwork::new(ip, prefix).map_err(|_| bad())
}

impl Text for SocketAddr {
    const DESCRIPTION: &'static str = "An address and a port";
    const PATTERN: &'static str = "^[0-9A-Fa-f:.\\[\\]]+:[0-9]{1,5}$";
    const EXAMPLES: &'static [&'static str] = &["127.0.0.1:5001"];

    fn parse(text: &str) -> Result<Self, String> {
        let result = only(text, |c| c.is_ascii_hexdigit() || ":.[]".contains(c));
        let result = result.and_then(|()| text.parse().map_err(|_| format!("got `{text}`")));
        wanted("an address and a port such as `127.0.0.1:5001`", result)
    }
}

/// The longest that anything here waits for.
const LONGEST: Duration = Duration::from_secs(3600);

impl Text for Duration {
    const DESCRIPTION: &'static str = "A time with its unit, at most an hour";
    const PATTERN: &'static str = "^[0-9]+ ?[a-z]+( ?[0-9]+ ?[a-z]+)*$";
    const EXAMPLES: &'static [&'static str] = &["60s", "5m"];

    fn parse(text: &str) -> Result<Self, String> {
        let result =
            only(text, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == ' ').and_then(|()| {
                match humantime::parse_duration(text) {
                    Ok(time) if time > LONGEST => Err(format!("got `{text}`, more than an hour")),
                    Ok(time) if time.is_zero() => Err("got no time at all".to_owned()),
                    Ok(time) => Ok(time),
                    Err(_) => Err(format!("got `{text}`")),
                }
            });
        wanted("a time such as `60s` or `5m`", result)
    }
}
