//! A change of the network that is not proven is taken back: by the run itself, by the timer when the run died, or by
//! the next run when a boot ate the timer. The host here is a fake that fails, or dies, on demand.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod support;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Result, bail};
use larder::apply::{Failed, apply};
use larder::diff::diff;
use larder::facts::{Backend, Link, NetworkState};
use larder::guard;
use larder::host::{Aim, Done, Held, Host, LinkState, NetworkWanted, Runtime, Wanted};
use larder::journal::Manifest;
use larder::node::Network;
use larder::plan::{Content, Plan, Resource};
use larder::root::Root;
use larder::wake::Wakes;
use support::Machine;

const OURS: &str = "etc/systemd/network/05-larder-eth0.network";
const CLOUD_INIT: &str = "etc/cloud/cloud.cfg.d/99-larder-network.cfg";
const REGISTRY: &str = "etc/larder/registry/a.io.yml";
const RECORD: &str = "var/lib/larder/state/network.json";

/// A machine whose manager does what its file says: the first line is the address on the link, `lease` without it.
struct Fake<'m> {
    machine: &'m Machine,
    /// What fails, and what kills the run; each once.
    fails: RefCell<Vec<&'static str>>,
    dies: Cell<Option<&'static str>>,
    calls: RefCell<Vec<String>>,
    live: RefCell<String>,
}

impl<'m> Fake<'m> {
    fn of(machine: &'m Machine) -> Self {
        Self {
            machine,
            fails: RefCell::default(),
            dies: Cell::default(),
            calls: RefCell::default(),
            live: RefCell::new("lease".to_owned()),
        }
    }

    fn file(&self) -> String {
        if self.machine.has(OURS) { self.machine.read(OURS) } else { "lease".to_owned() }
    }

    fn step(&self, step: &'static str) -> Result<()> {
        self.calls.borrow_mut().push(format!(
            "{step}: {} on disk, {} on the link",
            self.file(),
            self.live.borrow()
        ));
        if self.dies.get() == Some(step) {
            self.dies.set(None);
            panic!("killed");
        }
        let mut fails = self.fails.borrow_mut();
        if let Some(at) = fails.iter().position(|fails| *fails == step) {
            fails.remove(at);
            bail!("{step} failed on purpose");
        }
        Ok(())
    }

    fn calls(&self) -> Vec<String> {
        self.calls.take()
    }
}

fn state(text: &str) -> LinkState {
    let held = match text {
        "lease" => Held { address: "10.0.20.130/24".parse().unwrap(), dynamic: true, doubt: None },
        other => Held { address: other.parse().unwrap(), dynamic: false, doubt: None },
    };
    LinkState { addresses: vec![held], ..LinkState::default() }
}

