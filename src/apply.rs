//! The only loop that changes anything: stage, record the intent, change, wake, or put everything back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result};

use crate::diff::{
    Action, Change, Diff, Stranger, Wanted as Asked, enabled_units, masked_units, registry_ids, resolve,
};
use crate::drift::keep_edit;
use crate::facts::{CONTAINERD_CONFIG, USER, is_containerd_config};
use crate::guard::{self, Record};
use crate::host::{Aim, Done, Host, NetworkWanted, Pulls, Wanted};
use crate::journal::{KEPT, Kind, Manifest, Owned, digest, keep_aside, make_state_folder, put_back};
use crate::plan::network::belongs_to_network;
use crate::plan::{Content, Plan, Resource, STATE};
use crate::root::{Access, Entry, Owner, Root, Staged, folder_of};
use crate::wake::Wakes;

/// Of a configuration that was migrated, in the folder of what is kept.
const BEFORE_MIGRATION: &str = ".before-migration";

/// What a run did.
#[derive(Debug, Default)]
pub struct Applied {
    pub changed: usize,
    /// Where files that were not ours are now.
    pub kept: Vec<String>,
    /// Files of ours that the operator keeps as they are.
    pub left_alone: Vec<String>,
    /// What only the running machine can do.
    pub left: Vec<String>,
    /// What is not as it should be, and was not before either.
    pub warnings: Vec<String>,
}

/// Something failed on the way.
#[derive(Debug)]
pub struct Failed {
    pub cause: anyhow::Error,
    /// What could not be put back; empty where everything was.
    pub not_undone: Vec<String>,
    /// An account is not taken back: files that somebody made meanwhile may be its.
    pub made_user: bool,
    /// What the links carry, where they had to be put back.
    pub links: Option<String>,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.cause)?;
        if self.not_undone.is_empty() {
            f.write_str("; everything is back as it was")?;
            if self.made_user {
                write!(f, ", but for the new system user {USER}")?;
            }
            self.links.iter().try_for_each(|links| write!(f, ": {links}"))
        } else {
            f.write_str("; not put back:")?;
            self.not_undone.iter().try_for_each(|line| write!(f, "\n  {line}"))
        }
    }
}

impl std::error::Error for Failed {}

