//! When an endpoint goes out, and when it comes back: a pure function, so that the rule can be tested over
//! years in a second.
//!
//! - One that does not answer goes out in that very round.
//! - It comes back when it has answered each round for a while: three answers at least, and 6 s. The while
//!   doubles each time that it goes out again, up to 10 min; ten minutes in use take one doubling back.
//! - So an endpoint goes out at most 9 times more than there are ten minutes, in any time.
//! - The last endpoint of an upstream that must not be asked itself stays in, whatever it does. Another one of
//!   its takes its place once that has answered for 6 s.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// The shortest while, in milliseconds.
pub const STEADY: u64 = 6_000;
/// The longest.
pub const LONGEST: u64 = 600_000;
/// So long in use takes one doubling back.
pub const CALM: u64 = 600_000;
/// An answer by chance is not enough, however long the rounds are apart.
pub const ANSWERS: u32 = 3;
/// The doublings that there are.
const TOP: u32 = 8;

/// What is remembered of the endpoints, by URL. One that has always answered is not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    pub endpoints: BTreeMap<String, Health>,
}

/// One endpoint that has not always answered. Instants are milliseconds since boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    pub out: bool,
    /// Since when it is out, or in again.
    pub since: u64,
    /// The same for people: seconds since 1970.
    pub at: u64,
    /// How often it went out lately.
    pub level: u32,
    /// How it failed; of one that is in only while it is the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Of one that is out, and answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answering: Option<Answering>,
}

/// Since when, and how often up to [`ANSWERS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answering {
    pub since: u64,
    pub count: u32,
}

/// The caches that stand in one file.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    pub caches: &'a [String],
    /// One of them has to stay: nobody else may be asked.
    pub keep_one: bool,
}

/// Now, on both clocks of [`Health`].
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub since_boot: u64,
    pub since_1970: u64,
}

/// What changed for an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Out {
        why: String,
    },
    /// It would be out, were it not the last one.
    Kept {
        why: String,
    },
    Back {
        milliseconds: u64,
    },
}

impl Memory {
    /// The URLs that are out.
    #[must_use]
    pub fn out(&self) -> BTreeSet<String> {
        self.endpoints.iter().filter(|(_, health)| health.out).map(|(url, _)| url.clone()).collect()
    }

    /// What this round's answers make of it; an endpoint without one is as it was.
    #[must_use]
    pub fn step(
        &self,
        groups: &[Group],
        answers: &BTreeMap<String, Result<(), String>>,
        now: Now,
    ) -> (Self, Vec<(String, Change)>) {
        let mut next = Self::default();
        let mut changes = Vec::new();
        for group in groups {
            let mut round = Round { changes: &mut changes, now };
            let mut members: Vec<Member> =
                group.caches.iter().map(|url| Member::read(self, url, answers.get(url), now)).collect();
            round.judge(&mut members, group.keep_one);
            for Member { url, health, .. } in members {
                if let Some(health) = health.filter(|health| !health.is_forgotten(now)) {
                    next.endpoints.insert(url.to_owned(), health);
                }
            }
        }
        (next, changes)
    }
}

impl Health {
    /// How long it has to answer before it comes back.
    #[must_use]
    pub fn hold(&self) -> u64 {
        (STEADY << (self.level.clamp(1, TOP) - 1)).min(LONGEST)
    }

    /// What is left of its level after the time that it has been in use.
    fn level_at(&self, now: Now) -> u32 {
        let calm = if self.out { 0 } else { now.since_boot.saturating_sub(self.since) / CALM };
        self.level.saturating_sub(u32::try_from(calm).unwrap_or(u32::MAX))
    }

    fn is_forgotten(&self, now: Now) -> bool {
        !self.out && self.why.is_none() && self.level_at(now) == 0
    }

