//! The only loop that changes anything: stage, record the intent, change, wake, or put everything back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result, bail};
use tracing::warn;

use crate::account;
use crate::diff::{
    Action, Change, Diff, Stranger, Wanted as Asked, enabled_units, masked_units, registry_ids, resolve,
};
use crate::drift::keep_edit;
use crate::facts::{CONTAINERD_CONFIG, USER, is_containerd_config};
use crate::guard::{self, Record};
use crate::host::{Aim, Done, Host, NetworkWanted, Pulls, Runtime, Wanted};
use crate::journal::{
    BEFORE_MIGRATION, Journal, Kind, Manifest, Owned, digest, keep_aside, make_state_folder,
};
use crate::plan::network::belongs_to_network;
use crate::plan::{Content, Plan, Resource, STATE};
use crate::recover::{self, Undone};
use crate::root::{Access, Entry, Owner, Root, Staged, folder_of};
use crate::wake::Wakes;

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
    mut old: Manifest,
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
        recover::clear_rest(root, &old)?;
        // btrfs may know a file that was renamed by both names when the power goes.
        root.sweep(STATE)?;
        return Ok(applied);
    }
    for folder in make_state_folder(root)? {
        old.entries.insert(folder.path.clone(), folder.owned());
    }
    let armed = Record::read(root)?;
    if own.links.is_empty()
        && !wakes.links.is_empty()
        && let Some(address) = address
        && host.is_proven(address)?
    {
        // What a run that died has left to do, a boot or a manager has done.
        wakes.links.clear();
        if armed.is_some() {
            guard::disarm(root, host)?;
        }
    }
    sweep(plan, root, &old)?;
    let runtime = if wakes.containerd { host.runtime()? } else { None };
    let made_user = match diff.make_user.then(|| account::make(root, host, &mut old)).transpose()? {
        Some(Done::Later(reason)) => {
            applied.left.push(reason);
            false
        }
        Some(Done::Now) => true,
        None => false,
    };
    let ids = registry_ids(root)?;
    let pulls = plan.certs_dir.clone().map_or(Pulls::Anything, Pulls::Read);
    // A migration is a cure for a CRI that is down, too: one that does not help is undone.
    let wanted = Wanted { pulls, up: plan.handed_over, runtime: runtime.clone() };
    let record = if wakes.links.is_empty() {
        None
    } else {
        let died = old.journal.as_ref().and_then(|journal| journal.network.clone());
        let live = host.link_states(&wakes.links)?;
        Some(Record::new(armed.or(died), diff, &old, &wakes.links, live))
    };
    let stopped = host.running(&wakes.stop)?;

    let mut intended = Intended { plan, diff, wakes: &wakes, kept: Vec::new() };
    let begun = intended.begin(root, &old, stopped, runtime, record.as_ref());
    let mut manifest = begun.inspect_err(|_| {
        // Nothing is changed yet; what could not be taken away is by the next run.
        let _ = recover::clear(root, &old).and_then(|()| old.write(root));
    })?;
    applied.kept = intended.kept;

    let mut run = Run { root, ids, record, begun: Wakes::default(), part: plan.part };
    let result = run
        .change(diff, host, &wakes)
        .and_then(|()| go_on(host))
        .and_then(|()| run.wake_links(host, &wakes, address))
        .and_then(|()| progress(root, &mut manifest, &wakes))
        .and_then(|()| go_on(host))
        .and_then(|()| host.wake(root, &wakes, &wanted, &mut run.begun));
    // A run that died before this one is still to be finished, or undone, where this was not all of it.
    let died = match &old.journal {
        Some(journal) => plan.part || (plan.handed_over && !journal.migration),
        None => false,
    };
    // The last word may fail, too: the disk may have room for the rest and not for this.
    let result = result.and_then(|warnings| {
        let mut settled = manifest.clone();
        settle(&mut settled, plan, diff, &old, &wakes);
        if !died {
            settled.journal = None;
        }
        settled.write(root)?;
        Ok((warnings, settled))
    });
    let mut manifest = match result {
        Ok((warnings, settled)) => {
            applied.warnings = warnings;
            settled
        }
        Err(cause) => {
            let Undone { left, links, .. } = run.roll_back(host, &own, &manifest);
            return Err(Failed { cause, not_undone: left, made_user, links }.into());
        }
    };
    if !died && let Err(error) = recover::clear(root, &manifest) {
        warn!("take away the copies of this run: {error:#}");
    }
    if stale {
        applied.warnings.push(
            "containerd was older than its configuration and did not read it: it was restarted".to_owned(),
        );
    }
    if let Err(cause) = purge(root, diff, &mut manifest) {
        let rest = "all else is in place, and stays; what is left of the data goes with the next `larder apply --purge`";
        return Err(Failed { cause, not_undone: vec![rest.to_owned()], made_user, links: None }.into());
    }
    applied.changed = diff.changes.len();
    Ok(applied)
}

