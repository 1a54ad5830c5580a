//! The proof that this running containerd reads a certs.d: a registry that nobody has, whose hosts.toml names
//! a listener of ours, is pulled from through CRI. Only a containerd that was started with this `config_path`,
//! and that takes it for one folder, comes to the listener. Nothing is stored and nothing leaves the machine.

use std::fmt;
use std::time::Instant;

use anyhow::{Context, Result};

use super::cri::{Client, Code, CriError, SOCKET};
use super::hosts::{Endpoint, Hosts};
use super::witness::{Answer, Witness};
use crate::root::{Access, Root};

/// Names of ours end with what no DNS serves (RFC 6761).
const SUFFIX: &str = ".invalid";
const PREFIXES: [&str; 2] = ["larder-probe-", "larder-pull-"];

/// It came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The containerd that runs, by its own name: `containerd/1.7.24`.
    pub user_agent: String,
}

/// Why there is no proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoProof {
    /// CRI could not be asked for the pull.
    Down(CriError),
    /// The pull went elsewhere.
    NotRead {
        certs_dir: String,
        /// What this containerd reads instead, where it says so.
        config_path: Option<String>,
        said: String,
    },
}

impl fmt::Display for NoProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down(error) => write!(f, "ask containerd for a pull: {error}"),
            Self::NotRead { certs_dir, config_path, said } => {
                write!(f, "containerd does not read {certs_dir}: ")?;
                match config_path.as_deref() {
                    None => {
                        f.write_str("a pull did not ask the listener that a hosts.toml in there names")?
                    }
                    Some("") => f.write_str("it runs without a config_path")?,
                    Some(path) if path == certs_dir => {
                        f.write_str("its config_path is right, but the pull of a test did not ask there")?;
                    }
                    Some(path) => write!(f, "it runs with config_path {path:?}")?,
                }
                write!(f, " (the pull said: {said})")
            }
        }
    }
}

impl std::error::Error for NoProof {}

/// A registry host of ours in a certs.d, for as long as this is there.
pub(crate) struct Shadow<'r> {
    root: &'r Root,
    certs_dir: String,
    /// That folder is there for this alone.
    made: bool,
    folder: String,
    name: String,
}

impl<'r> Shadow<'r> {
    /// Makes `<certs_dir>/<name>` with this file in it.
    pub(crate) fn new(root: &'r Root, certs_dir: &str, name: &str, hosts_toml: &str) -> Result<Self> {
        let certs_dir = below(certs_dir).to_owned();
        let folder = format!("{certs_dir}/{name}");
        let made = !root.exists(&certs_dir);
        if made {
            root.make_directories(&certs_dir, Access::root(0o755))?;
        }
        root.remove_tree(&folder)?;
        // From here on it is taken away again, whatever happens.
        let shadow = Self { root, certs_dir, made, folder, name: name.to_owned() };
        root.make_directory(&shadow.folder, Access::root(0o755))?;
        // Headers of an endpoint may be secrets.
        root.write(&format!("{}/hosts.toml", shadow.folder), hosts_toml.as_bytes(), Access::root(0o600))?;
        Ok(shadow)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Shadow<'_> {
    fn drop(&mut self) {
        // The next run sweeps what could not be removed.
        let mut gone = self.root.remove_tree(&self.folder);
        if self.made {
            gone = gone.and_then(|()| self.root.remove_empty_directory(&self.certs_dir));
        }
        if let Err(error) = gone {
            tracing::warn!("{error:#}");
        }
    }
}

/// The name of a shadow: `larder-probe-<pid>.invalid`.
pub(crate) fn shadow_name(kind: &str) -> String {
    format!("larder-{kind}{SUFFIX}")
}

/// Takes away the shadows of runs that were killed.
pub(crate) fn sweep(root: &Root, certs_dir: &str) -> Result<()> {
    let certs_dir = below(certs_dir);
    for name in root.list(certs_dir)? {
        let ours = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)?.strip_suffix(SUFFIX));
        let Some(pid) = ours.map(|rest| rest.split('-').next().unwrap_or(rest)) else { continue };
        let alive = pid.parse::<u32>().is_ok_and(|pid| root.exists(&format!("proc/{pid}")));
        if !alive {
            root.remove_tree(&format!("{certs_dir}/{name}"))?;
        }
    }
    Ok(())
}

