//! One subject under every fault, and what must hold after each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;

use crate::tracer::{self, Call, Fault, Ran};
use crate::tree::{Node, TEMPORARY, Tree, What, differences, shown};

/// What a full, a broken, a read-only and a guarded file system say.
pub const ERRORS: [Errno; 4] = [Errno::ENOSPC, Errno::EIO, Errno::EROFS, Errno::EACCES];
pub const STATE: &str = "var/lib/larder/state";
const MANIFEST: &str = "var/lib/larder/state/manifest.json";
const BY_HAND: &str = ".edited-by-hand";
/// The accounts are systemd-sysusers' business: a new user stays when the rest is put back.
const ACCOUNTS: [&str; 5] = ["passwd", "group", "shadow", "gshadow", ".pwd.lock"];

/// Of what is wrong, so many lines of one kind.
const SHOWN: usize = 4;

/// A command and a machine that it changes.
pub struct Subject {
    pub name: &'static str,
    pub machine: fn() -> Tree,
    /// Without `--root`.
    pub command: &'static [&'static str],
    /// What it is given with `--profile`.
    pub profile: Option<String>,
    /// Exits 0 once there is nothing to do; the same options are added.
    pub settled: Option<&'static [&'static str]>,
    /// Who comes by sooner or later and takes away the rest.
    pub cleaner: Option<&'static [&'static str]>,
    /// Below these no two runs write the same: times, and what is gone when it is out of room. Whole is enough.
    pub loose: &'static [&'static str],
    /// What else must hold after any fault and, with `true`, after the next run.
    pub sound: fn(&Tree, bool) -> Vec<String>,
    /// How a failure may be told and lived with: this command reports 0 or 1, and needs not put back what it did.
    pub keeps_on: bool,
}

impl Subject {
    fn is_loose(&self, path: &str) -> bool {
        self.loose.iter().any(|start| path.starts_with(start))
    }
}

/// How much of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Every fault at every call.
    All,
    /// Kills and a full disk at every call, the rest at one of so many.
    Most(usize),
    /// Each at one of so many.
    Some(usize),
}

/// What was done, and what came of it.
#[derive(Default)]
pub struct Tally {
    pub calls: usize,
    pub faults: BTreeMap<String, usize>,
    /// Of the runs that had a call fail.
    pub codes: BTreeMap<String, usize>,
    /// A call that failed, and the run went through all the same.
    pub tolerated: BTreeMap<String, usize>,
    /// Different machines that a fault left, each given to the next run.
    pub states: usize,
    /// By the call and what came of it, the faults that it came of.
    pub wrong: BTreeMap<String, Vec<String>>,
}

impl Tally {
    pub fn total(&self) -> usize {
        self.faults.values().sum()
    }

    fn add(&mut self, other: Self) {
        for (mine, theirs) in [
            (&mut self.faults, other.faults),
            (&mut self.codes, other.codes),
            (&mut self.tolerated, other.tolerated),
        ] {
            for (key, count) in theirs {
                *mine.entry(key).or_default() += count;
            }
        }
        for (what, faults) in other.wrong {
            self.wrong.entry(what).or_default().extend(faults);
        }
    }

    pub fn report(&self, name: &str) -> String {
        let list = |counts: &BTreeMap<String, usize>| {
            counts.iter().map(|(key, count)| format!("{key} {count}")).collect::<Vec<_>>().join(", ")
        };
        let mut text = format!(
            "{name}: {} calls, {} faults ({}), {} states; exits {}\n",
            self.calls,
            self.total(),
            list(&self.faults),
            self.states,
            list(&self.codes)
        );
        for (call, count) in &self.tolerated {
            let _ = writeln!(text, "  went through although this failed: {call} ({count})");
        }
        for (what, faults) in &self.wrong {
            let more = if faults.len() > SHOWN { ", ..." } else { "" };
            let faults = faults.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
            let _ = writeln!(text, "  WRONG: {faults}{more} at {what}");
        }
        text
    }
}

/// Folders for the runs of one thread, in memory: what is not synced is the other test's business.
pub struct Bench {
    folder: tempfile::TempDir,
}

pub fn larder() -> PathBuf {
    std::env::var_os("LARDER_FAULTS_BINARY")
        .map_or_else(|| env!("CARGO_BIN_EXE_larder").into(), PathBuf::from)
}

