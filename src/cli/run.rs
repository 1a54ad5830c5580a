//! The commands that look at a machine, and the one that changes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{IsTerminal, stderr, stdout};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    Input, Output, code, is_refusal, machine, print, print_json, read_node, recover, refused, tell_warning,
};
use crate::apply::{Applied, apply};
use crate::containerd::config::{Effective, Planned};
use crate::diff::{Action, Diff, Summary, diff, enabled_units};
use crate::drift::{Choices, at_odds, left_alone};
use crate::facts::image::major_of;
use crate::facts::{self, CONTAINERD_CONFIG, Container, Facts, Link, Manager};
use crate::guard;
use crate::host::image::Image;
use crate::host::live::Live;
use crate::host::signals::{self, Phase};
use crate::host::{Done, Host, NetworkWanted, lock_holder};
use crate::journal::{Manifest, make_state_folder, own_folders};
use crate::node::{Node, Schedule};
use crate::plan::network::link_of;
use crate::plan::timers::timer_drop_in;
use crate::plan::{Plan, REGISTRY_FOLDER, Refused, Resource, STATE, network_only, plan};
use crate::profile::{self, Source};
use crate::root::{Access, Entry, Lock, Root, folder_of};
use crate::status::VERIFIED;
use crate::verify::{self, Report};
use crate::watch;

/// Another run's changes are over in seconds; one that waits for containerd takes a minute.
const LOCK_LIMIT: Duration = Duration::from_secs(300);
/// Registries of this node have so long to start before `larder watch` may call them dead.
const START_GRACE: Duration = Duration::from_secs(10);
/// So long nobody is told.
const LOCK_QUIET: Duration = Duration::from_millis(700);
const LOCK_POLL: Duration = Duration::from_millis(100);
const STATUS_FOLDER: &str = "run/larder";
const STATUS: &str = VERIFIED;

/// Everything that a run knows before it changes anything.
struct Prepared {
    facts: Facts,
    manifest: Manifest,
    plan: Plan,
}

fn prepare(root: &Root, host: &dyn Host, node: &Node, choices: &Choices) -> Result<Prepared> {
    let mut manifest = Manifest::read(root)?;
    let (facts, mut plan) = read_and_plan(root, host, node, &manifest)?;
    choices.note(root, &mut manifest, &plan)?;
    plan.leave_alone(left_alone(&manifest));
    Ok(Prepared { facts, manifest, plan })
}

fn read_and_plan(root: &Root, host: &dyn Host, node: &Node, manifest: &Manifest) -> Result<(Facts, Plan)> {
    let mut facts = facts::read(root, host, node, link(manifest).as_ref())?;
    as_before_us(root, manifest, &mut facts)?;
    if node.containerd.is_some()
        && let Some(original) = manifest.original(root, CONTAINERD_CONFIG)?
    {
        let original = original.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let now = std::mem::replace(&mut facts.containerd.config, original);
        if let Ok(plan) = plan(node, &facts) {
            return Ok((facts, plan));
        }
        // What was in our way then has been taken out since: that stays out.
        facts.containerd.config = now;
    }
    let plan = plan(node, &facts)?;
    Ok((facts, plan))
}

/// The link that files of ours are for.
fn link(manifest: &Manifest) -> Option<Link> {
    manifest.entries.keys().find_map(|path| link_of(path))
}

/// Ours is reconciled with what the manager's files were before us.
fn as_before_us(root: &Root, manifest: &Manifest, facts: &mut Facts) -> Result<()> {
    for file in &mut facts.network.files {
        if let Some(Some(original)) = manifest.original(root, &file.path)? {
            file.text = String::from_utf8_lossy(&original).into_owned();
        }
    }
    Ok(())
}

