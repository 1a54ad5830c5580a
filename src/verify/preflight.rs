//! The upstreams themselves, asked from here: a few at a time, and each as seldom as it takes.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::direct::{Answer, Direct};
use super::report::Detail;
use super::{Probe, Run, Seen, Witness};

/// Each has a connection with TLS of its own: some 60 KiB.
const MOST_WORKERS: usize = 24;
/// Three questions at the most: `/v2/`, a token, an image.
const LIMIT: Duration = Duration::from_secs(15);
/// What may pass is asked for again this long: an address that has just been set is not known everywhere yet.
const TROUBLE_LIMIT: Duration = Duration::from_secs(3);

/// The questions that nobody has taken yet.
pub(super) struct Preflights {
    direct: Direct,
    left: Mutex<Vec<usize>>,
    count: usize,
}

impl Preflights {
    pub(super) fn new(run: &Run<'_>) -> Self {
        let checks = run.checks.iter().enumerate().rev();
        let left: Vec<usize> = checks
            .filter(|(_, check)| matches!(check.probe, Probe::Preflight { .. }))
            .map(|(index, _)| index)
            .collect();
        Self { direct: Direct::default(), count: left.len(), left: Mutex::new(left) }
    }

    pub(super) fn workers(&self) -> usize {
        self.count.min(MOST_WORKERS)
    }

    pub(super) fn work(&self, witness: &Witness<'_>) {
        while let Some(check) = self.take() {
            let Some(Probe::Preflight { question, .. }) =
                witness.run.checks.get(check).map(|check| &check.probe)
            else {
                continue;
            };
            let started = Instant::now();
            loop {
                let left = witness.run.left();
                if left.is_zero() {
                    break;
                }
                let answer = self.direct.ask(question, LIMIT.min(left));
                let again = answer.cause.is_some_and(|cause| cause.may_pass())
                    && started.elapsed() < TROUBLE_LIMIT
                    && !witness.run.left().is_zero();
                let (seen, detail) = judge(answer, again);
                witness.tell_all(check, seen, Some(detail));
                if !again {
                    break;
                }
                thread::sleep(witness.run.pause(Duration::from_millis(100)));
            }
        }
    }

    fn take(&self) -> Option<usize> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

fn judge(answer: Answer, again: bool) -> (Seen, Detail) {
    let detail = Detail { cause: answer.cause, allowance: answer.allowance };
    let seen = match answer.cause {
        None => Seen::Good(answer.text),
        Some(_) if again => Seen::Pending(answer.text),
        Some(_) => Seen::Settled(answer.text),
    };
    (seen, detail)
}
