//! The stop of a registry. Running pulls finish; one through which nothing moves any more is not waited for.

#![expect(clippy::disallowed_methods, reason = "/proc is read: what another process has moved")]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tracing::warn;

use crate::node::UpstreamHost;

/// In so long a pull that runs has moved something. One that has not is stuck: its upstream is silent, or whoever
/// asked is gone, and Distribution would wait for it as long as its `draintimeout` says.
const STILL: Duration = Duration::from_secs(15);
/// How often somebody looks.
const SLICE: Duration = Duration::from_millis(500);
/// What wakes up Go's own threads is not a pull.
const NOISE: u64 = 4096;
/// Distribution 3 drains for SIGINT, too. Neither knows this one, and systemd takes it for a clean end.
const HANG_UP: Signal = Signal::HUP;
/// A program that was hung up on ends at once, unless it cannot.
const LAST: Duration = Duration::from_secs(5);

/// Tells whether a process that drains still moves anything.
struct Flow {
    seen: u64,
    since: Instant,
}

impl Flow {
    fn new(now: Instant) -> Self {
        Self { seen: 0, since: now }
    }

    /// Whether what it has moved in all, in bytes, says that nothing moves any more. Who cannot be asked is believed.
    fn is_still(&mut self, moved: Option<u64>, now: Instant) -> bool {
        let Some(moved) = moved else { return false };
        if moved.saturating_sub(self.seen) > NOISE {
            *self = Self { seen: moved, since: now };
        }
        now.duration_since(self.since) >= STILL
    }
}

/// Bytes that a process and its children have read and written since their start, sockets among them (`rchar` and
/// `wchar` of proc_pid_io(5)); `None` when it is gone, or does not let us see. Where `larder` itself is the main process,
/// the registry is its child.
fn moved(pid: u32) -> Option<u64> {
    let own = moved_by(pid)?;
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children = children.flat_map(|line| {
        line.split_whitespace().filter_map(|pid| moved_by(pid.parse().ok()?)).collect::<Vec<_>>()
    });
    Some(children.fold(own, u64::saturating_add))
}

fn moved_by(pid: u32) -> Option<u64> {
    let counters = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let counter = |name| {
        let line = counters.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse::<u64>().ok())
    };
    Some(counter("rchar:")?.saturating_add(counter("wchar:")?))
}

/// Asks the unit's main process (`MAINPID`, systemd.exec(5)) to end, and waits for it as long as bytes move.
///
/// # Errors
/// When the kernel refuses.
pub fn drain(host: &UpstreamHost) -> Result<()> {
    // Without one it has ended by itself.
    let main = std::env::var("MAINPID").ok().and_then(|pid| pid.parse::<i32>().ok());
    let Some(main) = main.and_then(Pid::from_raw) else { return Ok(()) };
    // Not by its number: that may be another's by the time that it ends.
    let process = match pidfd_open(main, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        opened => opened.context("watch the registry's process")?,
    };
    if !tell(&process, Signal::TERM)? {
        return Ok(());
    }
    let pid = u32::try_from(main.as_raw_nonzero().get()).context("MAINPID is no process")?;
    let mut flow = Flow::new(Instant::now());
    while !ends(&process, SLICE)? {
        if !flow.is_still(moved(pid), Instant::now()) {
            continue;
        }
        warn!(
            upstream = host.as_str(),
            "pulls are cut off through which nothing has moved for {} s: the upstream is silent, or nobody waits for \
             them any more",
            STILL.as_secs()
        );
        tell(&process, HANG_UP)?;
        if !ends(&process, LAST)? {
            tell(&process, Signal::KILL)?;
        }
        break;
    }
    Ok(())
}

/// Whether it was still there to be told.
fn tell(process: &OwnedFd, signal: Signal) -> Result<bool> {
    match pidfd_send_signal(process, signal) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(error) => Err(error).context("tell the registry to end"),
    }
}

/// Whether it ends within so long.
fn ends(process: &OwnedFd, patience: Duration) -> Result<bool> {
    // pidfd_open(2): readable when the process has ended.
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO)) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error).context("wait for the registry's end"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds after its start at which the first of these totals, one a second, says that nothing moves.
    fn still_after(totals: impl Iterator<Item = Option<u64>>) -> Option<usize> {
        let start = Instant::now();
        let mut flow = Flow::new(start);
        totals
            .enumerate()
            .find(|(second, total)| flow.is_still(*total, start + Duration::from_secs(*second as u64)))
            .map(|(second, _)| second)
    }

    #[test]
    fn what_moves_is_waited_for() {
        assert_eq!(still_after((0..300).map(|second| Some(second * 5000))), None);
    }

    #[test]
    fn a_pull_that_is_slow_moves_in_the_time_that_it_has() {
        assert_eq!(still_after((0..300).map(|second| Some(second / 14 * 5000))), None);
    }

    #[test]
    fn what_has_stopped_is_not_waited_for() {
        let totals = (0..300).map(|second: u64| Some(1_000_000 + second.min(20) * 5000));
        assert_eq!(still_after(totals), Some(35));
    }

    #[test]
    fn a_runtime_that_wakes_itself_up_moves_nothing() {
        assert_eq!(still_after((0..300).map(|second| Some(10_000 + second * 16))), Some(15));
    }

    #[test]
    fn who_cannot_be_asked_is_waited_for() {
        assert_eq!(still_after((0..300).map(|_| None)), None);
    }

    #[test]
    fn the_kernel_counts_what_a_process_has_moved() {
        let before = moved(std::process::id()).unwrap();
        let read = fs::read("/proc/self/exe").unwrap().len() as u64;
        let after = moved(std::process::id()).unwrap();
        assert!(after - before >= read, "wanted {read} more than {before}, got {after}");
        assert_eq!(moved(u32::MAX), None);
    }

    #[test]
    fn what_a_child_moves_counts_while_it_runs() {
        let script = "exec 3<&0; { head -c 8000000 /dev/zero >/dev/null; exec cat <&3; } & wait";
        let mut command = std::process::Command::new("sh");
        let mut child = command.args(["-c", script]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let seen = loop {
            let seen = moved(child.id()).unwrap() - moved_by(child.id()).unwrap();
            if seen >= 8_000_000 || Instant::now() > deadline {
                break seen;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(seen >= 8_000_000, "wanted 8000000 bytes of the child's, got {seen}");
    }
}