/// The network's files alone, on a machine whose network is not up yet: no address is asked for or waited for.
///
/// A change that was never proven, since this boot came before its proof and before the timer, is taken back first; the
/// whole run makes it anew, where it can be proven.
pub(super) fn before_network(input: &Input) -> Result<u8> {
    let (root, host) = (Root::open(Path::new("/"))?, Image::BeforeNetwork);
    if guard::restore_before_network(&root, &host)? {
        return Ok(code::CONVERGED);
    }
    let (node, _) = read_node(input)?;
    if !nix::unistd::geteuid().is_root() {
        return Err(refused("apply writes root's files: run it as root").into());
    }
    crate::log::init();
    let _lock = make_and_lock(&root)?;
    let manifest = Manifest::read(&root)?;
    let mut facts = Facts::default();
    facts.network = facts::read_network(&root, &host, &node, link(&manifest).as_ref())?;
    as_before_us(&root, &manifest, &mut facts)?;
    let mut plan = network_only(&node, &facts)?;
    plan.leave_alone(left_alone(&manifest));
    let diff = diff(&plan, &root, &manifest, false)?;
    let summary = diff.summary();
    let applied = apply(&plan, &diff, &root, &host, manifest, None)?;
    tell(input.output, summary, &applied, None);
    Ok(code::CONVERGED)
}

/// What this machine's own profile asks for, as far as that can be said without a word to anybody.
pub(super) fn planned(root: &Root) -> Result<(Manifest, Plan)> {
    let layers = Source::Layers { root: root.directory().to_owned() };
    let refused =
        |_| anyhow::anyhow!("the profile in /etc/larder is refused, or there is none: see `larder check`");
    let (node, _) = profile::load(&layers).map_err(refused)?.node().map_err(refused)?;
    let prepared = prepare(root, &Live, &node, &Choices::default())?;
    Ok((prepared.manifest, prepared.plan))
}

/// The warnings about what is to change.
fn warnings<'p>(plan: &'p Plan, diff: &Diff) -> Vec<&'p str> {
    let changes = |path: &str| diff.changes.iter().any(|change| change.path == path);
    plan.warnings.iter().filter(|(path, _)| changes(path)).map(|(_, text)| text.as_str()).collect()
}

fn warn(plan: &Plan, diff: &Diff) {
    for warning in warnings(plan, diff) {
        tell_warning(warning);
    }
}

/// What only the machine can say against a plan that changes something.
fn ask_machine(root: &Root, host: &dyn Host, node: &Node, prepared: &Prepared, diff: &Diff) -> Result<()> {
    let mut reasons = Vec::new();
    let changed: BTreeSet<&str> = diff
        .changes
        .iter()
        .filter(|change| matches!(change.action, Action::WriteFile { .. }))
        .map(|change| change.path.as_str())
        .collect();
    let mut ports = BTreeSet::new();
    let mut calendars = BTreeSet::new();
    for upstream in &node.upstreams {
        let name = upstream.host.as_str();
        if node.cache.is_some() && changed.contains(format!("{REGISTRY_FOLDER}/{name}.yml").as_str()) {
            ports.insert(upstream.port.get());
        }
        for (job, schedule) in
            [("gc", &upstream.gc), ("scrub", &upstream.scrub), ("restart", &upstream.restart)]
        {
            if let Schedule::At(calendar) | Schedule::AllAt(calendar) = schedule
                && changed.contains(timer_drop_in(&format!("larder-{job}@{name}.timer")).as_str())
            {
                calendars.insert(calendar.to_string());
            }
        }
    }
    for (port, holder) in host.port_holders(&ports)? {
        // Debian's own service is about to be masked.
        if prepared.facts.debian_registry != Some(port) || !holder.contains(facts::DEBIAN_REGISTRY) {
            reasons.push(format!(
                "port {port} is taken by {holder}: stop that, or give the upstream another port"
            ));
        }
    }
    if changed.iter().any(|path| facts::is_containerd_config(path)) {
        reasons.extend(containerd_objects(root, node, prepared)?);
    }
    let bad = host.bad_calendars(&calendars)?;
    reasons.extend(bad.into_iter().map(|reason| format!("calendar {reason}")));
    if reasons.is_empty() { Ok(()) } else { Err(Refused(reasons).into()) }
}

