//! A renewed certificate: registries read theirs once, at their start, so those that show another one are restarted.
//! What is shown is compared with what is in the file, and nothing is remembered: it is right after any crash.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::caches::Caches;
use crate::certificate;
use crate::host::command;
use crate::root::Root;
use crate::verify::pinned;

const ASK: Duration = Duration::from_secs(5);
const COMMAND: Duration = Duration::from_secs(30);
/// One that drains for longer goes on by itself; the others are not to wait for it.
const TURN: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(250);

/// Restarts the registries that do not show the certificate of the profile, one after the other.
///
/// # Errors
/// When the certificate or its key cannot be used: what runs goes on with what it has.
pub fn renew() -> Result<()> {
    let root = Root::open(Path::new("/"))?;
    let Some(caches) = Caches::read(&root)? else { return Ok(()) };
    let Some(tls) = &caches.tls else { return Ok(()) };
    let new = certificate::read(&tls.certificate)?;
    let key = root.read(tls.key.trim_start_matches('/'))?.map(Zeroizing::new);
    let key = key.with_context(|| format!("read {}: it is not there", tls.key))?;
    // A renewal writes two files: the second one wakes us again.
    new.fits(&key).with_context(|| format!("take {} with {}", tls.certificate, tls.key))?;
    let until = humantime::format_rfc3339_seconds(new.not_after);
    ensure!(
        SystemTime::now() < new.not_after,
        "take {}: it was good until {until}: renew it",
        tls.certificate
    );
    for cache in &caches.upstreams {
        // One that does not answer reads it when it starts.
        if !pinned::shown(cache.address, ASK).is_ok_and(|shown| !new.is(&shown)) {
            continue;
        }
        let unit = format!("larder-registry@{}.service", cache.host);
        let deadline = Instant::now() + COMMAND;
        command::run(
            "systemctl",
            &["--no-block", "--no-ask-password", "try-restart", "--", &unit],
            deadline,
        )?;
        let deadline = Instant::now() + TURN;
        loop {
            if pinned::shown(cache.address, ASK).is_ok_and(|shown| new.is(&shown)) {
                info!(upstream = cache.host, %until, "shows the renewed certificate");
                break;
            }
            if Instant::now() >= deadline {
                warn!(
                    upstream = cache.host,
                    "finishes its running pulls before it shows the renewed certificate"
                );
                break;
            }
            sleep(POLL);
        }
    }
    Ok(())
}
