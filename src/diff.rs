//! Plan × root × manifest → Diff: what is not yet as it shall be. Its `Display` is what `larder plan` prints.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use similar::TextDiff;
use toml_edit::{Document, Item};

use crate::drift::{self, Drift, What};
use crate::facts::USER;
use crate::journal::{Kind, Manifest, is_above_state};
use crate::plan::network::{belongs_to_network, is_managers_file};
use crate::plan::{Content, Plan, Purpose, Refused, Resource, User};
use crate::root::{Access, Entry, Owner, Root};
use crate::wake::{Change as Woken, Wakes};

/// Unified diffs show this many lines around a change.
const CONTEXT_LINES: usize = 2;

/// Everything to do, in an order in which it can be done; removals come last, children first.
#[derive(Debug, Default)]
pub struct Diff<'p> {
    pub changes: Vec<Change<'p>>,
    /// The registries' user is missing.
    pub make_user: bool,
}

/// One path.
#[derive(Debug)]
pub struct Change<'p> {
    pub path: String,
    pub before: Entry,
    pub action: Action<'p>,
    /// What is there now is not ours.
    pub stranger: Option<Stranger>,
    /// How it is not as we left it.
    pub drift: Option<Drift>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Action<'p> {
    MakeDirectory {
        access: Wanted,
        data: bool,
    },
    WriteFile {
        bytes: &'p [u8],
        access: Wanted,
        content: Content,
    },
    Link {
        target: &'p str,
    },
    /// Contents are right.
    SetAccess {
        access: Wanted,
    },
    /// The mode and the owner that a folder had before us.
    GiveAccess {
        access: Access,
    },
    /// Somebody else's file with our setting in it, changed by others since.
    Leave,
    /// Gives back what was there before, where something was.
    Remove {
        kept: Option<String>,
        kind: Kind,
    },
}

/// A mode and an owner by role; `0600 root` where it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Wanted {
    pub mode: u32,
    pub user: User,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = match self.user {
            User::Root => "root",
            User::Registry => USER,
        };
        write!(f, "{:04o} {user}", self.mode)
    }
}

impl From<Wanted> for String {
    fn from(wanted: Wanted) -> Self {
        wanted.to_string()
    }
}

impl TryFrom<String> for Wanted {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?}: wanted a mode and an owner");
        let (mode, user) = text.split_once(' ').ok_or_else(wrong)?;
        let mode = u32::from_str_radix(mode, 8).map_err(|_| wrong())?;
        let user = match user {
            "root" => User::Root,
            USER => User::Registry,
            _ => return Err(wrong()),
        };
        Ok(Self { mode, user })
    }
}

/// Why a file is kept aside before it is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stranger {
    /// We wrote it once, and somebody changed it.
    EditedByHand,
    /// We never wrote it.
    Foreign,
}

/// The registry user's ids on this machine.
///
/// # Errors
/// When `etc/passwd` cannot be read.
pub fn registry_ids(root: &Root) -> Result<Option<Owner>> {
    let passwd = root.read("etc/passwd")?.unwrap_or_default();
    let passwd = String::from_utf8_lossy(&passwd);
    Ok(passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == USER).then_some(())?;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Owner::Id { uid, gid })
    }))
}

/// Compares.
///
/// # Errors
/// [`Refused`] where something that is no file is in the way, and I/O errors.
pub fn diff<'p>(plan: &'p Plan, root: &Root, manifest: &Manifest, purge: bool) -> Result<Diff<'p>> {
    let mut diff = additions(plan, root, manifest)?;
    let of_plan = |path: &str| !plan.part || belongs_to_network(path);
    removals(plan, root, manifest, purge, of_plan, &mut diff)?;
    Ok(diff)
}

