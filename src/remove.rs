//! Takes away all of ours and gives back what was there before. No profile is needed: everything is in the manifest.
//!
//! What the profile asked for goes as if it asked for nothing any more: the same diff, the same journal, the same proof
//! of containerd and of the network, and the same way back. What programs of ours have written beside that is noted
//! before, and goes after it; the manifest goes last, so that one that dies is finished by the next.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::apply::{Applied, Failed, apply};
use crate::containerd::probe;
use crate::diff::{Action, Change, Diff, diff};
use crate::host::Host;
use crate::journal::{KEPT, Kind, MANIFEST, Manifest, Owned, UNDO, is_above_state};
use crate::plan::{Plan, STATE, UNIT_FOLDER};
use crate::recover;
use crate::root::{Entry, Root, folder_of};
use crate::store::layout::Layout;
use crate::template::{UNITS, shipped};
use crate::wake::RUNS;

/// What reports, and what `larder watch` remembers.
const RUN: &str = "run/larder";
/// When timers elapsed last, where they have to know after a boot (systemd.timer(5), "Persistent=").
const STAMPS: &str = "var/lib/systemd/timers";
const METRICS_UNIT: &str = "larder-metrics.service";

/// What is to go.
pub struct Removal {
    manifest: Manifest,
    plan: Plan,
    purge: bool,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Removed {
    pub applied: Applied,
    /// Paths that are what they were before us.
    pub given_back: Vec<String>,
    /// Paths that are gone.
    pub removed: Vec<String>,
    /// Stores, and what else stays with them.
    pub stays: Vec<String>,
    /// Files of others with a setting of ours in them, that somebody has changed since.
    pub left_alone: Vec<String>,
    /// What was set aside and nobody has taken away since.
    pub aside: Vec<String>,
}

impl Removal {
    /// Looks at what is there; `None`: nothing of ours that would go.
    ///
    /// # Errors
    /// On I/O errors.
    pub fn find(root: &Root, host: &dyn Host, purge: bool) -> Result<Option<Self>> {
        if !is_here(root) {
            return Ok(None);
        }
        let mut manifest = Manifest::read(root)?;
        let stop = host.own_units()?.into_iter().filter(|unit| !RUNS.contains(&unit.as_str())).collect();
        let plan = Plan { stop, ..Plan::default() };
        let is_begun = !manifest.leavings.is_empty() || manifest.unfinished.is_some();
        let nothing = !is_begun
            && stays(root, &manifest, purge)?
            && differences(&plan, root, &manifest, purge)?.is_empty();
        if nothing {
            return Ok(None);
        }
        let leavings = leavings(root, &manifest, purge)?;
        manifest.leavings.extend(leavings);
        Ok(Some(Self { manifest, plan, purge }))
    }

    /// What the manifest says of it.
    ///
    /// # Errors
    /// On I/O errors.
    pub fn diff(&self, root: &Root) -> Result<Diff<'_>> {
        differences(&self.plan, root, &self.manifest, self.purge)
    }

    /// What goes beside that.
    #[must_use]
    pub fn leavings(&self) -> &BTreeSet<String> {
        &self.manifest.leavings
    }

    /// The interfaces whose address is ours, or was to be.
    pub fn interfaces(&self) -> impl Iterator<Item = String> {
        let links = self.manifest.entries.keys().filter_map(|path| crate::plan::network::link_of(path));
        links.map(|link| link.interface)
    }

    /// Does it.
    ///
    /// # Errors
    /// As [`apply`].
    pub fn remove(self, root: &Root, host: &dyn Host) -> Result<Removed> {
        let mut removed = Removed::default();
        for folder in certs_dirs(&self.manifest) {
            probe::sweep(root, &folder)?;
        }
        let changes = self.diff(root)?;
        if changes.changes.is_empty() && self.manifest.unfinished.is_none() {
            self.manifest.write(root)?;
        } else {
            removed.applied = apply(&self.plan, &changes, root, host, self.manifest.clone(), None)?;
        }
        for change in &changes.changes {
            let path = change.path.clone();
            match &change.action {
                Action::Leave => removed.left_alone.push(root.show(&path)),
                _ if change.before == Entry::Absent => {}
                Action::Remove { kept: Some(_), .. } | Action::GiveAccess { .. } => {
                    removed.given_back.push(path)
                }
                _ if root.exists(&path) => {}
                _ => removed.removed.push(path),
            }
        }
        // Last of all those that run `larder apply`: stopping them is no way back, and nor is what follows.
        let forgotten = host.own_units().and_then(|units| host.forget_units(&units));
        if let Err(cause) = forgotten.and_then(|()| self.finish(root, host, &mut removed)) {
            let again = if self.purge { "larder remove --purge" } else { "larder remove" };
            let rest = format!(
                "all else is given back, and stays so; what is left of larder goes with the next `{again}`"
            );
            return Err(Failed { cause, not_undone: vec![rest], made_user: false, links: None }.into());
        }
        Ok(removed)
    }

