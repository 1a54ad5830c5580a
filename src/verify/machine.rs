//! The checks that ask the machine itself: units and timers, addresses, containerd.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use ipnetwork::IpNetwork;

use super::{Probe, Seen, Witness, pull};
use crate::certificate::{self, Certificate, SOON};
use crate::host::state::{self, CriState, UnitState};
use crate::root::Root;

/// What verification asks of a machine. Each call ends by its deadline.
pub trait Machine: Sync {
    /// The state of each of `units`, in their order.
    fn unit_states(&self, units: &[String], deadline: Instant) -> Result<Vec<UnitState>>;
    fn cri(&self, deadline: Instant) -> Result<CriState>;
    fn addresses(&self) -> Result<Vec<(String, IpNetwork)>>;
    /// The certificate in a file, by its absolute path.
    fn certificate(&self, path: &str) -> Result<Certificate> {
        certificate::read(path)
    }
    /// Pulls an image through containerd and says who served it.
    fn pull(&self, wanted: &pull::Wanted<'_>, deadline: Instant) -> Result<pull::Pulled>;
    /// The caches that are out, or would be, by URL and with the reason.
    fn dead_caches(&self) -> Result<Vec<(String, String)>>;
}

/// The machine this program runs on.
#[derive(Debug, Clone, Copy)]
pub struct Live;

impl Machine for Live {
    fn unit_states(&self, units: &[String], deadline: Instant) -> Result<Vec<UnitState>> {
        state::unit_states(units, deadline)
    }

    fn cri(&self, deadline: Instant) -> Result<CriState> {
        state::cri(deadline)
    }

    fn addresses(&self) -> Result<Vec<(String, IpNetwork)>> {
        state::addresses()
    }

    fn pull(&self, wanted: &pull::Wanted<'_>, deadline: Instant) -> Result<pull::Pulled> {
        pull::pull(&Root::open(Path::new("/"))?, wanted, deadline)
    }