/// The same without removals, for a plan that is not all that there shall be.
///
/// # Errors
/// As [`diff`].
pub fn additions<'p>(plan: &'p Plan, root: &Root, manifest: &Manifest) -> Result<Diff<'p>> {
    let ids = if plan.needs_user { registry_ids(root)? } else { None };
    let mut diff = Diff {
        changes: Vec::with_capacity(plan.resources.len()),
        make_user: plan.needs_user && ids.is_none(),
    };
    let mut refused = Vec::new();
    for (path, resource) in &plan.resources {
        let before = root.entry(path)?;
        let action = match (resource, &before) {
            (Resource::Directory { mode, owner, purpose }, _) => {
                let wanted = Wanted { mode: *mode, user: *owner };
                match directory(root, path, &before, wanted, *purpose, ids) {
                    Ok(action) => action,
                    Err(reason) => {
                        refused.push(reason);
                        None
                    }
                }
            }
            (_, Entry::Directory { .. } | Entry::Other) => {
                refused.push(format!("{}: wanted a file, got something else: move it away", root.show(path)));
                None
            }
            (Resource::File { content, .. }, Entry::Link { target }) if content.is_edit() => {
                refused.push(format!(
                    "{}: a symbolic link to {target}: larder edits that file only in its own place",
                    root.show(path)
                ));
                None
            }
            (Resource::File { bytes, mode, content }, _) => file(bytes, *mode, *content, &before, ids),
            (Resource::Link { target }, Entry::Link { target: now }) if leads_alike(now, target) => None,
            (Resource::Link { target }, _) => Some(Action::Link { target }),
        };
        if let Some(mut action) = action {
            // One that is not ours keeps its mode: it is kept aside whole, and comes back so.
            if let (Action::SetAccess { access }, Resource::File { bytes, content, .. }) = (&action, resource)
                && manifest.entries.get(path).is_none_or(|owned| owned.found)
            {
                action = Action::WriteFile { bytes, access: *access, content: *content };
            }
            let mut stranger = stranger(&action, path, &before, manifest);
            // A run that died has given it back already: it is kept.
            if stranger.is_some() && is_given_back(root, path, manifest)? {
                stranger = None;
            }
            let drift = match manifest.entries.get(path) {
                Some(owned) => drift::of(root, path, manifest, owned, &before, ids)?,
                None => None,
            };
            diff.changes.push(Change { path: path.clone(), before, action, stranger, drift });
        }
    }
    if !refused.is_empty() {
        return Err(Refused(refused).into());
    }
    Ok(diff)
}

fn directory<'p>(
    root: &Root,
    path: &str,
    before: &Entry,
    wanted: Wanted,
    purpose: Purpose,
    ids: Option<Owner>,
) -> Result<Option<Action<'p>>, String> {
    match before {
        Entry::Absent => Ok(Some(Action::MakeDirectory { access: wanted, data: purpose == Purpose::Data })),
        // Folders that were there before are the operator's; a store must be the registry's.
        Entry::Directory { access } if purpose == Purpose::Data => {
            let owner = match wanted.user {
                User::Root => Some(Owner::Root),
                User::Registry => ids,
            };
            let right = access.mode == wanted.mode && owner == Some(access.owner);
            Ok((!right).then_some(Action::SetAccess { access: wanted }))
        }
        Entry::Directory { .. } => Ok(None),
        Entry::Link { .. } if root.exists(&format!("{path}/.")) => Ok(None),
        _ => Err(format!("{}: wanted a folder, got something else: move it away", root.show(path))),
    }
}

fn file<'p>(
    bytes: &'p [u8],
    mode: u32,
    content: Content,
    before: &Entry,
    ids: Option<Owner>,
) -> Option<Action<'p>> {
    let user = if content == Content::Login { User::Registry } else { User::Root };
    let mut access = Wanted { mode, user };
    if let Entry::File { bytes: now, access: now_access } = before {
        if content.is_edit() {
            // The mode is its owner's business, as long as a secret of ours stays one.
            let hidden = if content == Content::EditedSecret { !0o077 } else { !0 };
            access.mode = now_access.mode & hidden;
            let right = now == bytes && access.mode == now_access.mode;
            return (!right).then_some(Action::WriteFile { bytes, access, content });
        }
        if now == bytes {
            // Until the user is there, it is root's.
            let wanted = resolve(access, ids).unwrap_or_else(|| Access::root(mode));
            let right = *now_access == wanted;
            return (!right).then_some(Action::SetAccess { access });
        }
    }
    Some(Action::WriteFile { bytes, access, content })
}