/// Addresses that are about to become ours, and are somebody else's: two machines with one address are both off the
/// network, now and then.
fn ask_link(host: &dyn Host, node: &Node, prepared: &Prepared, diff: &Diff) -> Result<()> {
    let Some(address) = address(node, &prepared.facts).filter(|_| changes_network(prepared, diff)) else {
        return Ok(());
    };
    let name = &address.interface;
    let reasons: Vec<String> = match host.holders(name, &address.addresses)? {
        Ok(held) => held
            .into_iter()
            .map(|(ip, who)| {
                format!(
                    "network: {ip} is taken: {who} answers for it on {name}: give this node another address, or                      free that one"
                )
            })
            .collect(),
        Err(why) => {
            tell_warning(&format!("whether somebody else has this address cannot be asked on {name}: {why}"));
            Vec::new()
        }
    };
    if reasons.is_empty() { Ok(()) } else { Err(Refused(reasons).into()) }
}

/// Whether a link will have to be brought up anew.
fn changes_network(prepared: &Prepared, diff: &Diff) -> bool {
    let unfinished = prepared.manifest.unfinished.as_ref();
    diff.changes.iter().any(|change| link_of(&change.path).is_some())
        || unfinished.is_some_and(|unfinished| !unfinished.links.is_empty())
}

/// An ssh session ends with the address that it came to, whatever takes its place: its operator should know before.
fn warn_session(host: &dyn Host, node: &Node, prepared: &Prepared) {
    let (Some(address), Some(session)) = (address(node, &prepared.facts), host.session()) else { return };
    let stays = address.addresses.iter().any(|wanted| wanted.ip() == session.ours);
    if !stays && host.carries(&address.interface, session.ours) {
        tell_warning(&format!(
            "this ssh session came to {}, which {} will not have any more: it will hang. This run goes on without it;              come back to {}",
            session.ours,
            address.interface,
            address.addresses.iter().map(|wanted| wanted.ip().to_string()).collect::<Vec<_>>().join(" or ")
        ));
    }
}

/// What this containerd would make of the planned configuration, as far as that is not what the profile wants.
fn containerd_objects(root: &Root, node: &Node, prepared: &Prepared) -> Result<Vec<String>> {
    let (Some(client), Some(version)) = (&node.containerd, prepared.facts.containerd.version) else {
        return Ok(Vec::new());
    };
    let mut files = Planned { root, files: BTreeMap::new() };
    for (path, resource) in &prepared.plan.resources {
        if let Resource::File { bytes, .. } = resource
            && facts::is_containerd_config(path)
        {
            files.files.insert(path, bytes);
        }
    }
    let effective = Effective::read(&files, version)?;
    let mut reasons: Vec<String> =
        effective.fatal.iter().chain(&effective.cri_down).map(ToString::to_string).collect();
    let config_path = &effective.config_path;
    if reasons.is_empty() && config_path.value != client.certs_dir.as_str() {
        reasons.push(format!(
            "{}: containerd {version} would take config_path {:?} from there, not {}: take it out",
            config_path.origin.as_ref().map_or("its built-in default".to_owned(), ToString::to_string),
            config_path.value,
            client.certs_dir
        ));
    }
    Ok(reasons)
}

/// What the profile wants on the interface that it means.
fn address(node: &Node, facts: &Facts) -> Option<NetworkWanted> {
    let network = node.network.as_ref()?;
    Some(NetworkWanted {
        interface: facts.network.interface.clone()?,
        backend: match facts.network.manager {
            Manager::Is(backend) => Some(backend),
            _ => None,
        },
        addresses: network.addresses.clone(),
        routes: network.routes.clone(),
    })
}

/// The same on a machine that may be new.
pub(super) fn make_and_lock(root: &Root) -> Result<Lock> {
    let mut made = make_state_folder(root)?;
    let lock = match lock(root) {
        // `larder remove` had it, and took its folder away.
        Err(_) if !root.exists(STATE) => {
            made.extend(make_state_folder(root)?);
            lock(root)?
        }
        locked => locked?,
    };
    own_folders(root, &made)?;
    Ok(lock)
}