/// What is ours after a run that went through, and what is left to do.
fn settle(manifest: &mut Manifest, plan: &Plan, diff: &Diff, old: &Manifest, wakes: &Wakes) {
    if plan.handed_over {
        return hand_over(manifest, old, diff);
    }
    commit(manifest, plan, diff);
    // What a whole run has left to do is still to be done by the next, and the network still to be proven.
    if plan.part {
        let unfinished = Wakes { links: wakes.links.clone(), ..Wakes::default() };
        let mut left = old.unfinished.clone().unwrap_or_default();
        left.add_all(&unfinished);
        manifest.unfinished = Some(left).filter(|left| old.journal.is_some() || !left.is_empty());
    }
}

/// Notes that what is in place is being read from now on.
fn progress(root: &Root, manifest: &mut Manifest, wakes: &Wakes) -> Result<()> {
    let wakes = Wakes { stop: BTreeSet::new(), links: BTreeSet::new(), ..wakes.clone() };
    match &mut manifest.journal {
        Some(journal) if !wakes.is_empty() => journal.begun.add_all(&wakes),
        _ => return Ok(()),
    }
    manifest.write(root)
}

/// Deletes the data of upstreams that left, once all else is through: nothing brings it back.
fn purge(root: &Root, diff: &Diff, manifest: &mut Manifest) -> Result<()> {
    let mut purged = false;
    for change in &diff.changes {
        match &change.action {
            Action::Remove { kind: Kind::Data, .. } => {
                root.remove_tree(&change.path)?;
                // Else a power cut may bring it back when the manifest knows it no longer.
                root.sync_folder(&change.path)?;
            }
            // It had data in it until now.
            Action::Remove { kind: Kind::Directory, .. } if manifest.entries.contains_key(&change.path) => {
                root.remove_empty_directory(&change.path)?;
            }
            _ => continue,
        }
        manifest.entries.remove(&change.path);
        purged = true;
    }
    if purged { manifest.write(root) } else { Ok(()) }
}

/// Temporary files of a run that died: of its manifest, or anywhere once that says that it was at work.
fn sweep(plan: &Plan, root: &Root, old: &Manifest) -> Result<()> {
    root.sweep(STATE)?;
    if old.journal.is_none() {
        recover::clear(root, old)?;
    }
    if old.unfinished.is_none() {
        return Ok(());
    }
    let paths = plan.resources.keys().chain(old.entries.keys());
    let folders: BTreeSet<&str> = paths.map(|path| folder_of(path)).collect();
    folders.into_iter().try_for_each(|folder| root.sweep(folder))
}

/// The old manifest with what this run is about to write beside what is there now.
fn intent(root: &Root, old: &Manifest, plan: &Plan, diff: &Diff) -> Result<Manifest> {
    let mut manifest = old.clone();
    for change in &diff.changes {
        let (kind, wrote) = match &change.action {
            Action::MakeDirectory { data: true, .. } => (Kind::Data, None),
            Action::MakeDirectory { .. } => (Kind::Directory, None),
            // Where others wrote too, what was there before us is not all that is theirs: it is no longer ours to
            // give back, or to start from.
            Action::WriteFile { bytes, content, .. } if content.is_edit() => {
                (Kind::Edited, (!others_wrote(root, old, change)?).then(|| digest(bytes)))
            }
            Action::WriteFile { bytes, .. } => (Kind::File, Some(digest(bytes))),
            Action::Link { target } => (Kind::Link, Some((*target).to_owned())),
            Action::SetAccess { .. } | Action::GiveAccess { .. } | Action::Remove { .. } | Action::Leave => {
                continue;
            }
        };
        let owned =
            manifest.entries.entry(change.path.clone()).or_insert_with(|| Owned::new(kind, Vec::new()));
        owned.kind = kind;
        owned.wrote.extend(wrote);
    }
    adopt(&mut manifest, plan);
    for change in &diff.changes {
        if let (Action::SetAccess { .. }, Entry::Directory { access }) = (&change.action, &change.before)
            && let Some(owned) = manifest.entries.get_mut(&change.path).filter(|owned| owned.found)
        {
            owned.was.get_or_insert((*access).into());
        }
    }
    Ok(manifest)
}