/// Makes `root` what `plan` says, given their `diff`.
///
/// # Errors
/// [`Failed`] when something failed after the first change; anything else when nothing was touched.
pub fn apply(
    plan: &Plan,
    diff: &Diff,
    root: &Root,
    host: &dyn Host,
    old: Manifest,
    address: Option<&NetworkWanted>,
) -> Result<Applied> {
    let mut applied = Applied { left: plan.left.clone(), ..Applied::default() };
    let mut own = diff.wakes(plan);
    let stale = match &plan.certs_dir {
        Some(certs_dir) if !own.containerd => {
            let ours = plan.resources.keys().map(String::as_str).filter(|path| is_containerd_config(path));
            let files: BTreeSet<&str> = ours.chain([CONTAINERD_CONFIG]).collect();
            host.is_stale(root, &files, certs_dir)?
        }
        _ => false,
    };
    if stale {
        host.try_containerd_config(root, CONTAINERD_CONFIG)?;
        own.containerd = true;
    }
    let mut wakes = own.clone();
    match &old.unfinished {
        // The rest is the profile's business, and waits for it.
        Some(_) if plan.part => {}
        Some(unfinished) if plan.handed_over => wakes.containerd |= unfinished.containerd,
        Some(unfinished) => wakes.take_over(unfinished, &enabled_units(plan), &masked_units(plan)),
        None => {}
    }
    if diff.is_empty() && (old.unfinished.is_none() || plan.part) && !stale {
        return Ok(applied);
    }
    make_state_folder(root)?;
    let mut earlier = Record::read(root)?;
    if own.links.is_empty()
        && !wakes.links.is_empty()
        && let Some(address) = address
        && host.is_proven(address)?
    {
        // What a run that died has left to do, a boot or a manager has done.
        wakes.links.clear();
        if earlier.take().is_some() {
            guard::disarm(root, host)?;
        }
    }
    sweep(plan, root, &old)?;
    let made_user = match diff.make_user.then(|| host.make_user(root, USER)).transpose()? {
        Some(Done::Later(reason)) => {
            applied.left.push(reason);
            false
        }
        Some(Done::Now) => true,
        None => false,
    };
    let ids = registry_ids(root)?;
    let runtime = if wakes.containerd { host.runtime()? } else { None };
    let pulls = plan.certs_dir.clone().map_or(Pulls::Anything, Pulls::Read);
    // A migration is a cure for a CRI that is down, too: one that does not help is undone.
    let wanted = Wanted { pulls, up: plan.handed_over, runtime };
    let record = if wakes.links.is_empty() {
        None
    } else {
        let live = host.link_states(&wakes.links)?;
        Some(Record::new(earlier, diff, &old, &wakes.links, live))
    };

    let mut run = Run {
        root,
        ids,
        undo: Vec::new(),
        stopped: BTreeSet::new(),
        record,
        begun: Wakes::default(),
        kept: Vec::new(),
        handed_over: plan.handed_over,
        part: plan.part,
    };
    let mut manifest = if plan.handed_over { old.clone() } else { intent(&old, plan, diff) };
    let whole = !plan.handed_over && !plan.part;
    let mut unfinished = old.unfinished.clone().filter(|_| !whole).unwrap_or_default();
    unfinished.add_all(&wakes);
    manifest.unfinished = Some(unfinished);
    manifest.write(root)?;
    let result = run
        .change(diff, &mut manifest, host, &wakes)
        .and_then(|()| run.wake_links(host, &wakes, address))
        .and_then(|()| host.wake(root, &wakes, &wanted, &mut run.begun));
    match result {
        Ok(warnings) => applied.warnings = warnings,
        Err(cause) => {
            let wanted = Wanted { pulls: Pulls::AsBefore, runtime: wanted.runtime, ..Wanted::default() };
            let (not_undone, links) = run.roll_back(host, &own, &old, &wanted);
            return Err(Failed { cause, not_undone, made_user, links }.into());
        }
    }
    if plan.handed_over {
        hand_over(&mut manifest, &old, diff);
    } else {
        commit(&mut manifest, plan, diff);
        // What a whole run has left to do is still to be done by the next, and the network still to be proven.
        if plan.part {
            let unfinished = Wakes { links: wakes.links, ..Wakes::default() };
            let mut left = old.unfinished.unwrap_or_default();
            left.add_all(&unfinished);
            manifest.unfinished = Some(left).filter(|left| !left.is_empty());
        }
    }
    manifest.write(root)?;
    if stale {
        applied.warnings.push(
            "containerd was older than its configuration and did not read it: it was restarted".to_owned(),
        );
    }
    purge(root, diff, &mut manifest)?;
    applied.changed = diff.changes.len();
    applied.kept = run.kept;
    Ok(applied)
}

/// Deletes the data of upstreams that left, once all else is through: nothing brings it back.
fn purge(root: &Root, diff: &Diff, manifest: &mut Manifest) -> Result<()> {
    let mut purged = false;
    for change in &diff.changes {
        if matches!(change.action, Action::Remove { kind: Kind::Data, .. }) {
            root.remove_tree(&change.path)?;
            manifest.entries.remove(&change.path);
            purged = true;
        }
    }
    if purged { manifest.write(root) } else { Ok(()) }
}

/// Temporary files of a run that died: of its manifest, or anywhere once that says that it was at work.
fn sweep(plan: &Plan, root: &Root, old: &Manifest) -> Result<()> {
    root.sweep(STATE)?;
    if old.unfinished.is_none() {
        return Ok(());
    }
    let paths = plan.resources.keys().chain(old.entries.keys());
    let folders: BTreeSet<&str> = paths.map(|path| folder_of(path)).collect();
    folders.into_iter().try_for_each(|folder| {
        root.sweep(folder)?;
        root.sweep(&format!("{KEPT}/{folder}"))
    })
}

/// The old manifest with what this run is about to write beside what is there now.
fn intent(old: &Manifest, plan: &Plan, diff: &Diff) -> Manifest {
    let mut manifest = old.clone();
    for change in &diff.changes {
        let (kind, wrote) = match &change.action {
            Action::MakeDirectory { data: true, .. } => (Kind::Data, None),
            Action::MakeDirectory { .. } => (Kind::Directory, None),
            // Where others wrote too, what was there before us is not all that is theirs: it is no longer ours to
            // give back, or to start from.
            Action::WriteFile { bytes, content, .. } if content.is_edit() => {
                (Kind::Edited, (!others_wrote(old, change)).then(|| digest(bytes)))
            }
            Action::WriteFile { bytes, .. } => (Kind::File, Some(digest(bytes))),
            Action::Link { target } => (Kind::Link, Some((*target).to_owned())),
            Action::SetAccess { .. } | Action::Remove { .. } | Action::Leave => continue,
        };
        let owned = manifest.entries.entry(change.path.clone()).or_insert_with(|| Owned::new(kind));
        owned.kind = kind;
        owned.wrote.extend(wrote);
    }
    adopt(&mut manifest, plan);
    manifest
}

