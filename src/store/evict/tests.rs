use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::scan::{Blob, Linked, Refers, Tag, Upload};
use super::*;

const NOW: u64 = 1_000_000;
const MINUTE: u64 = 60;
const MIB: u64 = 1 << 20;

fn digest(number: u64) -> Digest {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Digest::new(bytes)
}

/// Makes stores, as a scan would see them.
#[derive(Default)]
struct Make {
    store: Store,
    next: u64,
}

impl Make {
    fn blob(&mut self, number: u64, bytes: u64, used: u64) -> Digest {
        let digest = digest(number);
        if let Some(at) = self.store.by_digest.get(&digest) {
            let blob = &mut self.store.blobs[*at];
            blob.used = blob.used.max(used);
        } else {
            self.store.by_digest.insert(digest, self.store.blobs.len());
            self.store.blobs.push(Blob { digest, bytes, used });
            self.store.bytes += bytes;
        }
        digest
    }

    fn repository(&mut self, name: &str) -> &mut Repository {
        let all = &mut self.store.repositories;
        let at = all.iter().position(|one| one.name == name).unwrap_or(all.len());
        if at == all.len() {
            all.push(Repository { name: name.to_owned(), ..Repository::default() });
        }
        &mut all[at]
    }

    fn link(links: &mut Vec<Linked>, digest: Digest, used: u64) -> u64 {
        match links.iter_mut().find(|link| link.digest == digest) {
            Some(link) => {
                link.used = link.used.max(used);
                0
            }
            None => {
                links.push(Linked { digest, bytes: 8192, used });
                8192
            }
        }
    }

    fn manifest(&mut self, repository: &str, number: u64, refers: Refers, used: u64) -> Digest {
        let digest = self.blob(number, 8192, used);
        for layer in refers.blobs.clone() {
            self.store.bytes += Self::link(&mut self.repository(repository).layers, layer, used);
        }
        self.store.bytes += Self::link(&mut self.repository(repository).revisions, digest, used);
        self.store.manifests.insert(digest, refers);
        digest
    }

    fn tag(&mut self, repository: &str, tag: &str, digest: Digest, used: u64) {
        let tag = Tag { name: tag.to_owned(), digest: Some(digest), bytes: 20480, used };
        self.repository(repository).tags.push(tag);
        self.store.bytes += 20480;
    }

    /// An image of its own layers, besides those that are `shared`.
    fn image(&mut self, repository: &str, tag: &str, own: u64, shared: &[u64], used: u64) -> Digest {
        self.next += 1;
        let mut blobs = vec![self.blob(1_000_000 + self.next, own, used)];
        for number in shared {
            blobs.push(self.blob(*number, 50 * MIB, used));
        }
        let digest =
            self.manifest(repository, 2_000_000 + self.next, Refers { manifests: Vec::new(), blobs }, used);
        self.tag(repository, tag, digest, used);
        digest
    }
}

fn rules(all: Option<(u64, u64)>, stores: usize) -> Rules {
    Rules {
        all: all.map(|(high, low)| Level { high, low }),
        each: vec![None; stores],
        may_change: vec![true; stores],
        idle: 10 * MINUTE,
        least: 5,
    }
}

fn names(eviction: &Eviction) -> Vec<&str> {
    eviction.images.iter().map(|image| image.name.as_str()).collect()
}

#[test]
fn nothing_goes_below_the_high_water() {
    let mut make = Make::default();
    make.image("app", "1", 100 * MIB, &[], 0);
    let eviction = evict(&[make.store], &rules(Some((200 * MIB, 10 * MIB)), 1), NOW);
    assert_eq!(eviction.removals, []);
}

#[test]
fn what_was_used_longest_ago_goes_until_the_low_water() {
    let mut make = Make::default();
    for (tag, age) in [("new", 20), ("oldest", 90), ("old", 60), ("middle", 30)] {
        make.image("app", tag, 100 * MIB, &[], NOW - age * MINUTE);
    }
    let eviction = evict(&[make.store], &rules(Some((390 * MIB, 250 * MIB)), 1), NOW);
    assert_eq!(names(&eviction), ["app:oldest", "app:old"]);
    assert!(!eviction.hurried);
}