/// Whether a file that we edit has been edited by others since.
fn others_wrote(root: &Root, old: &Manifest, change: &Change) -> Result<bool> {
    let Some(owned) = old.entries.get(&change.path).filter(|owned| !owned.found) else { return Ok(false) };
    if change.before == Entry::Absent || old.wrote(&change.path, &change.before) {
        return Ok(false);
    }
    // A run that died has not come to it, or has given it back already.
    Ok(match &owned.kept {
        Some(kept) => !root.is_same(kept, &change.path)?,
        None => true,
    })
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
        manifest.entries.insert(path.clone(), Owned { found: true, ..Owned::new(kind, wrote) });
    }
}

/// The manifest of a run that is through.
fn commit(manifest: &mut Manifest, plan: &Plan, diff: &Diff) {
    manifest.unfinished = None;
    for change in &diff.changes {
        let gone = match &change.action {
            Action::Remove { kind: Kind::Data, .. } => false,
            Action::Remove { kind: Kind::Directory, .. } => !manifest.holds_data(&change.path),
            Action::Remove { .. } | Action::Leave | Action::GiveAccess { .. } => true,
            _ => false,
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
    let mut gone: BTreeSet<String> = BTreeSet::new();
    for (path, owned) in manifest.entries.iter().filter(|(_, owned)| !owned.left_alone) {
        let ends = match owned.kind {
            Kind::Directory => !manifest.holds_data(path),
            _ => owned.found,
        };
        if ends && !plan.resources.contains_key(path) {
            gone.insert(path.clone());
        }
    }
    manifest.entries.retain(|path, _| !gone.contains(path));
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

/// A run that was told to end does so where all of it can be put back.
fn go_on(host: &dyn Host) -> Result<()> {
    match host.interrupted() {
        Some(signal) => bail!("stopped by {signal}"),
        None => Ok(()),
    }
}

/// What a run is about to do.
struct Intended<'r> {
    plan: &'r Plan,
    diff: &'r Diff<'r>,
    wakes: &'r Wakes,
    /// Where files that were not ours are, for people.
    kept: Vec<String>,
}

impl Intended<'_> {
    /// Writes it down, with all that takes it back, before the first change.
    fn begin(
        &mut self,
        root: &Root,
        old: &Manifest,
        stopped: BTreeSet<String>,
        runtime: Option<Runtime>,
        network: Option<&Record>,
    ) -> Result<Manifest> {
        let Self { plan, diff, wakes, .. } = self;
        let mut manifest = if plan.handed_over { old.clone() } else { intent(root, old, plan, diff)? };
        let whole = !plan.handed_over && !plan.part;
        let mut unfinished = old.unfinished.clone().filter(|_| !whole).unwrap_or_default();
        unfinished.add_all(wakes);
        manifest.unfinished = Some(unfinished);

        let mut journal = match &old.journal {
            Some(died) => {
                let mut journal = died.clone();
                // How far it came nobody knows; what containerd has read is noted.
                let woken = Wakes { containerd: false, links: BTreeSet::new(), ..died.wakes.clone() };
                journal.begun.add_all(&woken);
                journal.migration &= plan.handed_over;
                journal
            }
            None => Journal {
                migration: plan.handed_over,
                unfinished: old.unfinished.clone(),
                ..Journal::default()
            },
        };
        Journal::open(root)?;
        for change in &diff.changes {
            let stays = matches!(change.action, Action::Leave | Action::Remove { kind: Kind::Data, .. });
            if !stays {
                journal.keep(root, &change.path, &change.before)?;
            }
            if let Action::WriteFile { bytes, .. } = &change.action
                && plan.handed_over
            {
                journal.wrote.insert(change.path.clone(), digest(bytes));
            }
        }
        journal.sync(root)?;
        self.keep_strangers(root, old, &mut manifest)?;
        for (path, owned) in &manifest.entries {
            let was = old.entries.get(path);
            if was != Some(owned) && !journal.owned.contains_key(path) {
                journal.owned.insert(path.clone(), was.cloned());
            }
        }
        journal.wakes.add_all(self.wakes);
        journal.stopped.extend(stopped);
        journal.runtime = journal.runtime.or(runtime);
        journal.network = network.cloned().or(journal.network);
        manifest.journal = Some(journal);
        manifest.write(root)?;
        Ok(manifest)
    }

    /// Copies of what is not ours, durable before anything is replaced.
    fn keep_strangers(&mut self, root: &Root, old: &Manifest, manifest: &mut Manifest) -> Result<()> {
        for change in &self.diff.changes {
            let edits = matches!(change.action, Action::WriteFile { content, .. } if content.is_edit());
            let by_hand = match change.stranger {
                Some(stranger) => stranger == Stranger::EditedByHand,
                None if edits && self.plan.handed_over => {
                    let copy = keep_aside(root, &change.path, BEFORE_MIGRATION)?;
                    let original = root.show(&change.path);
                    self.kept.extend(
                        copy.map(|copy| format!("{original} as it was is kept as {}", root.show(&copy))),
                    );
                    continue;
                }
                None if edits && change.before != Entry::Absent => match old.entries.get(&change.path) {
                    // The original of a file that we edit is the one from before our first edit.
                    Some(owned) if !owned.found => {
                        if !others_wrote(root, old, change)? {
                            continue;
                        }
                        true
                    }
                    _ => false,
                },
                None => continue,
            };
            let owned = manifest.entries.get_mut(&change.path);
            let copy =
                if by_hand { keep_edit(root, &change.path)? } else { keep_aside(root, &change.path, "")? };
            if let (Some(owned), Some(copy)) = (owned, &copy)
                && !by_hand
            {
                owned.kept = Some(copy.clone());
                owned.found = false;
            }
            if let Some(copy) = copy.filter(|_| change.stranger.is_some() || by_hand) {
                self.kept.push(format!("{} is kept as {}", root.show(&change.path), root.show(&copy)));
            }
        }
        Ok(())
    }
}

fn is_folder(change: &Change) -> bool {
    matches!(change.action, Action::Remove { kind: Kind::Directory, .. })
}

struct Run<'r> {
    root: &'r Root,
    ids: Option<Owner>,
    /// How the network was, where that changes.
    record: Option<Record>,
    /// What was woken for the new files: only that has to be woken for the old ones again.
    begun: Wakes,
    /// Nothing can be woken yet.
    part: bool,
}

