//! Names and sizes that only some keys of a profile take.

use std::fmt;

use ipnetwork::IpNetwork;

use super::{Text, UpstreamHost, at_most, only, wanted};

text_type!(
    /// A user's name at a registry: it stands in a YAML file, in quotes.
    Username
);
text_type!(
    /// The suffix of a docker credential helper's program.
    HelperName
);
text_type!(
    /// The name of a systemd credential, which is a file name.
    CredentialName
);
text_type!(
    /// The name of an environment variable.
    EnvName
);
text_type!(
    /// The name of an HTTP header (RFC 9110 section 5.1).
    HeaderName
);
text_type!(
    /// An image with its tag or digest.
    Image
);
text_type!(
    /// A bucket, a region, an account of an object store.
    StoreName
);
text_type!(
    /// A registry host, or `_default` for all that are not named.
    MirrorHost
);

/// One character at least, all `allowed`.
fn name(text: &str, max: usize, allowed: impl Fn(char) -> bool) -> Result<(), String> {
    if text.is_empty() {
        return Err("got nothing".to_owned());
    }
    at_most(text, max)?;
    only(text, allowed)
}

impl Text for Username {
    const DESCRIPTION: &'static str = "A user's name";
    const PATTERN: &'static str = "^[^\\s:\"'\\\\%`]+$";
    const EXAMPLES: &'static [&'static str] = &["pull-bot"];

    fn parse(text: &str) -> Result<Self, String> {
        // The colon ends the user name in HTTP's basic authentication.
        let allowed = |c: char| c.is_ascii_graphic() && !":\"'\\%`".contains(c);
        wanted("a user name such as `pull-bot`", name(text, 256, allowed))?;
        Ok(Self(text.to_owned()))
    }
}

impl Text for HelperName {
    const DESCRIPTION: &'static str = "What comes after `docker-credential-` in the program's name";
    const PATTERN: &'static str = "^[a-z0-9._-]+$";
    const EXAMPLES: &'static [&'static str] = &["ecr-login"];

    fn parse(text: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        wanted("a credential helper such as `ecr-login`", name(text, 64, allowed))?;
        Ok(Self(text.to_owned()))
    }
}

impl Text for CredentialName {
    const DESCRIPTION: &'static str = "The name of a systemd credential";
    const PATTERN: &'static str = "^[A-Za-z0-9_-][A-Za-z0-9._-]*$";
    const EXAMPLES: &'static [&'static str] = &["dockerhub"];

    fn parse(text: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let check = name(text, 200, allowed).and_then(|()| match text.strip_prefix('.') {
            Some(_) => Err("got a dot at its start".to_owned()),
            None => Ok(()),
        });
        wanted("the name of a systemd credential such as `dockerhub`", check)?;
        Ok(Self(text.to_owned()))
    }
}

impl Text for EnvName {
    const DESCRIPTION: &'static str = "The name of an environment variable";
    const PATTERN: &'static str = "^[A-Za-z_][A-Za-z0-9_]*$";
    const EXAMPLES: &'static [&'static str] = &["DOCKERHUB_PASSWORD"];

    fn parse(text: &str) -> Result<Self, String> {
        let check = name(text, 200, |c| c.is_ascii_alphanumeric() || c == '_').and_then(|()| {
            if text.starts_with(|c: char| c.is_ascii_digit()) {
                Err("got a digit at its start".to_owned())
            } else {
                Ok(())
            }
        });
        wanted("the name of an environment variable such as `DOCKERHUB_PASSWORD`", check)?;
        Ok(Self(text.to_owned()))
    }
}

impl Text for HeaderName {
    const DESCRIPTION: &'static str = "The name of an HTTP header";
    const PATTERN: &'static str = "^[A-Za-z0-9-]+$";
    const EXAMPLES: &'static [&'static str] = &["X-Registry-Token"];

    fn parse(text: &str) -> Result<Self, String> {
        let check = name(text, 128, |c| c.is_ascii_alphanumeric() || c == '-');
        wanted("the name of an HTTP header such as `X-Registry-Token`", check)?;
        Ok(Self(text.to_owned()))
    }
}

