//! `larder tend`: a look at the disk every second, so that caches stay within their budget while they fill.
//!
//! A round asks each file system how much of it is in use, and little else. What it has grown by since a store was last
//! read whole is an upper bound for what the store has: only when that may have brought it half of the way to its high
//! water, the store is read again, and evicted from where it is above. The nearer it is, and the faster it fills, the
//! sooner.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use tracing::{info, warn};

use super::budget::{self, HIGH, Kept, Report, Wanted};
use super::size::{SizeFile, shown};
use super::usage;
use crate::caches::{CACHES, Caches};
use crate::root::{Root, Space};

/// From one round to the next, when nothing is near.
pub const PAUSE: Duration = Duration::from_secs(1);
/// And when something is.
const SHORTEST: Duration = Duration::from_millis(100);
/// Bytes a second that a cache may begin to fill with from one moment to the next.
const BURST: u64 = 200 << 20;
const FOLD_EVERY: Duration = Duration::from_secs(60);
/// Somebody else may delete as much as a registry fetches: then nothing seems to grow.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// Reading stores takes no more than one part in so many of the time, as long as nothing is near.
const LOOK_SHARE: u32 = 500;
/// Hundredths of a file system that shall be free: at the first something goes, until there is the second.
const FREE: u64 = 5;
const FREED: u64 = 6;
/// But no more than so many bytes: on a large disk a hundredth is a lot.
const MOST_FREE: u64 = 16 << 30;
/// How long nothing is tried again that had nothing to give.
const BACK_OFF: Duration = Duration::from_secs(10);
const TELL_EVERY: Duration = Duration::from_secs(60);
const WARN_EVERY: Duration = Duration::from_secs(3600);

/// How a round ended.
#[derive(Debug)]
pub enum Round {
    /// This node caches nothing.
    Idle,
    /// The next one is due then.
    Done(Duration),
}

/// What the rounds of one process remember.
#[derive(Default)]
pub struct Tender {
    config: Vec<u8>,
    caches: Option<Caches>,
    disks: Vec<Disk>,
    /// Bytes of each store, when it was last read.
    known: Option<BTreeMap<String, u64>>,
    folded: Option<Instant>,
    looked: Option<Instant>,
    /// How long that took.
    cost: Duration,
    /// Bytes a second, and when that was seen.
    rate: u64,
    measured: Option<(Instant, u64)>,
    /// Nothing more could go then.
    exhausted: Option<Instant>,
    warned: Option<Instant>,
    /// What went and was not told yet, by host, with the images in it; and when it was told last.
    untold: BTreeMap<String, (u64, usize)>,
    hurried: bool,
    told: Option<Instant>,
    warned_of_hurry: Option<Instant>,
}

/// A file system with stores on it.
#[derive(Debug, Clone)]
struct Disk {
    path: String,
    hosts: Vec<String>,
    /// In use when the stores were last read.
    used: u64,
    space: Space,
}

impl Disk {
    /// What has come since, from whomever; negative: it went.
    fn growth(&self) -> i64 {
        i64::try_from(self.space.used).unwrap_or(i64::MAX) - i64::try_from(self.used).unwrap_or(i64::MAX)
    }

    /// Bytes that have to go so that others can write.
    fn wanting(&self) -> u64 {
        let part = |hundredths: u64| (self.space.size / 100 * hundredths).min(MOST_FREE / FREE * hundredths);
        if self.space.available >= part(FREE) {
            return 0;
        }
        part(FREED).saturating_sub(self.space.available)
    }
}

impl Tender {
    /// Looks once, and does what is due.
    ///
    /// # Errors
    /// When there is nothing to go by; the next round tries again.
    pub fn round(&mut self, root: &Root) -> Result<Round> {
        let Some(config) = root.read(CACHES)? else { return Ok(Round::Idle) };
        if self.caches.is_none() || self.config != config {
            *self = Self {
                folded: self.folded,
                told: self.told,
                warned: self.warned,
                warned_of_hurry: self.warned_of_hurry,
                ..Self::default()
            };
            self.caches = Caches::read(root)?.filter(Caches::in_folders);
            self.config = config;
            self.recall(root)?;
        }
        let Some(caches) = self.caches.take() else { return Ok(Round::Idle) };
        let result = self.look(root, &caches);
        self.caches = Some(caches);
        result.map(Round::Done)
    }