fn below(path: &str) -> &str {
    path.trim_matches('/')
}

/// Proves that the containerd that runs on this machine reads `certs_dir`.
///
/// # Errors
/// [`NoProof`], or an I/O error of the folder.
pub fn reads_certs_d(root: &Root, certs_dir: &str, deadline: Instant) -> Result<Proof> {
    reads_certs_d_at(SOCKET, root, certs_dir, deadline)
}

fn reads_certs_d_at(socket: &str, root: &Root, certs_dir: &str, deadline: Instant) -> Result<Proof> {
    let context = || format!("prove that containerd reads {certs_dir}");
    sweep(root, certs_dir).with_context(context)?;
    let witness = Witness::listen(|_| Answer::NotFound).with_context(context)?;
    let endpoint = Endpoint::mirror(witness.url());
    let server = Endpoint { url: witness.url(), ..Endpoint::default() };
    let name = shadow_name(&format!("probe-{}", std::process::id()));
    let text = Hosts { server: Some(server), hosts: vec![endpoint] }.render(&name)?;
    let shadow = Shadow::new(root, certs_dir, &name, &text).with_context(context)?;
    let client = Client::connect(socket, deadline).map_err(NoProof::Down)?;
    let said = client.pull(&format!("{}/p/x:n", shadow.name()));
    let query = format!("ns={name}");
    if let Some(asked) = witness.asked().into_iter().find(|asked| asked.path_and_query().1 == query) {
        return Ok(Proof { user_agent: asked.user_agent });
    }
    match said {
        Err(error) if matches!(error.code, Code::Unavailable | Code::Unimplemented) => {
            Err(NoProof::Down(error).into())
        }
        said => {
            let said = said.map_or_else(|error| error.message, |reference| format!("pulled {reference}"));
            // Past the deadline this has no answer either.
            let config_path = client.status().ok().and_then(|status| status.config_path);
            Err(NoProof::NotRead { certs_dir: certs_dir.to_owned(), config_path, said }.into())
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may")]
mod tests {
    use super::*;

    #[test]
    fn leftovers_of_dead_runs_go_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let folders = [
            "certs.d/larder-probe-1.invalid",
            "certs.d/larder-pull-1-0.invalid",
            "certs.d/larder-pull-2-0.invalid",
            "certs.d/ghcr.io",
            "certs.d/larder-probe-1.example",
            "proc/2",
        ];
        for folder in folders {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        std::fs::write(dir.path().join("certs.d/larder-probe-1.invalid/hosts.toml"), "").unwrap();
        sweep(&root, "/certs.d").unwrap();
        let left = root.list("certs.d").unwrap();
        assert_eq!(left, ["ghcr.io", "larder-probe-1.example", "larder-pull-2-0.invalid"]);
    }

    #[test]
    fn a_containerd_that_is_down_is_not_to_blame_for_its_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let socket = dir.path().join("none");
        let deadline = Instant::now() + std::time::Duration::from_secs(60);
        let error =
            reads_certs_d_at(socket.to_str().unwrap(), &root, "/certs.d", deadline).unwrap_err().to_string();
        assert!(error.starts_with("ask containerd for a pull: containerd not running"), "{error}");
        assert!(!root.exists("certs.d"), "the folders are gone again");
    }

    #[test]
    fn says_what_is_read_instead() {
        let error = |config_path: Option<&str>| {
            NoProof::NotRead {
                certs_dir: "/c".to_owned(),
                config_path: config_path.map(str::to_owned),
                said: "no such host".to_owned(),
            }
            .to_string()
        };
        assert_eq!(
            error(Some("/d")),
            "containerd does not read /c: it runs with config_path \"/d\" (the pull said: no such host)"
        );
        assert!(error(Some("")).contains("it runs without a config_path"));
    }
}
