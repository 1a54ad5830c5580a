//! Is what a store holds still what its names say? Whatever is not goes, so that the next pull fetches it again.
//!
//! Distribution never looks: data that is empty, cut or changed is served for ever with a 200, and an empty link makes
//! what it is for fail for ever. Every blob is read and compared with its digest; every link is read.
//!
//! A registry is at work meanwhile, and Distribution 2 writes links and manifests in place. So nothing is condemned
//! at first sight: only what is the same and as wrong some seconds later.
//!
//! A pass goes on where the last one was ended, by whatever.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use tracing::warn;

use super::{Digest, Layout, own_access, remove};
use crate::root::{Lock, Root};

mod look;
mod report;

use look::{Look, Target};
use report::Pass;
pub use report::{Broken, Ended, Kind, Report, State, Sum, Why};

/// Bytes a second that are read, unless told otherwise.
pub const RATE: u64 = 20 << 20;
/// From the first look at something broken to the second.
const SETTLE: Duration = Duration::from_secs(2);
/// Half a write of a large manifest is no longer than that; more at once would only wait in memory.
const MOST_SUSPECTS: usize = 256;
/// What a kill makes to do again.
const SAVE_EVERY: Duration = Duration::from_secs(10);
/// Collection may hold the store for long.
const LOCK_LIMIT: Duration = Duration::from_secs(600);
const LOCK_POLL: Duration = Duration::from_millis(200);

/// How to look.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes a second; `None`: as fast as it goes.
    pub rate: Option<u64>,
    /// Removes nothing, remembers nothing, and looks at all.
    pub dry_run: bool,
    /// Forgets where an unfinished pass was ended.
    pub from_start: bool,
    /// The pass is ended after so long; the next one goes on from there.
    pub limit: Duration,
    /// Something broken is looked at again after so long.
    pub settle: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let limit = Duration::from_secs(23 * 3600);
        Self { rate: Some(RATE), dry_run: false, from_start: false, limit, settle: SETTLE }
    }
}

/// Looks at all that an unfinished pass has left, or at everything.
///
/// # Errors
/// When the store cannot be read at all, or somebody else scrubs it. What could not be removed is in the report.
pub fn scrub(root: &Root, layout: &Layout, options: &Options) -> Result<Report> {
    if !root.exists(&layout.v2()) {
        return Ok(Report { complete: true, ..Report::default() });
    }
    // One at a time. The store's own lock is only for the removals.
    let _turn = root.lock(&layout.v2(), || false).context("scrub")?;
    let state = if options.dry_run { State::default() } else { State::read(root, layout) };
    let pass = state.pass.clone().filter(|_| !options.from_start);
    let resumed = pass.is_some();
    let run = Scrub {
        root,
        layout,
        options,
        state,
        pass: pass.unwrap_or_else(|| Pass { began: now(), ..Pass::default() }),
        report: Report { resumed, ..Report::default() },
        suspects: Vec::new(),
        next_read: Instant::now(),
        end: Instant::now() + options.limit,
        saved: Instant::now(),
    };
    run.run()
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

struct Suspect {
    target: Target,
    seen: Look,
    at: Instant,
}

struct Scrub<'s> {
    root: &'s Root,
    layout: &'s Layout,
    options: &'s Options,
    state: State,
    pass: Pass,
    report: Report,
    suspects: Vec<Suspect>,
    /// No byte is read before that.
    next_read: Instant,
    end: Instant,
    saved: Instant,
}