    /// What an earlier process has found out.
    fn recall(&mut self, root: &Root) -> Result<()> {
        let Some(caches) = &self.caches else { return Ok(()) };
        let mut known = Some(BTreeMap::new());
        for cache in &caches.upstreams {
            let layout = cache.layout()?;
            if root.exists(layout.store()) {
                // So that there is a trash when the disk is full.
                if let Err(error) = super::prepare_own(root, &layout) {
                    warn!(upstream = cache.host, "{error:#}");
                }
            }
            let space = root.space(layout.store())?;
            let file = SizeFile::read(root, &layout).filter(|file| file.device == space.device);
            let used = file.as_ref().map_or(space.used, |file| file.used_there);
            match (&mut known, file) {
                (Some(known), Some(file)) => {
                    known.insert(cache.host.clone(), file.bytes);
                }
                _ => known = None,
            }
            match self.disks.iter_mut().find(|disk| disk.space.device == space.device) {
                Some(disk) => {
                    disk.used = disk.used.min(used);
                    disk.hosts.push(cache.host.clone());
                }
                None => self.disks.push(Disk {
                    path: layout.store().to_owned(),
                    hosts: vec![cache.host.clone()],
                    used,
                    space,
                }),
            }
        }
        self.looked = known.is_some().then(Instant::now);
        self.known = known;
        Ok(())
    }

    fn look(&mut self, root: &Root, caches: &Caches) -> Result<Duration> {
        for disk in &mut self.disks {
            disk.space = root.space(&disk.path)?;
        }
        self.measure();
        let full = self.disks.iter().find(|disk| disk.wanting() > 0).cloned();
        let rested = self.exhausted.is_none_or(|at| at.elapsed() >= BACK_OFF.max(self.cost * 20));
        if (full.is_some() && rested) || self.is_due(caches, rested) {
            self.keep(root, caches, full.as_ref())?;
        } else if self.folded.is_none_or(|at| at.elapsed() >= FOLD_EVERY) {
            self.folded = Some(Instant::now());
            for cache in &caches.upstreams {
                if let Err(error) = cache.layout().and_then(|layout| usage::fold(root, &layout)) {
                    warn!(upstream = cache.host, "{error:#}");
                }
            }
        }
        self.tell();
        Ok(self.pause(caches))
    }

    /// How fast it fills: the most of the last seconds counts.
    fn measure(&mut self) {
        let used: u64 = self.disks.iter().map(|disk| disk.space.used).sum();
        let now = Instant::now();
        if let Some((at, before)) = self.measured {
            let millis = u64::try_from((now - at).as_millis()).unwrap_or(u64::MAX).max(1);
            let rate = used.saturating_sub(before).saturating_mul(1000) / millis;
            self.rate = rate.max(self.rate / 10 * 9);
        }
        self.measured = Some((now, used));
    }

    /// What is left up to the high water for what came since the last look, and what a hundredth is: the tightest of
    /// all bounds. `None`: there is no bound.
    fn room(&self, caches: &Caches) -> Option<(i64, i64, u64)> {
        let known = self.known.as_ref()?;
        let high = HIGH.saturating_sub(self.early(caches));
        let room = |size: u64, bytes: u64, growth: i64| {
            let left = i64::try_from(size / 100 * high).unwrap_or(i64::MAX)
                - i64::try_from(bytes).unwrap_or(i64::MAX);
            (left, growth, size / 100)
        };
        let all = caches.max_size.map(|size| {
            let growth = self.disks.iter().map(Disk::growth).sum();
            room(size, known.values().sum(), growth)
        });
        let each = caches.upstreams.iter().filter_map(|cache| {
            let disk = self.disks.iter().find(|disk| disk.hosts.contains(&cache.host))?;
            Some(room(cache.max_size?, known.get(&cache.host).copied().unwrap_or(0), disk.growth()))
        });
        all.into_iter().chain(each).min_by_key(|(left, growth, _)| left.saturating_sub(*growth))
    }

    fn is_due(&self, caches: &Caches, rested: bool) -> bool {
        let look_every = LOOK_EVERY.max(self.cost * LOOK_SHARE);
        self.looked.is_none_or(|at| at.elapsed() >= look_every) || self.is_far(caches, rested)
    }

    /// Whether so much has come, or gone, that the store has to be read again.
    fn is_far(&self, caches: &Caches, rested: bool) -> bool {
        let Some((left, growth, hundredth)) = self.room(caches) else { return false };
        let least = i64::try_from(hundredth / 4).unwrap_or(i64::MAX).max(1);
        if left <= 0 && !rested {
            // It is above its water, and nothing more could go: look again when more has come.
            return growth > least.saturating_mul(4);
        }
        left <= 0 || growth.saturating_abs() >= (left / 2).max(least)
    }

