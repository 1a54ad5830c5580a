//! When a registry of this node counts as stuck, and what is done about it: a pure function, so that the rule can be
//! tested over years in a second.
//!
//! The disease: one upstream connection that hangs while Distribution holds a lock keeps every pull that needs the
//! upstream waiting, for ever, and also after the upstream is well again. Only a restart cures it. A registry whose
//! upstream is down says so (500) or waits with good reason: a restart would help nobody, and lose what it remembers.
//!
//! - It is asked while somebody is connected to it and it has not answered for [`GAP`]; never where it is idle.
//! - A question that takes the upstream's path and is not answered for [`PATIENCE`] makes it a suspect: from then on
//!   the upstream itself is asked, every few seconds.
//! - When the upstream answers, the registry is asked once more. Two questions without an answer, the second of them
//!   begun after the upstream had answered, and an upstream that answers again at their end: it is restarted.
//! - Any answer of it, whatever it says, clears it.
//! - A restart is [`HOLD`] after the last one at the earliest, and twice as long after each that did not help.

use serde::{Deserialize, Serialize};

/// Milliseconds after an answer before it is asked again. Twenty seconds of it, two of patience, twenty for the answer
/// that does not come and ten for the restart are less than the minute that a registry may be stuck.
pub const GAP: u64 = 20_000;
/// A cache that works answers within this, and nothing is lost when it does not.
pub const PATIENCE: u64 = 2_000;
/// How long a question may take: longer than the 15 s that Distribution gives a token server.
pub const LIMIT: u64 = 20_000;
/// From one question to the upstream to the next, and where it has been away for long.
pub const ASK: u64 = 5_000;
pub const SELDOM: u64 = 15_000;
/// Running pulls have so long to end; those that are stuck never would.
pub const DRAIN: u64 = 8_000;
/// What a registry needs to start.
pub const START: u64 = 20_000;
/// From one restart of a registry to the next, at least, and at most.
pub const HOLD: u64 = 300_000;
pub const LONGEST: u64 = 3_600_000;

/// What is remembered of one registry. Instants are milliseconds since boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guarded {
    pub phase: Phase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarted: Option<u64>,
    /// How many restarts did not help.
    #[serde(default)]
    pub level: u32,
    /// Answers to questions of another phase are of no interest.
    #[serde(skip)]
    pub generation: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// `since`: the last answer.
    Well {
        since: Option<u64>,
    },
    Suspect(Suspicion),
    Restarting {
        at: u64,
        ended: bool,
    },
}

impl Default for Phase {
    fn default() -> Self {
        Self::Well { since: None }
    }
}

/// What speaks against it so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspicion {
    pub begun: u64,
    /// The first question was not answered.
    pub silent: bool,
    /// The second one is under way.
    #[serde(skip)]
    pub confirming: bool,
    /// Nor was that.
    #[serde(skip)]
    pub confirmed: bool,
    /// The upstream is being asked.
    #[serde(skip)]
    pub asking: bool,
    #[serde(skip)]
    pub next_ask: u64,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Time passes; `active`: somebody is connected to it.
    Tick { active: bool },
    /// How a question to it ended.
    Head { confirming: bool, answered: bool },
    /// How one to the upstream did.
    Upstream { answers: bool },
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Ask it.
    Head { confirming: bool },
    /// Ask the upstream.
    Ask,
    /// Restart it.
    Restart,
    /// It would be restarted, had it not been just now.
    Hold,
    /// End it, should it still be waiting for its last pull.
    End,
}

impl Guarded {
    /// Takes what another process left: its questions ended with it.
    #[must_use]
    pub fn resume(mut self, now: u64) -> Self {
        self.phase = match self.phase {
            Phase::Suspect(suspicion) if suspicion.silent => {
                let begun = suspicion.begun.min(now);
                Phase::Suspect(Suspicion { begun, silent: true, ..Suspicion::new(now) })
            }
            Phase::Suspect(_) | Phase::Well { .. } => Phase::default(),
            Phase::Restarting { at, ended } => Phase::Restarting { at: at.min(now), ended },
        };
        self.restarted = self.restarted.map(|at| at.min(now));
        self
    }