fn stranger(action: &Action, path: &str, before: &Entry, manifest: &Manifest) -> Option<Stranger> {
    let replaces = matches!(action, Action::Link { .. })
        || matches!(action, Action::WriteFile { content, .. } if !content.is_edit());
    if !replaces || *before == Entry::Absent {
        return None;
    }
    match manifest.entries.get(path) {
        Some(owned) if !owned.found => (!manifest.wrote(path, before)).then_some(Stranger::EditedByHand),
        _ => Some(Stranger::Foreign),
    }
}

/// Whether what is at a path of ours is what was there before us.
fn is_given_back(root: &Root, path: &str, manifest: &Manifest) -> Result<bool> {
    match manifest.entries.get(path).and_then(|owned| owned.kept.as_deref()) {
        Some(kept) => root.is_same(kept, path),
        None => Ok(false),
    }
}

/// What is ours and no longer wanted.
fn removals(
    plan: &Plan,
    root: &Root,
    manifest: &Manifest,
    purge: bool,
    of_plan: impl Fn(&str) -> bool,
    diff: &mut Diff,
) -> Result<()> {
    for (path, owned) in manifest.entries.iter().rev().filter(|(path, _)| of_plan(path)) {
        if plan.resources.contains_key(path) {
            continue;
        }
        let before = root.entry(path)?;
        if owned.left_alone {
            continue;
        }
        if let (Entry::Directory { access }, Some(was), true) = (&before, owned.was, owned.found)
            && *access != was.into()
        {
            let action = Action::GiveAccess { access: was.into() };
            diff.changes.push(Change { path: path.clone(), before, action, stranger: None, drift: None });
            continue;
        }
        let stays = match owned.kind {
            Kind::Data => !purge,
            Kind::Directory => !purge && manifest.holds_data(path) || is_above_state(path),
            _ => false,
        };
        if owned.found || stays {
            continue;
        }
        let edited = !manifest.wrote(path, &before)
            && before != Entry::Absent
            && !is_given_back(root, path, manifest)?;
        let stranger = match owned.kind {
            Kind::File | Kind::Link if edited => Some(Stranger::EditedByHand),
            _ => None,
        };
        let action = match owned.kind {
            Kind::Edited if edited => Action::Leave,
            kind => Action::Remove { kept: owned.kept.clone(), kind },
        };
        let drift = if edited { drift::of(root, path, manifest, owned, &before, None)? } else { None };
        diff.changes.push(Change { path: path.clone(), before, action, stranger, drift });
    }
    Ok(())
}

impl Diff<'_> {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && !self.make_user
    }

    /// What these changes mean for the running machine.
    #[must_use]
    pub fn wakes(&self, plan: &Plan) -> Wakes {
        let mut wakes = Wakes::default();
        for change in &self.changes {
            match &change.action {
                Action::Link { target } => wakes.add(&change.path, Woken::Linked { target }),
                Action::WriteFile { content, .. } if content.is_edit() && is_managers_file(&change.path) => {
                    wakes.links.extend(plan.link.clone());
                }
                // containerd's own, or one that it imports.
                Action::WriteFile { content, .. } if content.is_edit() => wakes.containerd = true,
                Action::WriteFile { .. } | Action::SetAccess { .. } => wakes.add(&change.path, Woken::File),
                Action::Remove { kept: Some(_), .. } if matches!(change.before, Entry::File { .. }) => {
                    wakes.add(&change.path, Woken::File);
                }
                Action::Remove { .. } if change.before != Entry::Absent => {
                    wakes.add(&change.path, Woken::Removed);
                }
                Action::Remove { .. }
                | Action::MakeDirectory { .. }
                | Action::GiveAccess { .. }
                | Action::Leave => {}
            }
        }
        wakes.stop.extend(plan.stop.iter().cloned());
        wakes.settle(&enabled_units(plan));
        wakes
    }

    /// The exact numbers, `3 to create, 1 to change, 0 to remove`.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for change in &self.changes {
            match (&change.action, &change.before) {
                (Action::Remove { .. }, Entry::Absent) | (Action::Leave, _) => {}
                (Action::Remove { .. }, _) => summary.remove += 1,
                (_, Entry::Absent) => summary.create += 1,
                _ => summary.change += 1,
            }
        }
        summary
    }
}

