//! What is on the machine itself: interfaces, paths, ports.

use std::fmt;
use std::path::Path;

use super::{Text, at_most, only, wanted};

text_type!(
    /// A Linux interface name: at most 15 bytes, no `/`, no white space (dev_valid_name in the kernel), and
    /// nothing that networkd would take for a glob.
    InterfaceName
);
text_type!(
    /// Six colon-separated hexadecimal octets, lower-case.
    MacAddress
);
text_type!(
    /// An absolute, normal path: no `..`, `.` or empty component, no control character, `%` or white space,
    /// so that it stands in any unit file or config as it is.
    AbsolutePath
);

/// A TCP port from 1024 on: registries do not run as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(u16);

impl Port {
    pub const MIN: u16 = 1024;
    pub const MAX: u16 = u16::MAX;

    /// # Errors
    /// What was wanted, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        number(text, Self::MIN.into(), Self::MAX.into()).and_then(Self::new)
    }

    /// # Errors
    /// What was wanted, in one line.
    pub fn new(port: u64) -> Result<Self, String> {
        match u16::try_from(port) {
            Ok(port) if port >= Self::MIN => Ok(Self(port)),
            Ok(_) => Err(format!(
                "wanted a port from {} to {}, got {port}: those below belong to root",
                Self::MIN,
                Self::MAX
            )),
            Err(_) => Err(format!("wanted a port from {} to {}, got {port}", Self::MIN, Self::MAX)),
        }
    }

    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Bytes, 576 to 65535; 1280 at least where there is IPv6 (RFC 8200 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mtu(u32);

impl Mtu {
    pub const MIN: u32 = 576;
    pub const MAX: u32 = 65535;

    /// # Errors
    /// What was wanted, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        number(text, Self::MIN.into(), Self::MAX.into()).and_then(Self::new)
    }

    /// # Errors
    /// What was wanted, in one line.
    pub fn new(bytes: u64) -> Result<Self, String> {
        match u32::try_from(bytes) {
            Ok(bytes) if (Self::MIN..=Self::MAX).contains(&bytes) => Ok(Self(bytes)),
            _ => Err(format!("wanted an MTU from {} to {} bytes, got {bytes}", Self::MIN, Self::MAX)),
        }
    }

    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn number(text: &str, min: u64, max: u64) -> Result<u64, String> {
    if text.starts_with('0') || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("wanted a number from {min} to {max}, got `{}`", text.escape_debug()));
    }
    text.parse().map_err(|_| format!("wanted a number from {min} to {max}, got `{text}`"))
}

impl Text for InterfaceName {
    const DESCRIPTION: &'static str = "A network interface's name";
    const PATTERN: &'static str = "^[A-Za-z0-9_][A-Za-z0-9._-]{0,14}$";
    const EXAMPLES: &'static [&'static str] = &["eth0", "enp1s0"];

    fn parse(text: &str) -> Result<Self, String> {
        wanted("an interface name such as `eth0`", interface(text))?;
        Ok(Self(text.to_owned()))
    }
}

fn interface(text: &str) -> Result<(), String> {
    only(text, |c| c.is_ascii_alphanumeric() || "._-".contains(c))?;
    at_most(text, 15)?;
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
        return Err(format!("got `{text}`"));
    }
    // systemd's ifname_valid refuses these: an index, and two words of sysctl's.
    if matches!(text, "all" | "default") || text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("got `{text}`, which no interface can be called"));
    }
    if text == "lo" {
        return Err("got the loopback interface".to_owned());
    }
    Ok(())
}

impl Text for MacAddress {
    const DESCRIPTION: &'static str = "A MAC address, in quotes";
    const PATTERN: &'static str = "^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$";
    const EXAMPLES: &'static [&'static str] = &["52:54:00:12:34:56"];

    fn parse(text: &str) -> Result<Self, String> {
        wanted("a MAC address such as \"52:54:00:12:34:56\"", mac(text))?;
        Ok(Self(text.to_ascii_lowercase()))
    }
}

fn mac(text: &str) -> Result<(), String> {
    only(text, |c| c.is_ascii_hexdigit() || c == ':')?;
    let octets: Vec<u8> = text
        .split(':')
        .filter(|part| part.len() == 2)
        .filter_map(|part| u8::from_str_radix(part, 16).ok())
        .collect();
    match octets.as_slice() {
        [first, _, _, _, _, _] if text.len() == 17 => {
            if first & 1 == 1 {
                Err(format!("got `{text}`, a group address: no interface has it"))
            } else if octets.iter().all(|octet| *octet == 0) {
                Err(format!("got `{text}`: no interface to tell apart has it"))
            } else {
                Ok(())
            }
        }
        _ => Err(format!("got `{text}`")),
    }
}

impl Text for AbsolutePath {
    const DESCRIPTION: &'static str = "An absolute path: no white space, quotes, `%`, `.` or `..` in it";
    const PATTERN: &'static str = "^/[A-Za-z0-9/._@+,=~-]*$";
    const EXAMPLES: &'static [&'static str] = &["/var/lib/larder"];

    fn parse(text: &str) -> Result<Self, String> {
        let path = if text == "/" { text } else { text.strip_suffix('/').unwrap_or(text) };
        wanted("an absolute path such as `/var/lib/larder`", absolute(path))?;
        Ok(Self(path.to_owned()))
    }
}

fn absolute(path: &str) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err(format!("got `{}`, which does not start with `/`", path.escape_debug()));
    }
    only(path, |c| c.is_ascii_alphanumeric() || "/._@+,=~-".contains(c))?;
    at_most(path, 1024)?;
    for part in path.split('/').skip(1) {
        if matches!(part, "." | "..") || (part.is_empty() && path != "/") {
            return Err(format!("got `{path}` with {} in it", if part.is_empty() { "`//`" } else { part }));
        }
        at_most(part, 200)?;
    }
    Ok(())
}

/// Folders in which other programs look for what they do: nothing is ever put there because a profile says so.
const OF_THE_SYSTEM: [&str; 10] =
    ["/bin", "/boot", "/dev", "/lib", "/lib64", "/proc", "/run/systemd", "/sbin", "/sys", "/usr"];
/// And below this one only in a folder of somebody's own.
const SHARED: &str = "/etc";
const SHARED_PARTS: [&str; 4] = ["/etc/cron.d", "/etc/pam.d", "/etc/systemd", "/etc/sudoers.d"];

impl AbsolutePath {
    /// The folder of the system's that it is, or is in.
    #[must_use]
    pub fn is_the_systems(&self) -> Option<&'static str> {
        if self.0 == SHARED {
            return Some(SHARED);
        }
        OF_THE_SYSTEM.into_iter().chain(SHARED_PARTS).find(|folder| self.as_path().starts_with(folder))
    }

    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}
