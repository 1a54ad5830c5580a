//! `larder watch`: one round, or some; and as long as they take, an eye on this node's own registries.

use std::path::Path;
use std::sync::Once;
use std::time::Duration;

use anyhow::Result;

use super::{code, print, refused};
use crate::caches::CACHES;
use crate::log::{self, TOLD};
use crate::root::Root;
use crate::watch::guard::{self, Busy, Told};
use crate::watch::step::Change;
use crate::watch::{self, Event, Round};

/// From the end of a round to the next one.
const PAUSE: Duration = Duration::from_secs(3);

/// With a registry under suspicion there are so many rounds more, to see it through.
const MORE: u32 = 40;
/// The journal is opened when there is something to tell.
static LOG: Once = Once::new();

pub(super) fn watch_command(rounds: u32, root: Option<&Path>) -> Result<u8> {
    if !nix::unistd::geteuid().is_root() {
        return Err(refused("watch writes root's files: run it as root").into());
    }
    let live = root.is_none();
    let root = Root::open(root.unwrap_or(Path::new("/")))?;
    let busy = Busy::default();
    // One round alone is over before a question is answered.
    let guards = live && rounds > 1 && root.exists(CACHES);
    if guards {
        guard::start(busy.clone(), |told| {
            LOG.call_once(log::init);
            tell_guard(told);
        })?;
    }
    let mut round = 0;
    while round < rounds || (busy.is() && round < rounds.saturating_add(MORE)) {
        if round > 0 {
            std::thread::sleep(PAUSE);
        }
        round += 1;
        let events = match watch::round(&root)? {
            Round::Idle if guards => continue,
            Round::Idle => break,
            Round::Skipped => continue,
            Round::Done(events) => events,
        };
        if events.is_empty() {
            continue;
        }
        if live {
            LOG.call_once(log::init);
            events.iter().for_each(tell);
        }
        if !log::stderr_is_journal() {
            print(&events.iter().map(|event| format!("{event}\n")).collect::<String>())?;
        }
    }
    Ok(code::CONVERGED)
}

/// `LARDER_SUBJECT` and `LARDER_STATE` in the journal.
fn tell_guard(told: &Told) {
    match told {
        Told::Restarted { host } => {
            tracing::warn!(target: TOLD, subject = host.as_str(), state = "restarted", "{told}");
        }
        Told::Held { host } => {
            tracing::warn!(target: TOLD, subject = host.as_str(), state = "held", "{told}")
        }
        Told::Ended { host } => {
            tracing::warn!(target: TOLD, subject = host.as_str(), state = "ended", "{told}")
        }
        Told::Failed { host, .. } => {
            tracing::error!(target: TOLD, subject = host.as_str(), state = "stuck", "{told}");
        }
        Told::Trouble { why } => tracing::error!(target: TOLD, why = why.as_str(), "{told}"),
    }
}

/// `LARDER_ENDPOINT`, `LARDER_SUBJECT`, `LARDER_STATE` and `LARDER_WHY` in the journal; a notice when it is back.
fn tell(event: &Event) {
    let (endpoint, subject) = (event.url.as_str(), event.host.as_str());
    match &event.change {
        Change::Out { why } => {
            tracing::warn!(target: TOLD, endpoint, subject, state = "out", why = why.as_str(), "{event}");
        }
        Change::Kept { why } => {
            tracing::warn!(target: TOLD, endpoint, subject, state = "kept", why = why.as_str(), "{event}");
        }
        Change::Back { .. } => tracing::info!(target: TOLD, endpoint, subject, state = "in", "{event}"),
    }
}
