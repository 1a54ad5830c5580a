//! Runs another program: found in fixed folders, with a clean environment, and never past a deadline.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Where programs are looked for. The caller's `PATH` is not asked: larder runs as root, also by hand.
pub const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `systemctl show` of the 4,000 units of 1,000 upstreams is about 1 MiB.
const STDOUT_LIMIT: usize = 16 << 20;
const STDERR_LIMIT: usize = 64 << 10;

/// Set by units that keep `larder apply` in a sandbox (`larder.service`).
const SANDBOX: &str = "LARDER_SANDBOX";
/// From the deadline to the end of what runs outside, which a kill of ours does not reach.
const OUTSIDE_GRACE: Duration = Duration::from_secs(2);

/// A killed process can stay in the kernel, in a hung NFS read for example.
const REAP_LIMIT: Duration = Duration::from_secs(1);

/// One program, its arguments and what its environment holds besides `PATH` and `LC_ALL=C`.
#[derive(Debug, Clone)]
pub struct Invocation<'a> {
    program: &'a str,
    args: &'a [&'a str],
    env: Vec<(&'a str, &'a str)>,
    quiet: bool,
    outside: bool,
    stdin: Option<&'a str>,
}

/// What a program that came to its end has left behind.
#[derive(Debug, Clone)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    /// Its first 64 KiB.
    pub stderr: String,
}

/// Why there is no output to use. Each displays as one line that names the program and its arguments.
#[derive(Debug)]
pub enum Error {
    /// The machine has no such program.
    NotFound { program: String },
    /// It was still running at the deadline, and was killed with all of its process group.
    TimedOut { command: String },
    /// It ended with something else than 0; `said` is the first line of its standard error.
    Failed { command: String, status: ExitStatus, said: String },
    /// It wrote more to its standard output than anything we run has to say.
    TooMuch { command: String },
    /// It could not be started, or not be listened to.
    Io { command: String, source: io::Error },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound { program } => write!(f, "run {program}: not found in {SEARCH_PATH}"),
            Self::TimedOut { command } => write!(f, "run {command}: still running at the deadline"),
            Self::Failed { command, status, said } => {
                write!(f, "run {command}: {status}")?;
                if said.is_empty() { Ok(()) } else { write!(f, ": {said}") }
            }
            Self::TooMuch { command } => write!(f, "run {command}: more than {STDOUT_LIMIT} bytes of output"),
            Self::Io { command, source } => write!(f, "run {command}: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => source.source(),
            _ => None,
        }
    }
}

/// Runs `program` and wants exit status 0 of it before `deadline`.
pub fn run(program: &str, args: &[&str], deadline: Instant) -> Result<Output, Error> {
    Invocation::new(program, args).run(deadline)
}

