//! What brings the network back when `larder` itself does not: a record of how it was, made before the first change
//! and taken away with the proof, and a timer that acts on it (`larder unit restore-network`).
//!
//! Whoever holds the state folder's lock may act. A run that lives keeps it, so that the timer's service waits for
//! its end; a run that died has let go of it.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::diff::{Action, Diff};
use crate::facts::Link;
use crate::host::{Aim, Host, LinkState, Process};
use crate::journal::{Manifest, Owned, put_back};
use crate::plan::STATE;
use crate::plan::network::belongs_to_network;
use crate::root::{Access, Entry, Owner, Root, folder_of};

const RECORD: &str = "var/lib/larder/state/network.json";
const VERSION: u32 = 1;
/// What a run may take from the first change to the end of a roll back, every step of it at its limit.
const PATIENCE: Duration = Duration::from_secs(180);
/// A process that was killed lets go of its lock at once, unless its disk hangs.
const KILLED: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);

/// How the network was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// The run that changes it.
    process: Process,
    /// Those that are woken for the old files again.
    pub links: BTreeSet<Link>,
    /// By interface.
    pub live: BTreeMap<String, LinkState>,
    files: BTreeMap<String, Before>,
}

/// One path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Before {
    there: There,
    /// What the manifest said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owned: Option<Owned>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum There {
    Absent,
    File {
        /// base64
        bytes: String,
        mode: u32,
        uid: u32,
        gid: u32,
    },
    Link {
        target: String,
    },
}

impl There {
    /// `None` for what is no file: nothing of ours ever replaces it.
    fn of(entry: &Entry) -> Option<Self> {
        Some(match entry {
            Entry::Absent => Self::Absent,
            Entry::File { bytes, access } => {
                let (uid, gid) = match access.owner {
                    Owner::Root => (0, 0),
                    Owner::Id { uid, gid } => (uid, gid),
                };
                Self::File { bytes: BASE64_STANDARD.encode(bytes), mode: access.mode, uid, gid }
            }
            Entry::Link { target } => Self::Link { target: target.clone() },
            Entry::Directory { .. } | Entry::Other => return None,
        })
    }

    fn entry(&self) -> Result<Entry> {
        Ok(match self {
            Self::Absent => Entry::Absent,
            Self::File { bytes, mode, uid, gid } => {
                let owner =
                    if (*uid, *gid) == (0, 0) { Owner::Root } else { Owner::Id { uid: *uid, gid: *gid } };
                let bytes = BASE64_STANDARD.decode(bytes).context("read a kept file")?;
                Entry::File { bytes, access: Access { mode: *mode, owner } }
            }
            Self::Link { target } => Entry::Link { target: target.clone() },
        })
    }
}

