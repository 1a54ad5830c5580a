//! One subject and a power cut at every write that the disk is told of, with what was not flushed lost: all of it, one
//! write of it, or any part.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::disk::{BLOCK, Blocks, Disk, Mounted, Told, format};
use crate::judge::{STATE, Subject, command_for, converged, learn, torn};
use crate::tracer::{self, Fault};
use crate::tree::{Tree, differences};

/// Bytes: the least that these file systems can be made in is 16, 300 and 109 MiB.
pub const FILE_SYSTEMS: [(&str, u64); 3] = [("ext4", 48 << 20), ("xfs", 320 << 20), ("btrfs", 128 << 20)];

#[derive(Default)]
pub struct Tally {
    pub writes: usize,
    pub flushes: usize,
    pub cuts: usize,
    /// Cuts that left the old machine, the new one, or one in between.
    pub left: BTreeMap<&'static str, usize>,
    pub wrong: BTreeMap<String, usize>,
}

/// How many.
#[derive(Clone, Copy)]
pub struct Extent {
    /// Cut at one of so many writes.
    pub each: usize,
    /// So many random parts of what was not flushed, each time.
    pub random: usize,
}

/// What is on the disk after a cut: of each write, which of its blocks.
struct Cut {
    name: String,
    /// All before this is there.
    flushed: usize,
    /// Of those from there on, a bit for each block.
    later: Vec<(usize, u64)>,
    /// The command had ended.
    ended: bool,
}

/// Numbers that are the same each time (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

const KEPT: &str = "var/lib/larder/state/kept";
const WHOLE: u64 = u64::MAX;

fn cuts(told: &[Told], from: usize, extent: Extent) -> Vec<Cut> {
    let mut dice = Dice(0x1a_2d_e2);
    let mut seen = BTreeSet::new();
    let mut cuts = Vec::new();
    for at in (from..=told.len()).filter(|at| (at - from).is_multiple_of(extent.each) || *at == told.len()) {
        let flush = told[..at].iter().rposition(|one| matches!(one, Told::Flush));
        let flushed = flush.map_or(0, |flush| flush + 1);
        let open: Vec<usize> = (flushed..at).collect();
        let mut add = |name: String, later: Vec<(usize, u64)>| {
            let mut hasher = DefaultHasher::new();
            (flushed, &later, at == told.len()).hash(&mut hasher);
            if seen.insert(hasher.finish()) {
                cuts.push(Cut { name, flushed, later, ended: at == told.len() });
            }
        };
        add(format!("after {at}, in order"), open.iter().map(|one| (*one, WHOLE)).collect());
        add(format!("after {at}, nothing that was not flushed"), Vec::new());
        if let Some((last, before)) = open.split_last() {
            // The last alone, before all others; and it alone is not there.
            add(format!("after {at}, the last alone"), vec![(*last, WHOLE)]);
            // Where most is open: in between, this is one of the random parts.
            let is_next_flush = matches!(told.get(at), Some(Told::Flush) | None);
            for gone in before.iter().filter(|_| is_next_flush) {
                let rest = open.iter().filter(|one| *one != gone).map(|one| (*one, WHOLE)).collect();
                add(format!("after {at}, without {gone}"), rest);
            }
        }
        for n in 0..extent.random {
            let part = open.iter().map(|one| (*one, dice.roll())).collect();
            add(format!("after {at}, part {n}"), part);
        }
    }
    cuts
}

impl Cut {
    fn make(&self, base: &Blocks, told: &[Told]) -> Blocks {
        let mut blocks = base.clone();
        let before = (0..self.flushed).map(|one| (one, WHOLE));
        for (one, which) in before.chain(self.later.iter().copied()) {
            let Told::Write { at, bytes } = &told[one] else { continue };
            for (n, block) in bytes.chunks(BLOCK).enumerate() {
                if which >> (n % 64) & 1 == 1 {
                    blocks.write(at + (n * BLOCK) as u64, block);
                }
            }
        }
        blocks
    }
}

/// Whether this machine can do it.
pub fn is_possible() -> bool {
    ["/dev/fuse", "/dev/loop-control"].iter().all(|path| Path::new(path).exists())
}

/// Mounts of this thread, and of what it starts, are its own, and end with it.
pub fn own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
}

struct Places {
    folder: tempfile::TempDir,
}