impl Text for Image {
    const DESCRIPTION: &'static str = "An image with its tag or digest";
    const PATTERN: &'static str = "^[A-Za-z0-9][A-Za-z0-9._:/@-]*$";
    const EXAMPLES: &'static [&'static str] = &["registry:3"];

    fn parse(text: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._:/@-".contains(c);
        let check = name(text, 512, allowed).and_then(|()| {
            if text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
                Ok(())
            } else {
                Err(format!("got `{text}`"))
            }
        });
        wanted("an image such as \"registry:3\"", check)?;
        Ok(Self(text.to_owned()))
    }
}

impl Text for StoreName {
    const DESCRIPTION: &'static str = "A name in an object store: letters, digits and ._:/-";
    const PATTERN: &'static str = "^[A-Za-z0-9][A-Za-z0-9._:/-]*$";
    const EXAMPLES: &'static [&'static str] = &["registry-cache"];

    fn parse(text: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._:/-".contains(c);
        let check = name(text, 222, allowed).and_then(|()| {
            if text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
                Ok(())
            } else {
                Err(format!("got `{text}`"))
            }
        });
        wanted("a name such as `registry-cache`", check)?;
        Ok(Self(text.to_owned()))
    }
}

impl Text for MirrorHost {
    const DESCRIPTION: &'static str = "A registry host, or `_default`";
    const PATTERN: &'static str = "^(_default|[a-z0-9][a-z0-9.:-]*)$";
    const EXAMPLES: &'static [&'static str] = &["docker.io", "_default"];

    fn parse(text: &str) -> Result<Self, String> {
        if text != "_default" {
            UpstreamHost::parse(text)?;
        }
        Ok(Self(text.to_owned()))
    }
}

impl MirrorHost {
    /// Whether it stands for every host that is not named.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.as_str() == "_default"
    }
}

/// Where a route leads; `None` is `default`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteTarget(pub Option<IpNetwork>);

impl Text for RouteTarget {
    const DESCRIPTION: &'static str = "`default`, or a network with its prefix length";
    const PATTERN: &'static str = "^(default|[0-9A-Fa-f:.]+/[0-9]{1,3})$";
    const EXAMPLES: &'static [&'static str] = &["default", "10.1.0.0/16"];

    fn parse(text: &str) -> Result<Self, String> {
        if text == "default" {
            return Ok(Self(None));
        }
        let network = <IpNetwork as Text>::parse(text).map_err(|e| {
            e.replacen(
                "an address with its prefix length such as `10.0.20.10/24`",
                "`default` or a network such as `10.1.0.0/16`",
                1,
            )
        })?;
        let address = network.network();
        if network.ip() != address {
            return Err(format!(
                "wanted a network, got the address `{text}` in it: write `{address}/{}`",
                network.prefix()
            ));
        }
        Ok(Self(Some(network)))
    }
}

/// Bytes, written with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(u64);

impl Size {
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

const UNITS: [(&str, u64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

impl Text for Size {
    const DESCRIPTION: &'static str = "Bytes with their unit";
    const PATTERN: &'static str = "^[0-9]+ ?(KiB|MiB|GiB|TiB|kB|MB|GB|TB)$";
    const EXAMPLES: &'static [&'static str] = &["80GiB"];

    fn parse(text: &str) -> Result<Self, String> {
        let bytes = UNITS.iter().find_map(|(unit, factor)| {
            let number = text.strip_suffix(unit)?;
            let number = number.strip_suffix(' ').unwrap_or(number);
            let digits = !number.starts_with('0') && number.bytes().all(|b| b.is_ascii_digit());
            number.parse::<u64>().ok().filter(|_| digits)?.checked_mul(*factor)
        });
        let shown = || format!("got `{}`", text.escape_debug());
        wanted("a size such as `80GiB`", bytes.map(Self).ok_or_else(shown))
    }
}
