//! Decides what goes when a store is too large: pure, from what a scan saw.
//!
//! Three promises can contradict each other, and this is their order:
//!
//! 1. The budget: above the high water something goes, down to the low water.
//! 2. Fairness: only upstreams above their share give, as long as one of them has anything to give.
//! 3. What was used in the last ten minutes stays. Only where that would break the budget does the time shrink, and then
//!    no more goes than brings it below the high water; what was used within [`Rules::least`] never goes.
//!
//! Within that: what nothing refers to first, then whole images, the one used longest ago first.

use std::collections::{HashMap, HashSet};

use super::layout::Digest;
use super::scan::{Repository, Store};

/// Part of a store that goes at once, and how much room that makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Which store, in the order in which they were given.
    pub store: usize,
    pub piece: Piece,
    pub bytes: u64,
}

/// One folder of Distribution's layout.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Piece {
    Tag { repository: String, tag: String },
    Revision { repository: String, digest: Digest },
    Layer { repository: String, digest: Digest },
    Blob { digest: Digest },
    Upload { repository: String, name: String },
}

/// An image that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evicted {
    pub store: usize,
    /// With its tags, or the digest where it has none.
    pub name: String,
    /// What only it used.
    pub bytes: u64,
    pub used: u64,
}

/// Where eviction begins, and where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    pub high: u64,
    pub low: u64,
}

/// How much there may be of what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// For all stores together.
    pub all: Option<Level>,
    /// For each store by itself, in their order.
    pub each: Vec<Option<Level>>,
    /// Which of them may be changed: the others only count.
    pub may_change: Vec<bool>,
    /// What was used in so many seconds stays, unless the budget would break.
    pub idle: u64,
    /// What was used in so many seconds stays, whatever breaks.
    pub least: u64,
}

impl Rules {
    /// What each store can count on when all want more than there is; what one does not need is anybody's.
    #[must_use]
    pub fn shares(&self) -> Vec<Option<u64>> {
        let count = u64::try_from(self.each.len()).unwrap_or(u64::MAX).max(1);
        let equal = self.all.map(|all| all.low / count);
        self.each
            .iter()
            .map(|level| [equal, level.map(|level| level.low)].into_iter().flatten().min())
            .collect()
    }
}

/// What goes, in this order: each beginning of it leaves every image whole or absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Eviction {
    pub removals: Vec<Removal>,
    pub images: Vec<Evicted>,
    /// What is left in each store.
    pub left: Vec<Left>,
    /// It took what had been used in the last ten minutes.
    pub hurried: bool,
}

/// What is left in a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Left {
    pub bytes: u64,
    pub images: usize,
    /// When the image that was used longest ago was.
    pub oldest: Option<u64>,
}

/// What goes of `stores` at `now`, in seconds since 1970.
#[must_use]
pub fn evict(stores: &[Store], rules: &Rules, now: u64) -> Eviction {
    let mut run = Run::new(stores, rules, now);
    if run.is_over(Mark::High) {
        run.pass(rules.idle, Mark::Low, Giving::Over);
        let mut idle = rules.idle / 2;
        while idle > rules.least {
            run.hurry(idle, Giving::Over);
            idle /= 2;
        }
        run.hurry(rules.least, Giving::Over);
        run.hurry(rules.idle, Giving::All);
        run.hurry(rules.least, Giving::All);
    }
    run.done.left = run.work.iter().map(Work::left).collect();
    run.done
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    High,
    Low,
}