/// Another run is at work, and does not come to its end. Whatever it has begun is its own to undo.
#[derive(Debug)]
pub(super) struct Busy(String);

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Busy {}

pub(super) fn lock(root: &Root) -> Result<Lock> {
    let deadline = Instant::now() + LOCK_LIMIT;
    let (mut told, mut is_late) = (String::new(), false);
    let lock = root.lock(STATE, || {
        // `larder watch` is through in a moment: nobody has to know.
        if Instant::now() + LOCK_LIMIT > deadline + LOCK_QUIET {
            let holder =
                root.inode(STATE).and_then(lock_holder).unwrap_or_else(|| "another larder".to_owned());
            if holder != told {
                tell_warning(&format!("waiting for {holder}"));
                told = holder;
            }
        }
        std::thread::sleep(LOCK_POLL);
        is_late = Instant::now() >= deadline;
        !is_late
    });
    match lock {
        Err(_) if is_late => Err(Busy(format!(
            "lock {}: {told} is at work since {}: wait until it is through, or end it",
            root.show(STATE),
            humantime::format_duration(LOCK_LIMIT)
        ))
        .into()),
        lock => lock,
    }
}

/// A file system that nobody can write to, found before anything is changed rather than half-way.
fn ask_disk(root: &Root, diff: &Diff) -> Result<()> {
    let mut paths: BTreeSet<&str> = diff
        .changes
        .iter()
        .filter(|change| change.action != Action::Leave)
        .map(|change| folder_of(&change.path))
        .collect();
    if !paths.is_empty() {
        paths.insert(STATE);
    }
    let mut reasons = BTreeSet::new();
    for path in paths {
        if let Some(folder) = root.read_only(path)? {
            reasons.insert(format!(
                "write {}: read-only file system: mount it writable, and run this again",
                root.show(&folder)
            ));
        }
    }
    if reasons.is_empty() { Ok(()) } else { Err(Refused(reasons.into_iter().collect()).into()) }
}

pub(super) fn plan_command(input: &Input, purge: bool, choices: &Choices) -> Result<u8> {
    let (node, _) = read_node(input)?;
    let (root, host) = machine(input)?;
    let prepared = prepare(&root, host.as_ref(), &node, choices)?;
    let diff = diff(&prepared.plan, &root, &prepared.manifest, purge)?;
    ask_machine(&root, host.as_ref(), &node, &prepared, &diff)?;
    ask_link(host.as_ref(), &node, &prepared, &diff)?;
    match input.output {
        Output::Text => {
            warn(&prepared.plan, &diff);
            let mut text = diff.to_string();
            for line in left_alone_lines(&root, &prepared.plan)? {
                text.push_str(&format!("left alone: {line}\n"));
            }
            if let Some(container) = absent_image(&prepared.facts) {
                let from = container.archive.as_deref().unwrap_or(&container.image);
                text.push_str(&format!("to be fetched by {}: {from}\n", container.runtime.name()));
            }
            for left in &prepared.plan.left {
                text.push_str(&format!("left to the first boot: {left}\n"));
            }
            print(&text)?;
        }
        Output::Json => {
            let changes: Vec<_> = diff.changes.iter().map(crate::diff::Change::row).collect();
            let value = json!({
                "version": 1,
                "changes": changes,
                "make_user": diff.make_user,
                "summary": diff.summary(),
                "warnings": warnings(&prepared.plan, &diff),
                "left": prepared.plan.left,
                "left_alone": left_alone_lines(&root, &prepared.plan)?,
                "image": absent_image(&prepared.facts).map(|container| &container.image),
            });
            print_json(&value)?;
        }
    }
    // On an image it comes with the machine's own run.
    let fetches = input.root.is_none() && absent_image(&prepared.facts).is_some();
    let nothing = diff.is_empty() && !fetches && prepared.manifest.unfinished.is_none();
    Ok(if nothing { code::CONVERGED } else { code::SOMETHING_TO_DO })
}

/// An image that is not here.
fn absent_image(facts: &Facts) -> Option<&Container> {
    facts.registry.as_ref()?.container.as_ref().filter(|container| !container.is_there)
}

