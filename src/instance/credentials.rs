//! Who this node is to an upstream: what `larder get` tells Distribution 3 each time that it asks, and what
//! Distribution 2 is given when it starts.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::caches::Caches;
use crate::host::command::{self, Invocation};
use crate::host::environment;
use crate::node::{RemoteUrl, UpstreamHost};
use crate::plan::registry::login_path;
use crate::root::Root;

/// In the environment of each registry, and so in that of the program that it asks.
pub(super) const UPSTREAM: &str = "LARDER_UPSTREAM";
/// A helper may have to ask a cloud.
const HELPER_LIMIT: Duration = Duration::from_secs(30);
/// Nobody's host name is longer.
const LONGEST_SERVER: u64 = 4 << 10;
/// Docker's own name for Docker Hub.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Credentials; empty for nobody's.
#[derive(Default, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Login {
    #[serde(alias = "Username")]
    pub(super) username: Zeroizing<String>,
    #[serde(alias = "Secret")]
    pub(super) password: Zeroizing<String>,
}

impl Login {
    /// To know it again; nobody learns from it what it was.
    pub(super) fn digest(&self) -> [u8; 32] {
        Sha256::digest(format!("{}\n{}", *self.username, *self.password)).into()
    }
}

/// `get` of the protocol of docker's credential helpers: a server on standard input, a login on standard output.
///
/// # Errors
/// When there are credentials and they cannot be had.
pub fn get() -> Result<()> {
    let host = environment(UPSTREAM).context("get: this is what registries call")?;
    let host = UpstreamHost::parse(&host).map_err(anyhow::Error::msg)?;
    let mut server = String::new();
    std::io::stdin().take(LONGEST_SERVER).read_to_string(&mut server).context("read standard input")?;
    let root = Root::open(std::path::Path::new("/"))?;
    let login = login(&root, &host)?;
    let text = |text: &str| Zeroizing::new(serde_json::Value::from(text).to_string());
    let answer = Zeroizing::new(format!(
        "{{\"ServerURL\":{},\"Username\":{},\"Secret\":{}}}\n",
        *text(server.trim()),
        *text(&login.username),
        *text(&login.password)
    ));
    std::io::stdout().lock().write_all(answer.as_bytes()).context("write to standard output")
}

/// The credentials for an upstream, as of now.
pub(super) fn login(root: &Root, host: &UpstreamHost) -> Result<Login> {
    let caches = Caches::read(root)?;
    if let Some(cache) = caches.as_ref().and_then(|caches| caches.of(host.as_str()))
        && let Some(helper) = &cache.credential_helper
    {
        return ask(helper, &server(&cache.remote)?);
    }
    match root.read(&login_path(host.as_str()))? {
        None => Ok(Login::default()),
        Some(bytes) => {
            let bytes = Zeroizing::new(bytes);
            // The error of a parser may show what it read.
            serde_json::from_slice(&bytes).ok().with_context(|| {
                format!("read {}: not what `larder apply` wrote", root.show(&login_path(host.as_str())))
            })
        }
    }
}

/// What a credential helper knows this upstream by.
fn server(remote: &str) -> Result<String> {
    let url = RemoteUrl::parse(remote).map_err(anyhow::Error::msg)?;
    let (name, port) = url.host_and_port();
    let usual = if url.is_https() { 443 } else { 80 };
    Ok(match name {
        "registry-1.docker.io" => DOCKER_HUB.to_owned(),
        _ if port == usual => name.to_owned(),
        _ => format!("{name}:{port}"),
    })
}

/// Runs `docker-credential-NAME get`, in this process's sandbox and with its environment.
fn ask(helper: &str, server: &str) -> Result<Login> {
    let program = format!("docker-credential-{helper}");
    let environment: Vec<(String, String)> =
        std::env::vars().filter(|(name, _)| !name.starts_with("REGISTRY_")).collect();
    let args = ["get"];
    let mut invocation = Invocation::new(&program, &args).stdin(server);
    for (name, value) in &environment {
        if !matches!(name.as_str(), "PATH" | "LC_ALL") {
            invocation = invocation.env(name, value);
        }
    }
    let output = match invocation.output(Instant::now() + HELPER_LIMIT) {
        Err(command::Error::NotFound { .. }) => bail!(
            "ask {program} for {server}: it is in none of {}: install it, or take `credential_helper` out",
            command::SEARCH_PATH
        ),
        output => output.with_context(|| format!("ask {program} for {server}"))?,
    };
    // Helpers say on standard output why they have nothing.
    let said = Zeroizing::new(output.stdout);
    if !output.status.success() {
        let why = [&*said, &output.stderr]
            .iter()
            // Words, not half a login.
            .find_map(|text| text.lines().find(|line| !line.is_empty() && !line.contains(['{', '"'])))
            .map(str::to_owned);
        bail!("ask {program} for {server}: {}: {}", output.status, why.unwrap_or_default());
    }
    let login: Login = serde_json::from_str(&said)
        .ok()
        .with_context(|| format!("ask {program} for {server}: no login in its answer"))?;
    // Docker's word for a token that only Docker's own client can change into a password.
    ensure!(*login.username != "<token>", "ask {program} for {server}: an identity token is no password");
    Ok(login)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_know_servers_by_their_usual_names() {
        let server = |remote: &str| server(remote).unwrap();
        assert_eq!(server("https://registry-1.docker.io"), "https://index.docker.io/v1/");
        assert_eq!(
            server("https://1234.dkr.ecr.eu-central-1.amazonaws.com"),
            "1234.dkr.ecr.eu-central-1.amazonaws.com"
        );
        assert_eq!(server("http://10.0.20.1:5443"), "10.0.20.1:5443");
    }

    #[test]
    fn logins_are_ours_and_the_helpers() {
        let ours: Login = serde_json::from_str(&crate::template::login("bot", "a \"b\"\n")).unwrap();
        let theirs: Login =
            serde_json::from_str(r#"{"ServerURL":"x","Username":"bot","Secret":"a \"b\"\n"}"#).unwrap();
        assert!(ours == theirs && *ours.password == "a \"b\"\n");
        assert_ne!(ours.digest(), Login::default().digest());
    }
}
