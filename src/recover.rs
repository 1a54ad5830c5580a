//! Takes a machine back to where it was before a run: after a failure on the way, and after a run that died.
//!
//! Everything needed is in the manifest's journal. Undoing twice is undoing once, so that one that is not through, or
//! dies too, is gone on with by the next.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result, ensure};
use tracing::warn;

use crate::drift::keep_edit;
use crate::facts::is_containerd_config;
use crate::guard::{self, Record};
use crate::host::{Aim, Host, Pulls, Wanted};
use crate::journal::{Before, Journal, Kind, Manifest, UNDO, digest, tidy};
use crate::plan::UNIT_FOLDER;
use crate::root::{Entry, Root, folder_of};
use crate::wake::{NETWORK_UNIT, Wakes};

/// What came of it.
#[derive(Debug, Default)]
pub struct Undone {
    /// Paths that were not as they had been.
    pub put_back: Vec<String>,
    /// What is not as it was, why, and how to do it by hand; empty where everything is.
    pub left: Vec<String>,
    /// What the links carry, where they had to be put back.
    pub links: Option<String>,
    /// New stores that have something in them: nothing of what registries have is deleted without being asked for.
    pub stores: Vec<String>,
    /// Where files are that somebody wrote meanwhile.
    pub kept: Vec<String>,
}

/// What the run itself knows that is to be undone.
#[derive(Debug)]
pub struct Run {
    /// What it has woken: only that has to be woken for the old files again.
    pub begun: Wakes,
    /// Where it has changed the network.
    pub network: Option<Record>,
}

struct Left {
    what: String,
    why: String,
    by_hand: Option<String>,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)?;
        self.by_hand.iter().try_for_each(|command| write!(f, "\n      by hand: {command}"))
    }
}

/// Puts everything back that the journal of `manifest` knows of: the network first, then every path, and the units
/// after it. Where something cannot be, the journal stays for the next run.
pub fn undo(root: &Root, host: &dyn Host, manifest: &Manifest, run: Option<Run>) -> Undone {
    let mut undone = Undone::default();
    let Some(journal) = &manifest.journal else { return undone };
    let mut left = Vec::new();
    let (known, mut manifest) = (manifest, manifest.clone());

    // Half-written files of a run that died; its folders would not be empty.
    let folders: BTreeSet<&str> = journal.before.keys().map(|path| folder_of(path)).collect();
    for error in folders.iter().filter_map(|folder| root.sweep(folder).err()) {
        left.push(Left::new("temporary files", &error, None));
    }
    let mut differing = Vec::new();
    for (path, before) in &journal.before {
        match differs(root, path, before) {
            Ok(true) => differing.push((path, before)),
            Ok(false) => {}
            Err(error) => left.push(by_hand(root, path, before, &error)),
        }
    }
    let (begun, network) = match run {
        Some(run) => (Some(run.begun), run.network.map(Ok)),
        None => (None, None),
    };
    let network = network.or_else(|| network_of(root, host, journal).transpose());
    let network = network.transpose().unwrap_or_else(|error| {
        left.push(Left::new("the network", &error, Some(RESTORE_NETWORK.to_owned())));
        None
    });
    if let Some(record) = &network {
        // Those that its files are in.
        let folders = differing
            .iter()
            .filter(|(path, before)| matches!(before, Before::Directory(_)) && record.has_below(path));
        for (path, before) in folders {
            if let Err(error) = put_back(root, path, before, &manifest) {
                left.push(by_hand(root, path, before, &error));
            }
        }
        undone.links = links_back(record, root, host, &mut left);
        record.amend(&mut manifest);
    }

    let back = wakes(journal, begun, &differing).undo(journal.stopped.clone());
    if let Err(error) = host.stop(&back) {
        left.push(Left::new("stop units", &error, systemctl("stop", &back)));
    }
    // A folder before what is in it, and what is new from the inside out.
    let there = |before: &Before| !matches!(before, Before::Absent);
    let (old, new): (Vec<_>, Vec<_>) = differing.into_iter().partition(|(_, before)| there(before));
    for (path, before) in old.into_iter().chain(new.into_iter().rev()) {
        // The guard may still be at it. What it has put back gets its time here, where it is what is kept: others may
        // have written into the kept inode while the links went down, as DHCP clients do to resolv.conf.
        if network.as_ref().is_some_and(|record| record.has(path))
            && (undone.links.is_none() || !is_as_kept(root, path, before))
        {
            continue;
        }
        match put_back(root, path, before, &manifest) {
            Ok(kept) => {
                undone.put_back.push(path.clone());
                undone.kept.extend(kept);
            }
            Err(error) => left.push(by_hand(root, path, before, &error)),
        }
    }
    let wanted = Wanted { pulls: Pulls::AsBefore, runtime: journal.runtime.clone(), ..Wanted::default() };
    if let Err(error) = host.wake(root, &back, &wanted, &mut Wakes::default()) {
        left.push(Left::new("wake units", &error, systemctl("restart", &back)));
    }
    forget_network_unit(host, journal);
    if left.is_empty()
        && let Err(error) = settle(root, manifest, journal)
    {
        left.push(Left::new("the manifest", &error, Some("larder recover".to_owned())));
    }
    undone.stores = stores(root, known, journal).map(|path| root.show(path)).collect();
    undone.left = left.iter().map(ToString::to_string).collect();
    undone
}

