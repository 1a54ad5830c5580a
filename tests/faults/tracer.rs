//! Runs a program and stops it at each call that changes the file system below one folder: to count it, to kill the
//! program before or after it, or to have it fail.
//!
//! ptrace(2) with a seccomp(2) filter that picks the calls: the binary is static, so nothing can be put in front of
//! its C library, and with the filter the program runs at full speed between the calls that matter.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What to do to the program. Calls are counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Only listen.
    None,
    /// SIGKILL before the call: it is not made.
    KillBefore(usize),
    /// SIGKILL after the call: it is made, and nobody hears of it.
    KillAfter(usize),
    /// The call is not made and returns this.
    Fail(usize, Errno),
    /// This one and all after it.
    FailFrom(usize, Errno),
    /// A write writes half.
    Short(usize),
    /// Nothing is synced, and every such call says that it was.
    Unsynced,
}

/// One call that changes something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub name: &'static str,
    /// Below the folder.
    pub path: String,
    /// By the program itself, not by one that it runs.
    pub own: bool,
    /// By the first thread of its program.
    pub first_thread: bool,
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, self.path)
    }
}

/// How it went.
#[derive(Debug)]
pub struct Ran {
    /// `None`: killed.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    /// Those that were reached.
    pub calls: Vec<Call>,
    /// It did not end by itself.
    pub hung: bool,
}

/// Where a call names what it changes.
#[derive(Clone, Copy)]
enum At {
    /// A descriptor, and which argument it is.
    Fd(usize),
    /// A folder's descriptor and a name in it, the first of two arguments.
    Name(usize),
    /// A path.
    Path(usize),
    /// All there is.
    Everything,
}

struct Kind {
    number: libc::c_long,
    name: &'static str,
    at: At,
}

const fn kind(number: libc::c_long, name: &'static str, at: At) -> Kind {
    Kind { number, name, at }
}

/// Every call with which a program can change files. Writes through a shared mapping are none; larder has no such.
const KINDS: [Kind; 51] = [
    kind(libc::SYS_open, "open", At::Path(0)),
    kind(libc::SYS_creat, "creat", At::Path(0)),
    kind(libc::SYS_openat, "openat", At::Name(0)),
    kind(libc::SYS_openat2, "openat2", At::Name(0)),
    kind(libc::SYS_write, "write", At::Fd(0)),
    kind(libc::SYS_pwrite64, "pwrite", At::Fd(0)),
    kind(libc::SYS_writev, "writev", At::Fd(0)),
    kind(libc::SYS_pwritev, "pwritev", At::Fd(0)),
    kind(libc::SYS_pwritev2, "pwritev2", At::Fd(0)),
    kind(libc::SYS_sendfile, "sendfile", At::Fd(0)),
    kind(libc::SYS_copy_file_range, "copy_file_range", At::Fd(2)),
    kind(libc::SYS_splice, "splice", At::Fd(2)),
    kind(libc::SYS_truncate, "truncate", At::Path(0)),
    kind(libc::SYS_ftruncate, "ftruncate", At::Fd(0)),
    kind(libc::SYS_fallocate, "fallocate", At::Fd(0)),
    kind(libc::SYS_chmod, "chmod", At::Path(0)),
    kind(libc::SYS_fchmod, "fchmod", At::Fd(0)),
    kind(libc::SYS_fchmodat, "fchmodat", At::Name(0)),
    kind(libc::SYS_fchmodat2, "fchmodat2", At::Name(0)),
    kind(libc::SYS_chown, "chown", At::Path(0)),
    kind(libc::SYS_lchown, "lchown", At::Path(0)),
    kind(libc::SYS_fchown, "fchown", At::Fd(0)),
    kind(libc::SYS_fchownat, "fchownat", At::Name(0)),
    kind(libc::SYS_utime, "utime", At::Path(0)),
    kind(libc::SYS_utimes, "utimes", At::Path(0)),
    kind(libc::SYS_utimensat, "utimensat", At::Name(0)),
    kind(libc::SYS_setxattr, "setxattr", At::Path(0)),
    kind(libc::SYS_lsetxattr, "lsetxattr", At::Path(0)),
    kind(libc::SYS_fsetxattr, "fsetxattr", At::Fd(0)),
    kind(libc::SYS_removexattr, "removexattr", At::Path(0)),
    kind(libc::SYS_lremovexattr, "lremovexattr", At::Path(0)),
    kind(libc::SYS_fremovexattr, "fremovexattr", At::Fd(0)),
    kind(libc::SYS_mkdir, "mkdir", At::Path(0)),
    kind(libc::SYS_mkdirat, "mkdirat", At::Name(0)),
    kind(libc::SYS_mknodat, "mknodat", At::Name(0)),
    kind(libc::SYS_symlink, "symlink", At::Path(1)),
    kind(libc::SYS_symlinkat, "symlinkat", At::Name(1)),
    kind(libc::SYS_link, "link", At::Path(1)),
    kind(libc::SYS_linkat, "linkat", At::Name(2)),
    kind(libc::SYS_rename, "rename", At::Path(1)),
    kind(libc::SYS_renameat, "renameat", At::Name(2)),
    kind(libc::SYS_renameat2, "renameat2", At::Name(2)),
    kind(libc::SYS_unlink, "unlink", At::Path(0)),
    kind(libc::SYS_rmdir, "rmdir", At::Path(0)),
    kind(libc::SYS_unlinkat, "unlinkat", At::Name(0)),
    kind(libc::SYS_fsync, "fsync", At::Fd(0)),
    kind(libc::SYS_fdatasync, "fdatasync", At::Fd(0)),
    kind(libc::SYS_sync_file_range, "sync_file_range", At::Fd(0)),
    kind(libc::SYS_msync, "msync", At::Everything),
    kind(libc::SYS_syncfs, "syncfs", At::Fd(0)),
    kind(libc::SYS_sync, "sync", At::Everything),
];