    fn dead_caches(&self) -> Result<Vec<(String, String)>> {
        let memory = crate::watch::memory(&Root::open(Path::new("/"))?)?;
        let dead = memory.endpoints.into_iter().filter_map(|(url, health)| Some((url, health.why?)));
        Ok(dead.collect())
    }
}

/// A call of `systemctl` or `ctr` takes 8 to 40 ms.
const PROGRAM_PAUSE: Duration = Duration::from_millis(50);
const ADDRESS_PAUSE: Duration = Duration::from_millis(10);

/// One call that takes longer has met something that hangs; the next may not.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// A state that can only change if somebody does something is believed after this long: whoever started
/// us may be the one, and some of it happens after we began to look.
const SETTLING: Duration = Duration::from_secs(2);

/// Looks, tells, and looks again until nothing is left to wait for or the deadline passes.
fn watch(witness: &Witness<'_>, shortest: Duration, mut look: impl FnMut(Instant) -> Vec<(usize, Seen)>) {
    let run = witness.run;
    let mut told: Vec<(usize, Seen)> = Vec::new();
    loop {
        let seen = look(run.deadline.min(Instant::now() + CALL_LIMIT));
        // A look that the deadline cut short says less than the one before it.
        let cut = run.left().is_zero();
        for (before, (check, seen)) in told.iter().map(Some).chain(std::iter::repeat(None)).zip(&seen) {
            let known = before.is_some_and(|(_, before)| before == seen || (cut && seen.may_change()));
            if !known {
                witness.tell(*check, seen.clone());
            }
        }
        let waiting = seen.iter().any(|(_, seen)| seen.may_change());
        told = seen;
        let pause = run.pause(shortest);
        if !waiting || run.left() <= pause {
            return;
        }
        thread::sleep(pause);
    }
}

/// All units and timers by one call per look. They must be good in the same look: a registry that was
/// active and fell over is not.
pub(super) fn watch_units(machine: &dyn Machine, witness: &Witness<'_>) {
    let (mut units, names): (Vec<UnitWatch>, Vec<String>) = witness
        .run
        .checks
        .iter()
        .enumerate()
        .filter_map(|(check, asked)| {
            let (unit, timer) = match &asked.probe {
                Probe::Unit { unit } => (unit, false),
                Probe::Timer { unit } => (unit, true),
                _ => return None,
            };
            Some((UnitWatch { check, timer, resting: None, end: None }, unit.clone()))
        })
        .unzip();
    watch(witness, PROGRAM_PAUSE, |deadline| match machine.unit_states(&names, deadline) {
        Ok(states) => units.iter_mut().zip(&states).map(|(unit, state)| unit.judge(state)).collect(),
        Err(error) => units
            .iter()
            .map(|unit| (unit.check, Seen::Pending(format!("unknown state, {error:#}"))))
            .collect(),
    });
}

/// What is remembered of one unit between two looks.
struct UnitWatch {
    check: usize,
    timer: bool,
    /// Since when it has been at rest.
    resting: Option<Instant>,
    /// Once settled it stays so: others have given up on its account.
    end: Option<String>,
}

impl UnitWatch {
    fn judge(&mut self, state: &UnitState) -> (usize, Seen) {
        if let Some(end) = &self.end {
            return (self.check, Seen::Settled(end.clone()));
        }
        let got = state.to_string();
        if !state.is_at_rest() {
            self.resting = None;
        } else if self.resting.is_none() {
            self.resting = Some(Instant::now());
        }
        let rested = self.resting.is_some_and(|since| since.elapsed() >= SETTLING);
        let seen = match state.load.as_str() {
            "loaded" if self.timer && state.is_armed() => Seen::Good(match &state.next_elapse {
                Some(next) => format!("next {next}"),
                None => got,
            }),
            "loaded" if self.timer && state.is_active() => {
                Seen::Pending(format!("{got}, will not elapse again"))
            }
            // With a queued restart it is the old process that is active.
            "loaded" if !self.timer && state.is_active() && !state.job => Seen::Good(got),
            "loaded" if !rested => Seen::Pending(got),
            // systemctl left it out: of all states the one that nothing is known of.
            "" => Seen::Pending(got),
            _ => Seen::Settled(got),
        };
        if let Seen::Settled(got) = &seen {
            self.end = Some(got.clone());
        }
        (self.check, seen)
    }
}

pub(super) fn watch_addresses(machine: &dyn Machine, witness: &Witness<'_>) {
    let wanted: Vec<(usize, IpNetwork, Option<&str>)> = witness
        .run
        .checks
        .iter()
        .enumerate()
        .filter_map(|(check, asked)| match &asked.probe {
            Probe::Address { address, interface } => Some((check, *address, interface.as_deref())),
            _ => None,
        })
        .collect();
    watch(witness, ADDRESS_PAUSE, |_| {
        let found = machine.addresses();
        wanted
            .iter()
            .map(|(check, address, interface)| {
                let seen = match &found {
                    Ok(found) => judge_address(found, *address, *interface),
                    Err(error) => Seen::Pending(format!("{error:#}")),
                };
                (*check, seen)
            })
            .collect()
    });
}

fn judge_address(found: &[(String, IpNetwork)], wanted: IpNetwork, interface: Option<&str>) -> Seen {
    let right_place = |name: &str| interface.is_none_or(|wanted| wanted == name);
    if let Some((name, _)) = found.iter().find(|(name, network)| *network == wanted && right_place(name)) {
        return Seen::Good(format!("{wanted} on {name}"));
    }
    if let Some((name, network)) = found.iter().find(|(_, network)| network.ip() == wanted.ip()) {
        return Seen::Pending(format!("{network} on {name}"));
    }
    let there: Vec<String> =
        found.iter().filter(|(name, _)| right_place(name)).map(|(_, network)| network.to_string()).collect();
    Seen::Pending(match (interface, there.as_slice()) {
        (None, _) => "no interface has it".to_owned(),
        (Some(name), []) => format!("no address on {name}"),
        (Some(name), there) => format!("{} on {name}", there.join(", ")),
    })
}

/// Nobody waits for one: `larder watch` puts it back when it may.
pub(super) fn look_at_caches(machine: &dyn Machine, witness: &Witness<'_>) {
    let seen = match machine.dead_caches() {
        Ok(dead) if dead.is_empty() => Seen::Good("all in".to_owned()),
        Ok(dead) => {
            let dead: Vec<String> = dead.into_iter().map(|(url, why)| format!("{url}: {why}")).collect();
            Seen::Settled(format!("out: {}; see `larder status`", dead.join(", ")))
        }
        Err(error) => Seen::Settled(format!("{error:#}")),
    };
    for (check, asked) in witness.run.checks.iter().enumerate() {
        if asked.probe == Probe::Caches {
            witness.tell(check, seen.clone());
        }
    }
}

/// Nobody waits for a renewal, but it has to be seen to.
pub(super) fn look_at_certificate(machine: &dyn Machine, witness: &Witness<'_>) {
    for (check, asked) in witness.run.checks.iter().enumerate() {
        let Probe::Certificate { path } = &asked.probe else { continue };
        let seen = match machine.certificate(path) {
            Err(error) => Seen::Settled(format!("{error:#}")),
            Ok(read) => {
                let until = humantime::format_rfc3339_seconds(read.not_after);
                match read.not_after.duration_since(SystemTime::now()) {
                    Ok(left) if left >= SOON => Seen::Good(format!("good until {until}")),
                    Ok(left) => {
                        Seen::Warned(format!("good for {} days more: renew it", left.as_secs() / 86_400))
                    }
                    Err(_) => Seen::Settled(format!("was good until {until}: renew it")),
                }
            }
        };
        witness.tell(check, seen);
    }
}

pub(super) fn watch_cri(machine: &dyn Machine, witness: &Witness<'_>) {
    let checks: Vec<usize> = witness
        .run
        .checks
        .iter()
        .enumerate()
        .filter_map(|(check, asked)| (asked.probe == Probe::Cri).then_some(check))
        .collect();
    let mut bad: Option<(CriState, Instant)> = None;
    watch(witness, PROGRAM_PAUSE, |deadline| {
        let state = machine.cri(deadline);
        let seen = match state {
            Ok(CriState::Ok) => Seen::Good("ok".to_owned()),
            Ok(state @ CriState::NotInstalled) => Seen::Settled(state.to_string()),
            // At boot it starts once larder.service has said that all is in place.
            Ok(state @ CriState::NotRunning(_)) => Seen::Pending(state.to_string()),
            // A plugin is loaded once, when containerd starts; but a restart may still be on its way.
            Ok(state) => match &bad {
                Some((before, since)) if *before == state && since.elapsed() >= SETTLING => {
                    Seen::Settled(state.to_string())
                }
                Some((before, _)) if *before == state => Seen::Pending(state.to_string()),
                _ => {
                    let got = state.to_string();
                    bad = Some((state, Instant::now()));
                    Seen::Pending(got)
                }
            },
            Err(error) => Seen::Pending(format!("{error:#}")),
        };
        checks.iter().map(|check| (*check, seen.clone())).collect()
    });
}