impl Level {
    fn at(self, mark: Mark) -> u64 {
        match mark {
            Mark::High => self.high,
            Mark::Low => self.low,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Giving {
    /// Stores above their share.
    Over,
    All,
}

/// A manifest that no other of its repository refers to, with all that it needs. Numbers are places in the store.
struct Image {
    repository: usize,
    /// Itself first.
    revisions: Vec<usize>,
    layers: Vec<usize>,
    blobs: Vec<usize>,
    tags: Vec<usize>,
    used: u64,
}

/// Images, and by how many of them each part is needed.
struct Images {
    all: Vec<Image>,
    blobs: Vec<u32>,
    revisions: Vec<Vec<u32>>,
    layers: Vec<Vec<u32>>,
}

impl Images {
    fn of(store: &Store) -> Self {
        let mut images = Self {
            all: Vec::new(),
            blobs: vec![0; store.blobs.len()],
            revisions: store.repositories.iter().map(|one| vec![0; one.revisions.len()]).collect(),
            layers: store.repositories.iter().map(|one| vec![0; one.layers.len()]).collect(),
        };
        for at in 0..store.repositories.len() {
            images.add(store, at);
        }
        for at in 0..images.all.len() {
            let used = images.all.get(at).map_or(0, |image| images.last_use(store, image));
            if let Some(image) = images.all.get_mut(at) {
                image.used = used;
            }
        }
        images
    }

    fn add(&mut self, store: &Store, at: usize) {
        let Some(repository) = store.repositories.get(at) else { return };
        let revisions = places(repository.revisions.iter().map(|one| one.digest));
        let layers = places(repository.layers.iter().map(|one| one.digest));
        let refers = |place: usize| {
            let revision = repository.revisions.get(place)?;
            store.manifests.get(&revision.digest)
        };
        let mut tags: HashMap<usize, Vec<usize>> = HashMap::new();
        for (tag, one) in repository.tags.iter().enumerate() {
            if let Some(place) = one.digest.and_then(|digest| revisions.get(&digest)) {
                tags.entry(*place).or_default().push(tag);
            }
        }
        let mut is_part = vec![false; repository.revisions.len()];
        for place in 0..repository.revisions.len() {
            for child in refers(place).into_iter().flat_map(|refers| &refers.manifests) {
                if let Some(part) = revisions.get(child).filter(|child| **child != place)
                    && let Some(part) = is_part.get_mut(*part)
                {
                    *part = true;
                }
            }
        }
        let mut reached = vec![false; repository.revisions.len()];
        let mut grow = |root: usize, images: &mut Self, reached: &mut Vec<bool>| {
            let mut image = Image {
                repository: at,
                revisions: Vec::new(),
                layers: Vec::new(),
                blobs: Vec::new(),
                tags: tags.remove(&root).unwrap_or_default(),
                used: 0,
            };
            let (mut seen, mut parts) = (HashSet::from([root]), HashSet::new());
            let mut next = vec![root];
            while let Some(place) = next.pop() {
                image.revisions.push(place);
                if let Some(reached) = reached.get_mut(place) {
                    *reached = true;
                }
                parts.extend(repository.revisions.get(place).map(|one| one.digest));
                let Some(refers) = refers(place) else { continue };
                parts.extend(&refers.blobs);
                let children = refers.manifests.iter().filter_map(|child| revisions.get(child).copied());
                next.extend(children.filter(|child| seen.insert(*child)));
            }
            image.blobs.extend(parts.iter().filter_map(|part| store.by_digest.get(part)));
            image.layers.extend(parts.iter().filter_map(|part| layers.get(part)));
            // A set has no order of its own, and the same store has to give the same answer.
            image.blobs.sort_unstable();
            image.layers.sort_unstable();
            images.count(&image);
            images.all.push(image);
        };
        let is_tagged: HashSet<usize> =
            repository.tags.iter().filter_map(|tag| revisions.get(&tag.digest?).copied()).collect();
        for (place, is_part) in is_part.iter().enumerate() {
            if !is_part || is_tagged.contains(&place) {
                grow(place, self, &mut reached);
            }
        }
        // Manifests that refer to each other in a circle, which only broken ones can.
        for place in 0..repository.revisions.len() {
            if reached.get(place) == Some(&false) {
                grow(place, self, &mut reached);
            }
        }
    }

    fn count(&mut self, image: &Image) {
        let add = |counts: Option<&mut Vec<u32>>, places: &[usize]| {
            let Some(counts) = counts else { return };
            for place in places {
                if let Some(count) = counts.get_mut(*place) {
                    *count += 1;
                }
            }
        };
        add(Some(&mut self.blobs), &image.blobs);
        add(self.revisions.get_mut(image.repository), &image.revisions);
        add(self.layers.get_mut(image.repository), &image.layers);
    }

    /// When its manifests were last asked for, or a layer that no other image of the repository has: one that many
    /// share says nothing of any of them.
    fn last_use(&self, store: &Store, image: &Image) -> u64 {
        let Some(repository) = store.repositories.get(image.repository) else { return 0 };
        let own = |place: &&usize| {
            self.layers.get(image.repository).and_then(|counts| counts.get(**place)).is_some_and(|n| *n < 2)
        };
        let revisions = image.revisions.iter().filter_map(|place| repository.revisions.get(*place));
        let layers = image.layers.iter().filter(own).filter_map(|place| repository.layers.get(*place));
        revisions.chain(layers).map(|one| one.used).max().unwrap_or(0)
    }
}

fn places(digests: impl Iterator<Item = Digest>) -> HashMap<Digest, usize> {
    digests.enumerate().map(|(place, digest)| (digest, place)).collect()
}

/// A time as it counts at `now`: one that is far in the future says nothing, and must not keep anything for good.
fn at_most(now: u64, used: u64) -> u64 {
    const SKEW: u64 = 3600;
    if used > now.saturating_add(SKEW) { 0 } else { used.min(now) }
}

/// What no image needs.
struct Loose {
    used: u64,
    bytes: u64,
    piece: Piece,
}

/// All of it, but for uploads into which something came after `until`.
fn loose(store: &Store, images: &Images, until: u64) -> Vec<Loose> {
    let unused =
        |counts: Option<&Vec<u32>>, place: usize| counts.and_then(|counts| counts.get(place)) == Some(&0);
    let mut all = Vec::new();
    for (place, blob) in store.blobs.iter().enumerate() {
        if unused(Some(&images.blobs), place) {
            all.push(Loose {
                used: blob.used,
                bytes: blob.bytes,
                piece: Piece::Blob { digest: blob.digest },
            });
        }
    }
    for (at, one) in store.repositories.iter().enumerate() {
        let repository = || one.name.clone();
        for (place, link) in one.layers.iter().enumerate() {
            if unused(images.layers.get(at), place) {
                let piece = Piece::Layer { repository: repository(), digest: link.digest };
                all.push(Loose { used: link.used, bytes: link.bytes, piece });
            }
        }
        let revisions: HashSet<Digest> = one.revisions.iter().map(|revision| revision.digest).collect();
        for tag in &one.tags {
            if tag.digest.is_none_or(|digest| !revisions.contains(&digest)) {
                let piece = Piece::Tag { repository: repository(), tag: tag.name.clone() };
                all.push(Loose { used: tag.used, bytes: tag.bytes, piece });
            }
        }
        for upload in one.uploads.iter().filter(|upload| upload.used <= until) {
            let piece = Piece::Upload { repository: repository(), name: upload.name.clone() };
            all.push(Loose { used: upload.used, bytes: upload.bytes, piece });
        }
    }
    all
}

/// What is still to be decided of one store.
struct Work {
    bytes: u64,
    images: Images,
    /// Images that are still there, the one used longest ago last.
    order: Vec<usize>,
    /// The same of what no image needs.
    loose: Vec<Loose>,
    /// The places in [`Self::order`] that this pass has no use for: from here to the end.
    passed: Vec<usize>,
    level: Option<Level>,
    may_change: bool,
    share: u64,
}

impl Work {
    fn new(store: &Store, idle: u64, now: u64) -> Self {
        let mut images = Images::of(store);
        images.all.iter_mut().for_each(|image| image.used = at_most(now, image.used));
        let mut order: Vec<usize> = (0..images.all.len()).collect();
        let used = |at: &usize| images.all.get(*at).map_or(0, |image| image.used);
        order.sort_by_key(|at| std::cmp::Reverse(used(at)));
        let mut loose = loose(store, &images, now.saturating_sub(idle));
        loose.iter_mut().for_each(|one| one.used = at_most(now, one.used));
        loose.sort_by_key(|one| std::cmp::Reverse(one.used));
        Self {
            bytes: store.bytes,
            images,
            order,
            loose,
            passed: Vec::new(),
            level: None,
            may_change: true,
            share: 0,
        }
    }

    fn left(&self) -> Left {
        let used = self.order.iter().filter_map(|at| self.images.all.get(*at)).map(|image| image.used);
        Left { bytes: self.bytes, images: self.order.len(), oldest: used.min() }
    }

    /// The next image that may go, when nothing may go that was used after `until`.
    fn next(&mut self, store: &Store, now: u64, until: u64) -> Option<u64> {
        loop {
            let image = self.images.all.get(*self.order.last()?)?;
            if image.used > until {
                return None;
            }
            let is_used = |place: &usize| {
                let last = self.images.blobs.get(*place) == Some(&1);
                last && store.blobs.get(*place).is_some_and(|blob| at_most(now, blob.used) > until)
            };
            if !image.blobs.iter().any(is_used) {
                return Some(image.used);
            }
            // Somebody reads it without asking for its manifest.
            self.passed.extend(self.order.pop());
        }
    }

    /// Of the next pass.
    fn rewind(&mut self) {
        while let Some(at) = self.passed.pop() {
            self.order.push(at);
        }
    }
}

struct Run<'s> {
    stores: &'s [Store],
    rules: &'s Rules,
    now: u64,
    work: Vec<Work>,
    total: u64,
    /// What is above its high water to begin with: only that is brought below its low water.
    all: Option<Level>,
    done: Eviction,
}

impl<'s> Run<'s> {
    fn new(stores: &'s [Store], rules: &'s Rules, now: u64) -> Self {
        let mut work: Vec<Work> = stores.iter().map(|store| Work::new(store, rules.idle, now)).collect();
        let total = work.iter().map(|work| work.bytes).sum();
        let shares = rules.shares();
        for (at, work) in work.iter_mut().enumerate() {
            let level = rules.each.get(at).copied().flatten();
            work.share = shares.get(at).copied().flatten().unwrap_or(u64::MAX);
            work.level = level.filter(|level| work.bytes > level.high);
            work.may_change = rules.may_change.get(at).copied().unwrap_or(false);
        }
        let all = rules.all.filter(|all| total > all.high);
        Self { stores, rules, now, work, total, all, done: Eviction::default() }
    }

    fn all_over(&self, mark: Mark) -> bool {
        self.all.is_some_and(|all| self.total > all.at(mark))
    }

    fn is_over(&self, mark: Mark) -> bool {
        self.all_over(mark)
            || self.work.iter().any(|work| work.level.is_some_and(|level| work.bytes > level.at(mark)))
    }

    /// The same with less care, and no further than it must.
    fn hurry(&mut self, idle: u64, giving: Giving) {
        if self.is_over(Mark::High) && self.pass(idle, Mark::High, giving) && idle < self.rules.idle {
            self.done.hurried = true;
        }
    }

    /// Takes what was used before `idle` seconds ago, until nothing is over. Whether it took anything.
    fn pass(&mut self, idle: u64, mark: Mark, giving: Giving) -> bool {
        let until = self.now.saturating_sub(idle);
        let before = self.done.removals.len();
        self.work.iter_mut().for_each(Work::rewind);
        while self.pass_loose(until, mark) || self.pass_image(until, mark, giving) {}
        self.work.iter_mut().for_each(Work::rewind);
        self.done.removals.len() > before
    }

    /// Whether this store has to give; what no image needs is given by all.
    fn gives(&self, work: &Work, mark: Mark, whatever: bool) -> bool {
        let itself = work.level.is_some_and(|level| work.bytes > level.at(mark));
        work.may_change && (itself || (self.all_over(mark) && (whatever || work.bytes > work.share)))
    }

    fn pass_loose(&mut self, until: u64, mark: Mark) -> bool {
        let oldest = |(at, work): (usize, &Work)| Some((work.loose.last()?.used, at));
        let next = self
            .work
            .iter()
            .enumerate()
            .filter(|(_, work)| self.gives(work, mark, true))
            .filter_map(oldest)
            .min()
            .filter(|(used, _)| *used <= until);
        let Some((_, at)) = next else { return false };
        let Some(Loose { bytes, piece, .. }) = self.work.get_mut(at).and_then(|work| work.loose.pop()) else {
            return false;
        };
        self.remove(at, piece, bytes);
        true
    }

    fn pass_image(&mut self, until: u64, mark: Mark, giving: Giving) -> bool {
        let mut next: Option<(u64, usize)> = None;
        for at in 0..self.work.len() {
            let gives = self.work.get(at).is_some_and(|work| self.gives(work, mark, giving == Giving::All));
            let (Some(work), Some(store), true) = (self.work.get_mut(at), self.stores.get(at), gives) else {
                continue;
            };
            if let Some(used) = work.next(store, self.now, until)
                && next.is_none_or(|(first, _)| used < first)
            {
                next = Some((used, at));
            }
        }
        let Some((_, at)) = next else { return false };
        self.remove_image(at);
        true
    }

    fn remove(&mut self, at: usize, piece: Piece, bytes: u64) {
        self.total = self.total.saturating_sub(bytes);
        if let Some(work) = self.work.get_mut(at) {
            work.bytes = work.bytes.saturating_sub(bytes);
        }
        self.done.removals.push(Removal { store: at, piece, bytes });
    }

    /// From the top: first nothing leads to it any more, then it goes. So no manifest that is there ever lacks what
    /// was there when it came.
    fn remove_image(&mut self, at: usize) {
        let (Some(store), Some(work)) = (self.stores.get(at), self.work.get_mut(at)) else { return };
        let Some(image) = work.order.pop().and_then(|place| work.images.all.get(place)) else { return };
        let Some(repository) = store.repositories.get(image.repository) else { return };
        let mut pieces = Vec::new();
        for tag in image.tags.iter().filter_map(|place| repository.tags.get(*place)) {
            let piece = Piece::Tag { repository: repository.name.clone(), tag: tag.name.clone() };
            pieces.push((piece, tag.bytes));
        }
        let revisions = work.images.revisions.get_mut(image.repository);
        for one in last_of(revisions, &image.revisions).filter_map(|place| repository.revisions.get(place)) {
            let piece = Piece::Revision { repository: repository.name.clone(), digest: one.digest };
            pieces.push((piece, one.bytes));
        }
        let layers = work.images.layers.get_mut(image.repository);
        for one in last_of(layers, &image.layers).filter_map(|place| repository.layers.get(place)) {
            let piece = Piece::Layer { repository: repository.name.clone(), digest: one.digest };
            pieces.push((piece, one.bytes));
        }
        for one in last_of(Some(&mut work.images.blobs), &image.blobs).filter_map(|at| store.blobs.get(at)) {
            pieces.push((Piece::Blob { digest: one.digest }, one.bytes));
        }
        let bytes = pieces.iter().map(|(_, bytes)| bytes).sum();
        self.done.images.push(Evicted { store: at, name: name(repository, image), bytes, used: image.used });
        for (piece, bytes) in pieces {
            self.remove(at, piece, bytes);
        }
    }
}

/// Counts one image less, and names the places that no image needs any more.
fn last_of<'p>(mut counts: Option<&mut Vec<u32>>, places: &'p [usize]) -> impl Iterator<Item = usize> + 'p {
    let mut last = Vec::new();
    for place in places {
        if let Some(count) = counts.as_mut().and_then(|counts| counts.get_mut(*place)) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                last.push(*place);
            }
        }
    }
    last.into_iter()
}

fn name(repository: &Repository, image: &Image) -> String {
    let mut tags =
        image.tags.iter().filter_map(|place| repository.tags.get(*place)).map(|tag| tag.name.as_str());
    match tags.next() {
        Some(first) => tags.fold(format!("{}:{first}", repository.name), |name, tag| format!("{name},{tag}")),
        None => {
            let digest = image.revisions.first().and_then(|place| repository.revisions.get(*place));
            let digest = digest.map(|one| one.digest.to_string()).unwrap_or_default();
            format!("{}@{digest}", repository.name)
        }
    }
}

#[cfg(test)]
mod tests;