    /// Whether there is something that the next process would have to begin anew.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !matches!(self.phase, Phase::Well { .. })
    }

    /// Whether it is worth to find out who is connected to it.
    #[must_use]
    pub fn is_due(&self, now: u64) -> bool {
        matches!(self.phase, Phase::Well { since } if since.is_none_or(|since| now.saturating_sub(since) >= GAP))
    }

    /// The shortest time that may pass until the next restart.
    fn hold(&self) -> u64 {
        (HOLD << self.level.min(8)).min(LONGEST)
    }

    fn enter(&mut self, phase: Phase) {
        self.generation += 1;
        self.phase = phase;
    }

    /// What `event` makes of it.
    pub fn step(&mut self, now: u64, event: Event) -> Option<Act> {
        let is_due = self.is_due(now);
        match (&mut self.phase, event) {
            (Phase::Well { .. }, Event::Tick { active: true }) if is_due => {
                self.enter(Phase::Suspect(Suspicion::new(now)));
                Some(Act::Head { confirming: false })
            }
            (Phase::Well { .. }, _) => None,
            (Phase::Suspect(suspicion), event) => {
                let act = suspicion.step(now, event);
                match act {
                    Some(Verdict::Cleared) => {
                        self.enter(Phase::Well { since: Some(now) });
                        None
                    }
                    Some(Verdict::Stuck) => Some(self.restart(now)),
                    Some(Verdict::Act(act)) => Some(act),
                    None => None,
                }
            }
            (Phase::Restarting { at, ended }, Event::Tick { .. }) => {
                let gone = now.saturating_sub(*at);
                if gone >= DRAIN && !*ended {
                    *ended = true;
                    return Some(Act::End);
                }
                if gone >= START {
                    self.enter(Phase::Well { since: Some(now) });
                }
                None
            }
            (Phase::Restarting { .. }, _) => None,
        }
    }

    fn restart(&mut self, now: u64) -> Act {
        let gone = self.restarted.map(|at| now.saturating_sub(at));
        if gone.is_some_and(|gone| gone < self.hold()) {
            self.enter(Phase::Well { since: Some(now) });
            return Act::Hold;
        }
        self.level = match gone {
            Some(gone) if gone < 2 * self.hold() => self.level + 1,
            _ => 0,
        };
        self.restarted = Some(now);
        self.enter(Phase::Restarting { at: now, ended: false });
        Act::Restart
    }
}

enum Verdict {
    Cleared,
    Stuck,
    Act(Act),
}

impl Suspicion {
    fn new(now: u64) -> Self {
        Self {
            begun: now,
            silent: false,
            confirming: false,
            confirmed: false,
            asking: false,
            next_ask: now + PATIENCE,
        }
    }