#[test]
fn what_nothing_refers_to_goes_first() {
    let mut make = Make::default();
    make.image("app", "old", 100 * MIB, &[], 0);
    make.blob(7, 100 * MIB, NOW - 11 * MINUTE);
    let eviction = evict(&[make.store], &rules(Some((150 * MIB, 120 * MIB)), 1), NOW);
    let pieces: Vec<&Piece> = eviction.removals.iter().map(|removal| &removal.piece).collect();
    assert_eq!(pieces, [&Piece::Blob { digest: digest(7) }]);
}

#[test]
fn a_layer_that_another_image_has_stays() {
    let mut make = Make::default();
    make.image("app", "1", 100 * MIB, &[7], NOW - 90 * MINUTE);
    make.image("other", "1", 100 * MIB, &[7], NOW - 20 * MINUTE);
    let eviction = evict(&[make.store], &rules(Some((200 * MIB, 180 * MIB)), 1), NOW);
    assert_eq!(names(&eviction), ["app:1"]);
    let shared = Piece::Blob { digest: digest(7) };
    assert!(eviction.removals.iter().all(|removal| removal.piece != shared), "{:?}", eviction.removals);
    let own_link = Piece::Layer { repository: "app".to_owned(), digest: digest(7) };
    assert!(eviction.removals.iter().any(|removal| removal.piece == own_link), "{:?}", eviction.removals);
}

#[test]
fn a_layer_that_many_share_keeps_none_of_them() {
    let mut make = Make::default();
    make.image("app", "1", 100 * MIB, &[7], NOW - 90 * MINUTE);
    // The same layer was fetched again just now, for another version.
    make.image("app", "2", 100 * MIB, &[7], NOW);
    let eviction = evict(&[make.store], &rules(Some((200 * MIB, 190 * MIB)), 1), NOW);
    assert_eq!(names(&eviction), ["app:1"]);
}

#[test]
fn an_index_goes_with_its_platforms() {
    let mut make = Make::default();
    let layer = make.blob(7, 100 * MIB, 0);
    let platform = make.manifest("app", 8, Refers { manifests: vec![], blobs: vec![layer] }, 0);
    let absent = digest(99);
    let index = make.manifest("app", 9, Refers { manifests: vec![platform, absent], blobs: vec![] }, 0);
    make.tag("app", "1", index, 0);
    make.image("app", "2", 100 * MIB, &[], NOW - 20 * MINUTE);
    let eviction = evict(&[make.store], &rules(Some((150 * MIB, 110 * MIB)), 1), NOW);
    assert_eq!(names(&eviction), ["app:1"]);
    let revisions: Vec<Digest> = eviction
        .removals
        .iter()
        .filter_map(|one| if let Piece::Revision { digest, .. } = &one.piece { Some(*digest) } else { None })
        .collect();
    assert_eq!(revisions, [index, platform]);
}

#[test]
fn the_use_of_one_platform_keeps_its_index() {
    let mut make = Make::default();
    let layer = make.blob(7, 100 * MIB, 0);
    let platform =
        make.manifest("app", 8, Refers { manifests: vec![], blobs: vec![layer] }, NOW - 15 * MINUTE);
    let index = make.manifest("app", 9, Refers { manifests: vec![platform], blobs: vec![] }, 0);
    make.tag("app", "1", index, 0);
    make.image("app", "2", 100 * MIB, &[], NOW - 20 * MINUTE);
    let eviction = evict(&[make.store], &rules(Some((150 * MIB, 110 * MIB)), 1), NOW);
    assert_eq!(names(&eviction), ["app:2"]);
}

#[test]
fn an_image_of_which_somebody_reads_a_layer_stays() {
    let mut make = Make::default();
    // Asked for in pieces, hours after its manifest (a lazily pulled image).
    let layer = make.blob(7, 100 * MIB, NOW - MINUTE);
    let read = make.manifest("app", 8, Refers { manifests: vec![], blobs: vec![layer] }, 0);
    make.tag("app", "read", read, 0);
    make.image("app", "idle", 100 * MIB, &[], NOW - 20 * MINUTE);
    let eviction = evict(&[make.store], &rules(Some((150 * MIB, 110 * MIB)), 1), NOW);
    assert_eq!(names(&eviction), ["app:idle"]);
}

