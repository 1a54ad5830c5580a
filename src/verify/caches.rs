//! The checks that speak HTTP to the caches: one queue, at most 64 threads.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::http::{self, Client, Fault, Method};
use super::{Machine, Probe, Run, Seen, Witness, pinned};
use crate::certificate::Certificate;

const MOST_WORKERS: usize = 64;

/// A connection refused costs microseconds, and a registry is up within 30 ms.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);

/// A registry that accepts and then says nothing is asked again after this long.
const ENDPOINT_LIMIT: Duration = Duration::from_secs(5);

/// Longer than a token fetch (15 s) that the cache gives up by itself: what is silent after that is stuck.
const UPSTREAM_LIMIT: Duration = Duration::from_secs(20);

/// A cache that says 500 is asked again for this long, in case it is the upstream's hiccup.
const TROUBLE_LIMIT: Duration = Duration::from_secs(3);

/// The checks still to be asked, by the time they are due.
pub(super) struct Queue {
    client: Client,
    /// Of all registries of the node, where they serve https.
    certificate: Option<Result<Certificate, String>>,
    due: Mutex<BinaryHeap<Reverse<Task>>>,
    tasks: usize,
}

/// Ordered by when it is due; an endpoint goes before an upstream, which can keep a worker for long.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Task {
    due: Instant,
    upstream: bool,
    check: usize,
    /// Since when the upstream has been in trouble.
    trouble: Option<Instant>,
    /// Something is known of it already.
    told: bool,
}

impl Queue {
    pub(super) fn new(machine: &dyn Machine, run: &Run<'_>) -> Self {
        let tasks = run.checks.iter().enumerate().filter_map(|(index, check)| {
            let upstream = match check.probe {
                Probe::Endpoint { .. } => false,
                Probe::Upstream { .. } => true,
                _ => return None,
            };
            Some(Reverse(Task { due: run.started, upstream, check: index, trouble: None, told: false }))
        });
        let due: BinaryHeap<_> = tasks.collect();
        let certificate = run.checks.iter().find_map(|check| match &check.probe {
            Probe::Endpoint { certificate: Some(path), .. } => Some(path),
            Probe::Upstream { certificate: Some(path), .. } => Some(path),
            _ => None,
        });
        let certificate =
            certificate.map(|path| machine.certificate(path).map_err(|error| format!("{error:#}")));
        Self { client: Client::new(), certificate, tasks: due.len(), due: Mutex::new(due) }
    }

    pub(super) fn workers(&self) -> usize {
        self.tasks.min(MOST_WORKERS)
    }

    /// Takes what is due first, waits for its time, asks once and puts it back where it is not answered
    /// yet. An empty queue means that every task left is in the hands of another worker, so that this one
    /// is not needed any more.
    pub(super) fn work(&self, witness: &Witness<'_>) {
        while let Some(mut task) = self.take() {
            thread::sleep(task.due.saturating_duration_since(Instant::now()));
            let seen = self.ask(&mut task, witness.run);
            let unfinished = seen.may_change();
            // What the deadline cut short says less than the answer before it.
            let cut = witness.run.left().is_zero() && !matches!(seen, Seen::Good(_));
            if !(cut && task.told) {
                witness.tell(task.check, seen);
                task.told = true;
            }
            task.due = Instant::now() + witness.run.pause(SHORTEST_PAUSE);
            if unfinished && task.due < witness.run.deadline {
                self.due.lock().unwrap_or_else(PoisonError::into_inner).push(Reverse(task));
            }
        }
    }

    fn take(&self) -> Option<Task> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner).pop().map(|Reverse(task)| task)
    }

    fn ask(&self, task: &mut Task, run: &Run<'_>) -> Seen {
        let left = run.left();
        let Some(check) = run.checks.get(task.check).filter(|_| !left.is_zero()) else {
            return Seen::Pending("no answer before the deadline".to_owned());
        };
        // Looked up before asking: the answer then is from after the unit went down.
        let lost = run.is_lost(&check.subject);
        let seen = match &check.probe {
            Probe::Endpoint { address, certificate } => {
                let url = http::endpoint_url(*address, certificate.is_some());
                endpoint(self.status(Method::Get, &url, *address, ENDPOINT_LIMIT.min(left)))
            }
            Probe::Upstream { repository: None, .. } => {
                return Seen::Skipped("no public repository of it is known: set its `probe`".to_owned());
            }
            Probe::Upstream { address, certificate, repository: Some(repository), .. } => {
                let url = http::probe_url(*address, certificate.is_some(), repository);
                let answer = self.status(Method::Head, &url, *address, UPSTREAM_LIMIT.min(left));
                upstream(answer, &mut task.trouble)
            }
            _ => return Seen::Skipped("not asked by HTTP".to_owned()),
        };
        match seen {
            Seen::Pending(got) if lost => Seen::Settled(got),
            seen => seen,
        }
    }

    /// By https, the registry has to show the certificate that it was given.
    fn status(&self, method: Method, url: &str, address: SocketAddr, limit: Duration) -> Result<u16, Fault> {
        if !url.starts_with("https://") {
            return self.client.status(method, url, limit);
        }
        let path = url.splitn(4, '/').nth(3).unwrap_or_default();
        match &self.certificate {
            Some(Ok(certificate)) => {
                pinned::status(address, method.as_str(), &format!("/{path}"), limit, certificate)
            }
            Some(Err(why)) => Err(Fault::Broken(why.clone())),
            None => Err(Fault::Broken("its certificate is not known".to_owned())),
        }
    }
}

fn endpoint(answer: Result<u16, Fault>) -> Seen {
    match answer {
        Ok(200) => Seen::Good("200".to_owned()),
        Ok(status) => Seen::Pending(status.to_string()),
        Err(fault) => Seen::Pending(fault.to_string()),
    }
}

/// What the cache's answer says of its upstream. Measured with Distribution 2.8 and 3.1: healthy 404; wrong
/// credentials, a rate limit and an upstream that is down are 500 or the upstream's own status; a cache
/// stuck on a hung connection says nothing, and recovers only when it is restarted.
fn upstream(answer: Result<u16, Fault>, trouble: &mut Option<Instant>) -> Seen {
    let got = match answer {
        Ok(404) => return Seen::Good("404".to_owned()),
        Err(Fault::Connect(why)) => return Seen::Blocked(format!("not asked, its cache is not up: {why}")),
        // It had all the time there is, or twenty seconds.
        Err(fault @ Fault::Silent(_)) => {
            return Seen::Settled(format!("{fault}: the upstream is silent or the cache stuck"));
        }
        Err(fault @ Fault::Broken(_)) => fault.to_string(),
        // Why, is what the upstream itself is asked for.
        Ok(status @ (401 | 403 | 429 | 500..=599)) => {
            format!("{status}: the cache gets nothing from its upstream")
        }
        Ok(status) => format!("{status}: no pull-through cache answers like this"),
    };
    match trouble {
        Some(since) if since.elapsed() >= TROUBLE_LIMIT => Seen::Settled(got),
        Some(_) => Seen::Pending(got),
        None => {
            *trouble = Some(Instant::now());
            Seen::Pending(got)
        }
    }
}