const RESTORE_NETWORK: &str = "larder unit restore-network";

impl Left {
    fn new(what: &str, error: &anyhow::Error, by_hand: Option<String>) -> Self {
        Self { what: what.to_owned(), why: format!("{error:#}"), by_hand }
    }
}

/// One that has run at this boot and is no file any more: systemd would remember it until the next.
fn forget_network_unit(host: &dyn Host, journal: &Journal) {
    let file = format!("{UNIT_FOLDER}/{NETWORK_UNIT}");
    if journal.before.get(&file) == Some(&Before::Absent)
        && let Err(error) = host.forget_units(&[NETWORK_UNIT.to_owned()].into())
    {
        warn!("stop {NETWORK_UNIT}: {error:#}");
    }
}

/// New stores that have something in them by now.
fn stores<'m>(root: &'m Root, manifest: &'m Manifest, journal: &'m Journal) -> impl Iterator<Item = &'m str> {
    let new = manifest.entries.iter().filter(|(path, owned)| {
        owned.kind == Kind::Data && journal.owned.get(*path) == Some(&None) && root.exists(path)
    });
    new.map(|(path, _)| path.as_str())
}

/// All is back: so is what the manifest says.
fn settle(root: &Root, mut manifest: Manifest, journal: &Journal) -> Result<()> {
    let stores: Vec<String> = stores(root, &manifest, journal).map(str::to_owned).collect();
    let holds =
        |path: &str| stores.iter().any(|store| store == path || store.starts_with(&format!("{path}/")));
    for (path, owned) in &journal.owned {
        match owned {
            Some(owned) => drop(manifest.entries.insert(path.clone(), owned.clone())),
            // What is in a store nobody can tell from what was meant to be there: it stays ours to remove.
            None if holds(path) => {}
            None => drop(manifest.entries.remove(path)),
        }
    }
    manifest.journal = None;
    manifest.unfinished.clone_from(&journal.unfinished);
    manifest.write(root)?;
    clear(root, &manifest)
}

/// Takes away the copies of a run that is over.
///
/// # Errors
/// On I/O errors.
pub fn clear(root: &Root, manifest: &Manifest) -> Result<()> {
    tidy(root, manifest)?;
    // Last: as long as it is there, somebody looks.
    if root.exists(UNDO) { root.remove_tree(UNDO) } else { Ok(()) }
}