#[test]
fn what_was_just_used_goes_only_for_the_budget_and_no_further_than_it_must() {
    let mut make = Make::default();
    for age in [1, 2, 3, 4] {
        make.image("app", &age.to_string(), 100 * MIB, &[], NOW - age * MINUTE);
    }
    let eviction = evict(&[make.store], &rules(Some((390 * MIB, 110 * MIB)), 1), NOW);
    assert_eq!(names(&eviction), ["app:4"]);
    assert!(eviction.hurried);
}

#[test]
fn what_is_in_use_at_this_moment_never_goes() {
    let mut make = Make::default();
    make.image("app", "1", 100 * MIB, &[], NOW - 2);
    let eviction = evict(&[make.store], &rules(Some((50 * MIB, 40 * MIB)), 1), NOW);
    assert_eq!(eviction.removals, []);
}

#[test]
fn a_time_in_the_far_future_keeps_nothing() {
    let mut make = Make::default();
    make.image("app", "future", 100 * MIB, &[], NOW + 100 * 86400);
    make.image("app", "now", 100 * MIB, &[], NOW - 20 * MINUTE);
    let eviction = evict(&[make.store], &rules(Some((150 * MIB, 110 * MIB)), 1), NOW);
    assert_eq!(names(&eviction), ["app:future"]);
}

#[test]
fn an_upload_goes_when_nothing_has_come_for_ten_minutes() {
    let mut make = Make::default();
    for (name, age) in [("stuck", 11), ("slow", 9)] {
        let upload = Upload { name: name.to_owned(), bytes: 100 * MIB, used: NOW - age * MINUTE };
        make.repository("app").uploads.push(upload);
        make.store.bytes += 100 * MIB;
    }
    let eviction = evict(&[make.store], &rules(Some((50 * MIB, 40 * MIB)), 1), NOW);
    let pieces: Vec<&Piece> = eviction.removals.iter().map(|removal| &removal.piece).collect();
    assert_eq!(pieces, [&Piece::Upload { repository: "app".to_owned(), name: "stuck".to_owned() }]);
}

#[test]
fn a_new_upstream_does_not_starve_the_others() {
    let (mut old, mut new) = (Make::default(), Make::default());
    old.image("app", "1", 100 * MIB, &[], 0);
    for tag in 0..9 {
        new.image("app", &tag.to_string(), 100 * MIB, &[], NOW - 20 * MINUTE - tag);
    }
    let eviction = evict(&[old.store, new.store], &rules(Some((900 * MIB, 800 * MIB)), 2), NOW);
    assert_eq!(eviction.images.iter().map(|image| image.store).collect::<Vec<_>>(), [1, 1, 1]);
}

#[test]
fn what_one_upstream_does_not_need_is_anybodys() {
    let (mut small, mut large) = (Make::default(), Make::default());
    small.image("app", "1", 100 * MIB, &[], 0);
    for tag in 0..7 {
        large.image("app", &tag.to_string(), 100 * MIB, &[], NOW - 20 * MINUTE);
    }
    let eviction = evict(&[small.store, large.store], &rules(Some((900 * MIB, 800 * MIB)), 2), NOW);
    assert_eq!(eviction.removals, []);
}

#[test]
fn an_upstream_keeps_to_its_own_bound() {
    let (mut bound, mut free) = (Make::default(), Make::default());
    for tag in 0..3 {
        bound.image("app", &tag.to_string(), 100 * MIB, &[], NOW - 20 * MINUTE + tag);
        free.image("app", &tag.to_string(), 100 * MIB, &[], 0);
    }
    let mut rules = rules(Some((9000 * MIB, 8000 * MIB)), 2);
    rules.each[0] = Some(Level { high: 250 * MIB, low: 210 * MIB });
    let eviction = evict(&[bound.store, free.store], &rules, NOW);
    assert_eq!(eviction.images.iter().map(|image| image.store).collect::<Vec<_>>(), [0]);
}