/// A program that has not ended by then hangs.
const PATIENCE: Duration = Duration::from_secs(120);
/// With which one may write, or which make or empty a file.
const CHANGING: i32 = libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;

/// The filter as the kernel wants it: traced are the calls of [`KINDS`], of `openat` those that may change something.
fn filter() -> Vec<libc::sock_filter> {
    let line = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt,
        jf,
        k,
    };
    let load = |offset: u32| line(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let equal = |value: libc::c_long, jt, jf| {
        line(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jt, jf, u32::try_from(value).unwrap())
    };
    let answer = |value: u32| line(libc::BPF_RET | libc::BPF_K, 0, 0, value);
    // struct seccomp_data: the number at 0, the arguments from 16 on, 8 bytes each.
    let mut lines = vec![load(0)];
    for kind in &KINDS {
        if kind.number == libc::SYS_openat {
            let flags = u32::try_from(CHANGING).unwrap();
            lines.push(equal(kind.number, 0, 4));
            lines.push(load(16 + 8 * 2));
            lines.push(line(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, flags));
            lines.push(answer(libc::SECCOMP_RET_TRACE));
            lines.push(answer(libc::SECCOMP_RET_ALLOW));
        } else {
            lines.push(equal(kind.number, 0, 1));
            lines.push(answer(libc::SECCOMP_RET_TRACE));
        }
    }
    lines.push(answer(libc::SECCOMP_RET_ALLOW));
    lines
}

