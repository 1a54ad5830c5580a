//! What runs the registries.

use std::fmt;

use super::{AbsolutePath, Image};

/// What runs the registries of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engine {
    /// The registry binary found on the machine; where there is none, an image of the registry's that is there.
    Auto,
    Binary(AbsolutePath),
    Container {
        runtime: ContainerRuntime,
        image: ImageSource,
    },
}

/// What runs containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerRuntime {
    Podman,
    Docker,
}

impl ContainerRuntime {
    /// Its program.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }
}

/// Where the registry's image is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// By the name that a runtime knows it by, or pulls it by.
    Name(Image),
    /// An archive as `podman save` and `docker save` write it.
    Archive(AbsolutePath),
}

impl ImageSource {
    /// # Errors
    /// What was wanted, in one line.
    pub fn parse(image: Image) -> Result<Self, String> {
        match image.as_str().strip_prefix("file:") {
            Some(path) => AbsolutePath::parse(path).map(Self::Archive),
            None => Ok(Self::Name(image)),
        }
    }
}

/// As the units' commands spell it: a path, or `podman:IMAGE`.
impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Binary(path) => path.fmt(f),
            Self::Container { runtime, image: ImageSource::Name(image) } => {
                write!(f, "{}:{image}", runtime.name())
            }
            Self::Container { runtime, image: ImageSource::Archive(path) } => {
                write!(f, "{}:file:{path}", runtime.name())
            }
        }
    }
}

impl Engine {
    /// What [`Engine`] displays as.
    ///
    /// # Errors
    /// What was wanted, in one line.
    pub fn parse(text: &str) -> Result<Self, String> {
        for runtime in [ContainerRuntime::Podman, ContainerRuntime::Docker] {
            if let Some(image) = text.strip_prefix(runtime.name()).and_then(|rest| rest.strip_prefix(':')) {
                let image = ImageSource::parse(Image::parse(image)?)?;
                return Ok(Self::Container { runtime, image });
            }
        }
        match text {
            "auto" => Ok(Self::Auto),
            _ => AbsolutePath::parse(text).map(Self::Binary),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_unit_is_told_reads_back() {
        for text in [
            "/usr/local/bin/registry",
            "podman:registry:3",
            "docker:registry.example.com:5000/x/registry:2.8.3",
            "podman:file:/srv/registry.tar",
            "auto",
        ] {
            assert_eq!(Engine::parse(text).unwrap().to_string(), text);
        }
        assert!(Engine::parse("runc:registry:3").is_err());
        assert!(Engine::parse("podman:file:srv/registry.tar").is_err());
    }
}