impl Bench {
    pub fn new(subject: &Subject) -> Self {
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new().prefix("larder-faults.").tempdir_in(base).unwrap();
        let bench = Self { folder };
        if let Some(profile) = &subject.profile {
            fs::write(bench.profile(), profile).unwrap();
        }
        bench
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn profile(&self) -> PathBuf {
        self.folder.path().join("profile.yaml")
    }

    pub fn reset(&self, tree: &Tree) {
        if self.root().exists() {
            fs::remove_dir_all(self.root()).unwrap();
        }
        fs::create_dir(self.root()).unwrap();
        tree.make(&self.root());
    }

    pub fn run(&self, subject: &Subject, command: &[&str], fault: Fault) -> Ran {
        let mut larder = command_for(subject, command, &self.root(), &self.profile());
        tracer::run(&mut larder, &self.root(), self.folder.path(), fault)
    }
}

pub fn command_for(subject: &Subject, command: &[&str], root: &Path, profile: &Path) -> Command {
    let mut larder = Command::new(larder());
    larder.args(command).arg("--root").arg(root).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    if subject.profile.is_some() {
        larder.arg("--profile").arg(profile);
    }
    larder
}

/// What an undisturbed run does.
pub struct Known {
    pub before: Tree,
    pub wanted: Tree,
    pub calls: Vec<Call>,
}

pub fn learn(subject: &Subject) -> Known {
    let bench = Bench::new(subject);
    let before = (subject.machine)();
    let mut runs = (0..2).map(|_| {
        bench.reset(&before);
        let ran = bench.run(subject, subject.command, Fault::None);
        assert_eq!(ran.code, Some(0), "{}: undisturbed: {ran:?}", subject.name);
        if let Some(cleaner) = subject.cleaner {
            bench.run(subject, cleaner, Fault::None);
        }
        (ran.calls, Tree::read(&bench.root()))
    });
    let ((calls, wanted), (again, _)) = (runs.next().unwrap(), runs.next().unwrap());
    drop(runs);
    if subject.keeps_on {
        // In the order in which a file system lists its files.
        assert_eq!(calls.len(), again.len(), "{}: two runs make as many calls", subject.name);
    } else {
        assert_eq!(numbered(&calls), numbered(&again), "{}: two runs make the same calls", subject.name);
    }
    if let Some(settled) = subject.settled {
        let ran = bench.run(subject, settled, Fault::None);
        assert_eq!(ran.code, Some(0), "{}: nothing is left to do: {ran:?}", subject.name);
    }
    // Then a kill after one call leaves what a kill before the next one leaves.
    let other = calls.iter().find(|call| !call.first_thread);
    assert!(other.is_none(), "{}: changes in a thread of its own: {}", subject.name, other.unwrap());
    Known { before, wanted, calls }
}

/// Names of temporary files differ.
fn numbered(calls: &[Call]) -> Vec<String> {
    let number = |(n, call): (usize, &Call)| {
        let text = call.to_string();
        format!("{n} {}", text.find(TEMPORARY).map_or(text.as_str(), |at| &text[..at]))
    };
    calls.iter().filter(|call| call.own).enumerate().map(number).collect()
}

fn faults(known: &Known, extent: Extent) -> Vec<(String, Fault)> {
    let mut faults = Vec::new();
    let count = known.calls.len();
    let (usual, rare) = match extent {
        Extent::All => (1, 1),
        Extent::Most(rare) => (1, rare),
        Extent::Some(each) => (each, each),
    };
    // Another call each time, so that few of each are many together.
    let mut begin = 0;
    let mut add = |name: String, step: usize, make: &dyn Fn(usize) -> Fault| {
        begin += 1;
        faults.extend((begin % step..count).step_by(step).map(|at| (name.clone(), make(at))));
    };
    add("killed before".to_owned(), usual, &Fault::KillBefore);
    add("killed after".to_owned(), if extent == Extent::All { 1 } else { usual * 5 }, &Fault::KillAfter);
    for errno in ERRORS {
        let step = if errno == Errno::ENOSPC { usual } else { rare };
        add(format!("{errno:?}"), step, &|at| Fault::Fail(at, errno));
    }
    for errno in [Errno::ENOSPC, Errno::EIO, Errno::EROFS] {
        add(format!("{errno:?} from then on"), rare, &|at| Fault::FailFrom(at, errno));
    }
    add("EINTR".to_owned(), rare, &|at| Fault::Fail(at, Errno::EINTR));
    let writes = |at: &usize| known.calls[*at].name == "write";
    let short =
        (0..count).filter(writes).step_by(rare).map(|at| ("short write".to_owned(), Fault::Short(at)));
    faults.extend(short.collect::<Vec<_>>());
    faults
}

/// Runs them all, on as many threads as there are processors.
pub fn try_all(subject: &Subject, extent: Extent) -> Tally {
    let known = learn(subject);
    let faults = faults(&known, extent);
    let next = AtomicUsize::new(0);
    let seen = Mutex::new(BTreeSet::new());
    let tally = Mutex::new(Tally { calls: known.calls.len(), ..Tally::default() });
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let judge = Judge { subject, known: &known, bench: Bench::new(subject), seen: &seen };
                let mut own = Tally::default();
                while let Some((name, fault)) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
                    *own.faults.entry(name.clone()).or_default() += 1;
                    judge.one(*fault, &mut own);
                }
                tally.lock().unwrap().add(own);
            });
        }
    });
    let mut tally = tally.into_inner().unwrap();
    tally.states = seen.into_inner().unwrap().len();
    tally
}