/// Starts it stopped at its first instruction.
#[expect(
    unsafe_code,
    reason = "only between fork and exec can a filter be put on a program that knows of none"
)]
#[expect(clippy::zombie_processes, reason = "whoever traces it waits for it")]
fn start(command: &mut Command) -> Pid {
    let mut lines = filter();
    let trace = move || {
        ptrace::traceme()?;
        let program =
            libc::sock_fprog { len: u16::try_from(lines.len()).unwrap_or(0), filter: lines.as_mut_ptr() };
        // SAFETY: plain calls of the kernel; the program outlives the second, which copies it.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: it allocates nothing and takes no lock.
    let child = unsafe { command.pre_exec(trace) }.spawn().unwrap();
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

/// Runs `command`, whose changes below `folder` count, into `fault`. `scratch` is where its output goes meanwhile.
pub fn run(command: &mut Command, folder: &Path, scratch: &Path, fault: Fault) -> Ran {
    let mut outputs = ["stdout", "stderr"].map(|name| {
        let path = scratch.join(name);
        File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap()
    });
    command
        .stdin(Stdio::null())
        .stdout(outputs[0].try_clone().unwrap())
        .stderr(outputs[1].try_clone().unwrap());
    let pid = start(command);
    let (over, ended) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let hung = ended.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout);
        if hung {
            let _ = kill(pid, Signal::SIGKILL);
        }
        hung
    });
    let mut tracer = Tracer { pid, folder, fault, calls: Vec::new(), programs: BTreeMap::new(), dead: false };
    let code = tracer.follow();
    drop(over);
    let hung = watchdog.join().unwrap();
    let [stdout, stderr] = outputs.each_mut().map(|file| {
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    });
    Ran { code, stdout, stderr, calls: tracer.calls, hung }
}

struct Tracer<'t> {
    pid: Pid,
    folder: &'t Path,
    fault: Fault,
    calls: Vec<Call>,
    /// The program that a thread belongs to.
    programs: BTreeMap<Pid, Pid>,
    /// Everybody was killed.
    dead: bool,
}

impl Tracer<'_> {
    /// Until the last of them has ended; the code of the first.
    fn follow(&mut self) -> Option<i32> {
        // Other threads trace others.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let first = waitpid(self.pid, Some(WaitPidFlag::__WALL)).unwrap();
        assert_eq!(first, WaitStatus::Stopped(self.pid, Signal::SIGTRAP), "stopped at its start");
        ptrace::setoptions(
            self.pid,
            Options::PTRACE_O_TRACESECCOMP
                | Options::PTRACE_O_TRACEFORK
                | Options::PTRACE_O_TRACEVFORK
                | Options::PTRACE_O_TRACECLONE
                | Options::PTRACE_O_TRACEEXEC
                | Options::PTRACE_O_TRACESYSGOOD
                | Options::PTRACE_O_EXITKILL,
        )
        .unwrap();
        self.programs.insert(self.pid, self.pid);
        let _ = ptrace::cont(self.pid, None);
        let mut code = None;
        loop {
            match waitpid(Pid::from_raw(-1), Some(flags)) {
                Ok(WaitStatus::Exited(pid, with)) if pid == self.pid => code = Some(with),
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => {}
                Ok(WaitStatus::PtraceEvent(pid, _, event)) => {
                    if event == Event::PTRACE_EVENT_SECCOMP as i32 {
                        self.stopped_at_call(pid);
                    } else {
                        let _ = ptrace::cont(pid, None);
                    }
                }
                Ok(WaitStatus::PtraceSyscall(_)) => self.kill_all(),
                Ok(WaitStatus::Stopped(pid, signal)) => {
                    // How a new thread or child begins.
                    let is_new = signal == Signal::SIGSTOP && !self.programs.contains_key(&pid);
                    self.program_of(pid);
                    let _ = ptrace::cont(pid, (!is_new).then_some(signal));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => return if self.dead { None } else { code },
                Err(errno) => panic!("wait for {}: {errno}", self.pid),
            }
        }
    }

    fn program_of(&mut self, pid: Pid) -> Pid {
        *self.programs.entry(pid).or_insert_with(|| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let group = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
            group.map_or(pid, Pid::from_raw)
        })
    }

    fn kill_all(&mut self) {
        self.dead = true;
        for pid in self.programs.keys() {
            let _ = kill(*pid, Signal::SIGKILL);
        }
    }

    fn stopped_at_call(&mut self, pid: Pid) {
        // It may have been killed meanwhile.
        let Ok(mut registers) = ptrace::getregs(pid) else { return };
        let Some((name, path)) = self.changes(pid, &registers) else {
            let _ = ptrace::cont(pid, None);
            return;
        };
        let program = self.program_of(pid);
        let number = self.calls.len();
        let is_write = matches!(name, "write" | "pwrite" | "copy_file_range" | "sendfile");
        self.calls.push(Call { name, path, own: program == self.pid, first_thread: pid == program });
        let returns = match self.fault {
            Fault::Fail(at, errno) if at == number => Some(-(errno as i32)),
            Fault::FailFrom(from, errno) if from <= number => Some(-(errno as i32)),
            Fault::Unsynced if matches!(name, "fsync" | "fdatasync" | "syncfs" | "sync") => Some(0),
            _ => None,
        };
        if let Some(value) = returns {
            // No call has this number: the kernel makes none, and returns what is in rax.
            registers.orig_rax = u64::MAX;
            registers.rax = i64::from(value).cast_unsigned();
            ptrace::setregs(pid, registers).unwrap();
        }
        match self.fault {
            Fault::KillBefore(at) if at == number => return self.kill_all(),
            Fault::KillAfter(at) if at == number => {
                let _ = ptrace::syscall(pid, None);
                return;
            }
            Fault::Short(at) if at == number && is_write => {
                // The length is the third argument, but for copies.
                match name {
                    "sendfile" => registers.r10 /= 2,
                    "copy_file_range" => registers.r8 /= 2,
                    _ => registers.rdx = registers.rdx.div_ceil(2),
                }
                ptrace::setregs(pid, registers).unwrap();
            }
            _ => {}
        }
        let _ = ptrace::cont(pid, None);
    }

    /// The name and the path of a call that changes something in the folder.
    fn changes(&self, pid: Pid, registers: &libc::user_regs_struct) -> Option<(&'static str, String)> {
        let number = registers.orig_rax.cast_signed();
        let kind = KINDS.iter().find(|kind| kind.number == number)?;
        let arguments =
            [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9];
        let flags = match kind.name {
            "open" => Some(arguments[1]),
            "openat2" => {
                read_memory(pid, arguments[2], 8).map(|how| u64::from_ne_bytes(how.try_into().unwrap()))
            }
            _ => None,
        };
        if flags.is_some_and(|flags| flags & u64::from(CHANGING.cast_unsigned()) == 0) {
            return None;
        }
        let path = match kind.at {
            At::Everything => self.folder.to_owned(),
            At::Fd(at) => of_descriptor(pid, arguments[at])?,
            At::Path(at) => of_descriptor(pid, NOWHERE)?.join(string(pid, arguments[at])?),
            At::Name(at) => match string(pid, arguments[at + 1]) {
                Some(name) if name.is_absolute() => name,
                Some(name) => of_descriptor(pid, arguments[at])?.join(name),
                // utimensat(2) of a descriptor.
                None => of_descriptor(pid, arguments[at])?,
            },
        };
        let below = path.strip_prefix(self.folder).ok()?;
        Some((kind.name, below.to_str()?.to_owned()))
    }
}