    /// What is left of us when all of the profile is gone. Again: what is done is done.
    fn finish(&self, root: &Root, host: &dyn Host, removed: &mut Removed) -> Result<()> {
        let mut manifest = Manifest::read(root)?;
        for path in &manifest.leavings {
            if root.entry(path)? != Entry::Absent {
                root.remove_tree(path)?;
                root.sync_folder(path)?;
                removed.removed.push(path.clone());
            }
        }
        if self.purge
            && let Some(account) = manifest.account.take()
        {
            account.remove(root, host)?;
        }
        let gone = |path: &str, owned: &Owned| owned.kind == Kind::Data && !root.exists(path);
        // What is the operator's is his without us, too.
        manifest.entries.retain(|path, owned| !gone(path, owned) && !owned.left_alone);
        manifest.leavings.clear();
        recover::clear(root, &manifest)?;
        removed.aside = root.files_below(KEPT)?.iter().map(|path| root.show(path)).collect();
        if stays(root, &manifest, self.purge)? {
            let data = manifest.entries.iter().filter(|(_, owned)| owned.kind == Kind::Data);
            removed.stays = data.map(|(path, _)| root.show(path)).collect();
            return manifest.write(root);
        }
        // Folders that we made for all this, and nobody else has put anything into.
        let folders: Vec<String> = manifest
            .entries
            .iter()
            .rev()
            .filter(|(path, owned)| is_above_state(path) && !owned.found)
            .map(|(path, _)| path.clone())
            .collect();
        root.sweep(STATE)?;
        root.remove(MANIFEST)?;
        root.remove_empty_directory(STATE)?;
        for folder in &folders {
            root.remove_empty_directory(folder)?;
        }
        let above = folders.last().map_or(folder_of(STATE), |folder| folder_of(folder));
        root.sync_folders(&BTreeSet::from([above]))
    }
}

/// Whether there is anything of ours but what was set aside: a run may also have died before it wrote a manifest.
#[must_use]
pub fn is_here(root: &Root) -> bool {
    root.exists(MANIFEST) || root.exists(UNDO) || (root.exists(STATE) && !root.exists(KEPT))
}

/// Whether the manifest is needed any longer: by the stores that stay, and the user that they are.
fn stays(root: &Root, manifest: &Manifest, purge: bool) -> Result<bool> {
    if manifest.account.is_some() && !purge {
        return Ok(true);
    }
    for (path, owned) in &manifest.entries {
        if owned.kind == Kind::Data && !owned.found && !owned.left_alone && root.entry(path)? != Entry::Absent
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What there is and the profile of a machine that Larder leaves does not ask for: all.
fn differences<'p>(plan: &'p Plan, root: &Root, manifest: &Manifest, purge: bool) -> Result<Diff<'p>> {
    let mut diff = diff(plan, root, manifest, purge)?;
    // A unit of ours that others have enabled, as a package does, is disabled all the same: it would bring us back.
    for (path, _) in manifest.entries.iter().filter(|(_, owned)| owned.found && owned.kind == Kind::Link) {
        let unit = path.strip_prefix(UNIT_FOLDER).and_then(|path| path.split_once(".wants/"));
        let before = root.entry(path)?;
        if unit.is_some_and(|(_, unit)| is_ours(unit)) && matches!(before, Entry::Link { .. }) {
            let action = Action::Remove { kept: None, kind: Kind::Link };
            diff.changes.push(Change { path: path.clone(), before, action, stranger: None, drift: None });
        }
    }
    Ok(diff)
}

/// Whether a unit is one of `units/`, or an instance of one.
#[must_use]
pub fn is_ours(unit: &str) -> bool {
    shipped(unit).is_some()
}

/// Everything that is not the profile's own, and nobody's but ours.
fn leavings(root: &Root, manifest: &Manifest, purge: bool) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut add = |path: String| -> Result<()> {
        if root.entry(&path)? != Entry::Absent {
            found.insert(path);
        }
        Ok(())
    };
    add(RUN.to_owned())?;
    for name in root.list(STAMPS)? {
        if name.strip_prefix("stamp-").is_some_and(is_ours) {
            add(format!("{STAMPS}/{name}"))?;
        }
    }
    if manifest.entries.keys().any(|path| path.ends_with(".wants/larder-metrics.timer")) {
        add(textfile(root)?)?;
    }
    for (path, owned) in &manifest.entries {
        // Of a store that was there before us only this is ours.
        if owned.kind == Kind::Data && owned.found && purge {
            add(Layout::new(path).own())?;
        }
    }
    Ok(found)
}

/// What `larder-metrics.service` writes.
fn textfile(root: &Root) -> Result<String> {
    let drop_in = root.read(&format!("{UNIT_FOLDER}/{METRICS_UNIT}.d/50-textfile.conf"))?;
    let drop_in = drop_in.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let unit = UNITS.iter().find(|unit| unit.name == METRICS_UNIT).map(|unit| unit.text.to_owned());
    let named = |text: &str| {
        let line = text.lines().rev().find(|line| line.starts_with("ExecStart=larder status --metrics "))?;
        line.rsplit(' ').next().map(|path| path.replace("%%", "%").trim_start_matches('/').to_owned())
    };
    Ok(drop_in.as_deref().and_then(named).or_else(|| unit.as_deref().and_then(named)).unwrap_or_default())
}

/// Where hosts.toml files of ours are.
fn certs_dirs(manifest: &Manifest) -> BTreeSet<String> {
    let files = manifest.entries.keys().filter(|path| path.ends_with("/hosts.toml"));
    files.map(|path| folder_of(folder_of(path)).to_owned()).collect()
}
