//! Podman and docker: what images they have, and how they get one. They are asked by their command, which is the
//! same in both as far as it is used here.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tracing::info;

use super::command::{Invocation, find};
use crate::facts::Container;
use crate::node::ContainerRuntime;

/// A look into its own store; a runtime that was idle may have to wake up.
const LOOK_LIMIT: Duration = Duration::from_secs(30);
/// An image of the registry has some 20 MiB; the registry that has it may be slow.
const PULL_LIMIT: Duration = Duration::from_secs(240);
const REMOVE_LIMIT: Duration = Duration::from_secs(30);
const REMOVE_TRIES: u32 = 3;
const REMOVE_PAUSE: Duration = Duration::from_millis(500);

/// What a runtime's command may need of the caller's environment to reach a registry.
const PASSED_ON: [&str; 7] =
    ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "DOCKER_HOST"];

fn ask(runtime: ContainerRuntime, args: &[&str], limit: Duration) -> Result<String> {
    let environment: Vec<(&str, String)> =
        PASSED_ON.into_iter().filter_map(|name| Some((name, std::env::var(name).ok()?))).collect();
    let invocation = Invocation::new(runtime.name(), args).env("HOME", "/root").outside();
    let invocation = environment.iter().fold(invocation, |to, (name, value)| to.env(name, value));
    Ok(invocation.run(Instant::now() + limit)?.stdout)
}

/// What `image inspect` prints; `None` where there is no such image, or nobody to ask.
#[must_use]
pub fn inspect(runtime: ContainerRuntime, image: &str) -> Option<String> {
    find(runtime.name())?;
    ask(runtime, &["image", "inspect", image], LOOK_LIMIT).ok()
}

/// Pulls an image, or loads it from its archive.
///
/// # Errors
/// What the runtime says against it, and when the archive holds another image than it says.
pub fn fetch(container: &Container) -> Result<()> {
    let Container { runtime, image, archive, .. } = container;
    let name = runtime.name();
    match archive {
        Some(path) => {
            ask(*runtime, &["load", "--input", path], PULL_LIMIT).with_context(|| format!("load {path}"))?;
            ensure!(
                inspect(*runtime, image).is_some(),
                "load {path}: {name} knows it by another id than {image}: load it by hand, and write its name"
            );
            info!(path, "{name} has loaded the registry's image");
        }
        None => {
            ask(*runtime, &["pull", image], PULL_LIMIT).with_context(|| format!("pull {image}"))?;
            info!(image, "{name} has pulled the registry's image");
        }
    }
    Ok(())
}

/// Removes a container that its command has left behind, if there is one.
///
/// # Errors
/// What the runtime says against it.
pub fn remove(runtime: ContainerRuntime, name: &str) -> Result<()> {
    if ask(runtime, &["container", "inspect", name], LOOK_LIMIT).is_err() {
        return Ok(());
    }
    // Podman is at odds with itself when its monitor was killed: it says that the container cannot be stopped, and that
    // it has ended. The next time it removes it.
    for left in (0..REMOVE_TRIES).rev() {
        match ask(runtime, &["rm", "--force", name], REMOVE_LIMIT) {
            Ok(_) => break,
            Err(_) if left > 0 => sleep(REMOVE_PAUSE),
            Err(error) => return Err(error.context(format!("remove the container {name}"))),
        }
    }
    info!(container = name, "removed: its command had ended without it");
    Ok(())
}