const NOWHERE: u64 = i64::MAX.cast_unsigned();

fn of_descriptor(pid: Pid, fd: u64) -> Option<PathBuf> {
    // An int, whatever is in the upper half of the register.
    #[expect(clippy::cast_possible_truncation, reason = "as the kernel does")]
    let number = fd as i32;
    let link = if fd == NOWHERE || number == libc::AT_FDCWD {
        format!("/proc/{pid}/cwd")
    } else {
        format!("/proc/{pid}/fd/{number}")
    };
    fs::read_link(link).ok()
}

fn read_memory(pid: Pid, at: u64, length: usize) -> Option<Vec<u8>> {
    let mut memory = File::open(format!("/proc/{pid}/mem")).ok()?;
    memory.seek(SeekFrom::Start(at)).ok()?;
    let mut bytes = vec![0; length];
    memory.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

fn string(pid: Pid, at: u64) -> Option<PathBuf> {
    if at == 0 {
        return None;
    }
    let mut bytes = Vec::new();
    // To the end of a page at most: the next may not be there.
    loop {
        let from = at + bytes.len() as u64;
        let more = read_memory(pid, from, usize::try_from(4096 - from % 4096).unwrap())?;
        match more.iter().position(|byte| *byte == 0) {
            Some(end) => {
                bytes.extend(&more[..end]);
                return Some(PathBuf::from(OsStr::from_bytes(&bytes)));
            }
            None => bytes.extend(more),
        }
    }
}
