//! Proves that what was applied works: every check at once, under one deadline, started while units still
//! come up. A check is asked again until it is good, cannot become good any more, or the deadline passes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;

mod caches;
mod checks;
pub mod direct;
pub mod http;
mod machine;
pub mod pinned;
mod progress;
mod preflight;
mod pull;
mod report;

pub use checks::{Known, checks, pulls};
pub use machine::{Live, Machine};
pub use progress::{Progress, progress};
pub use pull::{Endpoint, Pulled, Request, Wanted};
pub use report::{Counts, Detail, Report, Row, State};

/// One thing that must be true of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Whose check it is: an upstream's host, `network` or `containerd`. Rows of one subject stand together.
    pub subject: String,
    pub probe: Probe,
}

/// How it is found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// The address is on the interface, or on any where none is named, with this prefix length.
    Address { address: IpNetwork, interface: Option<String> },
    /// The unit is active.
    Unit { unit: String },
    /// The timer is active and will elapse.
    Timer { unit: String },
    /// A registry answers 200 to `GET /v2/`; by https where it has a certificate, whose absolute path this is.
    Endpoint { address: SocketAddr, certificate: Option<String> },
    /// The certificate of the registries is good for a while.
    Certificate { path: String },
    /// The upstream itself, asked from here, serves what it is asked for.
    Preflight { question: direct::Question, required: bool },
    /// The cache reaches its upstream: it answers 404 to the HEAD of a blob that cannot exist. `/v2/` says
    /// nothing of that, it is 200 with a dead upstream too. `repository` is one that the upstream has.
    Upstream { address: SocketAddr, certificate: Option<String>, repository: Option<String>, required: bool },
    /// containerd's CRI plugin is up.
    Cri,
    /// A pull of this image goes through a cache. `remote` is the upstream itself; `cached`: there are caches that
    /// it shall not be asked past.
    Pull { certs_dir: String, image: Option<String>, remote: String, cached: bool },
    /// `larder watch` has no cache out.
    Caches,
}

impl Probe {
    /// The kind's name in reports and in the journal.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Address { .. } => "address",
            Self::Unit { .. } => "unit",
            Self::Endpoint { .. } => "endpoint",
            Self::Certificate { .. } => "certificate",
            Self::Preflight { .. } => "preflight",
            Self::Upstream { .. } => "upstream",
            Self::Timer { .. } => "timer",
            Self::Cri => "cri",
            Self::Pull { .. } => "pull",
            Self::Caches => "caches",
        }
    }

    /// What a good machine shows.
    fn wanted(&self) -> String {
        match self {
            Self::Address { address, interface: Some(interface) } => format!("{address} on {interface}"),
            Self::Address { address, interface: None } => format!("{address} on an interface"),
            Self::Unit { unit } => format!("{unit} active"),
            Self::Timer { unit } => format!("{unit} armed"),
            Self::Endpoint { address, certificate } => {
                format!("200 from {}", http::endpoint_url(*address, certificate.is_some()))
            }
            Self::Preflight { question, .. } => question.to_string(),
            Self::Certificate { path } => format!("{path} good for 21 days and more"),
            Self::Upstream { repository: None, .. } => "an answer of the upstream".to_owned(),
            Self::Upstream { address, certificate, repository: Some(repository), .. } => {
                let url = http::probe_url(*address, certificate.is_some(), repository);
                format!("404 from HEAD {}", http::abbreviate(&url))
            }
            Self::Cri => "containerd's CRI plugin ok".to_owned(),
            Self::Pull { image: None, .. } => "a pull through a cache".to_owned(),
            Self::Pull { image: Some(image), .. } => format!("a pull of {image} through a cache"),
            Self::Caches => "every cache in use".to_owned(),
        }
    }
}

/// What the last look at a check showed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Good(String),
    /// Not good, may become so.
    Pending(String),
    /// Could not be asked because something else that is checked too is not good yet.
    Blocked(String),
    /// Not good, and waiting will not help.
    Settled(String),
    /// Not to be asked, and why.
    Skipped(String),
    /// Not as wanted, and let pass.
    Warned(String),
}