    fn has_answered_for(&self, milliseconds: u64, now: Now) -> bool {
        self.answering.is_some_and(|answering| {
            answering.count >= ANSWERS && now.since_boot.saturating_sub(answering.since) >= milliseconds
        })
    }
}

/// One endpoint in one round.
struct Member<'a> {
    url: &'a str,
    answer: Option<&'a Result<(), String>>,
    health: Option<Health>,
}

impl<'a> Member<'a> {
    fn read(memory: &Memory, url: &'a str, answer: Option<&'a Result<(), String>>, now: Now) -> Self {
        let mut health = memory.endpoints.get(url).cloned();
        if let Some(health) = &mut health {
            // Instants of another boot, or of somebody's editor.
            health.since = health.since.min(now.since_boot);
            let begun = health.answering.map(|answering| Answering {
                since: answering.since.min(now.since_boot),
                count: (answering.count + 1).min(ANSWERS),
            });
            match answer {
                Some(Ok(())) if health.out => {
                    health.answering = begun.or(Some(Answering { since: now.since_boot, count: 1 }));
                }
                Some(Ok(())) => health.why = None,
                Some(Err(_)) => health.answering = None,
                None => {}
            }
        }
        Self { url, answer, health }
    }

    fn is_out(&self) -> bool {
        self.health.as_ref().is_some_and(|health| health.out)
    }

    /// In use, and did not answer.
    fn fails(&self) -> bool {
        !self.is_out() && matches!(self.answer, Some(Err(_)))
    }

    fn is_kept(&self) -> bool {
        self.health.as_ref().is_some_and(|health| !health.out && health.why.is_some())
    }

    fn has_answered_for(&self, hold: Option<u64>, now: Now) -> bool {
        self.health.as_ref().is_some_and(|health| {
            health.out && health.has_answered_for(hold.unwrap_or_else(|| health.hold()), now)
        })
    }
}

struct Round<'c> {
    changes: &'c mut Vec<(String, Change)>,
    now: Now,
}

