//! `larder refresh`: forgets one image, so that the next pull asks its registry again.

use anyhow::Result;

use super::accesslog::{is_repository, is_tag};
use super::remove::take_away;
use super::{Digest, Layout};
use crate::root::Root;

/// What an image name means, in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The registry, as a profile names it.
    pub host: String,
    pub repository: String,
    pub of: Reference,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    Tag(String),
    Digest(Digest),
}

impl std::fmt::Display for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.of {
            Reference::Tag(tag) => write!(f, "{}/{}:{tag}", self.host, self.repository),
            Reference::Digest(digest) => write!(f, "{}/{}@{digest}", self.host, self.repository),
        }
    }
}

impl Image {
    /// Short names mean what they mean to Docker and nerdctl: `busybox` is `docker.io/library/busybox:latest`. With a
    /// tag and a digest, the digest counts.
    ///
    /// # Errors
    /// With what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                let digest = Digest::parse(digest).ok_or_else(|| {
                    format!("image {text:?}: {digest:?} is no digest: write sha256: and 64 digits")
                })?;
                (name, Some(digest))
            }
            None => (text, None),
        };
        let (name, tag) = match name.rsplit_once(':') {
            // Else it is a port.
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        // A first part is a registry where it cannot be a user's name.
        let (host, path) = match name.split_once('/') {
            Some((first, rest))
                if first.contains(['.', ':'])
                    || first == "localhost"
                    || first.contains(char::is_uppercase) =>
            {
                (first.to_ascii_lowercase(), rest)
            }
            _ => ("docker.io".to_owned(), name),
        };
        let host = if host == "index.docker.io" { "docker.io".to_owned() } else { host };
        let library = if host == "docker.io" && !path.contains('/') { "library/" } else { "" };
        let repository = format!("{library}{path}");
        if !is_repository(&repository) {
            return Err(format!("image {text:?}: {path:?} is no repository's name"));
        }
        let of = match (digest, tag.unwrap_or("latest")) {
            (Some(digest), _) => Reference::Digest(digest),
            (None, tag) if is_tag(tag) => Reference::Tag(tag.to_owned()),
            (None, tag) => return Err(format!("image {text:?}: {tag:?} is no tag")),
        };
        Ok(Self { host, repository, of })
    }
}

/// What was here, and is no longer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    pub tags: Vec<String>,
    pub manifest: Option<Digest>,
    /// Another tag stands for the manifest too: it stays.
    pub shared_with: Option<String>,
}

/// Drops the links to an image; its data stays until nothing else refers to it, and is not fetched again if it is
/// still the right one.
///
/// The lock of the store is the caller's.
///
/// # Errors
/// On I/O errors.
pub fn refresh(root: &Root, layout: &Layout, image: &Image) -> Result<Dropped> {
    let repository = image.repository.as_str();
    let stands_for = |tag: &str| -> Result<Option<Digest>> {
        let link = root.read(&layout.tag_link(repository, tag))?;
        Ok(link.and_then(|link| Digest::parse(std::str::from_utf8(&link).ok()?)))
    };
    let mut dropped = Dropped::default();
    let digest = match &image.of {
        Reference::Digest(digest) => Some(*digest),
        Reference::Tag(tag) => stands_for(tag)?,
    };
    let all = root.list(&layout.tags(repository))?;
    let mut gone = Vec::new();
    for tag in all {
        let wanted = match &image.of {
            Reference::Tag(wanted) => tag == *wanted,
            Reference::Digest(wanted) => stands_for(&tag)? == Some(*wanted),
        };
        if wanted {
            gone.push(tag);
        } else if digest.is_some() && stands_for(&tag)? == digest {
            dropped.shared_with = Some(tag);
        }
    }
    // The tag first: what has one is never without its manifest.
    for tag in gone {
        drop_folder(root, layout, &layout.tag(repository, &tag))?;
        dropped.tags.push(tag);
    }
    if let Some(digest) = digest
        && dropped.shared_with.is_none()
        && drop_folder(root, layout, &layout.revision(repository, &digest))?
    {
        dropped.manifest = Some(digest);
    }
    Ok(dropped)
}

