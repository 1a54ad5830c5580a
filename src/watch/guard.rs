//! Looks after this node's own registries, beside the rounds: a question can take twenty seconds, and no round waits
//! for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::wedge::{Act, Event, Guarded, LIMIT};
use super::{FOLDER, now};
use crate::caches::{CACHES, CacheOf, Caches};
use crate::host::command;
use crate::root::{Access, Root};
use crate::verify::direct::{Direct, Question};
use crate::verify::http;

/// As often as the rounds; every second while something is wrong.
const PAUSE: Duration = Duration::from_secs(3);
const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// An upstream that takes longer is not well.
const UPSTREAM_LIMIT: Duration = Duration::from_secs(10);
const SYSTEMCTL_LIMIT: Duration = Duration::from_secs(10);
/// Questions at a time; the others wait a second.
const MOST: usize = 64;
const TROUBLE_PAUSE: Duration = Duration::from_secs(60);
const STATE: &str = "run/larder/watch/registries.json";
/// The answer does not matter, only that there is one: it has to ask its upstream for a repository that nobody has, too.
const NOBODYS: &str = "larder/probe";
/// Both of the machine's tables, where the first columns are `sl local_address rem_address st` (proc(5)).
const CONNECTIONS: [&str; 2] = ["proc/net/tcp", "proc/net/tcp6"];
/// ESTABLISHED, and CLOSE_WAIT: a client that gave up while the registry does not even notice.
const IN_USE: [&str; 2] = ["01", "08"];

/// What it did, for the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    Restarted {
        host: String,
    },
    Held {
        host: String,
    },
    Ended {
        host: String,
    },
    Failed {
        host: String,
        why: String,
    },
    /// Of none of them in particular.
    Trouble {
        why: String,
    },
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Restarted { host } => write!(
                f,
                "{host}: its registry hangs though the upstream answers: larder-registry@{host}.service is restarted"
            ),
            Self::Held { host } => {
                write!(f, "{host}: its registry hangs again soon after a restart: it is left alone for now")
            }
            Self::Ended { host } => {
                write!(f, "{host}: its registry waited for pulls that hang with it, and was ended")
            }
            Self::Failed { host, why } => {
                write!(f, "{host}: its registry hangs, and cannot be restarted: {why}")
            }
            Self::Trouble { why } => write!(f, "look after the registries: {why}"),
        }
    }
}

/// Whether a registry is under suspicion: the process had better not end now.
#[derive(Debug, Clone, Default)]
pub struct Busy(Arc<AtomicBool>);

impl Busy {
    #[must_use]
    pub fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Looks after the registries of this machine for as long as the process lives; `tell` is called for what is done.
///
/// # Errors
/// When there can be no thread.
pub fn start(busy: Busy, tell: impl Fn(&Told) + Send + 'static) -> Result<()> {
    let body = move || {
        loop {
            // What cannot be read now may be in a minute: this thread must not end while the rounds go on.
            if let Err(error) = watch(&busy, &tell) {
                tell(&Told::Trouble { why: format!("{error:#}") });
            }
            thread::sleep(TROUBLE_PAUSE);
        }
    };
    thread::Builder::new().stack_size(256 << 10).spawn(body).context("start a thread").map(drop)
}

/// How a question ended.
struct Ended {
    host: String,
    generation: u64,
    event: Event,
}

struct Guard<'t> {
    root: Root,
    bytes: Vec<u8>,
    caches: BTreeMap<String, CacheOf>,
    is_https: bool,
    guarded: BTreeMap<String, Guarded>,
    kept: Vec<u8>,
    open: usize,
    direct: Arc<Direct>,
    sender: Sender<Ended>,
    tell: &'t dyn Fn(&Told),
}

fn watch(busy: &Busy, tell: &dyn Fn(&Told)) -> Result<()> {
    let root = Root::open(std::path::Path::new("/"))?;
    let (sender, ended) = mpsc::channel();
    let kept = root.read(STATE)?.unwrap_or_default();
    let left: BTreeMap<String, Guarded> = serde_json::from_slice(&kept).unwrap_or_default();
    let at = now()?.since_boot;
    let guarded = left.into_iter().map(|(host, guarded)| (host, guarded.resume(at))).collect();
    let mut guard = Guard {
        root,
        bytes: Vec::new(),
        caches: BTreeMap::new(),
        is_https: false,
        guarded,
        kept,
        open: 0,
        direct: Arc::default(),
        sender,
        tell,
    };
    loop {
        guard.read_caches()?;
        guard.tick()?;
        guard.keep()?;
        let is_busy = guard.guarded.values().any(Guarded::is_busy);
        busy.0.store(is_busy, Ordering::Relaxed);
        guard.wait(&ended, if is_busy { BUSY_PAUSE } else { PAUSE })?;
    }
}