/// The absolute path of `program`: itself when it is one, else the first executable of that name in
/// [`SEARCH_PATH`].
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        let path = Path::new(program);
        return (path.is_absolute() && is_executable(path)).then(|| path.to_path_buf());
    }
    SEARCH_PATH.split(':').map(|folder| Path::new(folder).join(program)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

impl<'a> Invocation<'a> {
    #[must_use]
    pub fn new(program: &'a str, args: &'a [&'a str]) -> Self {
        Self { program, args, env: Vec::new(), quiet: false, outside: false, stdin: None }
    }

    /// Lets its standard output go nowhere: a collector names every blob that it looks at.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Runs it outside of the sandbox of our unit, if there is one, by systemd itself (systemd-run(1)): what a
    /// manager of the network or of containers calls on its way is other people's, needs more than we do, and may go on
    /// when we are gone.
    #[must_use]
    pub fn outside(mut self) -> Self {
        self.outside = true;
        self
    }

    /// Gives it something to read: a line or two, which a pipe holds.
    #[must_use]
    pub fn stdin(mut self, text: &'a str) -> Self {
        self.stdin = Some(text);
        self
    }

    #[must_use]
    pub fn env(mut self, name: &'a str, value: &'a str) -> Self {
        self.env.push((name, value));
        self
    }

    /// Runs it and wants exit status 0 before `deadline`.
    pub fn run(&self, deadline: Instant) -> Result<Output, Error> {
        let output = self.output(deadline)?;
        if output.status.success() {
            return Ok(output);
        }
        let said = output.stderr.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        Err(Error::Failed { command: self.to_string(), status: output.status, said: said.to_owned() })
    }

    /// What makes a transient unit of it that ends as the program does, and leaves alone whom the program has left
    /// behind. Variables go by their names: values would be seen in the list of processes.
    fn transient(&self, deadline: Instant) -> Vec<String> {
        let left = deadline.saturating_duration_since(Instant::now()).saturating_add(OUTSIDE_GRACE);
        let words = ["--quiet", "--no-ask-password", "--wait", "--pipe", "--collect"].map(str::to_owned);
        let properties = [
            // Nothing that is still to start may be waited for: we may be what it waits for.
            "--property=DefaultDependencies=no".to_owned(),
            "--property=KillMode=process".to_owned(),
            format!("--property=RuntimeMaxSec={}s", left.as_secs().max(1)),
        ];
        let names = ["PATH", "LC_ALL"].into_iter().chain(self.env.iter().map(|(name, _)| *name));
        let names = names.map(|name| format!("--setenv={name}"));
        words.into_iter().chain(properties).chain(names).chain(["--".to_owned()]).collect()
    }

    /// Runs it to its end, however it ends, as long as that is before `deadline`.
    pub fn output(&self, deadline: Instant) -> Result<Output, Error> {
        let io_error = |source| Error::Io { command: self.to_string(), source };
        let path = find(self.program).ok_or_else(|| Error::NotFound { program: self.program.to_owned() })?;
        let outside = self.outside && std::env::var_os(SANDBOX).is_some();
        let mut command = if outside {
            let by = "systemd-run";
            let by = find(by).ok_or_else(|| Error::NotFound { program: by.to_owned() })?;
            let mut command = std::process::Command::new(by);
            command.args(self.transient(deadline)).arg(path);
            command
        } else {
            std::process::Command::new(path)
        };
        let mut child = command
            .args(self.args)
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .env("LC_ALL", "C")
            .envs(self.env.iter().copied())
            .current_dir("/")
            .stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(if self.quiet { Stdio::null() } else { Stdio::piped() })
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(io_error)?;
        if let (Some(mut pipe), Some(text)) = (child.stdin.take(), self.stdin) {
            // One that does not read it has its reasons, and says them.
            let _ = pipe.write_all(text.as_bytes());
        }
        match listen(&mut child, deadline) {
            Ok(Some((_, stdout, _))) if stdout.overflowed => {
                Err(Error::TooMuch { command: self.to_string() })
            }
            Ok(Some((status, stdout, stderr))) => {
                Ok(Output { status, stdout: stdout.into_text(), stderr: stderr.into_text() })
            }
            Ok(None) => {
                kill(&mut child);
                Err(Error::TimedOut { command: self.to_string() })
            }
            Err(source) => {
                kill(&mut child);
                Err(io_error(source))
            }
        }
    }
}

/// The command as a reader would type it, cut where it names more units than a line holds.
impl fmt::Display for Invocation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 6;
        f.write_str(self.program)?;
        for arg in self.args.iter().take(SHOWN) {
            write!(f, " {arg}")?;
        }
        match self.args.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " (and {more} more)"),
        }
    }
}

/// One end of a pipe and what came out of it, up to a limit; the rest is read and dropped, so that the
/// writer never blocks.
struct Stream<R> {
    pipe: Option<R>,
    bytes: Vec<u8>,
    limit: usize,
    overflowed: bool,
}

