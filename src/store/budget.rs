//! Keeps stores within their budget: reads who used what, scans, decides and removes.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use serde::Serialize;
use tracing::{info, warn};

use super::evict::{Eviction, Level, Piece, Removal, Rules, evict};
use super::layout::Layout;
use super::remove::{self, Step};
use super::scan::{Store, scan};
use super::size::{Gone, SizeFile, shown};
use super::{lock, usage};
use crate::caches::{CacheOf, Caches};
use crate::root::{Lock, Root, Space};

/// Eviction begins above so many hundredths of a budget, and ends below so many.
pub const HIGH: u64 = 90;
pub const LOW: u64 = 80;
/// What was used in so many seconds stays, unless the budget would break: a pull asks for its manifest, then for one
/// blob after the other.
pub const IDLE: u64 = 600;
/// What was used in so many seconds stays, whatever breaks: at a hundred megabytes a second, five seconds of fill are
/// more than a small budget. A pull that has lost a layer behind it does not ask for it again.
pub const LEAST: u64 = 1;
/// What there is to say of a round that had to.
pub const HURRIED: &str =
    "evicted what was used in the last ten minutes: max_size is too small for what is pulled here at once";
const LOCK_POLL: Duration = Duration::from_millis(100);

/// What is asked of a round.
pub struct Wanted<'w> {
    /// The hosts whose stores may be changed; the others only count.
    pub may_change: &'w dyn Fn(&str) -> bool,
    /// Only say what would go.
    pub dry_run: bool,
    /// Bytes that have to go from all of them, whatever the budget says: the disk is nearly full.
    pub free: u64,
    /// The high water is lowered by so many hundredths of the budget: it fills faster than it can be emptied.
    pub early: u64,
    /// How long to wait for a store that something else is changing.
    pub patience: Duration,
    /// Before each step, for tests.
    pub step: &'w mut dyn FnMut(Step),
}

/// What a round saw and did, for all stores.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Seconds since 1970.
    pub at: u64,
    /// Bytes that all may take together.
    pub max_size: Option<u64>,
    pub bytes_before: u64,
    pub bytes: u64,
    /// It had to take what had been used in the last ten minutes.
    pub hurried: bool,
    pub upstreams: Vec<StoreReport>,
}

/// The same for one store. Bytes are those on disk.
#[derive(Debug, Clone, Serialize)]
pub struct StoreReport {
    pub host: String,
    pub max_size: Option<u64>,
    /// What it can count on when all want more than there is.
    pub share: Option<u64>,
    pub bytes_before: u64,
    pub bytes: u64,
    pub blobs: usize,
    pub images: usize,
    pub oldest_use: Option<u64>,
    pub evicted: Vec<Gone>,
    /// Of what went, the bytes that belonged to no image.
    pub loose_bytes: u64,
    /// Manifests that could not be read, with the reason.
    pub broken: Vec<String>,
    /// Why it could not be looked at, or not all be done.
    pub failed: Option<String>,
}

