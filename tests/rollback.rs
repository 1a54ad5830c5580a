//! A fault on the way puts everything back. The host here is a fake, to fail on demand.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod support;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Result, bail};
use larder::apply::{Failed, apply};
use larder::diff::diff;
use larder::facts::{Link, NetworkState};
use larder::host::state::CriState;
use larder::host::{Done, Host, Runtime, Wanted};
use larder::journal::Manifest;
use larder::node::Network;
use larder::plan::{Content, Plan, Purpose, Resource, User};
use larder::recover;
use larder::root::Root;
use larder::wake::Wakes;
use support::{Machine, differences};

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Ask,
    TryConfig,
    Stop,
    Wake,
}

/// Fails once at `fault`, after doing what `meanwhile` does to the machine.
struct Broken<'m> {
    fault: Fault,
    meanwhile: &'m dyn Fn(),
    calls: RefCell<Vec<String>>,
    failed: RefCell<bool>,
    /// containerd does not come back with its old configuration either.
    worse: bool,
    /// containerd runs without what its configuration says.
    stale: bool,
    /// Told to end when it looks for the so-manieth time.
    told_to_end: Cell<Option<usize>>,
}

impl Broken<'_> {
    /// Fails once at `fault`, and that is all.
    fn at(fault: Fault) -> Self {
        Self {
            fault,
            meanwhile: &|| (),
            calls: RefCell::default(),
            failed: RefCell::default(),
            worse: false,
            stale: false,
            told_to_end: Cell::new(None),
        }
    }

    fn step(&self, step: Fault, call: String) -> Result<()> {
        self.calls.borrow_mut().push(call);
        if step == self.fault && !self.failed.replace(true) {
            (self.meanwhile)();
            bail!("broken on purpose");
        }
        Ok(())
    }
}

impl Host for Broken<'_> {
    fn network(&self, _: &Root, _: &Network, _: Option<&Link>) -> Result<NetworkState> {
        Ok(NetworkState::default())
    }
    fn make_user(&self, _: &Root, _: &str) -> Result<Done> {
        Ok(Done::Now)
    }
    fn try_containerd_config(&self, root: &Root, path: &str) -> Result<()> {
        assert!(root.read(path)?.is_some(), "the trial file is there");
        self.step(Fault::TryConfig, "try".to_owned())
    }
    fn bad_calendars(&self, _: &BTreeSet<String>) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
    fn port_holders(&self, _: &BTreeSet<u16>) -> Result<Vec<(u16, String)>> {
        Ok(Vec::new())
    }
    fn stop(&self, wakes: &Wakes) -> Result<BTreeSet<String>> {
        self.step(Fault::Stop, format!("stop {:?}", wakes.stop))?;
        Ok(wakes.stop.clone())
    }
    fn is_stale(&self, _: &Root, files: &BTreeSet<&str>, certs_dir: &str) -> Result<bool> {
        assert!(files.contains("etc/containerd/config.toml"));
        assert_eq!(certs_dir, "/certs.d");
        Ok(self.stale)
    }
    fn runtime(&self) -> Result<Option<Runtime>> {
        self.step(Fault::Ask, "ask containerd".to_owned())?;
        Ok(Some(Runtime { cri: CriState::Ok, config_path: Some("/old".to_owned()) }))
    }
    fn wake(&self, _: &Root, wakes: &Wakes, wanted: &Wanted, begun: &mut Wakes) -> Result<Vec<String>> {
        begun.clone_from(wakes);
        let containerd = match &wanted.runtime {
            Some(was) if wakes.containerd => format!("pulls {:?}, was {was}", wanted.pulls),
            _ => wakes.containerd.to_string(),
        };
        self.step(Fault::Wake, format!("start {:?}, containerd {containerd}", wakes.start))?;
        if self.worse && self.failed.borrow().to_owned() {
            bail!("it is not as well as it was");
        }
        Ok(vec!["a warning".to_owned()])
    }
    fn interrupted(&self) -> Option<String> {
        let left = self.told_to_end.get()?;
        self.told_to_end.set(Some(left.saturating_sub(1)));
        (left == 0).then(|| "SIGTERM".to_owned())
    }
    fn in_place(&self) {}
    fn start_resting(&self, _: &BTreeSet<String>) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