/// Whether a file that we edit has been edited by others since.
fn others_wrote(old: &Manifest, change: &Change) -> bool {
    let ours = old.entries.get(&change.path).is_some_and(|owned| !owned.found);
    ours && change.before != Entry::Absent && !old.wrote(&change.path, &change.before)
}

/// What was there already just as it shall be is recorded too: when it is no longer wanted, it stays.
fn adopt(manifest: &mut Manifest, plan: &Plan) {
    use crate::plan::Purpose;
    for (path, resource) in &plan.resources {
        if manifest.entries.contains_key(path) {
            continue;
        }
        let (kind, wrote) = match resource {
            Resource::Directory { purpose: Purpose::Data, .. } => (Kind::Data, Vec::new()),
            // An operator's folder.
            Resource::Directory { .. } => continue,
            Resource::File { bytes, content, .. } if content.is_edit() => (Kind::Edited, vec![digest(bytes)]),
            Resource::File { bytes, .. } => (Kind::File, vec![digest(bytes)]),
            Resource::Link { target } => (Kind::Link, vec![target.clone()]),
        };
        manifest.entries.insert(path.clone(), Owned { wrote, found: true, ..Owned::new(kind) });
    }
}

/// The manifest of a run that is through.
fn commit(manifest: &mut Manifest, plan: &Plan, diff: &Diff) {
    manifest.unfinished = None;
    for change in &diff.changes {
        let gone = match &change.action {
            Action::Remove { kind, .. } => *kind != Kind::Data,
            action => *action == Action::Leave,
        };
        if gone {
            manifest.entries.remove(&change.path);
        }
    }
    for (path, owned) in manifest.entries.iter_mut().filter(|(_, owned)| !owned.left_alone) {
        if !plan.part {
            owned.access = plan.resources.get(path).and_then(access_of);
        }
        // What is planned is there now. `larder watch` may have died before it wrote what it had announced.
        match plan.resources.get(path) {
            Some(Resource::File { bytes, content, .. }) => {
                let now = digest(bytes);
                if !content.is_edit() || owned.wrote.contains(&now) {
                    owned.wrote = vec![now];
                }
            }
            None if plan.part => {}
            _ => owned.wrote = owned.wrote.pop().into_iter().collect(),
        }
    }
    if plan.part {
        return;
    }
    // Folders that hold something of somebody else's stay, and stay recorded no longer.
    manifest.entries.retain(|path, owned| {
        let gone = (owned.kind == Kind::Directory || owned.found) && !owned.left_alone;
        !gone || plan.resources.contains_key(path)
    });
}

/// The mode and owner that are ours to say.
fn access_of(resource: &Resource) -> Option<Asked> {
    use crate::plan::{Purpose, User};
    match resource {
        Resource::Directory { mode, owner, purpose: Purpose::Data } => {
            Some(Asked { mode: *mode, user: *owner })
        }
        Resource::File { mode, content, .. } if !content.is_edit() => {
            let user = if *content == Content::Login { User::Registry } else { User::Root };
            Some(Asked { mode: *mode, user })
        }
        _ => None,
    }
}

/// The same for a plan whose files are the operator's now: what was ours of them is no longer. A file that we
/// only edit stays recorded with what we once wrote: it has been edited by others since.
fn hand_over(manifest: &mut Manifest, old: &Manifest, diff: &Diff) {
    for change in &diff.changes {
        if matches!(&change.action, Action::WriteFile { content, .. } if !content.is_edit()) {
            manifest.entries.remove(&change.path);
        }
    }
    let left = old.unfinished.clone().map(|unfinished| Wakes { containerd: false, ..unfinished });
    manifest.unfinished = left.filter(|left| !left.is_empty());
}

struct Run<'r> {
    root: &'r Root,
    ids: Option<Owner>,
    /// What was begun, in its order.
    undo: Vec<&'r Change<'r>>,
    /// Units that ran before.
    stopped: BTreeSet<String>,
    /// How the network was, where that changes.
    record: Option<Record>,
    /// What was woken for the new files: only that has to be woken for the old ones again.
    begun: Wakes,
    kept: Vec<String>,
    handed_over: bool,
    /// Nothing can be woken yet.
    part: bool,
}