struct Judge<'j> {
    subject: &'j Subject,
    known: &'j Known,
    bench: Bench,
    seen: &'j Mutex<BTreeSet<u64>>,
}

impl Judge<'_> {
    fn one(&self, fault: Fault, tally: &mut Tally) {
        self.bench.reset(&self.known.before);
        let ran = self.bench.run(self.subject, self.subject.command, fault);
        let after = Tree::read(&self.bench.root());
        let mut wrong = Vec::new();
        if ran.hung {
            wrong.push("it hung".to_owned());
        }
        wrong.extend(torn(self.subject, &self.known.before, &self.known.wanted, &after));
        if self.seen.lock().unwrap().insert(after.state()) {
            wrong.extend(self.next(&after));
        }
        let at = match fault {
            Fault::None | Fault::Unsynced => None,
            Fault::KillBefore(at) | Fault::KillAfter(at) | Fault::Short(at) => Some(at),
            Fault::Fail(at, _) | Fault::FailFrom(at, _) => Some(at),
        };
        let call = at.and_then(|at| ran.calls.get(at));
        let call_shown = call.map_or("a call that was not made".to_owned(), |call| {
            let cut = |mark: &str| call.path.find(mark).map(|at| at + mark.len());
            cut(TEMPORARY)
                .or(cut("/.#"))
                .map_or(call.to_string(), |end| format!("{} {}*", call.name, &call.path[..end]))
        });
        if let Fault::Fail(..) | Fault::FailFrom(..) | Fault::Short(_) = fault {
            let code = ran.code.map_or("killed".to_owned(), |code| code.to_string());
            *tally.codes.entry(code).or_default() += 1;
            wrong.extend(self.failed(fault, call, &ran, &after));
            if ran.code == Some(0) && matches!(fault, Fault::Fail(_, errno) if errno != Errno::EINTR) {
                *tally.tolerated.entry(call_shown.clone()).or_default() += 1;
            }
        } else if ran.code.is_some() {
            wrong.push(format!("it was not killed: {}", ran.stderr));
        }
        if wrong.is_empty() {
            return;
        }
        let more = wrong.len().saturating_sub(SHOWN);
        wrong.truncate(SHOWN);
        if more > 0 {
            wrong.push(format!("and {more} more"));
        }
        let what = wrong.join("\n      ").replace(self.bench.root().to_str().unwrap(), "");
        tally.wrong.entry(format!("{call_shown}:\n      {what}")).or_default().push(format!("{fault:?}"));
    }

    /// What must hold after a run in which calls failed.
    fn failed(&self, fault: Fault, call: Option<&Call>, ran: &Ran, after: &Tree) -> Vec<String> {
        let Known { before, wanted, .. } = self.known;
        let mut wrong = Vec::new();
        let harmless = matches!(fault, Fault::Short(_) | Fault::Fail(_, Errno::EINTR));
        match ran.code {
            Some(0) if self.subject.keeps_on => {}
            Some(0) => {
                let loose = |path: &str| self.subject.is_loose(path) || is_scratch(path);
                let differ =
                    differences(&comparable(&wanted.without(loose)), &comparable(&after.without(loose)));
                // What is left to be taken away the next run takes away.
                let differ =
                    differ.into_iter().filter(|line| !line.contains(TEMPORARY) && !line.starts_with(STATE));
                wrong.extend(differ.map(|line| format!("it said 0, and {line}")));
            }
            Some(1) if harmless && matches!(fault, Fault::Short(_)) => {
                wrong.push(format!("a short write is no failure: {}", ran.stderr));
            }
            Some(1) if self.subject.keeps_on => {
                let said = format!("{}{}", ran.stdout, ran.stderr);
                let says = said.contains("error: ") || said.contains("a.example: ");
                wrong.extend((!says).then(|| format!("it does not say what failed: {said}")));
            }
            Some(1) => {
                wrong.extend(unnamed(call, ran));
                let ignored = |path: &str| is_ours_alone(path) || is_account(path);
                let differ = differences(&before.without(ignored), &after.without(ignored));
                wrong.extend(differ.into_iter().map(|line| format!("it said 1, and {line}")));
                for (path, node) in before.0.iter().filter(|(_, node)| node.what != What::Folder) {
                    let moved = after.get(path).is_some_and(|now| now.modified != node.modified);
                    if moved && !ignored(path) {
                        wrong.push(format!("it said 1, and {path} has another time"));
                    }
                }
                let manifest = before.bytes(MANIFEST);
                let now = after.bytes(MANIFEST);
                if matches!(fault, Fault::Fail(..)) && manifest.is_some() && now != manifest {
                    wrong.push("it said 1, and the manifest is another".to_owned());
                }
            }
            // Data that is deleted does not come back: it goes last, and what could not go is told.
            Some(3) if ran.stderr.contains("larder apply --purge") => {}
            Some(3) if ran.stderr.contains("goes with the next `larder remove") => {}
            // Not all could be put back.
            Some(3) if matches!(fault, Fault::FailFrom(..)) => {
                let ignored = |path: &str| is_ours_alone(path) || is_account(path);
                for line in differences(&before.without(ignored), &after.without(ignored)) {
                    let path = line.split(": wanted").next().unwrap();
                    // Those the next run takes away.
                    if !path.contains(TEMPORARY) && !ran.stderr.contains(path) {
                        wrong.push(format!("it does not say that {line}"));
                    }
                }
            }
            code => wrong.push(format!("exit {code:?}: {}", ran.stderr)),
        }
        wrong
    }

    /// The next run, of this machine as it is, with nothing in its way.
    fn next(&self, after: &Tree) -> Vec<String> {
        let subject = self.subject;
        let mut wrong = Vec::new();
        let ran = self.bench.run(subject, subject.command, Fault::None);
        if ran.code != Some(0) {
            wrong.push(format!("the next run: exit {:?}: {}", ran.code, ran.stderr));
        }
        if let Some(cleaner) = subject.cleaner {
            let ran = self.bench.run(subject, cleaner, Fault::None);
            let failed = || format!("{cleaner:?}: exit {:?}: {}", ran.code, ran.stderr);
            wrong.extend((ran.code != Some(0)).then(failed));
        }
        let now = Tree::read(&self.bench.root());
        wrong.extend(
            converged(subject, &self.known.wanted, &now)
                .into_iter()
                .map(|line| format!("the next run: {line}")),
        );
        if let Some(settled) = subject.settled {
            let ran = self.bench.run(subject, settled, Fault::None);
            if ran.code != Some(0) {
                wrong.push(format!("then: exit {:?}: {}{}", ran.code, ran.stdout, ran.stderr));
            }
            if Tree::read(&self.bench.root()) != now {
                wrong.push("then: what only looks has changed something".to_owned());
            }
        }
        if !wrong.is_empty() {
            let start: Vec<_> = after.0.keys().filter(|path| path.contains(TEMPORARY)).collect();
            wrong.push(format!("(it began with {start:?})"));
        }
        wrong
    }
}