    fn step(&mut self, now: u64, event: Event) -> Option<Verdict> {
        match event {
            Event::Head { answered: true, .. } => return Some(Verdict::Cleared),
            Event::Head { confirming: false, .. } => self.silent = true,
            Event::Head { confirming: true, .. } => {
                self.confirming = false;
                self.confirmed = true;
                self.next_ask = now;
            }
            Event::Upstream { answers: true } => {
                self.asking = false;
                if self.silent && self.confirmed {
                    return Some(Verdict::Stuck);
                }
                if !self.confirming {
                    self.confirming = true;
                    self.confirmed = false;
                    return Some(Verdict::Act(Act::Head { confirming: true }));
                }
            }
            Event::Upstream { answers: false } => {
                self.asking = false;
                // It waits for an upstream that is away again: that is no proof against it.
                self.confirmed = false;
                self.next_ask = now + (now.saturating_sub(self.begun) / 8).clamp(ASK, SELDOM);
            }
            Event::Tick { .. } => {}
        }
        if !self.asking && !self.confirming && now >= self.next_ask {
            self.asking = true;
            return Some(Verdict::Act(Act::Ask));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One registry and its upstream, by the second; questions take as long as real ones do.
    struct World {
        guarded: Guarded,
        now: u64,
        heads: Vec<(u64, u64, bool)>,
        asks: Vec<(u64, u64)>,
        restarts: Vec<u64>,
        questions: Vec<u64>,
        ends: usize,
    }

    impl World {
        fn new() -> Self {
            let (heads, asks, restarts, questions) = Default::default();
            Self { guarded: Guarded::default(), now: 1_000_000, heads, asks, restarts, questions, ends: 0 }
        }

        fn act(&mut self, act: Option<Act>) {
            match act {
                Some(Act::Head { confirming }) => {
                    self.questions.push(self.now);
                    self.heads.push((self.now, self.guarded.generation, confirming));
                }
                Some(Act::Ask) => self.asks.push((self.now, self.guarded.generation)),
                Some(Act::Restart) => self.restarts.push(self.now),
                Some(Act::End) => self.ends += 1,
                Some(Act::Hold) | None => {}
            }
        }

        /// A second of a world in which the registry and the upstream answer, or not, and somebody is there, or not.
        fn second(&mut self, registry: bool, upstream: bool, active: bool) {
            self.now += 1_000;
            for (begun, generation, confirming) in std::mem::take(&mut self.heads) {
                if !registry && self.now < begun + LIMIT {
                    self.heads.push((begun, generation, confirming));
                } else if generation == self.guarded.generation {
                    let act = self.guarded.step(self.now, Event::Head { confirming, answered: registry });
                    self.act(act);
                }
            }
            for (begun, generation) in std::mem::take(&mut self.asks) {
                if !upstream && self.now < begun + 5_000 {
                    self.asks.push((begun, generation));
                } else if generation == self.guarded.generation {
                    let act = self.guarded.step(self.now, Event::Upstream { answers: upstream });
                    self.act(act);
                }
            }
            let act = self.guarded.step(self.now, Event::Tick { active });
            self.act(act);
        }

        fn seconds(&mut self, count: u64, registry: bool, upstream: bool, active: bool) -> &mut Self {
            (0..count).for_each(|_| self.second(registry, upstream, active));
            self
        }
    }

    #[test]
    fn a_registry_that_is_stuck_is_restarted_within_a_minute() {
        for well in 0..=25 {
            let mut world = World::new();
            world.seconds(60 + well, true, true, true).seconds(50, false, true, true);
            assert_eq!(world.restarts.len(), 1, "after {well} s");
            assert!(world.restarts[0] <= 1_000_000 + (60 + well + 50) * 1_000, "after {well} s");
        }
    }

    #[test]
    fn it_is_restarted_within_a_minute_of_the_return_of_its_upstream() {
        for away in [1, 7, 30, 60, 600, 7200] {
            let mut world = World::new();
            world.seconds(60, true, true, true).seconds(away, false, false, true);
            assert!(world.restarts.is_empty(), "away for {away} s");
            world.seconds(50, false, true, true);
            assert_eq!(world.restarts.len(), 1, "away for {away} s");
        }
    }

    #[test]
    fn one_that_recovers_with_its_upstream_is_left_alone() {
        let mut world = World::new();
        world.seconds(60, true, true, true).seconds(300, false, false, true);
        // Distribution notices after the 16 s that a lost packet takes to be sent again.
        world.seconds(16, false, true, true).seconds(300, true, true, true);
        assert!(world.restarts.is_empty());
        assert!(!world.guarded.is_busy());
    }

    #[test]
    fn one_that_drains_for_too_long_is_ended_once() {
        let mut world = World::new();
        world.seconds(100, false, true, true);
        assert_eq!((world.restarts.len(), world.ends), (1, 1));
    }

    #[test]
    fn a_restart_that_does_not_help_is_repeated_ever_more_seldom() {
        let mut world = World::new();
        world.seconds(24 * 3600, false, true, true);
        let gaps: Vec<u64> = world.restarts.windows(2).map(|pair| (pair[1] - pair[0]) / 60_000).collect();
        assert_eq!(gaps.get(..4), Some(&[5, 10, 20, 40][..]), "got {gaps:?}");
        assert!(gaps.iter().skip(4).all(|gap| (60..=61).contains(gap)), "got {gaps:?}");
    }

    #[test]
    fn an_idle_registry_is_not_asked() {
        let mut world = World::new();
        world.seconds(3600, true, true, false);
        assert!(world.questions.is_empty());
    }

    #[test]
    fn another_process_goes_on_where_one_left() {
        let mut world = World::new();
        world.seconds(60, false, false, true);
        let text = serde_json::to_string(&world.guarded).unwrap();
        let left: Guarded = serde_json::from_str(&text).unwrap();
        world.guarded = left.resume(world.now);
        (world.heads, world.asks) = Default::default();
        world.guarded.generation = 1;
        world.seconds(45, false, true, true);
        assert_eq!(world.restarts.len(), 1);
    }

    /// What each second is like, for so many seconds.
    fn weather() -> impl Strategy<Value = Vec<(u64, bool, bool, bool)>> {
        proptest::collection::vec((1_u64..90, any::<bool>(), any::<bool>(), any::<bool>()), 1..60)
    }

    proptest! {
        #[test]
        fn whatever_happens_it_is_gentle(weather in weather()) {
            let mut world = World::new();
            for (count, registry, upstream, active) in weather {
                world.seconds(count, registry, upstream, active);
            }
            for pair in world.restarts.windows(2) {
                prop_assert!(pair[1] - pair[0] >= HOLD);
            }
            // Two for each suspicion, which lasts for as long as nothing is answered.
            for trio in world.questions.windows(3) {
                prop_assert!(trio[2] - trio[0] >= GAP, "asked at {:?}", trio);
            }
        }

        #[test]
        fn one_whose_upstream_is_away_is_never_restarted(weather in weather()) {
            let mut world = World::new();
            for (count, registry, _, active) in weather {
                world.seconds(count, registry, false, active);
            }
            prop_assert_eq!(world.restarts, Vec::<u64>::new());
        }

        #[test]
        fn one_that_answers_within_20_s_is_never_restarted(weather in weather()) {
            let mut world = World::new();
            for (count, _, upstream, active) in weather {
                world.seconds(count.min(19), false, upstream, active);
                world.seconds(1, true, upstream, active);
            }
            prop_assert_eq!(world.restarts, Vec::<u64>::new());
        }
    }
}
