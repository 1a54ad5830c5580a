//! After the start: until the registry answers, or whoever stands in for it.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::config;
use crate::node::UpstreamHost;
use crate::root::Root;
use crate::verify::{http, pinned};

/// Below the unit's TimeoutStartSec=, so that the reason is ours to give.
const READY_LIMIT: Duration = Duration::from_secs(80);
const READY_POLL: Duration = Duration::from_millis(25);

/// Waits until the registry answers, as long as its process lives.
///
/// # Errors
/// When it ended, or did not answer in 80 s.
pub fn ready(host: &UpstreamHost) -> Result<()> {
    let root = Root::open(std::path::Path::new("/"))?;
    let config = config(&root, host)?;
    let address = probe_address(&config.http.addr)?;
    let main: Option<i32> = std::env::var("MAINPID").ok().and_then(|pid| pid.parse().ok());
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        let patience = Duration::from_secs(2);
        let answer = match config.http.tls {
            None => http::get_status(address, "/v2/", patience),
            // Which certificate it shows is its own business here: systemd 252 keeps the credentials from us.
            Some(_) => pinned::any_status(address, "GET", "/v2/", patience),
        };
        if answer.is_ok_and(|status| status == 200) {
            return Ok(());
        }
        if let Some(pid) = main
            && kill(Pid::from_raw(pid), None).is_err()
        {
            bail!(
                "{host}: the registry ended before it listened on {address}: its upstream is probably away"
            );
        }
        if Instant::now() >= deadline {
            bail!(
                "{host}: wanted 200 from {address}/v2/, got no answer in {} s: its upstream is \
                 probably silent",
                READY_LIMIT.as_secs()
            );
        }
        sleep(READY_POLL);
    }
}

/// Distribution's `:5000` is every address.
fn probe_address(addr: &str) -> Result<SocketAddr> {
    let text = match addr.strip_prefix(':') {
        Some(port) => format!("127.0.0.1:{port}"),
        None => addr.to_owned(),
    };
    text.parse().with_context(|| format!("read the listen address {addr:?}"))
}