/// Every unit that the plan enables.
#[must_use]
pub fn enabled_units(plan: &Plan) -> BTreeSet<String> {
    plan.resources
        .keys()
        .filter_map(|path| path.rsplit_once(".wants/").map(|(_, unit)| unit.to_owned()))
        .collect()
}

/// Every unit that the plan masks.
#[must_use]
pub fn masked_units(plan: &Plan) -> BTreeSet<String> {
    let mask = |(path, resource): (&String, &Resource)| match resource {
        Resource::Link { target } if target == "/dev/null" => Some(path.rsplit('/').next()?.to_owned()),
        _ => None,
    };
    plan.resources.iter().filter_map(mask).collect()
}

/// Counts of paths.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub create: usize,
    pub change: usize,
    pub remove: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to create, {} to change, {} to remove", self.create, self.change, self.remove)
    }
}

/// One line of `larder plan --output json`.
#[derive(Debug, Serialize)]
pub struct Row<'d> {
    pub path: &'d str,
    pub action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stranger: Option<Stranger>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<&'d Drift>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
}

impl Change<'_> {
    /// For machines.
    #[must_use]
    pub fn row(&self) -> Row<'_> {
        Row {
            path: &self.path,
            action: self.verb(),
            stranger: self.stranger,
            drift: self.drift.as_ref(),
            diff: self.text(),
        }
    }

    fn verb(&self) -> &'static str {
        match (&self.action, &self.before) {
            (Action::MakeDirectory { .. }, _) => "create folder",
            (Action::Link { .. }, Entry::Absent) => "create link",
            (Action::Link { .. }, _) => "change link",
            (Action::WriteFile { .. }, Entry::Absent) => "create",
            (Action::WriteFile { .. }, _) => "change",
            (Action::SetAccess { .. }, _) => "change mode of",
            (Action::GiveAccess { .. }, _) => "give back the mode of",
            (Action::Remove { kept: Some(_), .. }, _) => "give back",
            (Action::Leave, _) => "leave, it was changed by others since:",
            (Action::Remove { .. }, _) => "remove",
        }
    }

    /// A unified diff where there is text to compare; never of a secret.
    fn text(&self) -> Option<String> {
        let Action::WriteFile { bytes, content, .. } = &self.action else { return None };
        if matches!(content, Content::Secret | Content::Login) {
            return Some("(a secret: not shown)\n".to_owned());
        }
        let before = match &self.before {
            // A file of ours that only root may read held a secret.
            Entry::File { access, .. } if *content == Content::Ours && access.mode & 0o077 == 0 => {
                return Some("(it held a secret: not shown)\n".to_owned());
            }
            Entry::File { bytes, .. } => String::from_utf8_lossy(bytes),
            Entry::Link { target } => format!("(a link to {target})\n").into(),
            _ => "".into(),
        };
        Some(unified(&before, &String::from_utf8_lossy(bytes), content.is_edit()))
    }

    /// What a person should know of what is there now.
    fn note(&self) -> Option<String> {
        let kept = if self.stranger.is_some() { ": kept aside" } else { "" };
        match (&self.drift, self.stranger) {
            (Some(drift), _) if self.stranger != Some(Stranger::Foreign) => {
                // Others may change their own file.
                let kept = if drift.what == What::Others { "" } else { kept };
                Some(format!("{}{kept}", drift.words()))
            }
            (_, Some(Stranger::EditedByHand)) => Some(format!("edited by hand{kept}")),
            (_, Some(Stranger::Foreign)) => Some(format!("not larder's{kept}")),
            _ => None,
        }
    }
}

impl fmt::Display for Change<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb(), self.path)?;
        match &self.action {
            Action::Link { target } => write!(f, " -> {target}")?,
            Action::MakeDirectory { access, .. } | Action::SetAccess { access } => write!(f, " ({access})")?,
            _ => {}
        }
        if let Some(note) = self.note() {
            write!(f, "  [{}]", plain(&note))?;
        }
        writeln!(f)?;
        self.text()
            .iter()
            .flat_map(|text| text.lines())
            .try_for_each(|line| writeln!(f, "    {}", plain(line)))
    }
}

