//! Where things are in a store (distribution's `registry/storage/paths.go`), and in the folder that we keep beside
//! them.
//!
//! Paths are as [`crate::root::Root`] takes them: below the root, without a leading slash.

use std::fmt;

/// Our own folder in a store.
pub const OWN: &str = ".larder";
/// Distribution's, below the store.
pub const V2: &str = "docker/registry/v2";
/// The proxy's own list of what expires when, below the store.
pub const SCHEDULER: &str = "scheduler-state.json";

/// A SHA-256 digest: Distribution names all data by it, also what was asked for by another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// `sha256:` and 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::from_hex(text.strip_prefix("sha256:")?.as_bytes())
    }

    /// 64 lower-case hexadecimal digits: the name of a blob's folder.
    #[must_use]
    pub fn from_hex(hex: &[u8]) -> Option<Self> {
        fn value(digit: u8) -> Option<u8> {
            match digit {
                b'0'..=b'9' => Some(digit - b'0'),
                b'a'..=b'f' => Some(digit - b'a' + 10),
                _ => None,
            }
        }
        let (pairs, rest) = hex.as_chunks::<2>();
        if !rest.is_empty() || pairs.len() != 32 {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = value(*high)? << 4 | value(*low)?;
        }
        Some(Self(bytes))
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Without `sha256:`.
    #[must_use]
    pub fn hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |value: u8| char::from(DIGITS.get(usize::from(value)).copied().unwrap_or(b'0'));
        self.0.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The paths of one store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    store: String,
}

impl Layout {
    /// `store` as `caches.json` and the registry's configuration have it: absolute, or below the root already.
    #[must_use]
    pub fn new(store: &str) -> Self {
        Self { store: store.trim_matches('/').to_owned() }
    }

    #[must_use]
    pub fn store(&self) -> &str {
        &self.store
    }

    /// What Distribution's proxy lets expire when.
    #[must_use]
    pub fn scheduler(&self) -> String {
        format!("{}/{SCHEDULER}", self.store)
    }

    /// Our own folder; its lock is the store's ([`super::lock`]).
    #[must_use]
    pub fn own(&self) -> String {
        format!("{}/{OWN}", self.store)
    }

    /// What was asked for, a line each: Distribution's access log.
    #[must_use]
    pub fn access_log(&self) -> String {
        format!("{}/{OWN}/access.log", self.store)
    }

    /// What has been read of the access log, and counted.
    #[must_use]
    pub fn usage(&self) -> String {
        format!("{}/{OWN}/usage.json", self.store)
    }

    /// What the last scan saw, and what was evicted.
    #[must_use]
    pub fn size(&self) -> String {
        format!("{}/{OWN}/size.json", self.store)
    }

    /// How far the scrub is.
    #[must_use]
    pub fn scrub(&self) -> String {
        format!("{}/{OWN}/scrub.json", self.store)
    }

    /// What is on its way out: moved here, then deleted.
    #[must_use]
    pub fn trash(&self) -> String {
        format!("{}/{OWN}/trash", self.store)
    }

    #[must_use]
    pub fn v2(&self) -> String {
        format!("{}/{V2}", self.store)
    }

    #[must_use]
    pub fn blobs(&self) -> String {
        format!("{}/{V2}/blobs", self.store)
    }

    /// The folder of one blob, a manifest's among them.
    #[must_use]
    pub fn blob(&self, digest: &Digest) -> String {
        let hex = digest.hex();
        format!("{}/{V2}/blobs/sha256/{}/{hex}", self.store, hex.get(..2).unwrap_or_default())
    }

    #[must_use]
    pub fn blob_data(&self, digest: &Digest) -> String {
        format!("{}/data", self.blob(digest))
    }

    #[must_use]
    pub fn repositories(&self) -> String {
        format!("{}/{V2}/repositories", self.store)
    }

    /// `name` as in `library/busybox`.
    #[must_use]
    pub fn repository(&self, name: &str) -> String {
        format!("{}/{V2}/repositories/{name}", self.store)
    }

    /// The folder that says that the repository has this layer or configuration.
    #[must_use]
    pub fn layer(&self, repository: &str, digest: &Digest) -> String {
        format!("{}/_layers/sha256/{}", self.repository(repository), digest.hex())
    }

    #[must_use]
    pub fn layer_link(&self, repository: &str, digest: &Digest) -> String {
        format!("{}/link", self.layer(repository, digest))
    }

    /// The folder that says that the repository has this manifest.
    #[must_use]
    pub fn revision(&self, repository: &str, digest: &Digest) -> String {
        format!("{}/_manifests/revisions/sha256/{}", self.repository(repository), digest.hex())
    }

    #[must_use]
    pub fn revision_link(&self, repository: &str, digest: &Digest) -> String {
        format!("{}/link", self.revision(repository, digest))
    }

    #[must_use]
    pub fn tags(&self, repository: &str) -> String {
        format!("{}/_manifests/tags", self.repository(repository))
    }

    #[must_use]
    pub fn tag(&self, repository: &str, tag: &str) -> String {
        format!("{}/{tag}", self.tags(repository))
    }

    /// Holds the digest that the tag stands for.
    #[must_use]
    pub fn tag_link(&self, repository: &str, tag: &str) -> String {
        format!("{}/current/link", self.tag(repository, tag))
    }

    /// The folder of one digest that the tag stands for, or once stood for.
    #[must_use]
    pub fn tag_index(&self, repository: &str, tag: &str, digest: &Digest) -> String {
        format!("{}/index/sha256/{}", self.tag(repository, tag), digest.hex())
    }

    /// Blobs on their way in.
    #[must_use]
    pub fn uploads(&self, repository: &str) -> String {
        format!("{}/_uploads", self.repository(repository))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    #[test]
    fn a_digest_reads_back_as_it_is_written() {
        let digest = Digest::parse(&format!("sha256:{HEX}")).unwrap();
        assert_eq!(digest.hex(), HEX);
        assert_eq!(digest.to_string(), format!("sha256:{HEX}"));
    }

    #[test]
    fn what_is_no_sha256_digest_is_none() {
        let upper = format!("sha256:{}", HEX.to_uppercase());
        for text in
            ["", "sha256:", HEX, &upper, &format!("sha512:{HEX}"), &format!("sha256:{HEX}0"), "sha256:ü"]
        {
            assert_eq!(Digest::parse(text), None, "{text}");
        }
    }

    #[test]
    fn paths_are_distributions_own() {
        let layout = Layout::new("/var/lib/larder/docker.io");
        let digest = Digest::from_hex(HEX.as_bytes()).unwrap();
        let base = "var/lib/larder/docker.io/docker/registry/v2";
        assert_eq!(layout.blob_data(&digest), format!("{base}/blobs/sha256/00/{HEX}/data"));
        assert_eq!(
            layout.revision_link("library/a", &digest),
            format!("{base}/repositories/library/a/_manifests/revisions/sha256/{HEX}/link")
        );
        assert_eq!(
            layout.tag_link("library/a", "1.0"),
            format!("{base}/repositories/library/a/_manifests/tags/1.0/current/link")
        );
        assert_eq!(layout.trash(), "var/lib/larder/docker.io/.larder/trash");
    }
}
