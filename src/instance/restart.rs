//! The restart timer's step: a registry is restarted when it has grown or is not well, or always.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tracing::info;

use crate::caches::{CacheOf, Caches};
use crate::host::{command, state};
use crate::node::UpstreamHost;
use crate::root::Root;
use crate::store::size::shown;
use crate::verify::http::{self, Fault};
use crate::verify::pinned;

/// Small without a ceiling: three times what a registry takes that has just started.
const SMALL: u64 = 128 << 20;
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
const ENDPOINT_LIMIT: Duration = Duration::from_secs(5);
/// Longer than an upstream takes that is slow: its token alone may take 15 s.
const PROBE_LIMIT: Duration = Duration::from_secs(25);

/// Restarts the registry of one upstream, unless it is small and well.
///
/// # Errors
/// When systemd cannot be asked.
pub fn restart(host: &UpstreamHost) -> Result<()> {
    let root = Root::open(Path::new("/"))?;
    let caches = Caches::read(&root)?;
    let cache = caches.as_ref().and_then(|caches| caches.of(host.as_str()));
    let cache =
        cache.with_context(|| format!("restart {host}: no registry of this node: run `larder apply`"))?;
    let unit = format!("larder-registry@{host}.service");
    let states = state::unit_states(std::slice::from_ref(&unit), Instant::now() + COMMAND_LIMIT)?;
    let running = states.first().filter(|state| state.is_active());
    let Some(running) = running else {
        info!(upstream = host.as_str(), "not restarted: it does not run");
        return Ok(());
    };
    let memory = running.main_pid.and_then(state::resident).unwrap_or(0);
    let is_https = caches.as_ref().is_some_and(|caches| caches.tls.is_some());
    match reason(cache, memory, |cache| well(cache, is_https)) {
        Err(why) => info!(upstream = host.as_str(), "not restarted: {why}"),
        Ok(why) => {
            info!(upstream = host.as_str(), "restarted: {why}");
            // It drains first, and nobody waits here for its last pull.
            let args = ["--no-block", "try-restart", "--", &unit];
            command::run("systemctl", &args, Instant::now() + COMMAND_LIMIT)?;
        }
    }
    Ok(())
}

/// Why it is restarted, or why not.
fn reason(
    cache: &CacheOf,
    memory: u64,
    well: impl FnOnce(&CacheOf) -> Result<(), String>,
) -> Result<String, String> {
    if cache.restart_always {
        return Ok("the profile says always".to_owned());
    }
    let small = cache.memory_high.map_or(SMALL, |high| high / 2);
    if memory > small {
        return Ok(format!("it has grown to {}, more than {}", shown(memory), shown(small)));
    }
    match well(cache) {
        Err(why) => Ok(why),
        Ok(()) => Err(format!("it is well, with {} of memory", shown(memory))),
    }
}

/// An upstream that fails is no reason: a restart would not help it. One that says nothing is: whoever has to wait for
/// it is better served by the stand-in.
fn well(cache: &CacheOf, is_https: bool) -> Result<(), String> {
    let answer = match is_https {
        true => pinned::any_status(cache.address, "GET", "/v2/", ENDPOINT_LIMIT),
        false => http::get_status(cache.address, "/v2/", ENDPOINT_LIMIT),
    };
    match answer {
        Ok(200) => {}
        Ok(status) => return Err(format!("wanted 200 from {}/v2/, got {status}", cache.address)),
        Err(fault) => return Err(format!("wanted 200 from {}/v2/, got {fault}", cache.address)),
    }
    let Some(repository) = &cache.probe else { return Ok(()) };
    let repository = repository.split(':').next().unwrap_or(repository);
    match http::head_probe(cache.address, is_https, repository, PROBE_LIMIT) {
        Err(fault @ Fault::Silent(_)) => Err(format!("it hangs: {fault} about {repository}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> CacheOf {
        serde_json::from_str(
            r#"{"host":"a.io","address":"127.0.0.1:1","remote":"https://a.io","major":2,"store":null,"max_size":null,
                "probe":null}"#,
        )
        .unwrap()
    }

    fn is_well(_: &CacheOf) -> Result<(), String> {
        Ok(())
    }

    #[test]
    fn small_and_well_stays() {
        let why = reason(&cache(), 30 << 20, is_well).unwrap_err();
        assert_eq!(why, "it is well, with 30 MiB of memory");
    }

    #[test]
    fn what_has_grown_is_restarted() {
        assert!(reason(&cache(), 200 << 20, is_well).is_ok());
        let bounded = CacheOf { memory_high: Some(1 << 30), ..cache() };
        assert!(reason(&bounded, 200 << 20, is_well).is_err());
        assert!(reason(&bounded, 600 << 20, is_well).is_ok());
    }

    #[test]
    fn what_is_not_well_is_restarted() {
        assert_eq!(reason(&cache(), 0, |_| Err("it hangs".to_owned())).unwrap(), "it hangs");
    }

    #[test]
    fn always_asks_nobody() {
        let always = CacheOf { restart_always: true, ..cache() };
        assert!(reason(&always, 0, |_| unreachable!()).is_ok());
    }
}