/// What [`keep`] did.
pub enum Kept {
    /// Something else is changing one of the stores.
    Busy,
    Done(Report),
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Looks at the stores of `caches` and removes what is above their budget.
///
/// # Errors
/// When nothing could be looked at. What goes wrong in one store is in the report.
pub fn keep(root: &Root, caches: &Caches, wanted: &mut Wanted) -> Result<Kept> {
    let mut stores: Vec<Keeping> = caches.upstreams.iter().map(Keeping::new).collect::<Result<_>>()?;
    let deadline = Instant::now() + wanted.patience;
    for one in &mut stores {
        one.may_change = (wanted.may_change)(one.host);
        if one.may_change && !wanted.dry_run && !one.open(root, deadline) {
            return Ok(Kept::Busy);
        }
    }
    let scanned: Vec<Store> = stores.iter_mut().map(|one| one.scan(root)).collect();
    let now = now();
    let total: u64 = scanned.iter().map(|store| store.bytes).sum();
    let rules = rules(caches, wanted, &stores, total);
    let eviction = evict(&scanned, &rules, now);
    if !wanted.dry_run {
        for removal in &eviction.removals {
            if let Some(one) = stores.get_mut(removal.store) {
                one.remove(root, removal, wanted.step);
            }
        }
        for one in &mut stores {
            one.tidy(root, wanted.step);
        }
    }
    let shares = rules.shares();
    let reports = stores.into_iter().zip(&scanned).enumerate().map(|(at, (mut one, store))| {
        let share = shares.get(at).copied().flatten();
        let report = one.report(at, store, &eviction, share, now);
        if one.may_change && !wanted.dry_run {
            one.remember(root, &report);
        }
        StoreReport { failed: one.failed.map(|error| format!("{error:#}")), ..report }
    });
    let upstreams: Vec<StoreReport> = reports.collect();
    Ok(Kept::Done(Report {
        at: now,
        max_size: caches.max_size,
        bytes_before: total,
        bytes: upstreams.iter().map(|one| one.bytes).sum(),
        hurried: eviction.hurried,
        upstreams,
    }))
}

/// What went, for the journal.
pub fn tell(report: &Report) {
    for one in report.upstreams.iter().filter(|one| one.bytes < one.bytes_before) {
        let went = one.bytes_before - one.bytes;
        let (upstream, images) = (one.host.as_str(), one.evicted.len());
        info!(
            upstream,
            images,
            bytes = went,
            "{upstream}: evicted {}, {images} images with it; {} are left",
            shown(went),
            shown(one.bytes)
        );
    }
    if report.hurried {
        warn!("{HURRIED}");
    }
}

/// The water levels.
fn rules(caches: &Caches, wanted: &Wanted, stores: &[Keeping], total: u64) -> Rules {
    let level = |size: u64| {
        let high = HIGH.saturating_sub(wanted.early);
        let part = |hundredths: u64| size / 100 * hundredths;
        Level { high: part(high), low: part(high.saturating_sub(HIGH - LOW)) }
    };
    let mut all = caches.max_size.map(level);
    if wanted.free > 0 {
        let most = total.saturating_sub(wanted.free);
        let all = all.get_or_insert(Level { high: most, low: most });
        *all = Level { high: all.high.min(most), low: all.low.min(most) };
    }
    Rules {
        all,
        each: caches.upstreams.iter().map(|cache| cache.max_size.map(level)).collect(),
        may_change: stores.iter().map(|one| one.may_change && one.failed.is_none()).collect(),
        idle: IDLE,
        least: LEAST,
    }
}

/// One store in a round.
struct Keeping<'c> {
    host: &'c str,
    max_size: Option<u64>,
    layout: Layout,
    may_change: bool,
    lock: Option<Lock>,
    space: Option<Space>,
    failed: Option<anyhow::Error>,
    /// Repositories that something was taken from.
    touched: BTreeSet<String>,
}

impl<'c> Keeping<'c> {
    fn new(cache: &'c CacheOf) -> Result<Self> {
        Ok(Self {
            host: &cache.host,
            max_size: cache.max_size,
            layout: cache.layout()?,
            may_change: false,
            lock: None,
            space: None,
            failed: None,
            touched: BTreeSet::new(),
        })
    }

    /// The first thing that goes wrong is told; the store is left alone from then on.
    fn attempt(&mut self, result: Result<()>) {
        if let Err(error) = result {
            warn!(upstream = self.host, "{error:#}");
            self.failed.get_or_insert(error);
        }
    }