/// The same after one that came to its end and died while it did that.
///
/// # Errors
/// On I/O errors.
pub fn clear_rest(root: &Root, manifest: &Manifest) -> Result<()> {
    if manifest.journal.is_none() && root.exists(UNDO) { clear(root, manifest) } else { Ok(()) }
}

/// Whether a file or link has the very content of its kept original.
fn is_as_kept(root: &Root, path: &str, before: &Before) -> bool {
    match before {
        Before::File { kept, .. } | Before::Link { kept, .. } => {
            matches!((root.entry(kept), root.entry(path)), (Ok(kept), Ok(now)) if kept == now)
        }
        Before::Absent | Before::Directory(_) => true,
    }
}

/// What has to be woken for the old files.
fn wakes(journal: &Journal, here: Option<Wakes>, differing: &[(&String, &Before)]) -> Wakes {
    let mut wakes = journal.begun.clone();
    match here {
        Some(begun) => wakes.add_all(&begun),
        None if differing.is_empty() => {}
        // A boot, or a unit's own restart, may have read what a run that died has written.
        None => {
            let containerd = journal.wakes.containerd
                && (wakes.containerd || differing.iter().any(|(path, _)| is_containerd_config(path)));
            wakes.add_all(&Wakes { containerd, ..journal.wakes.clone() });
        }
    }
    wakes
}

/// How the network was, where a run that died has left it otherwise.
fn network_of(root: &Root, host: &dyn Host, journal: &Journal) -> Result<Option<Record>> {
    if let Some(record) = Record::read(root)? {
        if !record.is_restored(root, host)? {
            return Ok(Some(record));
        }
        guard::disarm(root, host)?;
        return Ok(None);
    }
    match &journal.network {
        Some(record) if record.differs(root)? => Ok(Some(record.clone())),
        _ => Ok(None),
    }
}

/// The timer stays set where this does not work: it tries again.
fn links_back(record: &Record, root: &Root, host: &dyn Host, left: &mut Vec<Left>) -> Option<String> {
    let again = || Some(RESTORE_NETWORK.to_owned());
    let mut record = record.clone();
    record.adopt();
    // It may have been disarmed with the proof, and something later have failed.
    let armed = record.arm(root, host);
    if let Err(error) = host.release_links(&record.links) {
        left.push(Left::new("take the links down", &error, again()));
    }
    for (path, error) in record.restore_files(root) {
        left.push(Left::new(&path, &error, again()));
    }
    match host.wake_links(&record.links, &Aim::Before(record.live.clone())) {
        Ok(links) => {
            if let Err(error) = guard::disarm(root, host) {
                left.push(Left::new("disarm the guard of the network", &error, again()));
            }
            return Some(links);
        }
        Err(error) => {
            left.push(Left::new("the network", &error, again()));
            if let Err(error) = armed {
                left.push(Left::new("try again later", &error, None));
            }
        }
    }
    None
}

fn differs(root: &Root, path: &str, before: &Before) -> Result<bool> {
    Ok(match before {
        Before::Absent => root.entry(path)? != Entry::Absent,
        Before::Link { kept, target } => {
            !root.is_same(kept, path)? && root.entry(path)? != Entry::Link { target: target.clone() }
        }
        Before::Directory(access) => root.entry(path)? != Entry::Directory { access: (*access).into() },
        Before::File { kept, access } => {
            !root.is_same(kept, path)?
                || !matches!(root.entry(path)?, Entry::File { access: now, .. } if now == (*access).into())
        }
    })
}

