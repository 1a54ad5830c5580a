//! What becomes of `larder apply` when it is told to end: at once as long as nothing is changed; at the next point from
//! which all can be put back while it changes things; at once again while it only looks.

use std::io::{Write as _, stderr};
use std::sync::{Mutex, PoisonError};
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use crate::cli::code;

const ASKS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

struct State {
    phase: Phase,
    /// The session may end with the address that it came to: that stops nobody.
    outlives_session: bool,
    arrived: Option<Signal>,
}

/// How far the run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Looks,
    Changes,
    Proves,
}

static STATE: Mutex<State> =
    Mutex::new(State { phase: Phase::Looks, outlives_session: false, arrived: None });

fn with<T>(what: impl FnOnce(&mut State) -> T) -> T {
    what(&mut STATE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// From here on this process ends when it is right to. Called before its first other thread: each has the mask of
/// whoever started it.
pub fn hold() {
    let signals: SigSet = ASKS.into_iter().collect();
    if signals.thread_block().is_err() {
        return;
    }
    let waits = thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while let Ok(signal) = signals.wait() {
            obey(signal);
        }
    });
    if waits.is_err() {
        // Better at any moment than never; the journal of the run knows what to do.
        let _ = signals.thread_unblock();
    }
}

fn obey(signal: Signal) {
    with(|state| {
        if signal == Signal::SIGHUP && state.outlives_session {
            return;
        }
        state.arrived = Some(signal);
        let (said, code) = match state.phase {
            Phase::Changes => return,
            Phase::Looks => ("nothing was changed", code::FAILED),
            Phase::Proves => ("all is applied, and not proven: run `larder verify`", code::DOWN),
        };
        let _ = writeln!(stderr(), "error: stopped by {signal}: {said}");
        std::process::exit(code.into());
    });
}

/// Says how far the run is. Whoever was told to end meanwhile ends here, where that is right.
pub fn enter(phase: Phase) {
    let arrived = with(|state| {
        state.phase = phase;
        state.arrived
    });
    if let Some(signal) = arrived.filter(|_| phase != Phase::Changes) {
        obey(signal);
    }
}

/// A hang-up is no reason any more.
pub fn outlive_session() {
    with(|state| state.outlives_session = true);
}

/// What this process was told to end by.
#[must_use]
pub fn arrived() -> Option<String> {
    with(|state| state.arrived.map(|signal| signal.to_string()))
}