impl<'r> Run<'r> {
    fn change(
        &mut self,
        diff: &'r Diff,
        manifest: &mut Manifest,
        host: &dyn Host,
        wakes: &Wakes,
    ) -> Result<()> {
        // Folders first: staged files need them.
        for change in &diff.changes {
            if let Action::MakeDirectory { access, .. } = &change.action
                && let Some(access) = resolve(*access, self.ids)
            {
                self.undo.push(change);
                self.root.make_directory(&change.path, access)?;
            }
        }
        let staged = self.stage(diff)?;
        self.root.sync(&staged)?;
        // One that imports a file which changes too can only be tried once both are in place.
        let edits =
            |change: &Change| matches!(change.action, Action::WriteFile { content, .. } if content.is_edit());
        let imports = diff.changes.iter().any(|change| change.path != CONTAINERD_CONFIG && edits(change));
        for one in &staged {
            if is_containerd_config(one.path()) && !imports {
                host.try_containerd_config(self.root, &one.trial_path())?;
            }
        }
        self.keep_strangers(diff, manifest)?;
        // Should stopping fail half-way, all of them are started again.
        self.stopped.clone_from(&wakes.stop);
        self.stopped = host.stop(wakes)?;
        let mut staged = staged.into_iter().map(|one| (one.path().to_owned(), one)).collect();
        // The network last, with all in place that takes it back.
        self.rename(diff, &mut staged, |path| !belongs_to_network(path))?;
        if let Some(record) = &self.record {
            record.arm(self.root, host)?;
            // From here on this machine may be off the network.
            self.begun.links.clone_from(&record.links);
            host.release_links(&record.links)?;
        }
        self.rename(diff, &mut staged, belongs_to_network)?;
        self.sync_folders(diff)?;
        if imports { host.try_containerd_config(self.root, CONTAINERD_CONFIG) } else { Ok(()) }
    }