/// Gets it before anything changes: a registry that is away has nothing to be undone. The note for the operator.
fn fetch_image(host: &dyn Host, facts: &Facts) -> Result<Option<String>> {
    let (Some(container), Some(registry)) = (absent_image(facts), &facts.registry) else { return Ok(None) };
    let (image, name) = (&container.image, container.runtime.name());
    if let Done::Later(reason) = host.fetch_image(container)? {
        return Ok(Some(reason));
    }
    let major = host.image(container.runtime, image).and_then(|inspected| major_of(&inspected, image));
    ensure!(
        major == Some(registry.major),
        "{image} is not the Distribution {}.x that its tag promises: write the name of one that is",
        registry.major
    );
    Ok(Some(match &container.archive {
        Some(path) => format!("{name} has loaded {path}"),
        None => format!("{name} has pulled {image}"),
    }))
}

pub(super) fn apply_command(input: &Input, purge: bool, choices: &Choices) -> Result<u8> {
    match converge(input, purge, choices) {
        // What cannot be finished is undone: a machine is as it was, or as it should be.
        Err(error) if is_refusal(&error) => {
            recover::undo_dead_run(input)?;
            Err(error)
        }
        other => other,
    }
}

fn converge(input: &Input, purge: bool, choices: &Choices) -> Result<u8> {
    if !nix::unistd::geteuid().is_root() {
        return Err(refused("apply writes root's files: run it as root").into());
    }
    let (node, _) = read_node(input)?;
    let (root, host) = machine(input)?;
    signals::hold();
    let host = host.as_ref();
    let first = !root.exists(STATE);
    // Refuses before it touches anything, the folder of the lock among it.
    if first {
        let prepared = prepare(&root, host, &node, choices)?;
        let diff = diff(&prepared.plan, &root, &prepared.manifest, purge)?;
        ask_disk(&root, &diff)?;
        ask_machine(&root, host, &node, &prepared, &diff)?;
        ask_link(host, &node, &prepared, &diff)?;
    }
    let lock = make_and_lock(&root)?;
    let prepared = prepare(&root, host, &node, choices)?;
    let diff = diff(&prepared.plan, &root, &prepared.manifest, purge)?;
    ask_disk(&root, &diff)?;
    ask_machine(&root, host, &node, &prepared, &diff)?;
    // Once is enough: it takes a second and a half.
    if !first {
        ask_link(host, &node, &prepared, &diff)?;
    }
    let address = address(&node, &prepared.facts);
    warn(&prepared.plan, &diff);
    if changes_network(&prepared, &diff) {
        warn_session(host, &node, &prepared);
        // It ends what it has begun, even if the session that it was started in ends with the old address.
        signals::outlive_session();
    }
    let summary = diff.summary();
    // Whatever comes of the rest, what the operator said holds.
    choices.write(&root, &prepared.manifest)?;
    let left_alone = left_alone_lines(&root, &prepared.plan)?;
    let fetched = fetch_image(host, &prepared.facts)?;
    signals::enter(Phase::Changes);
    let mut applied = apply(&prepared.plan, &diff, &root, host, prepared.manifest, address.as_ref())?;
    applied.left.extend(fetched);
    applied.left_alone = left_alone;
    for warning in &applied.warnings {
        tell_warning(warning);
    }
    let started = host.start_resting(&enabled_units(&prepared.plan))?;
    if !started.is_empty() {
        tracing::info!(units = started.join(" "), "started what was at rest");
    }
    if !root.exists(watch::CONFIG) {
        watch::forget(&root)?;
    }
    host.in_place();
    signals::enter(Phase::Proves);
    let report = match input.root {
        Some(_) => None,
        None => {
            // All is written. `larder watch` has to look again even if the proof takes its time.
            let _ = std::thread::Builder::new().spawn(move || {
                std::thread::sleep(START_GRACE);
                drop(lock);
            });
            Some(prove(&node, &prepared.facts, &root, address.as_ref(), false)?)
        }
    };
    if let Some(path) = input.profile.as_ref().filter(|_| report.is_some()) {
        applied.left.push(format!(
            "the profile {} is not kept: larder.service reads /etc/larder at the next boot",
            path.display()
        ));
    }
    tell(input.output, summary, &applied, report.as_ref());
    Ok(exit_code(report.as_ref()))
}