    /// Locks the store and makes it ready; `false`: somebody else has it.
    fn open(&mut self, root: &Root, deadline: Instant) -> bool {
        if !root.exists(self.layout.store()) {
            self.may_change = false;
            return true;
        }
        let mut busy = false;
        let locked = lock(root, &self.layout, || {
            busy = Instant::now() >= deadline;
            if !busy {
                sleep(LOCK_POLL);
            }
            !busy
        });
        match locked {
            Ok(lock) => self.lock = Some(lock),
            Err(_) if busy => return false,
            Err(error) => self.attempt(Err(error)),
        }
        if self.lock.is_some() {
            self.attempt(remove::sweep(root, &self.layout));
            // Without it all is as old as it was a minute ago: no reason not to go on.
            if let Err(error) = usage::fold(root, &self.layout) {
                warn!(upstream = self.host, "{error:#}");
            }
        }
        true
    }

    fn scan(&mut self, root: &Root) -> Store {
        // Before the scan: what comes in meanwhile then counts twice rather than not at all.
        self.space = root.space(self.layout.store()).ok();
        match scan(root, &self.layout) {
            Ok(store) => store,
            Err(error) => {
                self.attempt(Err(error));
                Store::default()
            }
        }
    }

    fn remove(&mut self, root: &Root, removal: &Removal, step: &mut dyn FnMut(Step)) {
        if self.failed.is_some() {
            return;
        }
        let result = remove::remove(root, &self.layout, &removal.piece, step);
        self.attempt(result);
        if let Piece::Revision { repository, .. } | Piece::Layer { repository, .. } = &removal.piece
            && !self.touched.contains(repository)
        {
            self.touched.insert(repository.clone());
        }
    }

    fn tidy(&mut self, root: &Root, step: &mut dyn FnMut(Step)) {
        for repository in std::mem::take(&mut self.touched) {
            let result = remove::tidy(root, &self.layout, &repository, step);
            self.attempt(result);
        }
    }

    fn report(
        &mut self,
        at: usize,
        store: &Store,
        eviction: &Eviction,
        share: Option<u64>,
        now: u64,
    ) -> StoreReport {
        let left = eviction.left.get(at).copied().unwrap_or_default();
        let images = eviction.images.iter().filter(|image| image.store == at);
        let evicted: Vec<Gone> = images
            .map(|image| Gone { name: image.name.clone(), bytes: image.bytes, used: image.used, at: now })
            .collect();
        let of_images: u64 = evicted.iter().map(|gone| gone.bytes).sum();
        let pieces = eviction.removals.iter().filter(|removal| removal.store == at);
        let blobs = pieces.filter(|removal| matches!(removal.piece, Piece::Blob { .. })).count();
        StoreReport {
            host: self.host.to_owned(),
            max_size: self.max_size,
            share,
            bytes_before: store.bytes,
            bytes: left.bytes,
            blobs: store.blobs.len().saturating_sub(blobs),
            images: left.images,
            oldest_use: left.oldest,
            loose_bytes: store.bytes.saturating_sub(left.bytes).saturating_sub(of_images),
            evicted,
            broken: store
                .broken
                .iter()
                .map(|one| format!("{}@{}: {}", one.repository, one.digest, one.why))
                .collect(),
            failed: None,
        }
    }

    /// For `larder status`, and for the rounds to come.
    fn remember(&mut self, root: &Root, report: &StoreReport) {
        let Some(space) = self.space.filter(|_| self.lock.is_some() && self.failed.is_none()) else { return };
        let mut file = SizeFile::read(root, &self.layout).unwrap_or_default();
        let went = report.bytes_before.saturating_sub(report.bytes);
        file.evicted.add(went, report.evicted.iter().cloned());
        file = SizeFile {
            at: now(),
            bytes: report.bytes,
            blobs: report.blobs,
            images: report.images,
            oldest_use: report.oldest_use,
            share: report.share,
            device: space.device,
            used_there: space.used.saturating_sub(went),
            ..file
        };
        if let Err(error) = file.write(root, &self.layout) {
            // The disk may be full: the next round looks anew.
            warn!(upstream = self.host, "{error:#}");
        }
    }
}
