//! A registry that runs as a child of its unit's main process, which waits for the moment when another has to take its
//! place: a stand-in until the upstream answers, a Distribution 2 until its password is another.

#![expect(clippy::disallowed_methods, reason = "a child is started")]

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getppid};

/// How soon an answer is seen.
const SLICE: Duration = Duration::from_millis(100);
/// Longer than a question can take that is asked meanwhile.
const LONG: Duration = Duration::from_secs(60);

/// Why there is no child any more.
#[derive(Debug)]
pub(super) enum Ended {
    /// The unit is stopped.
    Asked,
    /// Its time was over; how long it took to end.
    Over(Duration),
}

/// Something that is asked again and again, never waited for.
pub(super) struct Question {
    /// From the end of one answer to the next question.
    every: Duration,
    next: Instant,
    ask: Arc<dyn Fn() -> bool + Send + Sync>,
    asked: Option<Receiver<bool>>,
}

impl Question {
    pub(super) fn new(
        first: Duration,
        every: Duration,
        ask: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { every, next: Instant::now() + first, ask: Arc::new(ask), asked: None }
    }

    /// When to look again.
    fn due(&self) -> Duration {
        match self.asked {
            Some(_) => SLICE,
            None => self.next.saturating_duration_since(Instant::now()),
        }
    }

    /// Whether the answer is yes by now.
    fn is_yes(&mut self) -> bool {
        let Some(asked) = &self.asked else {
            if Instant::now() >= self.next {
                let (tell, told) = mpsc::channel();
                let ask = Arc::clone(&self.ask);
                thread::spawn(move || {
                    let _ = tell.send(ask());
                });
                self.asked = Some(told);
            }
            return false;
        };
        let answer = asked.try_recv();
        if answer == Err(TryRecvError::Empty) {
            return false;
        }
        self.asked = None;
        self.next = Instant::now() + self.every;
        answer == Ok(true)
    }
}

fn signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD].into_iter().collect()
}

/// Signals that wait until somebody reads them, in this thread and in those that it starts.
pub(super) struct Signals {
    set: SigSet,
    queue: SignalFd,
}

impl Signals {
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn block() -> Result<Self> {
        let set = signals();
        set.thread_block().context("block signals")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self { set, queue: SignalFd::with_flags(&set, flags).context("listen for signals")? })
    }

    /// The program that takes over this process gets them again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn unblock(&self) -> Result<()> {
        self.set.thread_unblock().context("unblock signals")
    }

    /// Until one comes, or so long.
    fn wait(&self, patience: Duration) -> Result<()> {
        let mut fds = [PollFd::new(self.queue.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("wait for a signal"),
        }
    }

    /// The last of those that shall end us.
    fn end(&mut self) -> Result<Option<Signal>> {
        let mut end = None;
        while let Some(signal) = self.queue.read_signal().context("read a signal")? {
            let signal =
                i32::try_from(signal.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            end = signal.filter(|signal| *signal != Signal::SIGCHLD).or(end);
        }
        Ok(end)
    }
}

/// Runs `larder ARGS` until the question is answered with yes or somebody stops the unit. No child is left behind.
///
/// # Errors
/// When it cannot be started, or ends by itself.
pub(super) fn serve(
    args: &[String],
    environment: &[(&str, &str)],
    mut question: Question,
    signals: &mut Signals,
) -> Result<Ended> {
    // Not by name: an upgrade may have replaced the file.
    let mut command = Command::new("/proc/self/exe");
    command.args(args).envs(environment.iter().copied());
    let mut child = command.spawn().with_context(|| format!("run larder {}", args.join(" ")))?;
    let ended = until_it_ends(&mut child, &mut question, signals);
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    ended
}

fn until_it_ends(child: &mut Child, question: &mut Question, signals: &mut Signals) -> Result<Ended> {
    // Once it was told to end: when, and whether by ourselves.
    let mut told: Option<(Instant, bool)> = None;
    loop {
        signals.wait(if told.is_some() { LONG } else { question.due() })?;
        if let Some(signal) = signals.end()? {
            pass_on(child, signal);
            told = Some((Instant::now(), false));
        }
        if let Some(status) = child.try_wait().context("wait for the registry")? {
            return match told {
                Some((_, false)) => Ok(Ended::Asked),
                Some((since, true)) => Ok(Ended::Over(since.elapsed())),
                None => bail!("the registry ended by itself: {}", words(status)),
            };
        }
        if told.is_none() && question.is_yes() {
            pass_on(child, Signal::SIGTERM);
            told = Some((Instant::now(), true));
        }
    }
}

fn pass_on(child: &Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // ESRCH: it ended meanwhile, which is what is wanted.
        let _ = kill(Pid::from_raw(pid), signal);
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
pub(super) fn become_one() -> Result<()> {
    let parent = getppid();
    set_pdeathsig(Signal::SIGTERM).context("end with the parent")?;
    if getppid() != parent {
        bail!("whoever started this is gone");
    }
    signals().thread_unblock().context("unblock signals")
}

/// Sockets that systemd passed are one process's (sd_listen_fds(3)): it was the parent that they were meant for.
pub(super) fn take_sockets(command: &mut Command) {
    if std::env::var_os("LISTEN_FDS").is_some() {
        command.env("LISTEN_PID", std::process::id().to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_asked_until_it_is_answered_with_yes() {
        let count = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let asked = Arc::clone(&count);
        let mut question = Question::new(Duration::ZERO, Duration::ZERO, move || {
            asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 2
        });
        let deadline = Instant::now() + Duration::from_secs(30);
        while !question.is_yes() {
            assert!(Instant::now() < deadline, "wanted a yes, got none in 30 s");
            thread::sleep(question.due());
        }
        assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 3);
    }
}