/// What the operator keeps, and what of it does not fit the profile.
fn left_alone_lines(root: &Root, plan: &Plan) -> Result<Vec<String>> {
    let line = |(path, odds): (String, Option<String>)| {
        let odds = odds.map(|odds| format!(": {odds}")).unwrap_or_default();
        format!("{}{odds}", root.show(&path))
    };
    Ok(at_odds(root, plan)?.into_iter().map(line).collect())
}

fn exit_code(report: Option<&Report>) -> u8 {
    if report.is_some_and(|report| report.down() > 0) { code::DOWN } else { code::CONVERGED }
}

fn tell(output: Output, summary: Summary, applied: &Applied, report: Option<&Report>) {
    let mut text = String::new();
    match output {
        Output::Json => {
            let value = json!({
                "version": 1,
                "changed": applied.changed,
                "summary": summary,
                "kept": applied.kept,
                "left_alone": applied.left_alone,
                "left": applied.left,
                "warnings": applied.warnings,
                "report": report,
            });
            text = format!("{value:#}\n");
        }
        Output::Text => {
            if applied.changed > 0 {
                text.push_str(&format!(
                    "{} created, {} changed, {} removed\n",
                    summary.create, summary.change, summary.remove
                ));
            } else {
                text.push_str("nothing to change\n");
            }
            for line in &applied.kept {
                text.push_str(&format!("kept aside: {line}\n"));
            }
            for line in &applied.left_alone {
                text.push_str(&format!("left alone: {line}\n"));
            }
            for line in &applied.left {
                text.push_str(&format!("note: {line}\n"));
            }
            if let Some(report) = report {
                text.push_str(&report.table(stdout().is_terminal()).to_string());
            }
        }
    }
    // What is done is done, and the exit code says so, whoever listens.
    if let Err(error) = print(&text) {
        tell_warning(&format!("{error:#}"));
    }
}

/// Runs every check and leaves the report where the next reader finds it.
fn prove(
    node: &Node,
    facts: &Facts,
    root: &Root,
    address: Option<&NetworkWanted>,
    pull: bool,
) -> Result<Report> {
    let interface = address.map(|wanted| wanted.interface.as_str());
    let known = verify::Known { passwords: &facts.passwords, trusted: &facts.trusted };
    let mut checks = verify::checks(node, interface, known);
    if pull {
        checks.extend(verify::pulls(node));
    }
    let mut progress = verify::progress(stderr().is_terminal());
    let report = verify::run(&checks, node.verify.timeout, progress.as_mut());
    report.log();
    if root.entry(STATUS_FOLDER)? == Entry::Absent {
        root.make_directory(STATUS_FOLDER, Access::root(0o755))?;
    }
    // A run that died here left no other trace.
    root.sweep(STATUS_FOLDER)?;
    let status = serde_json::to_vec_pretty(&report).context("write the status file")?;
    root.write(STATUS, &status, Access::root(0o644))?;
    Ok(report)
}

pub(super) fn verify_command(input: &Input, pull: bool) -> Result<u8> {
    let (node, _) = read_node(input)?;
    if pull && node.containerd.is_none() {
        return Err(refused("verify --pull: the profile has no `containerd`, so nothing pulls here").into());
    }
    let (root, host) = machine(input)?;
    let prepared = prepare(&root, host.as_ref(), &node, &Choices::default())?;
    let address = address(&node, &prepared.facts);
    let report = prove(&node, &prepared.facts, &root, address.as_ref(), pull)?;
    match input.output {
        Output::Text => print(&report.table(stdout().is_terminal()).to_string())?,
        Output::Json => print_json(&json!(report))?,
    };
    Ok(exit_code(Some(&report)))
}