impl fmt::Display for Diff<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.make_user {
            writeln!(f, "create system user {USER}")?;
        }
        for change in &self.changes {
            if !(matches!(change.action, Action::Remove { .. }) && change.before == Entry::Absent) {
                change.fmt(f)?;
            }
        }
        writeln!(f, "{}", self.summary())
    }
}

/// A file of somebody else's may hold what a terminal would obey.
#[must_use]
pub fn plain(line: &str) -> String {
    line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// A unified diff of two files; of somebody else's, without what is secret in it.
#[must_use]
pub fn compare(before: &[u8], after: &[u8], is_edit: bool) -> String {
    unified(&String::from_utf8_lossy(before), &String::from_utf8_lossy(after), is_edit)
}

fn unified(before: &str, after: &str, is_edit: bool) -> String {
    let hide = |text: &str| if is_edit { without_secrets(text) } else { text.to_owned() };
    let (before, after) = (hide(before), hide(after));
    let mut text = String::new();
    for hunk in TextDiff::from_lines(before.as_str(), after.as_str())
        .unified_diff()
        .context_radius(CONTEXT_LINES)
        .iter_hunks()
    {
        text.push_str(&hunk.to_string());
    }
    text
}

/// containerd's configuration as it may be shown: no password, token or header in it, also where one stands in
/// lines of its own.
fn without_secrets(text: &str) -> String {
    const SECRET: [&str; 6] = ["auth", "auths", "headers", "password", "identitytoken", "registrytoken"];
    fn values(item: &Item, secret: bool, found: &mut Vec<Range<usize>>) {
        if let Some(table) = item.as_table_like() {
            for (key, item) in table.iter() {
                values(item, secret || SECRET.contains(&key.to_lowercase().as_str()), found);
            }
        } else if let (true, Some(span)) = (secret, item.span()) {
            found.push(span);
        }
    }
    let Ok(document) = Document::parse(text) else { return "(not TOML: not shown)\n".to_owned() };
    let mut hidden = Vec::new();
    values(document.as_item(), false, &mut hidden);
    hidden.sort_by_key(|span| std::cmp::Reverse(span.start));
    let mut shown = text.to_owned();
    for span in hidden {
        shown.replace_range(span, "(not shown)");
    }
    // One that is commented out is a password none the less.
    let clean = |line: &str| match line.split_once('=') {
        Some((key, _))
            if line.trim_start().starts_with('#') && SECRET.iter().any(|word| key.contains(word)) =>
        {
            format!("{key}= (not shown)\n")
        }
        _ => line.to_owned(),
    };
    shown.split_inclusive('\n').map(clean).collect()
}

/// A role's ids, once the user is there.
#[must_use]
pub fn resolve(wanted: Wanted, ids: Option<Owner>) -> Option<Access> {
    match wanted.user {
        User::Root => Some(Access::root(wanted.mode)),
        User::Registry => Some(Access { mode: wanted.mode, owner: ids? }),
    }
}
/// Whether two links are one. Debian's systemctl writes `/lib` for packaged units, which is `/usr/lib` since they were
/// merged.
fn leads_alike(now: &str, wanted: &str) -> bool {
    let merged = |target: &str| target.strip_prefix("/lib/systemd/").map(str::to_owned);
    now == wanted || merged(now).is_some_and(|unit| wanted == format!("/usr/lib/systemd/{unit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_as_systemctl_writes_it_is_the_one_that_is_wanted() {
        let wanted = "/usr/lib/systemd/system/larder.service";
        for now in [wanted, "/lib/systemd/system/larder.service"] {
            assert!(leads_alike(now, wanted), "{now}");
        }
        for now in
            ["/etc/systemd/system/larder.service", "/lib/systemd/system/larder-watch.service", "/dev/null"]
        {
            assert!(!leads_alike(now, wanted), "{now}");
        }
    }
}
