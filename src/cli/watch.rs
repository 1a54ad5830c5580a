//! `larder watch`: one round.

use std::path::Path;

use anyhow::Result;

use super::{code, print, refused};
use crate::log::{self, TOLD};
use crate::root::Root;
use crate::watch::step::Change;
use crate::watch::{self, Event, Round};

pub(super) fn watch_command(root: Option<&Path>) -> Result<u8> {
    if !nix::unistd::geteuid().is_root() {
        return Err(refused("watch writes root's files: run it as root").into());
    }
    let events = match watch::round(&Root::open(root.unwrap_or(Path::new("/")))?)? {
        Round::Idle | Round::Skipped => Vec::new(),
        Round::Done(events) => events,
    };
    if events.is_empty() {
        // The usual case: not even the journal is opened.
        return Ok(code::CONVERGED);
    }
    if root.is_none() {
        log::init();
        events.iter().for_each(tell);
    }
    if !log::stderr_is_journal() {
        print(&events.iter().map(|event| format!("{event}\n")).collect::<String>())?;
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