    fn stage(&self, diff: &Diff) -> Result<Vec<Staged<'r>>> {
        let mut staged = Vec::new();
        for change in &diff.changes {
            if let Action::WriteFile { bytes, access, .. } = &change.action {
                // In an image the user may be made at the first boot; what is his is root's until then.
                let mut access = resolve(*access, self.ids).unwrap_or_else(|| Access::root(access.mode));
                if let (Action::WriteFile { content, .. }, Entry::File { access: now, .. }) =
                    (&change.action, &change.before)
                    && content.is_edit()
                {
                    access.owner = now.owner;
                }
                staged.push(self.root.stage(&change.path, bytes, access)?);
            }
        }
        Ok(staged)
    }

    /// Copies of what is not ours, durable before anything is replaced.
    fn keep_strangers(&mut self, diff: &Diff, manifest: &mut Manifest) -> Result<()> {
        let mut first_copies = false;
        for change in &diff.changes {
            let edits = matches!(change.action, Action::WriteFile { content, .. } if content.is_edit());
            match change.stranger {
                Some(_) => {}
                None if edits && self.handed_over => {
                    let copy = keep_aside(self.root, &change.path, BEFORE_MIGRATION)?;
                    let original = self.root.show(&change.path);
                    self.kept.extend(
                        copy.map(|copy| format!("{original} as it was is kept as {}", self.root.show(&copy))),
                    );
                    continue;
                }
                None if edits && change.before != Entry::Absent => {}
                None => continue,
            }
            let owned = manifest.entries.get_mut(&change.path);
            // The original of a file that we edit is the one from before our first edit.
            if edits && owned.as_ref().is_some_and(|owned| owned.kept.is_some()) {
                continue;
            }
            let copy = match change.stranger {
                Some(Stranger::EditedByHand) => keep_edit(self.root, &change.path)?,
                _ => keep_aside(self.root, &change.path, "")?,
            };
            if let (Some(owned), Some(copy)) = (owned, &copy)
                && change.stranger != Some(Stranger::EditedByHand)
            {
                owned.kept = Some(copy.clone());
                owned.found = false;
                first_copies = true;
            }
            if let (Some(_), Some(copy)) = (change.stranger, copy) {
                self.kept.push(format!(
                    "{} is kept as {}",
                    self.root.show(&change.path),
                    self.root.show(&copy)
                ));
            }
        }
        if first_copies { manifest.write(self.root) } else { Ok(()) }
    }

    /// Those of the changes that `which` picks.
    fn rename(
        &mut self,
        diff: &'r Diff,
        staged: &mut BTreeMap<String, Staged>,
        which: fn(&str) -> bool,
    ) -> Result<()> {
        for change in diff.changes.iter().filter(|change| which(&change.path)) {
            if !matches!(change.action, Action::MakeDirectory { .. }) {
                self.undo.push(change);
            }
            match &change.action {
                Action::MakeDirectory { .. } | Action::Leave => {}
                Action::WriteFile { .. } => {
                    let one = staged.remove(&change.path).context("write: a staged file is missing")?;
                    self.root.commit(one)?;
                }
                Action::Link { target } => self.root.link(&change.path, target)?,
                Action::SetAccess { access } => {
                    if let Some(access) = resolve(*access, self.ids) {
                        self.root.set_access(&change.path, access)?;
                    }
                }
                Action::Remove { kept, kind } => self.remove(change, kept.as_deref(), *kind)?,
            }
        }
        Ok(())
    }

    fn remove(&self, change: &Change, kept: Option<&str>, kind: Kind) -> Result<()> {
        let path = &change.path;
        match (kind, kept) {
            (Kind::Directory, _) => self.root.remove_empty_directory(path),
            // Last of all, by `purge`.
            (Kind::Data, _) => Ok(()),
            (_, Some(kept)) => match self.root.entry(kept)? {
                Entry::File { bytes, access } => self.root.write(path, &bytes, access),
                Entry::Link { target } => self.root.link(path, &target),
                _ => self.root.remove(path),
            },
            (Kind::File | Kind::Link | Kind::Edited, None) => self.root.remove(path),
        }
    }

    /// Every name that changed, and every folder that is new.
    fn sync_folders(&self, diff: &Diff) -> Result<()> {
        let mut folders = BTreeSet::new();
        for change in &diff.changes {
            folders.insert(folder_of(&change.path));
            if matches!(change.action, Action::MakeDirectory { .. }) {
                folders.insert(&change.path);
            }
        }
        self.root.sync_folders(&folders)
    }

    /// The new network, up to its proof. With that, nothing brings the old one back any more. One that nobody can
    /// prove yet is left to the next run, record and all.
    fn wake_links(&self, host: &dyn Host, wakes: &Wakes, address: Option<&NetworkWanted>) -> Result<()> {
        let Some(record) = &self.record else { return Ok(()) };
        let aim = match address {
            Some(wanted) => Aim::Wanted(wanted.clone()),
            // The profile leaves it to others again.
            None => Aim::Others(record.live.clone()),
        };
        host.wake_links(&wakes.links, &aim)?;
        if self.part { Ok(()) } else { guard::disarm(self.root, host) }
    }

    /// Puts every path back: the network first, then newest first, and the units after it. Returns what could not be
    /// undone, and what the links carry where they had to be put back.
    fn roll_back(
        mut self,
        host: &dyn Host,
        own: &Wakes,
        old: &Manifest,
        wanted: &Wanted,
    ) -> (Vec<String>, Option<String>) {
        let mut not_undone = Vec::new();
        let mut links = None;
        let record = self.record.take().filter(|_| !self.begun.links.is_empty());
        if let Some(record) = &record {
            links = self.roll_links_back(record, host, &mut not_undone);
        }
        let mut note = |what: &str, result: Result<()>| {
            if let Err(error) = result {
                not_undone.push(format!("{what}: {error:#}"));
            }
        };
        let back = self.begun.common(own).undo(std::mem::take(&mut self.stopped));
        note("stop units", host.stop(&back).map(drop));
        for Change { path, before, .. } in self.undo.iter().rev() {
            if !record.as_ref().is_some_and(|record| record.has(path)) {
                note(&self.root.show(path), put_back(self.root, path, before));
            }
        }
        note("wake units", host.wake(self.root, &back, wanted, &mut Wakes::default()).map(drop));
        let mut old = old.clone();
        if let Some(record) = &record {
            record.amend(&mut old);
        }
        note("the manifest", old.write(self.root));
        (not_undone, links)
    }

    /// The timer stays set where this does not work: it tries again.
    fn roll_links_back(
        &self,
        record: &Record,
        host: &dyn Host,
        not_undone: &mut Vec<String>,
    ) -> Option<String> {
        let mut note = |what: &str, error: anyhow::Error| not_undone.push(format!("{what}: {error:#}"));
        // It may have been disarmed with the proof, and something later have failed.
        let armed = record.arm(self.root, host);
        if let Err(error) = host.release_links(&record.links) {
            note("take the links down", error);
        }
        for (path, error) in record.restore_files(self.root) {
            note(&path, error);
        }
        match host.wake_links(&record.links, &Aim::Before(record.live.clone())) {
            Ok(links) => {
                if let Err(error) = guard::disarm(self.root, host) {
                    note("disarm the guard of the network", error);
                }
                return Some(links);
            }
            Err(error) => {
                note("the network", error);
                if let Err(error) = armed {
                    note("try again later", error);
                }
            }
        }
        None
    }
}