/// What the next run must have made of a machine.
pub fn converged(subject: &Subject, wanted: &Tree, now: &Tree) -> Vec<String> {
    let loose = |path: &str| subject.is_loose(path) || is_scratch(path);
    let mut wrong = differences(&comparable(&wanted.without(loose)), &comparable(&now.without(loose)));
    // Where others write meanwhile, what is left goes once it is old.
    let left = now.0.keys().filter(|path| path.contains(TEMPORARY) && !subject.is_loose(path));
    wrong.extend(left.map(|path| format!("{path} is left")));
    wrong.extend((subject.sound)(now, true));
    wrong
}

/// Without what depends on when, and after what, a run was: the time in the name of a copy; which folders on the way to
/// its own the first run has made before it could write that down; and what systemd-sysusers, killed, has left to do.
fn comparable(tree: &Tree) -> Tree {
    let mut comparable = Tree::default();
    for (path, node) in &tree.0 {
        let mut node = node.clone();
        if path == MANIFEST
            && let What::File(bytes) = &mut node.what
            && let Ok(mut manifest) = serde_json::from_slice::<serde_json::Value>(bytes)
            && let Some(fields) = manifest.as_object_mut()
        {
            fields.remove("account");
            if let Some(entries) = fields.get_mut("entries").and_then(serde_json::Value::as_object_mut) {
                entries.retain(|path, _| !is_ours_alone(path));
            }
            *bytes = without_times(&manifest.to_string()).into_bytes();
        }
        comparable.0.insert(without_times(path), node);
    }
    comparable
}