const ENABLED: &str = "etc/systemd/system/multi-user.target.wants/larder-registry@new.io.service";

/// One of everything: a new folder with a file, a changed file, an edit, a link over a stranger's file.
fn plan() -> Plan {
    let file = |text: &str, content| Resource::File { bytes: text.into(), mode: 0o644, content };
    let folder = Resource::Directory { mode: 0o755, owner: User::Root, purpose: Purpose::Settings };
    Plan {
        resources: BTreeMap::from([
            ("etc/larder".to_owned(), folder.clone()),
            ("etc/larder/registry".to_owned(), folder.clone()),
            ("etc/larder/registry/new.io.yml".to_owned(), file("new", Content::Ours)),
            ("etc/containerd/config.toml".to_owned(), file("edited", Content::Edited)),
            ("etc/foreign".to_owned(), file("ours now", Content::Ours)),
            (
                ENABLED.to_owned(),
                Resource::Link { target: "/etc/systemd/system/larder-registry@.service".to_owned() },
            ),
        ]),
        certs_dir: Some("/certs.d".to_owned()),
        ..Plan::default()
    }
}

/// Runs into `fault` and returns the error and what was asked of the host.
fn run_into(machine: &Machine, fault: Fault, meanwhile: &dyn Fn()) -> (Failed, Vec<String>) {
    let root = Root::open(machine.root()).unwrap();
    let host = Broken { meanwhile, ..Broken::at(fault) };
    let plan = plan();
    let manifest = Manifest::read(&root).unwrap();
    let diff = diff(&plan, &root, &manifest, false).unwrap();
    let error = apply(&plan, &diff, &root, &host, manifest, None).unwrap_err();
    (error.downcast::<Failed>().unwrap(), host.calls.into_inner())
}

fn machine() -> Machine {
    let machine = Machine::debian();
    machine.write("etc/foreign", "somebody's");
    machine
}

#[test]
fn every_fault_puts_every_file_back() {
    for fault in [Fault::TryConfig, Fault::Stop, Fault::Wake] {
        let machine = machine();
        let before = machine.tree();
        let (failed, _) = run_into(&machine, fault, &|| ());
        assert_eq!(failed.not_undone, [""; 0]);
        let mut after = machine.tree();
        // The state folder's own parent stays: it holds the manifest.
        after.retain(|path, _| !matches!(path.as_str(), "var" | "var/lib" | "var/lib/larder"));
        assert_eq!(differences(&before, &after), [""; 0]);
        let said = failed.to_string();
        assert!(said.ends_with("broken on purpose; everything is back as it was"), "{said}");
    }
}

#[test]
fn a_run_that_is_told_to_end_puts_every_file_back() {
    for point in 0.. {
        let machine = machine();
        let before = machine.tree();
        let root = Root::open(machine.root()).unwrap();
        let host = Broken { failed: RefCell::new(true), ..Broken::at(Fault::Wake) };
        host.told_to_end.set(Some(point));
        let plan = plan();
        let manifest = Manifest::read(&root).unwrap();
        let diff = diff(&plan, &root, &manifest, false).unwrap();
        let Err(error) = apply(&plan, &diff, &root, &host, manifest, None) else {
            assert!(point > 4, "it looks {point} times only");
            break;
        };
        let said = error.downcast::<Failed>().unwrap().to_string();
        assert_eq!(said, "stopped by SIGTERM; everything is back as it was", "{point}");
        let mut after = machine.tree();
        after.retain(|path, _| !matches!(path.as_str(), "var" | "var/lib" | "var/lib/larder"));
        assert_eq!(differences(&before, &after), [""; 0], "{point}");
    }
}