impl<'r> Run<'r> {
    fn change(&mut self, diff: &Diff, host: &dyn Host, wakes: &Wakes) -> Result<()> {
        // Folders first: staged files need them.
        for change in &diff.changes {
            if let Action::MakeDirectory { access, .. } = &change.action
                && let Some(access) = resolve(*access, self.ids)
            {
                self.root.make_directory(&change.path, access)?;
            }
        }
        go_on(host)?;
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
        go_on(host)?;
        host.stop(wakes)?;
        let mut staged = staged.into_iter().map(|one| (one.path().to_owned(), one)).collect();
        // The network last, with all in place that takes it back.
        go_on(host)?;
        self.rename(diff, &mut staged, |change| !is_folder(change) && !belongs_to_network(&change.path))?;
        go_on(host)?;
        if let Some(record) = &self.record {
            record.arm(self.root, host)?;
            // From here on this machine may be off the network.
            self.begun.links.clone_from(&record.links);
            host.release_links(&record.links)?;
        }
        self.rename(diff, &mut staged, |change| !is_folder(change) && belongs_to_network(&change.path))?;
        // Once nothing of either is in them.
        self.rename(diff, &mut staged, is_folder)?;
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

    /// Those of the changes that `which` picks.
    fn rename(
        &self,
        diff: &Diff,
        staged: &mut BTreeMap<String, Staged>,
        which: fn(&Change) -> bool,
    ) -> Result<()> {
        for change in diff.changes.iter().filter(|change| which(change)) {
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
                Action::GiveAccess { access } => self.root.set_access(&change.path, *access)?,
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
            (_, Some(kept)) => {
                if self.root.keep(kept, path)? {
                    Ok(())
                } else {
                    self.root.remove(path)
                }
            }
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

    fn roll_back(mut self, host: &dyn Host, own: &Wakes, manifest: &Manifest) -> Undone {
        let begun = self.begun.common(own);
        let network = self.record.take().filter(|_| !self.begun.links.is_empty());
        recover::undo(self.root, host, manifest, Some(recover::Run { begun, network }))
    }
}