fn drop_folder(root: &Root, layout: &Layout, folder: &str) -> Result<bool> {
    take_away(root, layout, folder, &mut |_| ())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test looks at the files themselves")]
mod tests {
    use super::*;

    const HEX: &str = "d8d0d98c541383df21a1d5d0d766f9cb6d5d11b931ad753c69d6e0338adb277c";

    #[test]
    fn names_mean_what_they_mean_to_docker() {
        let digest = format!("sha256:{HEX}");
        for (text, wanted) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1", "docker.io/library/busybox:1".to_owned()),
            ("docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("index.docker.io/library/busybox:1", "docker.io/library/busybox:1".to_owned()),
            ("grafana/grafana:12", "docker.io/grafana/grafana:12".to_owned()),
            ("ghcr.io/x/y", "ghcr.io/x/y:latest".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("registry:5000/x:1", "registry:5000/x:1".to_owned()),
            ("registry:5000/x", "registry:5000/x:latest".to_owned()),
            (&format!("ghcr.io/x/y@{digest}"), format!("ghcr.io/x/y@{digest}")),
            (&format!("busybox:1@{digest}"), format!("docker.io/library/busybox@{digest}")),
        ] {
            assert_eq!(Image::parse(text).map(|image| image.to_string()), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn what_is_no_image_is_refused_with_a_reason() {
        for text in [
            "",
            ":",
            "@",
            "a:",
            "a b",
            "ghcr.io/",
            "ghcr.io/../x",
            "x@sha256:12",
            "x/_layers",
            "X",
            "ghcr.io/a:-",
        ] {
            assert!(Image::parse(text).is_err(), "{text:?}: {:?}", Image::parse(text));
        }
    }

    struct Store {
        _folder: tempfile::TempDir,
        root: Root,
        layout: Layout,
    }

    fn store(tags: &[&str]) -> Store {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new("/store");
        let digest = Digest::from_hex(HEX.as_bytes()).unwrap();
        let put = |path: &str, text: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for tag in tags {
            put(&layout.tag_link("a/b", tag), &digest.to_string());
        }
        put(&layout.tag_link("a/b", "other"), &format!("sha256:{}", "0".repeat(64)));
        put(&layout.revision_link("a/b", &digest), &digest.to_string());
        put(&layout.blob_data(&digest), "{}");
        let root = Root::open(folder.path()).unwrap();
        super::super::prepare_own(&root, &layout).unwrap();
        Store { _folder: folder, root, layout }
    }

    fn dropped(store: &Store, of: Reference) -> Dropped {
        let image = Image { host: "x.io".to_owned(), repository: "a/b".to_owned(), of };
        refresh(&store.root, &store.layout, &image).unwrap()
    }

    #[test]
    fn a_tag_goes_with_its_manifest_and_its_data_stays() {
        let digest = Digest::from_hex(HEX.as_bytes()).unwrap();
        let store = store(&["v1"]);
        let wanted = Dropped { tags: vec!["v1".to_owned()], manifest: Some(digest), shared_with: None };
        assert_eq!(dropped(&store, Reference::Tag("v1".to_owned())), wanted);
        assert!(!store.root.exists(&store.layout.tag("a/b", "v1")));
        assert!(!store.root.exists(&store.layout.revision("a/b", &digest)));
        assert!(store.root.exists(&store.layout.blob_data(&digest)));
        assert!(store.root.exists(&store.layout.tag("a/b", "other")));
        assert_eq!(dropped(&store, Reference::Tag("v1".to_owned())), Dropped::default());
    }

    #[test]
    fn a_manifest_that_another_tag_stands_for_stays() {
        let store = store(&["v1", "v2"]);
        let wanted =
            Dropped { tags: vec!["v1".to_owned()], manifest: None, shared_with: Some("v2".to_owned()) };
        assert_eq!(dropped(&store, Reference::Tag("v1".to_owned())), wanted);
    }

    #[test]
    fn a_digest_goes_with_all_its_tags() {
        let digest = Digest::from_hex(HEX.as_bytes()).unwrap();
        let store = store(&["v1", "v2"]);
        let wanted = Dropped {
            tags: vec!["v1".to_owned(), "v2".to_owned()],
            manifest: Some(digest),
            shared_with: None,
        };
        assert_eq!(dropped(&store, Reference::Digest(digest)), wanted);
    }
}