#[test]
fn what_was_started_is_stopped_again() {
    let (_, calls) = run_into(&machine(), Fault::Wake, &|| ());
    let unit = r#"{"larder-registry@new.io.service"}"#;
    let was = r#"was ok, config_path "/old""#;
    let started = format!(r#"start {unit}, containerd pulls Read("/certs.d"), {was}"#);
    assert_eq!(
        calls,
        [
            "ask containerd".to_owned(),
            "try".to_owned(),
            "stop {}".to_owned(),
            started,
            format!("stop {unit}"),
            format!("start {{}}, containerd pulls AsBefore, {was}"),
        ]
    );
}

#[test]
fn what_was_not_woken_yet_stays_asleep() {
    // A restart for a file that was never put in place could only do harm.
    let (_, calls) = run_into(&machine(), Fault::TryConfig, &|| ());
    assert_eq!(calls, ["ask containerd", "try", "stop {}", "start {}, containerd false"]);
}

#[test]
fn a_containerd_that_cannot_be_asked_is_not_touched() {
    let machine = machine();
    let before = machine.tree();
    let root = Root::open(machine.root()).unwrap();
    let host = Broken::at(Fault::Ask);
    let plan = plan();
    let manifest = Manifest::read(&root).unwrap();
    let diff = diff(&plan, &root, &manifest, false).unwrap();
    let error = apply(&plan, &diff, &root, &host, manifest, None).unwrap_err();
    assert!(!error.is::<Failed>(), "nothing was begun: {error:#}");
    let mut after = machine.tree();
    after.retain(|path, _| !matches!(path.as_str(), "var" | "var/lib" | "var/lib/larder"));
    assert_eq!(differences(&before, &after), [""; 0]);
}

#[test]
fn a_containerd_that_is_not_asked_to_change_is_not_asked_at_all() {
    let machine = machine();
    let root = Root::open(machine.root()).unwrap();
    let host = Broken::at(Fault::Ask);
    let mut plan = plan();
    plan.resources.remove("etc/containerd/config.toml");
    let manifest = Manifest::read(&root).unwrap();
    let diff = diff(&plan, &root, &manifest, false).unwrap();
    let applied = apply(&plan, &diff, &root, &host, manifest, None).unwrap();
    assert_eq!(applied.warnings, ["a warning"]);
    assert!(!host.calls.borrow().iter().any(|call| call == "ask containerd"));
}

#[test]
fn a_containerd_that_runs_without_its_configuration_is_restarted() {
    let machine = machine();
    let root = Root::open(machine.root()).unwrap();
    let mut host = Broken { failed: RefCell::new(true), ..Broken::at(Fault::Ask) };
    let plan = plan();
    let go = |host: &Broken| {
        let manifest = Manifest::read(&root).unwrap();
        let diff = diff(&plan, &root, &manifest, false).unwrap();
        apply(&plan, &diff, &root, host, manifest, None).unwrap()
    };
    go(&host);
    host.calls.borrow_mut().clear();
    go(&host);
    assert_eq!(host.calls.borrow().as_slice(), [""; 0], "nothing changed");
    host.stale = true;
    let applied = go(&host);
    assert_eq!(applied.changed, 0);
    assert!(applied.warnings.iter().any(|warning| warning.contains("it was restarted")));
    let calls = host.calls.borrow().join("\n");
    assert!(calls.contains("start {}, containerd pulls Read(\"/certs.d\"), was ok"), "{calls}");
    assert!(calls.starts_with("try\n"), "{calls}");
}

#[test]
fn an_old_state_that_cannot_be_proven_is_said() {
    let machine = machine();
    let root = Root::open(machine.root()).unwrap();
    let host = Broken { worse: true, ..Broken::at(Fault::Wake) };
    let plan = plan();
    let manifest = Manifest::read(&root).unwrap();
    let diff = diff(&plan, &root, &manifest, false).unwrap();
    let error = apply(&plan, &diff, &root, &host, manifest, None).unwrap_err();
    let failed = error.downcast::<Failed>().unwrap();
    assert_eq!(
        failed.not_undone,
        [
            "wake units: it is not as well as it was\n      by hand: systemctl daemon-reload && systemctl restart \
          containerd.service"
        ]
    );
    assert_eq!(machine.read("etc/foreign"), "somebody's", "the files are back all the same");
}

#[test]
fn the_next_run_starts_from_the_same_manifest() {
    let machine = machine();
    run_into(&machine, Fault::Wake, &|| ());
    let manifest = Manifest::read(&Root::open(machine.root()).unwrap()).unwrap();
    let ours: Vec<_> = manifest.entries.keys().map(String::as_str).collect();
    assert_eq!(ours, ["var", "var/lib", "var/lib/larder"], "the manifest's own folders");
    assert_eq!(manifest, Manifest { entries: manifest.entries.clone(), ..Manifest::default() });
}

#[test]
fn what_cannot_be_put_back_is_named() {
    let machine = machine();
    let config = machine.path("etc/containerd/config.toml");
    let in_the_way = || {
        fs::remove_file(&config).unwrap();
        fs::create_dir_all(config.join("in the way")).unwrap();
    };
    let (failed, _) = run_into(&machine, Fault::Wake, &in_the_way);
    assert_eq!(failed.not_undone.len(), 1, "{failed}");
    assert!(failed.not_undone[0].contains("etc/containerd/config.toml: "), "{failed}");
    assert_eq!(machine.read("etc/foreign"), "somebody's", "the rest is back all the same");
    // What it says to do by hand does it, and then nothing is left.
    let (_, command) = failed.not_undone[0].split_once("by hand: ").unwrap();
    let done = std::process::Command::new("sh").args(["-ec", command]).status().unwrap();
    assert!(done.success(), "{command}");
    assert_eq!(machine.read("etc/containerd/config.toml"), support::DEBIAN_CONTAINERD);
    let root = Root::open(machine.root()).unwrap();
    let host = Broken { failed: RefCell::new(true), ..Broken::at(Fault::Wake) };
    let undone = recover::undo(&root, &host, &Manifest::read(&root).unwrap(), None);
    assert_eq!(undone.left, [""; 0]);
    assert_eq!(Manifest::read(&root).unwrap().journal, None);
}

#[test]
fn a_run_that_goes_on_where_one_died_and_fails_goes_back_to_before_that_one() {
    let machine = machine();
    let before = machine.tree();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        run_into(&machine, Fault::Wake, &|| panic!("killed"));
    }));
    std::panic::set_hook(hook);
    assert!(died.is_err() && machine.read("etc/foreign") == "ours now", "everything is in place");

    // Another profile by now, which changes one of the files again.
    let root = Root::open(machine.root()).unwrap();
    let host = Broken::at(Fault::Wake);
    let mut other = plan();
    let changed = Resource::File { bytes: "newer".into(), mode: 0o644, content: Content::Edited };
    other.resources.insert("etc/containerd/config.toml".to_owned(), changed);
    let manifest = Manifest::read(&root).unwrap();
    let diff = diff(&other, &root, &manifest, false).unwrap();
    let failed =
        apply(&other, &diff, &root, &host, manifest, None).unwrap_err().downcast::<Failed>().unwrap();
    assert_eq!(failed.not_undone, [""; 0]);
    let mut after = machine.tree();
    after.retain(|path, _| !matches!(path.as_str(), "var" | "var/lib" | "var/lib/larder"));
    assert_eq!(differences(&before, &after), [""; 0]);
    // What the dead one had started is stopped, and containerd reads its old configuration again.
    let calls = host.calls.borrow();
    let (stop, wake) = (&calls[calls.len() - 2], &calls[calls.len() - 1]);
    assert_eq!(stop, r#"stop {"larder-registry@new.io.service"}"#);
    assert!(wake.starts_with("start {}, containerd pulls AsBefore"), "{wake}");
    let manifest = Manifest::read(&root).unwrap();
    assert!(manifest.journal.is_none() && manifest.unfinished.is_none());
}

#[test]
fn a_failed_run_deletes_no_data() {
    let machine = machine();
    let root = Root::open(machine.root()).unwrap();
    let host = Broken { failed: RefCell::new(true), ..Broken::at(Fault::Wake) };
    let data = Resource::Directory { mode: 0o750, owner: User::Root, purpose: Purpose::Data };
    let with = Plan { resources: [("srv/old.io".to_owned(), data)].into(), ..plan() };
    fs::create_dir_all(machine.path("srv")).unwrap();
    let manifest = Manifest::read(&root).unwrap();
    apply(&with, &diff(&with, &root, &manifest, false).unwrap(), &root, &host, manifest, None).unwrap();
    machine.write("srv/old.io/blob", "cached");

    host.failed.replace(false);
    let without = Plan::default();
    let purge = |manifest: Manifest| {
        let diff = diff(&without, &root, &manifest, true).unwrap();
        apply(&without, &diff, &root, &host, manifest, None)
    };
    assert!(purge(Manifest::read(&root).unwrap()).is_err());
    assert_eq!(machine.read("srv/old.io/blob"), "cached");
    purge(Manifest::read(&root).unwrap()).unwrap();
    assert!(!machine.has("srv/old.io"));
}