impl<R: Read + AsFd> Stream<R> {
    fn new(pipe: Option<R>, limit: usize) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Self { pipe, bytes: Vec::new(), limit, overflowed: false })
    }

    /// Reads what is there without waiting; at most so much that a busy writer cannot hold us.
    fn drain(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 << 10];
        for _ in 0..128 {
            let Some(pipe) = &mut self.pipe else { break };
            match pipe.read(&mut chunk) {
                Ok(0) => self.pipe = None,
                Ok(count) => {
                    let room = self.limit.saturating_sub(self.bytes.len());
                    self.overflowed |= count > room;
                    self.bytes.extend(chunk.iter().take(count.min(room)));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn into_text(self) -> String {
        String::from_utf8(self.bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

type Ended = (ExitStatus, Stream<std::process::ChildStdout>, Stream<std::process::ChildStderr>);

/// Collects the output until the child itself ends; `None`: the deadline came first. A descendant that
/// keeps the pipes open does not keep us.
fn listen(child: &mut Child, deadline: Instant) -> io::Result<Option<Ended>> {
    /// How long the end of a child that closed its pipes, or whose pipes a descendant holds, can go unseen.
    const CLOSED_SLICE: Duration = Duration::from_micros(300);
    const OPEN_SLICE: Duration = Duration::from_millis(50);

    let mut stdout = Stream::new(child.stdout.take(), STDOUT_LIMIT)?;
    let mut stderr = Stream::new(child.stderr.take(), STDERR_LIMIT)?;
    loop {
        // Asked before the pipes are read: whatever an ended child wrote is in them by now.
        let ended = child.try_wait()?;
        stdout.drain()?;
        stderr.drain()?;
        if let Some(status) = ended {
            return Ok(Some((status, stdout, stderr)));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let mut pipes: Vec<PollFd<'_>> =
            [stdout.pipe.as_ref().map(AsFd::as_fd), stderr.pipe.as_ref().map(AsFd::as_fd)]
                .into_iter()
                .flatten()
                .map(|pipe| PollFd::new(pipe, PollFlags::POLLIN))
                .collect();
        if pipes.is_empty() {
            thread::sleep(CLOSED_SLICE.min(left));
            continue;
        }
        let slice = OPEN_SLICE.min(left).max(Duration::from_millis(1));
        match poll(&mut pipes, PollTimeout::try_from(slice).unwrap_or(PollTimeout::ZERO)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ends the child and what it started; `spawn` made it the leader of a group of its own.
fn kill(child: &mut Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        // ESRCH: gone already, which is what is wanted.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let limit = Instant::now() + REAP_LIMIT;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < limit {
        thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn gives_output_of_both_streams() {
        let output = run("sh", &["-c", "echo out; echo err >&2"], soon()).expect("run sh");
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
    }

    #[test]
    fn names_program_arguments_status_and_first_error_line() {
        let error = run("sh", &["-c", "echo; echo >&2; echo broken >&2; echo more >&2; exit 3"], soon())
            .expect_err("exit status 3");
        assert_eq!(
            error.to_string(),
            "run sh -c echo; echo >&2; echo broken >&2; echo more >&2; exit 3: exit status: 3: broken"
        );
    }

    #[test]
    fn says_where_it_looked() {
        let error = run("larder-no-such-program", &[], soon()).expect_err("no such program");
        assert!(matches!(error, Error::NotFound { .. }), "wanted NotFound, got {error:?}");
        assert!(error.to_string().contains("/usr/local/sbin"), "wanted the folders, got {error}");
    }

    #[test]
    fn relative_paths_are_no_programs() {
        assert_eq!(find("./sh"), None);
        assert_eq!(find("bin/sh"), None);
        assert!(find("/bin/sh").is_some(), "wanted /bin/sh to be found");
    }

    #[test]
    fn environment_is_path_locale_and_what_was_given() {
        let output = Invocation::new("env", &[]).env("LARDER_TEST", "a b").run(soon()).expect("run env");
        let mut lines: Vec<&str> = output.stdout.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["LARDER_TEST=a b", "LC_ALL=C", &format!("PATH={SEARCH_PATH}")]);
    }

    #[test]
    fn no_value_of_a_variable_is_an_argument_of_what_runs_outside() {
        let words = Invocation::new("podman", &["pull"]).env("HTTP_PROXY", "http://a:b@c").outside();
        let words = words.transient(soon());
        assert!(words.contains(&"--setenv=HTTP_PROXY".to_owned()), "{words:?}");
        assert!(!words.iter().any(|word| word.contains("a:b")), "{words:?}");
        assert_eq!(words.last().map(String::as_str), Some("--"));
    }

    #[test]
    fn kills_the_whole_group_at_the_deadline() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let pid_file = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid_file.display());
        let started = Instant::now();
        let error = run("sh", &["-c", &script], started + Duration::from_millis(300)).expect_err("deadline");
        assert!(matches!(error, Error::TimedOut { .. }), "wanted TimedOut, got {error:?}");
        let pid = std::fs::read_to_string(pid_file).expect("pid of the grandchild");
        // Init reaps it a moment after the signal.
        let gone = (0..200).any(|_| {
            thread::sleep(Duration::from_millis(10));
            std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
                .map_or(true, |stat| stat.contains(") Z "))
        });
        assert!(gone, "wanted the grandchild {} gone, got it running", pid.trim());
    }

    #[test]
    fn descendant_with_the_pipe_does_not_keep_us() {
        let deadline = soon();
        let output = run("sh", &["-c", "sleep 5 & echo done"], deadline).expect("run sh");
        assert_eq!(output.stdout, "done\n");
        assert!(Instant::now() < deadline, "wanted an end before the deadline");
    }

    #[test]
    fn more_output_than_a_pipe_holds() {
        let output = run("sh", &["-c", "head -c 3000000 /dev/zero; head -c 300000 /dev/zero >&2"], soon());
        let output = output.expect("run sh");
        assert_eq!((output.stdout.len(), output.stderr.len()), (3_000_000, STDERR_LIMIT));
    }

    #[test]
    fn endless_output_is_an_error() {
        let error = run("sh", &["-c", "head -c 20000000 /dev/zero"], soon()).expect_err("too much");
        assert!(matches!(error, Error::TooMuch { .. }), "wanted TooMuch, got {error:?}");
    }

    #[test]
    fn long_commands_are_cut() {
        let args = ["show", "a", "b", "c", "d", "e", "f", "g"];
        assert_eq!(Invocation::new("systemctl", &args).to_string(), "systemctl show a b c d e (and 2 more)");
    }
}