    /// By how many hundredths the high water has to be lowered: what comes until eviction is over must fit between
    /// that and the budget.
    fn early(&self, caches: &Caches) -> u64 {
        let smallest =
            caches.upstreams.iter().filter_map(|cache| cache.max_size).chain(caches.max_size).min();
        let Some(smallest) = smallest else { return 0 };
        let reaction = u64::try_from((self.cost + SHORTEST).as_millis()).unwrap_or(u64::MAX);
        let comes = self.rate.saturating_mul(reaction) / 1000;
        let hundredths = comes / (smallest / 100).max(1);
        hundredths.saturating_sub(100 - HIGH).min(HIGH / 2)
    }

    fn keep(&mut self, root: &Root, caches: &Caches, full: Option<&Disk>) -> Result<()> {
        let started = Instant::now();
        let mut wanted = Wanted {
            may_change: &|host| full.is_none_or(|disk| disk.hosts.iter().any(|one| one == host)),
            dry_run: false,
            free: full.map_or(0, Disk::wanting),
            early: self.early(caches),
            patience: Duration::ZERO,
            step: &mut |_| {},
        };
        let Kept::Done(report) = budget::keep(root, caches, &mut wanted)? else { return Ok(()) };
        let free = wanted.free;
        self.gather(&report);
        self.folded = Some(Instant::now());
        self.looked = Some(Instant::now());
        self.cost = started.elapsed().max(self.cost / 2);
        self.known = Some(report.upstreams.iter().map(|one| (one.host.clone(), one.bytes)).collect());
        self.settle(&report);
        let left = self.room(caches).map_or(1, |(left, ..)| left);
        let went = report.bytes_before - report.bytes;
        self.exhausted = ((left <= 0 || free > 0) && went == 0).then(Instant::now);
        if let Some(disk) = full {
            self.tell_full(root, disk, went);
        }
        Ok(())
    }

    /// In use when the stores were read, less what went since: it is on its way out, if not gone.
    fn settle(&mut self, report: &Report) {
        for disk in &mut self.disks {
            let of = report.upstreams.iter().filter(|one| disk.hosts.contains(&one.host));
            let went: u64 = of.map(|one| one.bytes_before - one.bytes).sum();
            disk.used = disk.space.used.saturating_sub(went);
        }
    }

    fn gather(&mut self, report: &Report) {
        for one in report.upstreams.iter().filter(|one| one.bytes < one.bytes_before) {
            let (bytes, images) = self.untold.entry(one.host.clone()).or_default();
            *bytes += one.bytes_before - one.bytes;
            *images += one.evicted.len();
        }
        self.hurried |= report.hurried;
    }

    /// While a cache fills there are several evictions a second: one line a minute says it all.
    fn tell(&mut self) {
        if self.untold.is_empty() || self.told.is_some_and(|at| at.elapsed() < TELL_EVERY) {
            return;
        }
        self.told = Some(Instant::now());
        for (upstream, (bytes, images)) in std::mem::take(&mut self.untold) {
            info!(upstream, images, bytes, "{upstream}: evicted {}, {images} images with it", shown(bytes));
        }
        let hurried = std::mem::take(&mut self.hurried);
        if hurried && self.warned_of_hurry.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            self.warned_of_hurry = Some(Instant::now());
            warn!("{}", budget::HURRIED);
        }
    }

    fn tell_full(&mut self, root: &Root, disk: &Disk, went: u64) {
        if self.warned.is_some_and(|at| at.elapsed() < WARN_EVERY) {
            return;
        }
        self.warned = Some(Instant::now());
        warn!(
            path = root.show(&disk.path),
            "the disk is nearly full: {} of {} are left where {} is; evicted {} from the caches there, so that {FREE} % stay \
             free. Make room, or lower cache.max_size",
            shown(disk.space.available),
            shown(disk.space.size),
            root.show(&disk.path),
            shown(went),
        );
    }

    /// The less room there is, the sooner: a cache may begin to fill at any moment.
    fn pause(&self, caches: &Caches) -> Duration {
        let Some((left, growth, _)) = self.room(caches) else { return PAUSE };
        if self.exhausted.is_some() {
            // Once it is a second older it may go.
            return if self.rate > 0 { SHORTEST * 2 } else { PAUSE };
        }
        let left = u64::try_from(left.saturating_sub(growth)).unwrap_or(0);
        Duration::from_millis(left.saturating_mul(1000) / (2 * BURST)).clamp(SHORTEST, PAUSE)
    }
}