#[test]
fn a_store_that_must_not_change_only_counts() {
    let (mut fixed, mut other) = (Make::default(), Make::default());
    for tag in 0..3 {
        fixed.image("app", &tag.to_string(), 100 * MIB, &[], 0);
        other.image("app", &tag.to_string(), 100 * MIB, &[], NOW - 20 * MINUTE);
    }
    let mut rules = rules(Some((500 * MIB, 400 * MIB)), 2);
    rules.may_change = vec![false, true];
    let eviction = evict(&[fixed.store, other.store], &rules, NOW);
    assert!(!eviction.images.is_empty() && eviction.images.iter().all(|image| image.store == 1));
}

/// An image of a random store.
#[derive(Debug, Clone)]
struct Random {
    repository: u64,
    own: u64,
    shared: Vec<u64>,
    age: u64,
    /// That of its layers, where somebody has read on.
    layer_age: u64,
    parts: bool,
    tagged: bool,
    /// The same image as the one at that place: two repositories may have one.
    copies: Option<usize>,
}

fn random() -> impl Strategy<Value = Random> {
    let age = || prop_oneof![0..10_u64, 0..1200_u64, 0..100_000_u64];
    let copies = prop::option::weighted(0.3, 0..12_usize);
    let shared = prop::collection::vec(0..6_u64, 0..3);
    (0..4_u64, 1..200_u64, shared, age(), age(), any::<bool>(), any::<bool>(), copies).prop_map(
        |(repository, own, shared, age, layer_age, parts, tagged, copies)| Random {
            repository,
            own,
            shared,
            age,
            layer_age: layer_age.min(age),
            parts,
            tagged,
            copies,
        },
    )
}

#[derive(Debug, Clone)]
struct RandomStore {
    images: Vec<Random>,
    loose: Vec<(u64, u64)>,
    uploads: Vec<(u64, u64)>,
    dangling: Vec<u64>,
}

fn random_store() -> impl Strategy<Value = RandomStore> {
    let pairs = || prop::collection::vec((1..100_u64, 0..1200_u64), 0..4);
    (prop::collection::vec(random(), 0..12), pairs(), pairs(), prop::collection::vec(0..1200_u64, 0..2))
        .prop_map(|(images, loose, uploads, dangling)| RandomStore { images, loose, uploads, dangling })
}

fn make(random: &RandomStore) -> Store {
    let mut make = Make::default();
    for (own, one) in (0..).zip(&random.images) {
        let copied = one.copies.filter(|at| *at < random.images.len());
        let number = copied.map_or(own, |at| at as u64);
        let content = &random.images[usize::try_from(number).unwrap()];
        let repository = format!("r{}", one.repository);
        let used = NOW - one.age;
        let mut blobs = vec![make.blob(10_000 + number, content.own * MIB, NOW - one.layer_age)];
        blobs.extend(content.shared.iter().map(|shared| make.blob(100 + shared, 30 * MIB, used)));
        let mut root = make.manifest(&repository, 20_000 + number, Refers { manifests: vec![], blobs }, used);
        if content.parts {
            let manifests = vec![root, digest(77)];
            root = make.manifest(&repository, 30_000 + number, Refers { manifests, blobs: vec![] }, used);
        }
        if one.tagged {
            make.tag(&repository, &own.to_string(), root, used);
        }
    }
    for (number, (mib, age)) in (0..).zip(&random.loose) {
        make.blob(40_000 + number, mib * MIB, NOW - age);
    }
    for (number, (mib, age)) in random.uploads.iter().enumerate() {
        let upload = Upload { name: number.to_string(), bytes: mib * MIB, used: NOW - age };
        make.repository("r0").uploads.push(upload);
        make.store.bytes += mib * MIB;
    }
    for (number, age) in (0..).zip(&random.dangling) {
        make.store.bytes += Make::link(&mut make.repository("r1").layers, digest(50_000 + number), NOW - age);
    }
    make.store
}