impl Seen {
    fn may_change(&self) -> bool {
        matches!(self, Self::Pending(_) | Self::Blocked(_))
    }
}

/// What was seen of one check, and when.
struct Sighting {
    check: usize,
    seen: Seen,
    detail: Option<Detail>,
    at: Duration,
}

/// What all the threads of one run share.
struct Run<'a> {
    checks: &'a [Check],
    started: Instant,
    deadline: Instant,
    /// Subjects whose unit is down for good: nobody has to wait for their endpoints.
    lost: Mutex<BTreeSet<String>>,
}

impl Run<'_> {
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// How long to wait before a check is asked again: an eighth of the time waited so far, so that what
    /// comes up soon is seen soon, and nothing is asked more than twice a second in the long run.
    fn pause(&self, shortest: Duration) -> Duration {
        (self.started.elapsed() / 8).clamp(shortest, Duration::from_millis(500))
    }

    fn is_lost(&self, subject: &str) -> bool {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).contains(subject)
    }

    fn lose(&self, subject: &str) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).insert(subject.to_owned());
    }
}

/// One thread's way to tell what it sees.
struct Witness<'a> {
    run: &'a Run<'a>,
    sightings: Sender<Sighting>,
}

impl Witness<'_> {
    fn tell(&self, check: usize, seen: Seen) {
        self.tell_all(check, seen, None);
    }

    fn tell_all(&self, check: usize, seen: Seen, detail: Option<Detail>) {
        let sighting = Sighting { check, seen, detail, at: self.run.started.elapsed() };
        // The receiver outlives every witness.
        let _ = self.sightings.send(sighting);
    }
}

/// Runs `checks` on this machine; takes as long as the slowest of them, and never longer than `timeout`.
#[must_use]
pub fn run(checks: &[Check], timeout: Duration, progress: &mut dyn Progress) -> Report {
    run_on(&Live, checks, timeout, progress)
}

/// [`run`], on another machine than this one.
#[must_use]
pub fn run_on(
    machine: &dyn Machine,
    checks: &[Check],
    timeout: Duration,
    progress: &mut dyn Progress,
) -> Report {
    let started = Instant::now();
    let deadline = started.checked_add(timeout).unwrap_or(started);
    let run = Run { checks, started, deadline, lost: Mutex::default() };
    let latest = thread::scope(|scope| {
        let (sightings, received) = mpsc::channel();
        spawn_all(scope, machine, &run, &sightings);
        // The channel ends when the last of the threads does.
        drop(sightings);
        watch(&run, &received, progress)
    });
    progress.clear();
    let rows = checks.iter().zip(latest).map(|(check, last)| row(check, last, started.elapsed())).collect();
    Report::new(rows, started.elapsed())
}

fn spawn_all<'s>(
    scope: &'s Scope<'s, '_>,
    machine: &'s dyn Machine,
    run: &'s Run<'s>,
    sightings: &Sender<Sighting>,
) {
    // ureq and systemctl's output need a fraction of it; the default is 2 MiB (128 KiB with musl).
    const STACK: usize = 256 << 10;
    let spawn = |work: Box<dyn FnOnce(Witness<'s>) + Send + 's>| {
        let witness = Witness { run, sightings: sightings.clone() };
        // A check that no thread could be had for ends as one that was not asked.
        let _ = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, move || work(witness));
    };
    let any = |wanted: fn(&Probe) -> bool| run.checks.iter().any(|check| wanted(&check.probe));

    let queue = caches::Queue::new(machine, run);
    let workers = queue.workers();
    let queue = std::sync::Arc::new(queue);
    for _ in 0..workers {
        let queue = queue.clone();
        spawn(Box::new(move |witness| queue.work(&witness)));
    }
    let preflights = preflight::Preflights::new(run);
    let workers = preflights.workers();
    let preflights = std::sync::Arc::new(preflights);
    for _ in 0..workers {
        let preflights = preflights.clone();
        spawn(Box::new(move |witness| preflights.work(&witness)));
    }
    let pulls = pull::Pulls::new(run);
    let workers = pulls.workers();
    let pulls = std::sync::Arc::new(pulls);
    for _ in 0..workers {
        let pulls = pulls.clone();
        spawn(Box::new(move |witness| pulls.work(machine, &witness)));
    }
    if any(|probe| matches!(probe, Probe::Unit { .. } | Probe::Timer { .. })) {
        spawn(Box::new(|witness| machine::watch_units(machine, &witness)));
    }
    if any(|probe| matches!(probe, Probe::Address { .. })) {
        spawn(Box::new(|witness| machine::watch_addresses(machine, &witness)));
    }
    if any(|probe| matches!(probe, Probe::Caches)) {
        spawn(Box::new(|witness| machine::look_at_caches(machine, &witness)));
    }
    if any(|probe| matches!(probe, Probe::Certificate { .. })) {
        spawn(Box::new(|witness| machine::look_at_certificate(machine, &witness)));
    }
    if any(|probe| matches!(probe, Probe::Cri)) {
        spawn(Box::new(|witness| machine::watch_cri(machine, &witness)));
    }
}

