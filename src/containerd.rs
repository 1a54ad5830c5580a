//! What containerd does with its configuration, version by version: knowledge of containerd alone, nothing of
//! profiles and plans. `plan` writes what these modules render, `explain` and `migrate` show what they read.

use std::fmt;

pub mod config;
pub mod cri;
pub mod document;
pub mod duration;
pub mod edit;
pub mod glob;
pub mod hosts;
pub mod legacy;
pub mod probe;
pub mod resolve;
pub mod witness;

/// A containerd's version. Where only the major one is known, the oldest that Larder knows of it stands here:
/// what it can do, the others can do too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl Version {
    /// The oldest containerd that Larder knows.
    pub const OLDEST: Self = Self::new(1, 6, 0);

    #[must_use]
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// From `1.7.24`, `v2.1.9`, `1.7.24~ds1-6+b4`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.strip_prefix('v').unwrap_or(text).splitn(3, '.').map(|part| {
            let digits =
                part.find(|c: char| !c.is_ascii_digit()).map_or(part, |end| part.get(..end).unwrap_or(part));
            digits.parse::<u32>().ok()
        });
        Some(Self::new(numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)))
    }

    /// Whether hosts.toml's `dial_timeout` has an effect (2.0.7 and later; ignored before).
    #[must_use]
    pub fn has_dial_timeout(self) -> bool {
        self >= Self::new(2, 0, 7)
    }

    /// Whether `[host."http://[::1]:5000"]` can be read: 1.x takes the whole file for broken.
    #[must_use]
    pub fn takes_ipv6_hosts(self) -> bool {
        self.major >= 2
    }

    /// Whether CRI ends a pull that receives nothing (`image_pull_progress_timeout`).
    #[must_use]
    pub fn has_pull_progress_timeout(self) -> bool {
        self >= Self::new(1, 7, 0)
    }

    /// Whether a pull goes through the transfer service by default, which has limits of its own.
    #[must_use]
    pub fn has_transfer_service(self) -> bool {
        self >= Self::new(2, 1, 0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_packages_and_programs_spell_them() {
        let spelt = ["1.6.20", "v2.1.9", "1.7.24~ds1-6+b4", "2.4.0-beta.0-70-g301026e58", "2.2"];
        let found = spelt.map(|text| Version::parse(text).map(|version| version.to_string()));
        assert_eq!(found, ["1.6.20", "2.1.9", "1.7.24", "2.4.0", "2.2.0"].map(|text| Some(text.to_owned())));
        assert_eq!(["", "2", "latest", "x.1"].map(Version::parse), [None; 4]);
    }
}