/// What is left of a store, by digest.
#[derive(Clone)]
struct Rest<'s> {
    store: &'s Store,
    blobs: BTreeSet<Digest>,
    revisions: BTreeSet<(String, Digest)>,
    layers: BTreeSet<(String, Digest)>,
}

impl<'s> Rest<'s> {
    fn of(store: &'s Store) -> Self {
        let linked = |links: fn(&Repository) -> &Vec<Linked>| {
            let of = |one: &'s Repository| links(one).iter().map(|link| (one.name.clone(), link.digest));
            store.repositories.iter().flat_map(of).collect()
        };
        Self {
            store,
            blobs: store.blobs.iter().map(|blob| blob.digest).collect(),
            revisions: linked(|one| &one.revisions),
            layers: linked(|one| &one.layers),
        }
    }

    fn remove(&mut self, piece: &Piece) {
        let was = match piece.clone() {
            Piece::Blob { digest } => self.blobs.remove(&digest),
            Piece::Revision { repository, digest } => self.revisions.remove(&(repository, digest)),
            Piece::Layer { repository, digest } => self.layers.remove(&(repository, digest)),
            Piece::Tag { .. } | Piece::Upload { .. } => true,
        };
        assert!(was, "{piece:?} is removed twice, or was not there");
    }

    /// Each manifest that is still there has all that it had in `before`.
    fn is_whole(&self, before: &Self) -> Result<(), String> {
        for (repository, digest) in &self.revisions {
            let own = |part: &Digest| (repository.clone(), *part);
            let lost = |part: &Digest| before.blobs.contains(part) && !self.blobs.contains(part);
            let Some(refers) = self.store.manifests.get(digest) else { continue };
            if lost(digest) {
                return Err(format!("{repository}@{digest} is linked, and gone"));
            }
            for part in &refers.blobs {
                let unlinked = before.layers.contains(&own(part)) && !self.layers.contains(&own(part));
                if lost(part) || unlinked {
                    return Err(format!("{repository}@{digest} has lost {part}"));
                }
            }
            for part in &refers.manifests {
                if before.revisions.contains(&own(part)) && !self.revisions.contains(&own(part)) {
                    return Err(format!("{repository}@{digest} has lost its platform {part}"));
                }
            }
        }
        Ok(())
    }
}