/// Collects what the threads see until the last of them has ended.
fn watch(run: &Run<'_>, received: &Receiver<Sighting>, progress: &mut dyn Progress) -> Vec<Option<Sighting>> {
    const REFRESH: Duration = Duration::from_millis(100);
    let mut latest: Vec<Option<Sighting>> = run.checks.iter().map(|_| None).collect();
    let mut shown = run.started;
    loop {
        let received = received.recv_timeout(REFRESH.saturating_sub(shown.elapsed()));
        if shown.elapsed() >= REFRESH {
            show(run, &latest, progress);
            shown = Instant::now();
        }
        match received {
            Ok(sighting) => {
                if let (Some(Check { subject, probe: Probe::Unit { .. } }), Seen::Settled(_)) =
                    (run.checks.get(sighting.check), &sighting.seen)
                {
                    run.lose(subject);
                }
                if let Some(slot) = latest.get_mut(sighting.check) {
                    *slot = Some(sighting);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                show(run, &latest, progress);
                return latest;
            }
        }
    }
}

fn show(run: &Run<'_>, latest: &[Option<Sighting>], progress: &mut dyn Progress) {
    let seen = || run.checks.iter().zip(latest.iter().map(|last| last.as_ref().map(|last| &last.seen)));
    let ended = seen().filter(|(_, seen)| seen.is_some_and(|seen| !seen.may_change())).count();
    let waiting = seen().find_map(|(check, seen)| match seen {
        Some(Seen::Pending(got)) => Some(format!("{}: {got}", check.subject)),
        _ => None,
    });
    progress.show(ended, run.checks.len(), waiting.as_deref().unwrap_or_default());
}

/// What the last sighting of a check means now that nobody looks any more.
fn row(check: &Check, last: Option<Sighting>, elapsed: Duration) -> Row {
    let refused = matches!(&last, Some(Sighting { detail: Some(detail), .. }) if detail.is_refusal());
    let failed = match check.probe {
        // containerd goes round a cache that is out.
        Probe::Upstream { required: false, .. } | Probe::Caches | Probe::Certificate { .. } => State::Warned,
        // The credentials are the profile's: whoever wrote them can make them right, and nobody else.
        Probe::Preflight { required: false, .. } if !refused => State::Warned,
        _ => State::Down,
    };
    let detail = last.as_ref().and_then(|last| last.detail.clone());
    let (state, got, took) = match last {
        None => (failed, "no answer before the deadline".to_owned(), elapsed),
        Some(Sighting { seen: Seen::Good(got), at, .. }) => (State::Ok, got, at),
        Some(Sighting { seen: Seen::Settled(got), at, .. }) => (failed, got, at),
        Some(Sighting { seen: Seen::Pending(got), .. }) => (failed, got, elapsed),
        Some(Sighting { seen: Seen::Skipped(got), at, .. }) => (State::Skipped, got, at),
        Some(Sighting { seen: Seen::Warned(got), at, .. }) => (State::Warned, got, at),
        Some(Sighting { seen: Seen::Blocked(got), .. }) => (State::Skipped, got, elapsed),
    };
    let row = Row::new(&check.subject, check.probe.name(), state, &check.probe.wanted(), &got, took);
    Row { detail, ..row }
}

#[cfg(test)]
mod tests;
