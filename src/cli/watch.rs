//! `larder watch`: one round, or some.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::{code, print, refused};
use crate::log::{self, TOLD};
use crate::root::Root;
use crate::watch::step::Change;
use crate::watch::{self, Event, Round};

/// From the end of a round to the next one.
const PAUSE: Duration = Duration::from_secs(3);

pub(super) fn watch_command(rounds: u32, root: Option<&Path>) -> Result<u8> {
    if !nix::unistd::geteuid().is_root() {
        return Err(refused("watch writes root's files: run it as root").into());
    }
    let live = root.is_none();
    let root = Root::open(root.unwrap_or(Path::new("/")))?;
    // The journal is opened when there is something to tell.
    let mut told = false;
    for round in 0..rounds {
        if round > 0 {
            std::thread::sleep(PAUSE);
        }
        let events = match watch::round(&root)? {
            Round::Idle => break,
            Round::Skipped => continue,
            Round::Done(events) => events,
        };
        if events.is_empty() {
            continue;
        }
        if live {
            if !told {
                log::init();
            }
            told = true;
            events.iter().for_each(tell);
        }
        if !log::stderr_is_journal() {
            print(&events.iter().map(|event| format!("{event}\n")).collect::<String>())?;
        }
    }
    Ok(code::CONVERGED)
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