impl Scrub<'_> {
    fn run(mut self) -> Result<Report> {
        let complete = self.links()? && self.blobs()?;
        self.settle(true)?;
        self.report.complete = complete;
        if complete {
            let Pass { began, sum, .. } = self.pass;
            self.state.last = Some(Ended { began, ended: now(), sum });
            self.state.pass = None;
            self.write_state();
        } else {
            self.save();
        }
        Ok(self.report)
    }

    /// Whether the pass got through them in time.
    fn links(&mut self) -> Result<bool> {
        if self.pass.links_done {
            return Ok(true);
        }
        let mut folders = vec![String::new()];
        let mut repositories = BTreeSet::new();
        while let Some(folder) = folders.pop() {
            for name in self.root.list(&self.layout.repository(&folder))? {
                let inner = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
                if name.starts_with('_') {
                    repositories.insert(folder.clone());
                } else {
                    folders.push(inner);
                }
            }
        }
        for repository in repositories {
            if self.pass.repository.as_ref().is_some_and(|done| *done >= repository) {
                continue;
            }
            self.repository(&repository)?;
            self.pass.repository = Some(repository);
            if !self.go_on()? {
                return Ok(false);
            }
        }
        self.pass.links_done = true;
        Ok(true)
    }

    fn repository(&mut self, repository: &str) -> Result<()> {
        let own = || repository.to_owned();
        let base = self.layout.repository(repository);
        for (digest, name, folder) in self.linked(&format!("{base}/_layers"))? {
            self.look_at(Target::Layer { repository: own(), folder, digest, name })?;
        }
        for (digest, name, folder) in self.linked(&format!("{base}/_manifests/revisions"))? {
            self.look_at(Target::Revision { repository: own(), folder, digest, name })?;
            if let Some(digest) = digest {
                self.look_at(Target::Manifest { repository: own(), digest })?;
            }
        }
        for tag in self.root.list(&self.layout.tags(repository))? {
            let index = format!("{}/index", self.layout.tag(repository, &tag));
            for (digest, _, folder) in self.linked(&index)? {
                if let Some(digest) = digest {
                    self.look_at(Target::Index { repository: own(), tag: tag.clone(), folder, digest })?;
                }
            }
            self.look_at(Target::Tag { repository: own(), tag })?;
        }
        Ok(())
    }

    /// The folders below `ALGORITHM/`; the digest where it is the one that data is named by.
    fn linked(&self, folder: &str) -> Result<Vec<(Option<Digest>, String, String)>> {
        let mut all = Vec::new();
        for algorithm in self.root.list(folder)? {
            for hex in self.root.list(&format!("{folder}/{algorithm}"))? {
                let name = format!("{algorithm}:{hex}");
                all.push((Digest::parse(&name), name, format!("{folder}/{algorithm}/{hex}")));
            }
        }
        Ok(all)
    }

    fn blobs(&mut self) -> Result<bool> {
        let blobs = format!("{}/sha256", self.layout.blobs());
        for shard in self.root.list(&blobs)? {
            if self.pass.blob.as_ref().is_some_and(|done| done.get(..2) > Some(shard.as_str())) {
                continue;
            }
            for hex in self.root.list(&format!("{blobs}/{shard}"))? {
                let Some(digest) = Digest::from_hex(hex.as_bytes()).filter(|_| hex.starts_with(&shard))
                else {
                    continue;
                };
                if self.pass.blob.as_ref().is_some_and(|done| *done >= hex) {
                    continue;
                }
                self.look_at(Target::Blob(digest))?;
                self.pass.blob = Some(hex);
                if !self.go_on()? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Between two steps: second looks that are due, what a kill must not lose, and whether there is time left.
    fn go_on(&mut self) -> Result<bool> {
        self.settle(false)?;
        if self.saved.elapsed() >= SAVE_EVERY {
            self.settle(true)?;
            self.save();
        }
        Ok(Instant::now() < self.end)
    }

    fn save(&mut self) {
        self.state.pass = Some(self.pass.clone());
        self.write_state();
        self.saved = Instant::now();
    }

    /// That a full disk takes the memory of it is no reason to heal less.
    fn write_state(&self) {
        if self.options.dry_run {
            return;
        }
        let written = super::prepare_own(self.root, self.layout)
            .and_then(|()| serde_json::to_vec(&self.state).context("write where the scrub is"))
            .and_then(|bytes| self.root.write(&self.layout.scrub(), &bytes, own_access(0o640)));
        if let Err(error) = written {
            warn!("{error:#}: the next scrub does this one's work again");
        }
    }

    fn look_at(&mut self, target: Target) -> Result<()> {
        let seen = self.look(&target, true)?;
        if matches!(seen, Look::Broken { .. }) {
            self.suspects.push(Suspect { target, seen, at: Instant::now() });
        }
        Ok(())
    }

    /// The second look at what was broken at the first: what is so still goes.
    fn settle(&mut self, all: bool) -> Result<()> {
        let Some(first) = self.suspects.first() else { return Ok(()) };
        let due = first.at.elapsed() >= self.options.settle && self.suspects.len() > MOST_SUSPECTS;
        if !all && !due {
            return Ok(());
        }
        if let Some(last) = self.suspects.last() {
            std::thread::sleep(self.options.settle.saturating_sub(last.at.elapsed()));
        }
        // All the looks before the first removal: one thing may take another with it.
        let mut condemned = Vec::new();
        for Suspect { target, seen, .. } in std::mem::take(&mut self.suspects) {
            // Else it is being written, or was fetched again. The next pass looks again.
            if let Look::Broken { why, .. } = seen
                && self.look(&target, false)? == seen
            {
                condemned.push((target, why));
            }
        }
        let lock = if condemned.is_empty() || self.options.dry_run { None } else { Some(self.lock()?) };
        for (target, why) in condemned {
            let removed =
                lock.is_some() && self.remove(&target).inspect_err(|error| warn!("{error:#}")).is_ok();
            self.pass.sum.broken += 1;
            self.pass.sum.removed += u64::from(removed);
            self.report.broken.push(broken(&target, why, removed));
        }
        Ok(())
    }

    fn lock(&self) -> Result<Lock> {
        let deadline = Instant::now() + LOCK_LIMIT;
        super::lock(self.root, self.layout, || {
            std::thread::sleep(LOCK_POLL);
            Instant::now() < deadline
        })
    }

    /// Out of the way in one step, then deleted.
    fn remove(&self, target: &Target) -> Result<()> {
        let blob = |digest: &Digest| self.layout.blob(digest);
        let folders = match target {
            Target::Blob(digest) => vec![blob(digest)],
            Target::Layer { folder, .. } | Target::Revision { folder, .. } => vec![folder.clone()],
            Target::Manifest { repository, digest } => {
                vec![blob(digest), self.layout.revision(repository, digest)]
            }
            Target::Tag { repository, tag } | Target::Index { repository, tag, .. } => {
                vec![self.layout.tag(repository, tag)]
            }
        };
        for folder in folders {
            remove::take_away(self.root, self.layout, &folder, &mut |_| ())?;
        }
        Ok(())
    }
}

fn broken(target: &Target, why: Why, removed: bool) -> Broken {
    let (kind, name, repository) = match target {
        Target::Blob(digest) => (Kind::Blob, digest.to_string(), None),
        Target::Layer { repository, name, .. } => (Kind::Layer, name.clone(), Some(repository)),
        Target::Revision { repository, name, .. } => (Kind::Revision, name.clone(), Some(repository)),
        Target::Manifest { repository, digest } => (Kind::Manifest, digest.to_string(), Some(repository)),
        Target::Tag { repository, tag } => (Kind::Tag, tag.clone(), Some(repository)),
        Target::Index { repository, tag, digest, .. } => {
            (Kind::Tag, format!("{tag}@{digest}"), Some(repository))
        }
    };
    Broken { kind, name, repository: repository.cloned(), why, removed }
}

#[cfg(test)]
mod tests;
