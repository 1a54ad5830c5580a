//! The only loop that changes anything: stage, record the intent, change, wake, or put everything back.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result};

use crate::diff::{Action, Change, Diff, Stranger, enabled_units, masked_units, registry_ids, resolve};
use crate::facts::{CONTAINERD_CONFIG, USER, is_containerd_config};
use crate::host::{Done, Host, NetworkWanted, Pulls, Wanted};
use crate::journal::{KEPT, Kind, Manifest, Owned, digest, keep_aside, make_state_folder};
use crate::plan::{Plan, Resource, STATE};
use crate::root::{Entry, Owner, Root, Staged, folder_of};
use crate::wake::Wakes;

/// Of a configuration that was migrated, in the folder of what is kept.
const BEFORE_MIGRATION: &str = ".before-migration";

/// What a run did.
#[derive(Debug, Default)]
pub struct Applied {
    pub changed: usize,
    /// Where files that were not ours are now.
    pub kept: Vec<String>,
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
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.cause)?;
        if self.not_undone.is_empty() {
            f.write_str("; everything is back as it was")?;
            if self.made_user { write!(f, ", but for the new system user {USER}") } else { Ok(()) }
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
        Some(unfinished) if plan.handed_over => wakes.containerd |= unfinished.containerd,
        Some(unfinished) => wakes.take_over(unfinished, &enabled_units(plan), &masked_units(plan)),
        None => {}
    }
    if diff.is_empty() && old.unfinished.is_none() && !stale {
        return Ok(applied);
    }
    make_state_folder(root)?;
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
    let wanted = Wanted { network: address.cloned(), pulls, up: plan.handed_over, runtime };

    let mut run = Run {
        root,
        ids,
        undo: Vec::new(),
        stopped: BTreeSet::new(),
        begun: Wakes::default(),
        kept: Vec::new(),
        handed_over: plan.handed_over,
    };
    let mut manifest = if plan.handed_over { old.clone() } else { intent(&old, plan, diff) };
    let mut unfinished = old.unfinished.clone().filter(|_| plan.handed_over).unwrap_or_default();
    unfinished.add_all(&wakes);
    manifest.unfinished = Some(unfinished);
    manifest.write(root)?;
    let result = run
        .change(diff, &mut manifest, host, &wakes)
        .and_then(|()| host.wake(root, &wakes, &wanted, &mut run.begun));
    match result {
        Ok(warnings) => applied.warnings = warnings,
        Err(cause) => {
            let wanted = Wanted { pulls: Pulls::AsBefore, runtime: wanted.runtime, ..Wanted::default() };
            let not_undone = run.roll_back(host, &own, &old, &wanted);
            return Err(Failed { cause, not_undone, made_user }.into());
        }
    }
    if plan.handed_over {
        hand_over(&mut manifest, &old, diff);
    } else {
        commit(&mut manifest, plan, diff);
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
            Action::WriteFile { bytes, content, .. } if content.is_edit() => {
                (Kind::Edited, Some(digest(bytes)))
            }
            Action::WriteFile { bytes, .. } => (Kind::File, Some(digest(bytes))),
            Action::Link { target } => (Kind::Link, Some((*target).to_owned())),
            Action::SetAccess { .. } | Action::Remove { .. } | Action::Leave => continue,
        };
        let owned = manifest.entries.entry(change.path.clone()).or_insert_with(|| Owned {
            kind,
            wrote: Vec::new(),
            kept: None,
            found: false,
        });
        owned.kind = kind;
        owned.wrote.extend(wrote);
    }
    adopt(&mut manifest, plan);
    manifest
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
        manifest.entries.insert(path.clone(), Owned { kind, wrote, kept: None, found: true });
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
    for (path, owned) in &mut manifest.entries {
        // What is planned is there now. `larder watch` may have died before it wrote what it had announced.
        match plan.resources.get(path) {
            Some(Resource::File { bytes, .. }) => owned.wrote = vec![digest(bytes)],
            _ => owned.wrote = owned.wrote.pop().into_iter().collect(),
        }
    }
    // Folders that hold something of somebody else's stay, and stay recorded no longer.
    manifest.entries.retain(|path, owned| {
        let gone = owned.kind == Kind::Directory || owned.found;
        !gone || plan.resources.contains_key(path)
    });
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
    /// What was woken for the new files: only that has to be woken for the old ones again.
    begun: Wakes,
    kept: Vec<String>,
    handed_over: bool,
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
        self.rename(diff, staged)?;
        self.sync_folders(diff)?;
        if imports { host.try_containerd_config(self.root, CONTAINERD_CONFIG) } else { Ok(()) }
    }

    fn stage(&self, diff: &Diff) -> Result<Vec<Staged<'r>>> {
        let mut staged = Vec::new();
        for change in &diff.changes {
            if let Action::WriteFile { bytes, access, .. } = &change.action {
                let mut access = resolve(*access, self.ids).context("stage: no registry user")?;
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
            let suffix = match change.stranger {
                Some(Stranger::EditedByHand) => ".edited-by-hand",
                Some(Stranger::Foreign) => "",
                None if edits && self.handed_over => {
                    let copy = keep_aside(self.root, &change.path, BEFORE_MIGRATION)?;
                    let original = self.root.show(&change.path);
                    self.kept.extend(
                        copy.map(|copy| format!("{original} as it was is kept as {}", self.root.show(&copy))),
                    );
                    continue;
                }
                None if edits && change.before != Entry::Absent => "",
                None => continue,
            };
            let owned = manifest.entries.get_mut(&change.path);
            // The original of a file that we edit is the one from before our first edit.
            if edits && owned.as_ref().is_some_and(|owned| owned.kept.is_some()) {
                continue;
            }
            let copy = keep_aside(self.root, &change.path, suffix)?;
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

    fn rename(&mut self, diff: &'r Diff, staged: Vec<Staged>) -> Result<()> {
        let mut staged = staged.into_iter();
        for change in &diff.changes {
            if !matches!(change.action, Action::MakeDirectory { .. }) {
                self.undo.push(change);
            }
            match &change.action {
                Action::MakeDirectory { .. } | Action::Leave => {}
                Action::WriteFile { .. } => {
                    let one = staged.next().context("write: a staged file is missing")?;
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

    /// Puts every path back, newest first, and the units after it.
    fn roll_back(mut self, host: &dyn Host, own: &Wakes, old: &Manifest, wanted: &Wanted) -> Vec<String> {
        let mut not_undone = Vec::new();
        let mut note = |what: &str, result: Result<()>| {
            if let Err(error) = result {
                not_undone.push(format!("{what}: {error:#}"));
            }
        };
        let back = self.begun.common(own).undo(std::mem::take(&mut self.stopped));
        note("stop units", host.stop(&back).map(drop));
        for Change { path, before, .. } in self.undo.iter().rev() {
            note(&self.root.show(path), self.restore(path, before));
        }
        note("wake units", host.wake(self.root, &back, wanted, &mut Wakes::default()).map(drop));
        note("the manifest", old.write(self.root));
        not_undone
    }

    fn restore(&self, path: &str, before: &Entry) -> Result<()> {
        if self.root.entry(path)? == *before {
            return Ok(());
        }
        match before {
            Entry::Absent => match self.root.entry(path)? {
                Entry::Directory { .. } => self.root.remove_empty_directory(path),
                _ => self.root.remove(path),
            },
            Entry::File { bytes, access } => self.root.write(path, bytes, *access),
            Entry::Link { target } => {
                self.root.link(path, target)?;
                self.root.sync_folder(path)
            }
            Entry::Directory { access } => {
                if self.root.entry(path)? == Entry::Absent {
                    self.root.make_directory(path, *access)?;
                    self.root.sync_folder(path)
                } else {
                    self.root.set_access(path, *access)
                }
            }
            Entry::Other => Ok(()),
        }
    }
}