impl Round<'_> {
    fn judge(&mut self, members: &mut [Member], keep_one: bool) {
        for member in members.iter_mut() {
            if member.has_answered_for(None, self.now) {
                self.bring_back(member);
            }
        }
        if keep_one && !members.iter().any(|member| !member.is_out() && !member.fails()) {
            for member in members.iter_mut() {
                if member.has_answered_for(Some(STEADY), self.now) {
                    self.bring_back(member);
                }
            }
        }
        // The profile may have become stricter since they went out.
        if keep_one && members.iter().all(Member::is_out) {
            let best = members.iter().position(|member| matches!(member.answer, Some(Ok(())))).unwrap_or(0);
            if let Some(member) = members.get_mut(best) {
                self.bring_back(member);
            }
        }
        let well = members.iter().any(|member| !member.is_out() && !member.fails());
        let kept = if keep_one && !well {
            let failing = |member: &Member| member.fails();
            members
                .iter()
                .position(|member| member.fails() && member.is_kept())
                .or_else(|| members.iter().position(failing))
        } else {
            None
        };
        for (index, member) in members.iter_mut().enumerate() {
            if member.fails() {
                if kept == Some(index) {
                    self.keep(member);
                } else {
                    self.take_out(member);
                }
            }
        }
    }

    fn bring_back(&mut self, member: &mut Member) {
        if let Some(health) = &mut member.health {
            let milliseconds = self.now.since_boot.saturating_sub(health.since);
            self.changes.push((member.url.to_owned(), Change::Back { milliseconds }));
            *health = Health {
                out: false,
                since: self.now.since_boot,
                at: self.now.since_1970,
                level: health.level,
                why: None,
                answering: None,
            };
        }
    }

    fn take_out(&mut self, member: &mut Member) {
        let Some(Err(why)) = member.answer else { return };
        let level = member.health.as_ref().map_or(0, |health| health.level_at(self.now));
        member.health = Some(Health {
            out: true,
            since: self.now.since_boot,
            at: self.now.since_1970,
            level: (level + 1).min(TOP),
            why: Some(why.clone()),
            answering: None,
        });
        self.changes.push((member.url.to_owned(), Change::Out { why: why.clone() }));
    }

    fn keep(&mut self, member: &mut Member) {
        let Some(Err(why)) = member.answer else { return };
        if member.is_kept() {
            return;
        }
        let health = member.health.get_or_insert(Health {
            out: false,
            since: self.now.since_boot,
            at: self.now.since_1970,
            level: 0,
            why: None,
            answering: None,
        });
        health.why = Some(why.clone());
        health.at = self.now.since_1970;
        self.changes.push((member.url.to_owned(), Change::Kept { why: why.clone() }));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "http://a:5000";
    const B: &str = "http://b:5000";

    struct Machine {
        memory: Memory,
        caches: Vec<String>,
        keep_one: bool,
        seconds: u64,
    }

    impl Machine {
        fn new(caches: &[&str], keep_one: bool) -> Self {
            let caches = caches.iter().map(|url| (*url).to_owned()).collect();
            Self { memory: Memory::default(), caches, keep_one, seconds: 100 }
        }

        /// A round; `good` are the endpoints that answer. Who is out after it.
        fn round(&mut self, after: u64, good: &[&str]) -> Vec<String> {
            self.seconds += after;
            let answers = self.caches.iter().map(|url| {
                let answer = if good.contains(&url.as_str()) { Ok(()) } else { Err("silent".to_owned()) };
                (url.clone(), answer)
            });
            let now = Now { since_boot: self.seconds * 1000, since_1970: 1_800_000_000 + self.seconds };
            let groups = [Group { caches: &self.caches, keep_one: self.keep_one }];
            let before = self.memory.out();
            let (memory, changes) = self.memory.step(&groups, &answers.collect(), now);
            let changed: BTreeSet<_> = changes
                .iter()
                .filter(|(_, change)| !matches!(change, Change::Kept { .. }))
                .map(|(url, _)| url.clone())
                .collect();
            let differ: BTreeSet<_> = memory
                .out()
                .symmetric_difference(&before)
                .filter(|url| self.caches.contains(url))
                .cloned()
                .collect();
            assert_eq!(changed, differ, "every change is told, and no other");
            self.memory = memory;
            self.memory.out().into_iter().collect()
        }

        /// Rounds of 3 s until nothing is out, in seconds.
        fn back_after(&mut self, good: &[&str]) -> u64 {
            let start = self.seconds;
            while !self.round(3, good).is_empty() {}
            self.seconds - start
        }
    }

    #[test]
    fn out_at_once_and_back_after_steady_answers() {
        let mut machine = Machine::new(&[A, B], false);
        assert_eq!(machine.round(3, &[A, B]), [""; 0]);
        assert_eq!(machine.memory, Memory::default());
        assert_eq!(machine.round(3, &[B]), [A]);
        let quiet = machine.memory.clone();
        assert_eq!(machine.round(3, &[B]), [A]);
        assert_eq!(machine.memory, quiet, "nothing to write while nothing changes");
        assert_eq!(machine.round(3, &[A, B]), [A]);
        assert_eq!(machine.round(3, &[A, B]), [A]);
        assert_eq!(machine.round(3, &[B]), [A], "one failure and it starts again");
        assert_eq!(machine.back_after(&[A, B]), 9);
    }

    #[test]
    fn back_later_each_time_that_it_fails_again_soon() {
        let mut machine = Machine::new(&[A], false);
        let mut waits = Vec::new();
        for _ in 0..10 {
            assert_eq!(machine.round(3, &[]), [A]);
            waits.push(machine.back_after(&[A]));
        }
        assert_eq!(waits, [9, 15, 27, 51, 99, 195, 387, 603, 603, 603]);
        // An hour of use forgives six of the eight.
        machine.round(3600, &[A]);
        assert_eq!(machine.round(3, &[]), [A]);
        assert_eq!(machine.back_after(&[A]), 27);
        machine.round(7200, &[A]);
        assert_eq!(machine.memory, Memory::default(), "forgotten");
    }

    #[test]
    fn all_out_where_the_upstream_may_be_asked() {
        let mut machine = Machine::new(&[A, B], false);
        assert_eq!(machine.round(3, &[]), [A, B]);
    }

    #[test]
    fn the_last_one_stays() {
        let mut machine = Machine::new(&[A, B], true);
        assert_eq!(machine.round(3, &[A]), [B]);
        assert_eq!(machine.round(3, &[]), [B]);
        assert!(machine.memory.endpoints[A].why.is_some(), "it is known to fail");
        let quiet = machine.memory.clone();
        assert_eq!(machine.round(3, &[]), [B]);
        assert_eq!(machine.memory, quiet);
        // The other takes its place.
        assert_eq!(machine.round(3, &[B]), [B]);
        assert_eq!(machine.round(3, &[B]), [B]);
        assert_eq!(machine.round(3, &[B]), [A]);
        // All at once: the first of them stays.
        let mut machine = Machine::new(&[A, B], true);
        assert_eq!(machine.round(3, &[]), [B]);
        assert_eq!(machine.round(3, &[A]), [B]);
        assert_eq!(machine.memory.endpoints.get(A), None, "well again");
    }

    #[test]
    fn a_stricter_profile_brings_one_back() {
        let mut machine = Machine::new(&[A, B], false);
        assert_eq!(machine.round(3, &[]), [A, B]);
        machine.keep_one = true;
        assert_eq!(machine.round(3, &[B]), [A]);
    }

    #[test]
    fn what_left_the_profile_is_forgotten() {
        let mut machine = Machine::new(&[A, B], false);
        machine.round(3, &[B]);
        machine.caches.remove(0);
        assert_eq!(machine.round(3, &[B]), [""; 0]);
        assert_eq!(machine.memory, Memory::default());
    }

    #[test]
    fn memory_of_another_boot_delays_nothing_for_ever() {
        let mut machine = Machine::new(&[A], false);
        machine.seconds = 1_000_000;
        machine.round(3, &[]);
        machine.round(3, &[A]);
        machine.seconds = 100;
        assert!(machine.back_after(&[A]) <= 12);
    }

    proptest! {
        /// Whatever the endpoints do, and however long the rounds are apart.
        #[test]
        fn transitions_in_any_window_are_bounded(
            rounds in prop::collection::vec((1_u64..40, any::<bool>(), any::<bool>()), 1..2000),
            keep_one in any::<bool>(),
        ) {
            let mut machine = Machine::new(&[A, B], keep_one);
            let mut outs: BTreeMap<String, Vec<u64>> = BTreeMap::new();
            let mut before = Vec::new();
            for (after, a, b) in rounds {
                let good: Vec<&str> = [(A, a), (B, b)].iter().filter(|(_, good)| *good).map(|(url, _)| *url).collect();
                let out = machine.round(after, &good);
                prop_assert!(!keep_one || out.len() < 2, "one is always in");
                if !keep_one {
                    for (url, good) in [(A, a), (B, b)] {
                        prop_assert!(good || out.iter().any(|out| out == url), "out at once");
                    }
                }
                for url in out.iter().filter(|url| !before.contains(*url)) {
                    outs.entry(url.clone()).or_default().push(machine.seconds);
                }
                before = out;
            }
            for times in outs.values() {
                for (first, start) in times.iter().enumerate() {
                    for (last, end) in times.iter().enumerate().skip(first) {
                        let most = if keep_one { (end - start) * 1000 / STEADY } else { 9 + (end - start) * 1000 / CALM };
                        prop_assert!((last - first) as u64 <= most, "{} times in {} s", last - first + 1, end - start);
                    }
                }
            }
        }
    }
}