impl Host for Fake<'_> {
    fn network(&self, _: &Root, _: &Network, _: Option<&Link>) -> Result<NetworkState> {
        Ok(NetworkState::default())
    }
    fn make_user(&self, _: &Root, _: &str) -> Result<Done> {
        Ok(Done::Now)
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
    fn stop(&self, _: &Wakes) -> Result<BTreeSet<String>> {
        self.step("stop")?;
        Ok(BTreeSet::new())
    }
    fn is_stale(&self, _: &Root, _: &BTreeSet<&str>, _: &str) -> Result<bool> {
        Ok(false)
    }
    fn runtime(&self) -> Result<Option<Runtime>> {
        Ok(None)
    }
    fn link_states(&self, links: &BTreeSet<Link>) -> Result<BTreeMap<String, LinkState>> {
        Ok(links.iter().map(|link| (link.interface.clone(), state(&self.live.borrow()))).collect())
    }
    fn arm_guard(&self) -> Result<()> {
        assert!(self.machine.has(RECORD), "the timer has what it needs");
        self.step("arm")
    }
    fn disarm_guard(&self) -> Result<()> {
        assert!(!self.machine.has(RECORD), "a timer that fires now does nothing");
        self.step("disarm")
    }
    fn release_links(&self, _: &BTreeSet<Link>) -> Result<()> {
        self.step("release")
    }
    fn wake_links(&self, links: &BTreeSet<Link>, aim: &Aim) -> Result<String> {
        assert_eq!(*links, self::links());
        let step = match aim {
            Aim::Wanted(_) => "bring up",
            Aim::Others(_) => "leave to others",
            Aim::Before(_) => "go back",
        };
        self.step(step)?;
        self.live.replace(self.file());
        self.step("prove")?;
        if let Aim::Before(before) = aim {
            assert!(state(&self.live.borrow()).covers(&before["eth0"]), "{:?}", self.live);
        }
        Ok(format!("eth0 has {}", self.live.borrow()))
    }
    fn is_proven(&self, wanted: &NetworkWanted) -> Result<bool> {
        Ok(self.step("look").is_ok() && wanted.addresses.iter().any(|a| a.to_string() == *self.live.borrow()))
    }
    fn wake(&self, _: &Root, _: &Wakes, _: &Wanted, _: &mut Wakes) -> Result<Vec<String>> {
        self.step("wake")?;
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

fn plan(address: &str) -> Plan {
    let file = |text: &str| Resource::File { bytes: text.into(), mode: 0o644, content: Content::Ours };
    Plan {
        resources: BTreeMap::from([
            (OURS.to_owned(), file(address)),
            (CLOUD_INIT.to_owned(), file("network: { config: disabled }\n")),
            (REGISTRY.to_owned(), file(address)),
        ]),
        ..Plan::default()
    }
}

fn machine() -> Machine {
    let machine = Machine::debian();
    for path in [OURS, CLOUD_INIT, REGISTRY] {
        std::fs::create_dir_all(machine.path(path).parent().unwrap()).unwrap();
    }
    machine
}

fn root(machine: &Machine) -> Root {
    Root::open(machine.root()).unwrap()
}

fn run_plan(machine: &Machine, host: &Fake, plan: &Plan, address: Option<&str>) -> Result<usize> {
    let root = root(machine);
    let manifest = Manifest::read(&root)?;
    let wanted = address.map(|address| NetworkWanted {
        interface: "eth0".to_owned(),
        backend: Some(Backend::Networkd),
        addresses: vec![address.parse().unwrap()],
        routes: Vec::new(),
    });
    let diff = diff(plan, &root, &manifest, false)?;
    apply(plan, &diff, &root, host, manifest, wanted.as_ref()).map(|applied| applied.changed)
}

fn run(machine: &Machine, host: &Fake, address: &str) -> Result<usize> {
    run_plan(machine, host, &plan(address), Some(address))
}

/// A run that is killed at `step`, without a word.
fn die(machine: &Machine, host: &Fake, address: &str, step: &'static str) {
    host.dies.set(Some(step));
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let ended = catch_unwind(AssertUnwindSafe(|| run(machine, host, address)));
    std::panic::set_hook(hook);
    assert!(ended.is_err(), "wanted the run to die at {step}: {:?}", host.calls());
    host.calls();
}

fn failed(result: Result<usize>) -> Failed {
    result.unwrap_err().downcast().unwrap()
}

const STEPS: [&str; 4] = ["arm", "release", "bring up", "prove"];

#[test]
fn the_timer_is_set_before_the_first_change_and_stopped_with_the_proof() {
    let machine = machine();
    let host = Fake::of(&machine);
    run(&machine, &host, "10.0.20.10/24").unwrap();
    assert_eq!(
        host.calls(),
        [
            "stop: lease on disk, lease on the link",
            "arm: lease on disk, lease on the link",
            "release: lease on disk, lease on the link",
            "bring up: 10.0.20.10/24 on disk, lease on the link",
            "prove: 10.0.20.10/24 on disk, 10.0.20.10/24 on the link",
            "disarm: 10.0.20.10/24 on disk, 10.0.20.10/24 on the link",
            "wake: 10.0.20.10/24 on disk, 10.0.20.10/24 on the link",
        ]
    );
    assert_eq!(run(&machine, &host, "10.0.20.10/24").unwrap(), 0);
    assert_eq!(host.calls(), [""; 0]);
}

#[test]
fn a_network_that_is_not_proven_goes_back_before_all_else() {
    for step in STEPS {
        let machine = machine();
        let host = Fake::of(&machine);
        run(&machine, &host, "10.0.20.10/24").unwrap();
        host.calls();
        host.fails.borrow_mut().push(step);
        let failed = failed(run(&machine, &host, "10.0.20.11/24"));
        assert_eq!(failed.not_undone, [""; 0], "{step}");
        assert!(failed.to_string().contains("everything is back as it was"), "{failed}");
        if step != "arm" {
            assert!(failed.to_string().ends_with(": eth0 has 10.0.20.10/24"), "{failed}");
        }
        assert_eq!(
            (host.file().as_str(), host.live.borrow().as_str()),
            ("10.0.20.10/24", "10.0.20.10/24"),
            "{step}"
        );
        assert_eq!(machine.read(REGISTRY), "10.0.20.10/24");
        assert!(!machine.has(RECORD), "{step}");
        let calls = host.calls();
        let first_back = calls.iter().position(|call| call.starts_with("go back"));
        let units = calls.iter().rposition(|call| call.starts_with("stop")).unwrap();
        assert!(first_back.is_none_or(|at| at < units), "{step}: {calls:#?}");
        // As good as before: the next run has nothing to do.
        assert_eq!(run(&machine, &host, "10.0.20.10/24").unwrap(), 0, "{step}");
    }
}

#[test]
fn what_fails_after_the_proof_takes_the_network_back_under_a_timer_again() {
    let machine = machine();
    let host = Fake::of(&machine);
    host.fails.borrow_mut().push("wake");
    let failed = failed(run(&machine, &host, "10.0.20.10/24"));
    assert_eq!(failed.not_undone, [""; 0]);
    let words: Vec<String> =
        host.calls().iter().map(|call| call.split(':').next().unwrap().to_owned()).collect();
    let wanted = "stop arm release bring_up prove disarm wake arm release go_back prove disarm stop wake";
    assert_eq!(words.join(" "), wanted.replace('_', " "));
    assert_eq!((host.file().as_str(), host.live.borrow().as_str()), ("lease", "lease"));
    assert!(!machine.has(CLOUD_INIT) && !machine.has(RECORD));
}

#[test]
fn without_a_timer_nothing_is_changed() {
    let machine = machine();
    let host = Fake::of(&machine);
    host.fails.borrow_mut().push("arm");
    run(&machine, &host, "10.0.20.10/24").unwrap_err();
    assert!(host.calls().iter().all(|call| call.ends_with(": lease on disk, lease on the link")));
    assert!(!machine.has(OURS));
}

#[test]
fn a_network_that_does_not_come_back_is_said_and_tried_again_later() {
    let machine = machine();
    let host = Fake::of(&machine);
    host.fails.borrow_mut().extend(["prove", "go back"]);
    let failed = failed(run(&machine, &host, "10.0.20.10/24"));
    assert_eq!(
        failed.not_undone,
        ["the network: go back failed on purpose\n      by hand: larder unit restore-network"]
    );
    assert!(machine.has(RECORD), "the timer has what it needs");
    assert_eq!(host.live.borrow().as_str(), "10.0.20.10/24");

    guard::restore(&root(&machine), &host).unwrap();
    assert_eq!((host.file().as_str(), host.live.borrow().as_str()), ("lease", "lease"));
    assert!(!machine.has(RECORD));
}

#[test]
fn the_timer_brings_back_the_network_of_a_run_that_died() {
    for step in STEPS {
        let machine = machine();
        let host = Fake::of(&machine);
        die(&machine, &host, "10.0.20.10/24", step);
        assert!(machine.has(RECORD), "{step}");
        guard::restore(&root(&machine), &host).unwrap();
        assert_eq!((host.file().as_str(), host.live.borrow().as_str()), ("lease", "lease"), "{step}");
        assert!(!machine.has(RECORD) && !machine.has(CLOUD_INIT), "{step}");
        let calls = host.calls();
        if step == "arm" || step == "release" {
            assert_eq!(calls.len(), 1, "nothing had changed, nothing is touched: {calls:#?}");
        }
        // What is not the network's stays, and the next run knows of it all.
        assert!(Manifest::read(&root(&machine)).unwrap().unfinished.is_some(), "{step}");
        run(&machine, &host, "10.0.20.10/24").unwrap();
        assert_eq!(host.live.borrow().as_str(), "10.0.20.10/24", "{step}");
        assert_eq!(machine.read(REGISTRY), "10.0.20.10/24");
        assert_eq!(Manifest::read(&root(&machine)).unwrap().unfinished, None, "{step}");
        host.calls();
        assert_eq!(run(&machine, &host, "10.0.20.10/24").unwrap(), 0);
        assert_eq!(host.calls(), [""; 0]);
    }
}

#[test]
fn a_timer_that_fires_late_finds_nothing_to_do() {
    let machine = machine();
    let host = Fake::of(&machine);
    run(&machine, &host, "10.0.20.10/24").unwrap();
    host.calls();
    guard::restore(&root(&machine), &host).unwrap();
    assert_eq!(host.calls(), [""; 0]);
    assert_eq!(host.file(), "10.0.20.10/24");
}

#[test]
fn after_a_boot_a_network_that_works_stays_untouched() {
    let machine = machine();
    let host = Fake::of(&machine);
    die(&machine, &host, "10.0.20.10/24", "bring up");
    // The boot: the manager has read the new file, and the timer is gone.
    host.live.replace(host.file());
    run(&machine, &host, "10.0.20.10/24").unwrap();
    let calls = host.calls();
    assert!(
        !calls.iter().any(|call| call.starts_with("bring up") || call.starts_with("go back")),
        "{calls:#?}"
    );
    assert!(!machine.has(RECORD));
    assert_eq!(host.file(), "10.0.20.10/24");
}

#[test]
fn after_a_boot_a_network_that_does_not_work_goes_back_to_what_was_proven_last() {
    let machine = machine();
    let host = Fake::of(&machine);
    run(&machine, &host, "10.0.20.10/24").unwrap();
    die(&machine, &host, "10.0.20.11/24", "bring up");
    host.live.replace(host.file());
    host.fails.borrow_mut().extend(["look", "prove"]);
    let failed = failed(run(&machine, &host, "10.0.20.11/24"));
    assert_eq!(failed.not_undone, [""; 0]);
    assert_eq!((host.file().as_str(), host.live.borrow().as_str()), ("10.0.20.10/24", "10.0.20.10/24"));
    // The same with another address by then.
    die(&machine, &host, "10.0.20.11/24", "bring up");
    host.live.replace(host.file());
    host.fails.borrow_mut().push("prove");
    run(&machine, &host, "10.0.20.12/24").unwrap_err();
    assert_eq!((host.file().as_str(), host.live.borrow().as_str()), ("10.0.20.10/24", "10.0.20.10/24"));
    assert!(!machine.has(RECORD));
}

#[test]
fn a_boot_takes_back_what_was_never_proven_before_the_network_is_up() {
    let machine = machine();
    let host = Fake::of(&machine);
    run(&machine, &host, "10.0.20.10/24").unwrap();
    die(&machine, &host, "10.0.20.11/24", "prove");
    let root = root(&machine);
    assert!(guard::restore_before_network(&root, &larder::host::image::Image::Tree).unwrap());
    assert_eq!(host.file(), "10.0.20.10/24");
    assert!(!machine.has(RECORD));
    assert!(!guard::restore_before_network(&root, &larder::host::image::Image::Tree).unwrap());
    // The whole run goes on from there.
    host.live.replace(host.file());
    run(&machine, &host, "10.0.20.11/24").unwrap();
    assert_eq!(host.live.borrow().as_str(), "10.0.20.11/24");
}

/// What larder-network.service does of a plan, before the network is up.
fn before_network(machine: &Machine, host: &Fake, address: &str) {
    let part = Plan { part: true, ..plan(address) };
    let part =
        Plan { resources: part.resources.into_iter().filter(|(path, _)| path != REGISTRY).collect(), ..part };
    run_plan(machine, host, &part, None).unwrap();
    host.live.replace(host.file());
}

#[test]
fn what_is_written_before_the_network_is_up_is_proven_by_the_next_run() {
    for works in [true, false] {
        let machine = machine();
        let host = Fake::of(&machine);
        before_network(&machine, &host, "10.0.20.10/24");
        assert!(machine.has(RECORD));
        host.calls();
        if works {
            run(&machine, &host, "10.0.20.10/24").unwrap();
            assert_eq!(host.file(), "10.0.20.10/24");
        } else {
            host.fails.borrow_mut().extend(["look", "prove"]);
            run(&machine, &host, "10.0.20.10/24").unwrap_err();
            assert_eq!(host.live.borrow().as_str(), "lease");
        }
        assert!(!machine.has(RECORD));
    }
}

#[test]
fn a_network_that_is_left_to_others_is_proven_too() {
    let machine = machine();
    let host = Fake::of(&machine);
    run(&machine, &host, "10.0.20.10/24").unwrap();
    host.calls();
    host.fails.borrow_mut().push("prove");
    let failed = failed(run_plan(&machine, &host, &Plan::default(), None));
    assert_eq!(failed.not_undone, [""; 0]);
    assert_eq!((host.file().as_str(), host.live.borrow().as_str()), ("10.0.20.10/24", "10.0.20.10/24"));
    host.calls();
    run_plan(&machine, &host, &Plan::default(), None).unwrap();
    assert!(host.calls().iter().any(|call| call.starts_with("leave to others")));
    assert_eq!(host.live.borrow().as_str(), "lease");
}