impl Record {
    /// What an earlier run left behind, or one that is at work now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(root: &Root) -> Result<Option<Self>> {
        let Some(bytes) = root.read(RECORD)? else { return Ok(None) };
        let context = || format!("read {}", root.show(RECORD));
        let record: Self = serde_json::from_slice(&bytes).with_context(context)?;
        ensure!(record.version == VERSION, "{}: it is of a later larder: use that one", context());
        Ok(Some(record))
    }

    /// How the network is, before `diff` changes it. What an `earlier` run has changed without proof counts as it
    /// was before that.
    #[must_use]
    pub fn new(
        earlier: Option<Self>,
        diff: &Diff,
        manifest: &Manifest,
        links: &BTreeSet<Link>,
        live: BTreeMap<String, LinkState>,
    ) -> Self {
        let mut record = earlier.unwrap_or_else(|| Self {
            version: VERSION,
            process: Process::this(),
            links: BTreeSet::new(),
            live: BTreeMap::new(),
            files: BTreeMap::new(),
        });
        record.process = Process::this();
        record.links.extend(links.iter().cloned());
        for (interface, state) in live {
            record.live.entry(interface).or_insert(state);
        }
        for change in &diff.changes {
            if matches!(change.action, Action::MakeDirectory { .. }) || !belongs_to_network(&change.path) {
                continue;
            }
            if let Some(there) = There::of(&change.before) {
                let owned = manifest.entries.get(&change.path).cloned();
                record.files.entry(change.path.clone()).or_insert(Before { there, owned });
            }
        }
        record
    }

    /// Whether this path is put back by it.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }

    /// Whether it puts back anything in this folder.
    #[must_use]
    pub fn has_below(&self, folder: &str) -> bool {
        self.files.keys().any(|path| path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')))
    }

    /// Writes it down and sets the timer.
    ///
    /// # Errors
    /// When either cannot be done: nothing may be changed then.
    pub fn arm(&self, root: &Root, host: &dyn Host) -> Result<()> {
        let text = serde_json::to_vec(self).context("write the record of the network")?;
        let earlier = root.exists(RECORD);
        root.write(RECORD, &text, Access::root(0o600))?;
        let armed = host.arm_guard().context("set the timer that would bring the network back");
        if armed.is_err() && !earlier {
            root.remove(RECORD)?;
        }
        armed
    }

    /// The files as they were. Returns what could not be put back.
    pub fn restore_files(&self, root: &Root) -> Vec<(String, anyhow::Error)> {
        let mut failed = Vec::new();
        // Without it a file comes back all the same, with another time.
        let journal = Manifest::read(root).ok().and_then(|manifest| manifest.journal);
        for (path, before) in &self.files {
            let put_back = |entry: Entry| put_back(root, path, &entry, journal.as_ref());
            if let Err(error) = before.there.entry().and_then(put_back) {
                failed.push((root.show(path), error));
            }
        }
        let folders = self.files.keys().map(|path| folder_of(path)).filter(|folder| root.exists(folder));
        if let Err(error) = root.sync_folders(&folders.collect()) {
            failed.push(("the folders of the network's files".to_owned(), error));
        }
        failed
    }

    /// What the manifest said of these files when they were as they are again.
    pub fn amend(&self, manifest: &mut Manifest) {
        for (path, before) in &self.files {
            match &before.owned {
                Some(owned) => manifest.entries.insert(path.clone(), owned.clone()),
                None => manifest.entries.remove(path),
            };
        }
    }

    /// Whether a file is not as it was.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn differs(&self, root: &Root) -> Result<bool> {
        for (path, before) in &self.files {
            if root.entry(path)? != before.there.entry()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The run that acts on it from now on.
    pub fn adopt(&mut self) {
        self.process = Process::this();
    }

    /// Whether all is as it was.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn is_restored(&self, root: &Root, host: &dyn Host) -> Result<bool> {
        if self.differs(root)? {
            return Ok(false);
        }
        let now = host.link_states(&self.links)?;
        Ok(self.live.iter().all(|(name, before)| now.get(name).is_some_and(|now| now.covers(before))))
    }
}

/// The network is proven, or as it was: nothing brings it back any more.
///
/// # Errors
/// When the record cannot be removed. The timer finds nothing to do without it, and may stay.
pub fn disarm(root: &Root, host: &dyn Host) -> Result<()> {
    root.remove(RECORD)?;
    root.sync_folder(RECORD)?;
    if let Err(error) = host.disarm_guard() {
        warn!("stop the timer that would have brought the network back: {error:#}");
    }
    Ok(())
}

/// The files as they were, on a machine that is booting and has brought up no link yet; whether there was anything to
/// take back.
///
/// # Errors
/// On I/O errors.
pub fn restore_before_network(root: &Root, host: &dyn Host) -> Result<bool> {
    if !root.exists(RECORD) {
        return Ok(false);
    }
    // Nobody else is about yet; a `larder` that waits for this unit must not be waited for.
    let _lock = root.lock(STATE, || false)?;
    let Some(record) = Record::read(root)? else { return Ok(false) };
    warn!("the network was changed, and this boot came before its proof: putting back what was there before");
    if let Some((path, error)) = record.restore_files(root).into_iter().next() {
        return Err(error.context(format!("put {path} back")));
    }
    let mut manifest = Manifest::read(root)?;
    record.amend(&mut manifest);
    manifest.write(root)?;
    host.wake_links(&record.links, &Aim::Before(BTreeMap::new()))?;
    root.remove(RECORD)?;
    root.sync_folder(RECORD)?;
    Ok(true)
}

