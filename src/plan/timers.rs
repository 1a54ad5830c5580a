//! The static units, and each instance's instant for GC, scrub and restart: spread over the period so that no two of
//! a node's registries work at once, nor all nodes of a fleet, and the same in every run.

use std::collections::BTreeSet;

use anyhow::Result;
use sha2::{Digest, Sha256};

use super::registry::{enable, takes_sockets};
use super::{Content, Plan, UNIT_FOLDER};
use crate::facts::{Facts, Manager};
use crate::node::{Node, Period, Schedule, Upstream};
use crate::template::{Timer, UNITS, render};
use crate::wake::NETWORK_UNIT;

/// GC runs in the small hours: minutes of the day.
const NIGHT: std::ops::Range<u32> = 60..300;
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
/// Every month has these days.
const MONTH_DAYS: u32 = 28;
/// Seconds within which systemd spreads instances that share one calendar expression.
const SHARED_DELAY: u32 = 3600;

/// Which of an instance's timers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Job {
    Gc,
    Scrub,
    Restart,
}

impl Job {
    fn unit(self) -> &'static str {
        match self {
            Self::Gc => "larder-gc",
            Self::Scrub => "larder-scrub",
            Self::Restart => "larder-restart",
        }
    }

    fn schedule(self, upstream: &Upstream) -> &Schedule {
        match self {
            Self::Gc => &upstream.gc,
            Self::Scrub => &upstream.scrub,
            Self::Restart => &upstream.restart,
        }
    }

    /// Seconds that the static timer adds by machine id; staggered instants are further apart.
    fn delay(self) -> u32 {
        match self {
            Self::Gc | Self::Scrub => 600,
            Self::Restart => 30,
        }
    }
}

pub(super) fn plan(node: &Node, facts: &Facts, plan: &mut Plan) -> Result<()> {
    let watches = node.is_watched();
    // With an address that is there already, by somebody else's file, it would have nothing to write.
    let early = plan.link.is_some() || matches!(facts.network.manager, Manager::LaterAtBoot { .. });
    for unit in UNITS {
        let needed = match unit.name {
            "larder.service" => true,
            NETWORK_UNIT => early,
            "larder-watch.service" | "larder-watch.timer" => watches,
            "larder-registry@.socket" => facts.registry.as_ref().is_some_and(takes_sockets),
            name if is_face(name) => super::face::needs(name, node, facts),
            name if name.starts_with("larder-tend") || name.starts_with("larder-scrub") => {
                node.cache.as_ref().is_some_and(|cache| cache.objects.is_none())
            }
            _ => node.cache.is_some(),
        };
        if needed && !facts.packaged.contains(&unit.name) {
            plan.file(format!("{UNIT_FOLDER}/{}", unit.name), unit.text, 0o644, Content::Ours);
        }
    }
    enable(plan, facts, "multi-user.target", "larder.service", "larder.service");
    if early {
        enable(plan, facts, "sysinit.target", NETWORK_UNIT, NETWORK_UNIT);
    }
    if watches {
        enable(plan, facts, "timers.target", "larder-watch.timer", "larder-watch.timer");
    }
    let Some(cache) = &node.cache else { return Ok(()) };
    // An object store is bounded and checked by its own rules.
    let in_folders = cache.objects.is_none();
    if in_folders {
        enable(plan, facts, "timers.target", "larder-tend.timer", "larder-tend.timer");
    }
    let seed = fleet_seed(node);
    for job in [Job::Gc, Job::Scrub, Job::Restart] {
        if job == Job::Scrub && !in_folders {
            continue;
        }
        let mut taken = BTreeSet::new();
        for upstream in &node.upstreams {
            let (calendar, delay) = match job.schedule(upstream) {
                Schedule::Never => continue,
                Schedule::At(calendar) => (calendar.to_string(), 0),
                Schedule::AllAt(calendar) => (calendar.to_string(), SHARED_DELAY),
                Schedule::Every(period) => {
                    let slots = slots(*period, node.upstreams.len());
                    let slot = free_slot(&seed, upstream.host.as_str(), slots, &mut taken);
                    (instant(*period, slot, slots), job.delay())
                }
            };
            let timer = format!("{}@{}.timer", job.unit(), upstream.host);
            let text = render(&timer, &Timer { calendar: &calendar, delay })?;
            plan.file(timer_drop_in(&timer), text, 0o644, Content::Ours);
            enable(plan, facts, "timers.target", &format!("{}@.timer", job.unit()), &timer);
        }
    }
    Ok(())
}