/// Returns where a file is now that somebody has written since.
fn put_back(root: &Root, path: &str, before: &Before, manifest: &Manifest) -> Result<Option<String>> {
    let now = root.entry(path)?;
    let ours = match &now {
        Entry::File { .. } | Entry::Link { .. } => is_known(root, path, &now, before, manifest)?,
        _ => true,
    };
    let kept = if ours { None } else { keep_edit(root, path)? };
    match before {
        Before::Absent if matches!(now, Entry::Directory { .. }) => root.remove_empty_directory(path)?,
        Before::Absent => root.remove(path)?,
        Before::Directory(access) if now == Entry::Absent => {
            root.make_directory(path, (*access).into())?;
        }
        Before::Directory(access) => root.set_access(path, (*access).into())?,
        Before::Link { kept, target } => {
            if !root.keep(kept, path)? {
                root.link(path, target)?;
            }
        }
        Before::File { kept, access } => {
            ensure!(root.keep(kept, path)?, "{} is gone", root.show(kept));
            // Of a file of ours that got another mode.
            if !matches!(root.entry(path)?, Entry::File { access: now, .. } if now == (*access).into()) {
                root.set_access(path, (*access).into())?;
            }
        }
    }
    root.sync_folder(path).context("make it durable")?;
    let kept = kept.map(|kept| format!("{} is kept as {}", root.show(path), root.show(&kept)));
    Ok(kept)
}

/// Whether what is there is what a run has put there.
fn is_known(root: &Root, path: &str, now: &Entry, before: &Before, manifest: &Manifest) -> Result<bool> {
    let given_back = manifest.entries.get(path).and_then(|owned| owned.kept.as_ref());
    let was = match before {
        Before::File { kept, .. } | Before::Link { kept, .. } => Some(kept),
        _ => None,
    };
    for kept in given_back.into_iter().chain(was) {
        if root.is_same(kept, path)? {
            return Ok(true);
        }
    }
    let wrote = manifest.journal.as_ref().and_then(|journal| journal.wrote.get(path));
    let handed_over =
        matches!((wrote, now), (Some(wrote), Entry::File { bytes, .. }) if *wrote == digest(bytes));
    Ok(handed_over || manifest.wrote(path, now))
}

fn by_hand(root: &Root, path: &str, before: &Before, error: &anyhow::Error) -> Left {
    let shown = quoted(&root.show(path));
    let now = root.entry(path);
    // Nothing of ours makes a folder where something else was.
    let in_the_way = match (&now, before) {
        (Ok(Entry::Directory { .. }), Before::File { .. } | Before::Link { .. }) => {
            format!("mv -T {shown} {} && ", quoted(&root.show(&format!("{path}.in-the-way"))))
        }
        _ => String::new(),
    };
    let command = match before {
        Before::Absent if matches!(now, Ok(Entry::Directory { .. })) => format!("rmdir {shown}"),
        Before::Absent => format!("rm -f {shown}"),
        Before::File { kept, .. } => {
            format!("cp -aT --remove-destination {} {shown}", quoted(&root.show(kept)))
        }
        Before::Link { target, .. } => format!("ln -sfnT {} {shown}", quoted(target)),
        Before::Directory(access) => format!(
            "mkdir -p {shown} && chown {}:{} {shown} && chmod {:04o} {shown}",
            access.uid, access.gid, access.mode
        ),
    };
    Left::new(&root.show(path), error, Some(format!("{in_the_way}{command}")))
}

fn systemctl(verb: &str, wakes: &Wakes) -> Option<String> {
    let words = |verb: &str, units: Vec<&str>| {
        (!units.is_empty()).then(|| format!("systemctl {verb} {}", units.join(" ")))
    };
    let names =
        |units: &BTreeSet<String>| units.iter().map(|unit| quoted(unit)).collect::<Vec<_>>().join(" ");
    if verb == "stop" {
        return words("stop", vec![&names(&wakes.stop)]);
    }
    let mut all = Vec::new();
    if wakes.reload {
        all.push("systemctl daemon-reload".to_owned());
    }
    let (start, mut restart) = (names(&wakes.start), wakes.restart.clone());
    if wakes.containerd {
        restart.insert("containerd.service".to_owned());
    }
    if !start.is_empty() {
        all.push(format!("systemctl start {start}"));
    }
    if !restart.is_empty() {
        all.push(format!("systemctl restart {}", names(&restart)));
    }
    (!all.is_empty()).then(|| all.join(" && "))
}

/// For a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-@:+,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}