impl Places {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, subject: &Subject, command: &[&str], at: &Path) -> Result<(), String> {
        let output = command_for(subject, command, at, &self.path("profile.yaml")).output().unwrap();
        if output.status.code() == Some(0) { Ok(()) } else { Err(crate::support::text(&output)) }
    }
}

/// The subject's machine on a file system of this kind; `fault` is that of the run that the power is cut in.
pub fn try_cuts(subject: &Subject, kind: &str, size: u64, extent: Extent, fault: Fault) -> Tally {
    let known = learn(subject);
    let base = if Path::new("/dev/shm").is_dir() { "/dev/shm".into() } else { std::env::temp_dir() };
    let folder = tempfile::Builder::new().prefix("larder-power.").tempdir_in(base).unwrap();
    let places = Places { folder };
    for name in ["fuse", "mounted"] {
        fs::create_dir(places.path(name)).unwrap();
    }
    if let Some(profile) = &subject.profile {
        fs::write(places.path("profile.yaml"), profile).unwrap();
    }
    let root = places.path("mounted/root");
    let fill = |at: &Path| {
        fs::create_dir(at.join("root")).unwrap();
        known.before.make(&at.join("root"));
    };
    let blocks = format(kind, places.folder.path(), size, fill).unwrap();

    let disk = Disk::new(&places.path("fuse"), blocks.clone(), size);
    let mounted = Mounted::new(kind, &disk.path(), &places.path("mounted")).unwrap();
    let from = disk.told().len();
    let mut larder = command_for(subject, subject.command, &root, &places.path("profile.yaml"));
    let ran = tracer::run(&mut larder, &root, places.folder.path(), fault);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let told = disk.told();
    drop(mounted);
    drop(disk);

    let is_flush = |one: &&Told| matches!(one, Told::Flush);
    let flushes = told[from..].iter().filter(is_flush).count();
    let mut tally = Tally { writes: told.len() - from - flushes, flushes, ..Tally::default() };
    for cut in cuts(&told, from, extent) {
        tally.cuts += 1;
        // Not one that the last one's loop device may still hold.
        let image = places.path(&format!("cut.{}", tally.cuts));
        cut.make(&blocks, &told).save(&image, size);
        let mounted = match Mounted::new(kind, &image, &places.path("mounted")) {
            Ok(mounted) => mounted,
            Err(error) => {
                *tally.wrong.entry(format!("{}: {error}", cut.name)).or_default() += 1;
                fs::remove_file(&image).unwrap();
                continue;
            }
        };
        let after = Tree::read(&root);
        let mut wrong = torn(subject, &known.before, &known.wanted, &after);
        let is = |tree: &Tree| differences(tree, &after).is_empty();
        let left = if is(&known.before) {
            "old"
        } else if is(&known.wanted) {
            "new"
        } else {
            "between"
        };
        *tally.left.entry(left).or_default() += 1;
        if cut.ended && !subject.keeps_on {
            // Copies are taken away by and by: no sync waits for that. btrfs may bring back a name that was renamed.
            let is_more = |line: &str| line.contains("wanted nothing") || line.ends_with(" is left");
            let rest = |line: &String| line.starts_with(STATE) && is_more(line);
            let lost = converged(subject, &known.wanted, &after).into_iter().filter(|line| !rest(line));
            wrong.extend(lost.map(|line| format!("it had said 0, and {line}")));
        }
        if let Err(said) = places.run(subject, subject.command, &root) {
            wrong.push(format!("the next run: {said}"));
        }
        if let Some(cleaner) = subject.cleaner
            && let Err(said) = places.run(subject, cleaner, &root)
        {
            wrong.push(format!("{cleaner:?}: {said}"));
        }
        let now = Tree::read(&root);
        // Of what was kept one name more, which the next run that changes something takes away.
        let rest = |line: &String| line.starts_with(KEPT) && line.contains("wanted nothing");
        let differ = converged(subject, &known.wanted, &now).into_iter().filter(|line| !rest(line));
        wrong.extend(differ.map(|line| format!("the next run: {line}")));
        drop(mounted);
        fs::remove_file(&image).unwrap();
        if !wrong.is_empty() {
            wrong.truncate(4);
            *tally.wrong.entry(format!("{}: {}", cut.name, wrong.join("\n      "))).or_default() += 1;
        }
    }
    tally
}