/// What can still be taken from these stores when everything that is not so young may go.
fn could_go(stores: &[Store], done: &Eviction, idle: u64) -> Vec<bool> {
    let of = |at: usize| {
        let gone: BTreeSet<&str> =
            done.images.iter().filter(|image| image.store == at).map(|image| image.name.as_str()).collect();
        let all = Rules { idle, least: idle, ..rules(Some((0, 0)), 1) };
        let every = evict(std::slice::from_ref(&stores[at]), &all, NOW);
        every.images.iter().any(|image| !gone.contains(image.name.as_str()))
    };
    (0..stores.len()).map(of).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_beginning_of_an_eviction_leaves_each_image_whole_or_absent(
        stores in prop::collection::vec(random_store(), 1..4),
        budget in 50..3000_u64,
        own in prop::option::of(50..1000_u64),
    ) {
        let stores: Vec<Store> = stores.iter().map(make).collect();
        let mut rules = rules(Some((budget * MIB * 9 / 10, budget * MIB * 8 / 10)), stores.len());
        rules.each[0] = own.map(|own| Level { high: own * MIB, low: own * MIB * 8 / 9 });
        let eviction = evict(&stores, &rules, NOW);

        let before: Vec<Rest> = stores.iter().map(Rest::of).collect();
        let mut rest = before.clone();
        for removal in &eviction.removals {
            rest[removal.store].remove(&removal.piece);
            let whole = rest[removal.store].is_whole(&before[removal.store]);
            prop_assert!(whole.is_ok(), "after {:?}: {}", removal.piece, whole.unwrap_err());
        }
        for (at, store) in stores.iter().enumerate() {
            let went: u64 = eviction.removals.iter().filter(|one| one.store == at).map(|one| one.bytes).sum();
            prop_assert_eq!(eviction.left[at].bytes, store.bytes - went);
        }
    }

    #[test]
    fn nothing_goes_that_is_in_use(
        stores in prop::collection::vec(random_store(), 1..4),
        budget in 50..3000_u64,
    ) {
        let stores: Vec<Store> = stores.iter().map(make).collect();
        let rules = rules(Some((budget * MIB * 9 / 10, budget * MIB * 8 / 10)), stores.len());
        let eviction = evict(&stores, &rules, NOW);
        let until = NOW - if eviction.hurried { rules.least } else { rules.idle };
        for removal in &eviction.removals {
            let store = &stores[removal.store];
            match &removal.piece {
                Piece::Blob { digest } => {
                    let used = store.blobs[store.by_digest[digest]].used;
                    prop_assert!(used <= until, "{digest} was used {} s ago", NOW - used);
                }
                Piece::Upload { repository, name } => {
                    let one = store.repositories.iter().find(|one| one.name == *repository).unwrap();
                    let used = one.uploads.iter().find(|upload| upload.name == *name).unwrap().used;
                    prop_assert!(used <= NOW - rules.idle, "something came {} s ago", NOW - used);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn it_ends_below_the_low_water_or_with_nothing_left_to_take(
        stores in prop::collection::vec(random_store(), 1..4),
        budget in 50..3000_u64,
    ) {
        let stores: Vec<Store> = stores.iter().map(make).collect();
        let rules = rules(Some((budget * MIB * 9 / 10, budget * MIB * 8 / 10)), stores.len());
        let eviction = evict(&stores, &rules, NOW);
        let before: u64 = stores.iter().map(|store| store.bytes).sum();
        let after: u64 = eviction.left.iter().map(|left| left.bytes).sum();
        let Level { high, low } = rules.all.unwrap();
        if before <= high {
            prop_assert!(eviction.removals.is_empty());
        } else if after > high {
            let could = could_go(&stores, &eviction, rules.least);
            prop_assert!(could.iter().all(|could| !could), "{after} of {high} are left, and {could:?} could give");
        } else if after > low {
            let could = could_go(&stores, &eviction, rules.idle);
            let shares = rules.shares();
            for (at, could) in could.iter().enumerate() {
                let over = eviction.left[at].bytes > shares[at].unwrap();
                prop_assert!(!(over && *could), "{after} of {low} are left, and {at} could give");
            }
        }
    }

    #[test]
    fn no_upstream_within_its_share_gives_while_one_above_it_can(
        stores in prop::collection::vec(random_store(), 2..4),
        budget in 50..3000_u64,
    ) {
        let stores: Vec<Store> = stores.iter().map(make).collect();
        let rules = rules(Some((budget * MIB * 9 / 10, budget * MIB * 8 / 10)), stores.len());
        let eviction = evict(&stores, &rules, NOW);
        let shares = rules.shares();
        let mut bytes: BTreeMap<usize, u64> = stores.iter().map(|store| store.bytes).enumerate().collect();
        let mut done = Eviction::default();
        let mut images = eviction.images.iter().peekable();
        for removal in &eviction.removals {
            // The first piece of an image is its tag or its manifest.
            let begins = images.peek().is_some_and(|image| {
                image.store == removal.store
                    && match &removal.piece {
                        Piece::Tag { repository, tag } => image.name.starts_with(&format!("{repository}:{tag}")),
                        Piece::Revision { repository, digest } => image.name == format!("{repository}@{digest}"),
                        _ => false,
                    }
            });
            if begins {
                let image = images.next().unwrap();
                if bytes[&removal.store] <= shares[removal.store].unwrap() {
                    let could = could_go(&stores, &done, rules.least);
                    for (at, could) in could.iter().enumerate() {
                        let over = bytes[&at] > shares[at].unwrap();
                        prop_assert!(!(over && *could), "{} of {} went, and {at} could give", image.name, image.store);
                    }
                }
                done.images.push(image.clone());
            }
            *bytes.get_mut(&removal.store).unwrap() -= removal.bytes;
        }
    }
}