/// Whether how the cache faces the outside decides about this unit.
fn is_face(unit: &str) -> bool {
    ["larder-access.", "larder-metrics.", "larder-tls."].iter().any(|start| unit.starts_with(start))
}

/// The file that holds a timer's instant.
#[must_use]
pub fn timer_drop_in(timer: &str) -> String {
    format!("{UNIT_FOLDER}/{timer}.d/50-larder.conf")
}

/// What tells this node from the others of its fleet. Without a static address that is the machine id, which
/// systemd itself mixes in (`FixedRandomDelay=`).
fn fleet_seed(node: &Node) -> String {
    node.network.as_ref().and_then(|n| n.addresses.first()).map(|a| a.ip().to_string()).unwrap_or_default()
}

/// How many instants a period has: a quarter of an hour apart for GC and a minute for restarts, closer only
/// where there are more upstreams than that.
fn slots(period: Period, upstreams: usize) -> u32 {
    let (coarse, fine) = match period {
        Period::Hourly => (60, 3600),
        Period::Daily => (NIGHT.len() / 15, NIGHT.len() * 60),
        Period::Weekly => (7 * NIGHT.len() / 15, 7 * NIGHT.len() * 60),
        Period::Monthly => (MONTH_DAYS as usize * NIGHT.len() / 15, MONTH_DAYS as usize * NIGHT.len() * 60),
    };
    let wanted = if upstreams * 2 <= coarse { coarse } else { fine };
    u32::try_from(wanted).unwrap_or(u32::MAX)
}

/// The upstream's own slot by hash, or the next free one. An upstream more or less leaves nearly all others
/// where they are.
fn free_slot(seed: &str, host: &str, slots: u32, taken: &mut BTreeSet<(u32, u32)>) -> u32 {
    let digest = Sha256::digest(format!("{seed}\n{host}"));
    let hash = digest.iter().take(8).fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
    let mut slot = u32::try_from(hash % u64::from(slots)).unwrap_or(0);
    for _ in 0..slots {
        if taken.insert((slots, slot)) {
            break;
        }
        slot = (slot + 1) % slots;
    }
    slot
}

/// A slot as a calendar expression (systemd.time(7)).
fn instant(period: Period, slot: u32, slots: u32) -> String {
    let night = |seconds: u32| {
        let at = NIGHT.start * 60 + seconds;
        format!("{:02}:{:02}:{:02}", at / 3600, at / 60 % 60, at % 60)
    };
    let night_seconds = (NIGHT.end - NIGHT.start) * 60;
    let split = |parts: u32| {
        let within = slots / parts;
        (slot / within, slot % within * (night_seconds / within))
    };
    match period {
        Period::Hourly => {
            let at = slot * (3600 / slots);
            format!("*-*-* *:{:02}:{:02}", at / 60, at % 60)
        }
        Period::Daily => format!("*-*-* {}", night(split(1).1)),
        Period::Weekly => {
            let (day, at) = split(7);
            format!("{} *-*-* {}", DAYS.get(day as usize).unwrap_or(&"Sun"), night(at))
        }
        Period::Monthly => {
            let (day, at) = split(MONTH_DAYS);
            format!("*-*-{:02} {}", day + 1, night(at))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instants(seed: &str, period: Period, count: usize) -> Vec<String> {
        let mut taken = BTreeSet::new();
        let slots = slots(period, count);
        (0..count)
            .map(|i| instant(period, free_slot(seed, &format!("u{i}.example"), slots, &mut taken), slots))
            .collect()
    }

    #[test]
    fn no_two_registries_of_a_node_share_an_instant() {
        for period in [Period::Hourly, Period::Daily, Period::Weekly, Period::Monthly] {
            for count in [5, 100, 1000] {
                let all = instants("10.0.20.10", period, count);
                let different: BTreeSet<_> = all.iter().collect();
                assert_eq!(different.len(), count, "{period:?} × {count}");
            }
        }
    }

    #[test]
    fn nodes_of_a_fleet_differ() {
        assert_ne!(instants("10.0.20.10", Period::Weekly, 5), instants("10.0.20.11", Period::Weekly, 5));
    }

    #[test]
    fn another_upstream_moves_none_of_the_others() {
        let five = instants("10.0.20.10", Period::Weekly, 5);
        let six = instants("10.0.20.10", Period::Weekly, 6);
        assert_eq!(six.get(..5), Some(five.as_slice()));
    }

    #[test]
    fn gc_stays_in_the_night() {
        for at in instants("x", Period::Weekly, 1000) {
            let hour: u32 = at.split(' ').nth(2).and_then(|t| t.get(..2)).unwrap().parse().unwrap();
            assert!((1..5).contains(&hour), "{at}");
        }
    }
}