/// What the timer runs: once no `larder` is at work any more, puts the network back that it left without proof.
///
/// # Errors
/// When not all is back; the service tries again.
pub fn restore(root: &Root, host: &dyn Host) -> Result<()> {
    let Some(record) = Record::read(root)? else {
        info!("the network was proven, or put back: nothing to do");
        return Ok(());
    };
    let deadline = Instant::now() + PATIENCE;
    let mut killed = None;
    let mut settled = false;
    let lock = root.lock(STATE, || {
        sleep(POLL);
        settled = !root.exists(RECORD);
        if killed.is_none() && Instant::now() >= deadline {
            warn!("larder (pid {}) does not end: killing it", record.process.pid);
            record.process.kill();
            killed = Some(Instant::now());
        }
        !settled && killed.is_none_or(|at: Instant| at.elapsed() < KILLED)
    });
    if settled {
        return Ok(());
    }
    let _lock = lock?;
    let Some(record) = Record::read(root)? else { return Ok(()) };
    if record.is_restored(root, host)? {
        info!("larder ended before it changed the network: nothing to put back");
        return disarm(root, host);
    }
    warn!("larder ended before it had proven the network: putting back what was there before");
    let released = host.release_links(&record.links);
    let failed = record.restore_files(root);
    let mut manifest = Manifest::read(root)?;
    record.amend(&mut manifest);
    manifest.write(root)?;
    // Whatever went wrong so far: what is in place is better than nothing.
    let carried = host.wake_links(&record.links, &Aim::Before(record.live.clone()))?;
    released?;
    if let Some((path, error)) = failed.into_iter().next() {
        return Err(error.context(format!("put {path} back")));
    }
    warn!("the network is as it was: {carried}");
    disarm(root, host)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may")]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::diff::diff;
    use crate::facts::Backend;
    use crate::journal::{Kind, make_state_folder};
    use crate::plan::{Content, Plan, Resource};

    const OURS: &str = "etc/systemd/network/05-larder-eth0.network";
    const STRANGER: &str = "etc/netplan/50-cloud-init.yaml";
    const OTHER: &str = "etc/larder/registry/a.io.yml";

    /// A machine whose network is what `managers` say; nothing about it is live.
    struct Quiet;

    impl Host for Quiet {
        fn network(
            &self,
            _: &Root,
            _: &crate::node::Network,
            _: Option<&Link>,
        ) -> Result<crate::facts::NetworkState> {
            Ok(crate::facts::NetworkState::default())
        }
        fn make_user(&self, _: &Root, _: &str) -> Result<crate::host::Done> {
            Ok(crate::host::Done::Now)
        }
        fn try_containerd_config(&self, _: &Root, _: &str) -> Result<()> {
            Ok(())
        }
        fn bad_calendars(&self, _: &BTreeSet<String>) -> Result<Vec<String>> {
            Ok(Vec::new())
        }
        fn port_holders(&self, _: &BTreeSet<u16>) -> Result<Vec<(u16, String)>> {
            Ok(Vec::new())
        }
        fn stop(&self, _: &crate::wake::Wakes) -> Result<BTreeSet<String>> {
            Ok(BTreeSet::new())
        }
        fn is_stale(&self, _: &Root, _: &BTreeSet<&str>, _: &str) -> Result<bool> {
            Ok(false)
        }
        fn runtime(&self) -> Result<Option<crate::host::Runtime>> {
            Ok(None)
        }
        fn wake(
            &self,
            _: &Root,
            _: &crate::wake::Wakes,
            _: &crate::host::Wanted,
            _: &mut crate::wake::Wakes,
        ) -> Result<Vec<String>> {
            Ok(Vec::new())
        }
        fn in_place(&self) {}
        fn start_resting(&self, _: &BTreeSet<String>) -> Result<Vec<String>> {
            Ok(Vec::new())
        }
    }

    fn links() -> BTreeSet<Link> {
        [Link { backend: Backend::Networkd, interface: "eth0".to_owned() }].into()
    }

    fn live(address: &str) -> BTreeMap<String, LinkState> {
        let held = crate::host::Held { address: address.parse().unwrap(), dynamic: false, doubt: None };
        let state = LinkState { addresses: vec![held], ..LinkState::default() };
        [("eth0".to_owned(), state)].into()
    }

    fn plan(text: &str) -> Plan {
        let mut plan = Plan::default();
        for path in [OURS, STRANGER, OTHER] {
            let file = Resource::File { bytes: text.into(), mode: 0o644, content: Content::Ours };
            plan.resources.insert(path.to_owned(), file);
        }
        plan
    }

    fn machine() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        make_state_folder(&root).unwrap();
        for path in [OURS, STRANGER, OTHER] {
            fs::create_dir_all(dir.path().join(folder_of(path))).unwrap();
        }
        fs::write(dir.path().join(STRANGER), "theirs").unwrap();
        fs::set_permissions(dir.path().join(STRANGER), fs::Permissions::from_mode(0o600)).unwrap();
        (dir, root)
    }

    fn write(root: &Root, text: &str) {
        for path in [OURS, STRANGER, OTHER] {
            root.write(path, text.as_bytes(), Access::root(0o644)).unwrap();
        }
    }

    fn manifest(paths: &[&str]) -> Manifest {
        let mut manifest = Manifest::default();
        for path in paths {
            let owned = Owned::new(Kind::File, vec![text_of(path)]);
            manifest.entries.insert((*path).to_owned(), owned);
        }
        manifest
    }

    fn text_of(path: &str) -> String {
        crate::journal::digest(path.as_bytes())
    }

    #[test]
    fn a_record_brings_back_the_files_of_the_network_and_only_those() {
        let (dir, root) = machine();
        let plan = plan("new");
        let old = manifest(&[STRANGER, OTHER]);
        let diff = diff(&plan, &root, &Manifest::default(), false).unwrap();
        let record = Record::new(None, &diff, &old, &links(), live("192.0.2.1/24"));
        record.arm(&root, &Quiet).unwrap();
        write(&root, "new");

        let read = Record::read(&root).unwrap().unwrap();
        assert_eq!(read, record);
        assert!(read.restore_files(&root).is_empty());
        assert!(!dir.path().join(OURS).exists());
        assert_eq!(fs::read_to_string(dir.path().join(STRANGER)).unwrap(), "theirs");
        let mode = fs::metadata(dir.path().join(STRANGER)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(fs::read_to_string(dir.path().join(OTHER)).unwrap(), "new");
        // The run that died has written all three into the manifest.
        let mut now = manifest(&[OURS, STRANGER, OTHER]);
        now.entries.get_mut(STRANGER).unwrap().wrote.clear();
        read.amend(&mut now);
        assert_eq!(now, old);

        disarm(&root, &Quiet).unwrap();
        assert_eq!(Record::read(&root).unwrap(), None);
    }

    #[test]
    fn what_was_before_the_first_run_without_proof_counts() {
        let (_dir, root) = machine();
        let (first, second) = (plan("first"), plan("second"));
        let diff_of = |plan| diff(plan, &root, &Manifest::default(), false).unwrap();
        let earlier =
            Record::new(None, &diff_of(&first), &Manifest::default(), &links(), live("192.0.2.1/24"));
        write(&root, "first");
        let later = Record::new(
            Some(earlier.clone()),
            &diff_of(&second),
            &Manifest::default(),
            &links(),
            live("192.0.2.2/24"),
        );
        assert_eq!(later, earlier);
        assert!(later.has(OURS) && later.has(STRANGER) && !later.has(OTHER));
    }
}