impl Guard<'_> {
    fn read_caches(&mut self) -> Result<()> {
        let bytes = self.root.read(CACHES)?.unwrap_or_default();
        if bytes == self.bytes {
            return Ok(());
        }
        let caches = Caches::read(&self.root)?;
        self.is_https = caches.as_ref().is_some_and(|caches| caches.tls.is_some());
        let caches = caches.map(|caches| caches.upstreams).unwrap_or_default();
        self.caches = caches.into_iter().map(|cache| (cache.host.clone(), cache)).collect();
        self.guarded.retain(|host, _| self.caches.contains_key(host));
        self.bytes = bytes;
        Ok(())
    }

    /// Lets time pass for every registry.
    fn tick(&mut self) -> Result<()> {
        let at = now()?.since_boot;
        let unknown = Guarded::default();
        let of = |host: &String| self.guarded.get(host).unwrap_or(&unknown);
        let is_due = self.caches.keys().any(|host| of(host).is_due(at));
        let ports = if is_due { self.ports_in_use()? } else { BTreeSet::new() };
        let concerned: Vec<(String, bool)> = self
            .caches
            .values()
            .map(|cache| (cache.host.clone(), ports.contains(&cache.address.port())))
            .filter(|(host, active)| *active || of(host).is_busy())
            .collect();
        for (host, active) in concerned {
            if self.open >= MOST {
                break;
            }
            self.step(&host, at, Event::Tick { active });
        }
        Ok(())
    }

    fn ports_in_use(&self) -> Result<BTreeSet<u16>> {
        let mut ports = BTreeSet::new();
        for table in CONNECTIONS {
            let bytes = self.root.read(table)?.unwrap_or_default();
            ports.extend(in_use(&String::from_utf8_lossy(&bytes)));
        }
        Ok(ports)
    }

    fn step(&mut self, host: &str, at: u64, event: Event) {
        let guarded = self.guarded.entry(host.to_owned()).or_default();
        let act = guarded.step(at, event);
        let generation = guarded.generation;
        let (Some(act), Some(cache)) = (act, self.caches.get(host)) else { return };
        match act {
            Act::Head { confirming } => {
                let (address, repository, is_https) = (cache.address, cache.probe.clone(), self.is_https);
                self.ask(host, generation, move || {
                    let answered = answers(address, is_https, repository.as_deref().unwrap_or(NOBODYS));
                    Event::Head { confirming, answered }
                });
            }
            Act::Ask => {
                let (direct, ca) = (Arc::clone(&self.direct), self.trusted(cache));
                let question = Question {
                    remote: cache.remote.clone(),
                    repository: cache.probe.clone(),
                    tag: None,
                    login: None,
                    ca,
                };
                self.ask(host, generation, move || {
                    let answer = direct.ask(&question, UPSTREAM_LIMIT);
                    Event::Upstream { answers: answer.cause.is_none_or(|cause| cause.is_answer()) }
                });
            }
            Act::Restart => self.systemctl(
                host,
                &["--no-block", "try-restart"],
                Told::Restarted { host: host.to_owned() },
            ),
            Act::End => {
                // Nobody else is to be harmed: only one that is still on its way down.
                let unit = unit(host);
                let state = ["show", "--property=ActiveState", "--value", &unit];
                let deadline = Instant::now() + SYSTEMCTL_LIMIT;
                let output = command::run("systemctl", &state, deadline);
                if output.is_ok_and(|output| output.stdout.trim() == "deactivating") {
                    self.systemctl(
                        host,
                        &["kill", "--signal=SIGKILL"],
                        Told::Ended { host: host.to_owned() },
                    );
                }
            }
            Act::Hold => (self.tell)(&Told::Held { host: host.to_owned() }),
        }
    }

    /// One that cannot be read is one that the upstream's certificate will not pass.
    fn trusted(&self, cache: &CacheOf) -> Option<Arc<str>> {
        let bytes = self.root.read(cache.ca.as_ref()?.trim_start_matches('/')).ok()??;
        String::from_utf8(bytes).ok().map(Arc::from)
    }

    fn ask(&mut self, host: &str, generation: u64, question: impl FnOnce() -> Event + Send + 'static) {
        let (sender, host) = (self.sender.clone(), host.to_owned());
        let body = move || {
            let event = question();
            let _ = sender.send(Ended { host, generation, event });
        };
        if thread::Builder::new().stack_size(256 << 10).spawn(body).is_ok() {
            self.open += 1;
        }
    }

    fn systemctl(&self, host: &str, words: &[&str], told: Told) {
        let unit = unit(host);
        let words: Vec<&str> = words.iter().copied().chain([unit.as_str()]).collect();
        let done = command::run("systemctl", &words, Instant::now() + SYSTEMCTL_LIMIT);
        match done {
            Ok(_) => (self.tell)(&told),
            Err(error) => (self.tell)(&Told::Failed { host: host.to_owned(), why: error.to_string() }),
        }
    }

    /// What the next process has to know, where it is something else than before.
    fn keep(&mut self) -> Result<()> {
        let worth = |guarded: &Guarded| guarded.restarted.is_some() || guarded.is_busy();
        let keep: BTreeMap<&String, &Guarded> =
            self.guarded.iter().filter(|(_, guarded)| worth(guarded)).collect();
        let bytes = if keep.is_empty() {
            Vec::new()
        } else {
            serde_json::to_vec(&keep).context("render the state")?
        };
        if bytes != self.kept {
            self.root.make_directories(FOLDER, Access::root(0o755))?;
            self.root.write(STATE, &bytes, Access::root(0o644))?;
            self.kept = bytes;
        }
        Ok(())
    }

    /// Takes what ends in the meantime.
    fn wait(&mut self, ended: &Receiver<Ended>, pause: Duration) -> Result<()> {
        let until = Instant::now() + pause;
        loop {
            match ended.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Ended { host, generation, event }) => {
                    self.open = self.open.saturating_sub(1);
                    let at = now()?.since_boot;
                    if self.guarded.get(&host).is_some_and(|guarded| guarded.generation == generation) {
                        self.step(&host, at, event);
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }
}

fn unit(host: &str) -> String {
    format!("larder-registry@{host}.service")
}

/// Whether it answers, whatever it says. Not to be able to connect is an answer, too: it does not hang.
fn answers(address: SocketAddr, is_https: bool, repository: &str) -> bool {
    !matches!(
        http::head_probe(address, is_https, repository, Duration::from_millis(LIMIT)),
        Err(http::Fault::Silent(_))
    )
}

/// The local ports of connections that are in use.
fn in_use(table: &str) -> impl Iterator<Item = u16> + '_ {
    table.lines().skip(1).filter_map(|line| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        let (local, _, state) = (columns.next()?, columns.next()?, columns.next()?);
        let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        IN_USE.contains(&state).then_some(port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_in_use_are_told_from_the_others() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \x20  0: 0A14000A:1388 00000000:0000 0A 00000000:00000000 00:00000000 00000000   998        0 1 1 0 100\n\
            \x20  1: 0A14000A:1392 0A14000B:D2C4 01 00000000:00000000 00:00000000 00000000   998        0 2 1 0 20\n\
            \x20  2: 0A14000A:139C 0A14000B:D2C5 06 00000000:00000000 03:00000F1A 00000000     0        0 0 3 0\n\
            \x20  3: 00000000000000000000000000000000:13A6 0000000000000000FFFF00000B00140A:D2C6 08 0:0 00:0 0 998\n\
            cut short";
        assert_eq!(in_use(table).collect::<Vec<_>>(), [5010, 5030]);
        assert_eq!(in_use("").count(), 0);
    }

    #[test]
    fn what_is_done_is_told_in_a_line() {
        let host = "ghcr.io".to_owned();
        for told in [
            Told::Restarted { host: host.clone() },
            Told::Held { host: host.clone() },
            Told::Ended { host: host.clone() },
            Told::Failed { host, why: "no bus".to_owned() },
        ] {
            let line = told.to_string();
            assert!(line.starts_with("ghcr.io: ") && !line.contains('\n'), "got {line}");
        }
    }
}
