//! Who serves the store while the upstream does not answer: the same engine, as a registry without an upstream that
//! nobody can write to. It runs as a child of the unit's main process, which asks the upstream meanwhile.

#![expect(clippy::disallowed_methods, reason = "a child is started")]

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getppid};

use super::run::Instance;
use super::upstream::{self, Answer};
use crate::node::AbsolutePath;

/// From the end of one question to the next.
const PAUSE: Duration = Duration::from_secs(5);
/// Nobody waits for this answer, and an upstream that takes its time is an upstream all the same.
const LIMIT: Duration = Duration::from_secs(20);
/// How soon an answer is seen.
const SLICE: Duration = Duration::from_millis(100);
/// A drain that took no longer says that what the upstream said still holds.
const QUICK: Duration = Duration::from_secs(3);

/// Why there is no stand-in any more.
pub(super) enum Ended {
    /// The unit is stopped.
    Asked,
    /// The upstream answers.
    Drained { quickly: bool },
}

fn signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD].into_iter().collect()
}

/// Serves until the upstream answers or somebody stops the unit. No child is left behind.
///
/// # Errors
/// When the stand-in cannot be started, or ends by itself.
pub(super) fn serve(instance: &Instance, engine: Option<&AbsolutePath>) -> Result<Ended> {
    let signals = signals();
    signals.thread_block().context("block signals")?;
    let ended = Watch::start(instance, engine, &signals).and_then(|mut watch| {
        let ended = watch.until_it_ends(instance);
        if ended.is_err() {
            let _ = watch.child.kill();
            let _ = watch.child.wait();
        }
        ended
    });
    // The registry that follows takes over this process with its mask.
    signals.thread_unblock().context("unblock signals")?;
    ended
}

struct Watch {
    child: Child,
    signals: SignalFd,
    asking: Option<Receiver<Answer>>,
    next: Instant,
}

impl Watch {
    fn start(instance: &Instance, engine: Option<&AbsolutePath>, signals: &SigSet) -> Result<Self> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(signals, flags).context("listen for signals")?;
        // Not by name: an upgrade may have replaced the file.
        let mut command = Command::new("/proc/self/exe");
        command.args(["unit", "stand-in"]);
        if let Some(engine) = engine {
            command.args(["--engine", engine.as_str()]);
        }
        let child = command.arg(instance.host.as_str()).spawn().context("start the stand-in")?;
        Ok(Self { child, signals, asking: None, next: Instant::now() + PAUSE })
    }

    fn until_it_ends(&mut self, instance: &Instance) -> Result<Ended> {
        // Once it was told to end: when, and whether by ourselves.
        let mut told: Option<(Instant, bool)> = None;
        loop {
            self.wait(told.is_some())?;
            while let Some(signal) = self.signals.read_signal().context("read a signal")? {
                let signal = i32::try_from(signal.ssi_signo).ok().and_then(|number| number.try_into().ok());
                if let Some(signal @ (Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP)) = signal {
                    self.pass_on(signal);
                    told = Some((Instant::now(), false));
                }
            }
            if let Some(status) = self.child.try_wait().context("wait for the stand-in")? {
                return match told {
                    Some((_, false)) => Ok(Ended::Asked),
                    Some((since, true)) => Ok(Ended::Drained { quickly: since.elapsed() < QUICK }),
                    None => bail!("the stand-in of {} ended: {}", instance.host, words(status)),
                };
            }
            if told.is_none() && self.answers(instance) {
                self.pass_on(Signal::SIGTERM);
                told = Some((Instant::now(), true));
            }
        }
    }

    /// Until a signal comes, or it is time to look.
    fn wait(&self, told: bool) -> Result<()> {
        let left = match (&self.asking, told) {
            (_, true) => PAUSE,
            (Some(_), _) => SLICE,
            (None, _) => self.next.saturating_duration_since(Instant::now()),
        };
        let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("wait for a signal"),
        }
    }

    /// Whether the upstream has answered as the registry needs it. Never waits.
    fn answers(&mut self, instance: &Instance) -> bool {
        match &self.asking {
            None if Instant::now() >= self.next => {
                let (tell, told) = mpsc::channel();
                let remote = instance.remote.clone();
                thread::spawn(move || {
                    let _ = tell.send(upstream::ask(&remote, LIMIT));
                });
                self.asking = Some(told);
                false
            }
            None => false,
            Some(told) => match told.try_recv() {
                Err(mpsc::TryRecvError::Empty) => false,
                answer => {
                    self.asking = None;
                    self.next = Instant::now() + PAUSE;
                    answer.is_ok_and(|answer| instance.can_start(&answer))
                }
            },
        }
    }

    fn pass_on(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // ESRCH: it ended meanwhile, which is what is wanted.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

fn words(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("signal {signal}"),
        None => status.to_string(),
    }
}

/// What a child owes to whoever started it: it ends with him, and its signals are its own.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn as_a_child() -> Result<()> {
    let parent = getppid();
    set_pdeathsig(Signal::SIGTERM).context("end with the parent")?;
    if getppid() != parent || parent.as_raw() == 1 {
        bail!("whoever started this is gone");
    }
    signals().thread_unblock().context("unblock signals")
}

/// Sockets that systemd passed are this process's (sd_listen_fds(3)): it was its parent that they were meant for.
pub(super) fn hand_on_sockets(command: &mut Command) {
    if std::env::var_os("LISTEN_FDS").is_some() {
        command.env("LISTEN_PID", std::process::id().to_string());
    }
}