/// Of `.edited-by-hand.2026-01-31T12-34-56Z` the first word.
fn without_times(text: &str) -> String {
    let mut parts = text.split(BY_HAND);
    let mut rest = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        rest += BY_HAND;
        let is_time = part.len() >= 21 && part.starts_with(".2") && part.as_bytes()[20] == b'Z';
        rest += if is_time { &part[21..] } else { part };
    }
    rest
}

/// Everything is as it was or as it shall be, whole, with its mode and owner; nothing else is there but what is not
/// finished, under a name of its own.
pub fn torn(subject: &Subject, before: &Tree, wanted: &Tree, after: &Tree) -> Vec<String> {
    let mut wrong = (subject.sound)(after, false);
    let known: BTreeSet<&What> = before.0.values().chain(wanted.0.values()).map(|node| &node.what).collect();
    for (path, node) in &after.0 {
        let is = |tree: &Tree| tree.get(path).is_some_and(|other| other.is(node));
        if is(before) || is(wanted) || is_scratch(path) {
            continue;
        }
        if path.contains(TEMPORARY) {
            // Of a secret, too.
            let open =
                node.what != What::Folder && !matches!(node.what, What::Link(_)) && node.mode & 0o022 != 0;
            wrong.extend(open.then(|| format!("{path}: others may write to it")));
        } else if (path.starts_with(STATE) || subject.is_loose(path)) && path.ends_with(".json") {
            let bytes = after.bytes(path).unwrap_or_default();
            if let Err(error) = serde_json::from_slice::<serde_json::Value>(bytes) {
                wrong.push(format!("{path} is torn: {error}"));
            }
        } else if path.starts_with(STATE) {
            // Copies of what was there, under names that need not last.
            if matches!(node.what, What::File(_)) && !known.contains(&node.what) {
                wrong.push(format!("{path} is torn: it is a copy of nothing: {}", shown(Some(node))));
            }
        } else if !subject.is_loose(path) && !begun(node, wanted.get(path)) {
            wrong.push(format!(
                "{path} is torn: it was {}, shall be {}, is {}",
                shown(before.get(path)),
                shown(wanted.get(path)),
                shown(Some(node))
            ));
        }
    }
    for (path, node) in &before.0 {
        let stays = wanted.get(path).is_some();
        if stays && after.get(path).is_none() && !subject.is_loose(path) {
            wrong.push(format!("{path} is gone: it was {}", shown(Some(node))));
        }
    }
    wrong
}

/// A folder on its way from one owner to another, which takes more than one call: closed to whom it shall be closed.
fn begun(node: &Node, wanted: Option<&Node>) -> bool {
    wanted.is_some_and(|wanted| {
        (&node.what, &wanted.what) == (&What::Folder, &What::Folder) && node.mode & !wanted.mode == 0
    })
}

fn is_account(path: &str) -> bool {
    path.strip_prefix("etc/").is_some_and(|name| ACCOUNTS.contains(&name.trim_end_matches('-')))
}

/// What is left of systemd-sysusers and of nobody else. It replaces one file after the other, the backup of each first:
/// killed in between, it leaves a user without a line in `shadow`, and does not look there again.
fn is_scratch(path: &str) -> bool {
    let shadows = ["etc/shadow", "etc/gshadow"];
    let backup = path.ends_with('-') && is_account(path);
    path.starts_with("etc/.#") || path == "etc/.pwd.lock" || shadows.contains(&path) || backup
}

/// What nobody but larder reads, and the folder that it is in.
fn is_ours_alone(path: &str) -> bool {
    path == "var/lib/larder"
        || path.starts_with(STATE)
        || is_scratch(path)
        || path == "var"
        || path == "var/lib"
}

/// The failure's message says what it is about: the path, or the folder of a temporary file.
fn unnamed(call: Option<&Call>, ran: &Ran) -> Option<String> {
    let call = call?;
    if !ran.stderr.contains("error: ") {
        return Some(format!("it does not say what failed: {}", ran.stderr));
    }
    let folder =
        call.path.find(TEMPORARY).map_or(call.path.as_str(), |end| call.path[..end].trim_end_matches('/'));
    // Of our own folder nobody has to know more.
    let names =
        ran.stderr.contains(folder) || !call.own || (folder.starts_with(STATE) && ran.stderr.contains(STATE));
    (!names).then(|| format!("its message does not name {folder}: {}", ran.stderr))
}
