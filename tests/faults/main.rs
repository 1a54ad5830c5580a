//! Whatever fails, and whenever it is killed: nothing is torn, what failed is put back, and the next run makes of the
//! machine what an undisturbed one would have made.
//!
//! `LARDER_FAULTS=all` tries every fault at every call; without it, so many of them as one waits for.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may"
)]

mod disk;
mod judge;
mod power;
#[path = "../support/store.rs"]
#[allow(dead_code, reason = "each test file uses its own part")]
mod store;
mod subjects;
#[path = "../support/mod.rs"]
mod support;
mod tracer;
mod tree;

use judge::{Extent, try_all};
use tracer::Fault;

fn all() -> bool {
    std::env::var("LARDER_FAULTS").as_deref() == Ok("all")
}

#[test]
fn any_call_may_fail_or_be_the_last() {
    let only = std::env::var("LARDER_FAULTS_SUBJECT").unwrap_or_default();
    let mut wrong = 0;
    let (mut total, mut calls) = (0, 0);
    for subject in subjects::all().iter().filter(|subject| subject.name.contains(&only)) {
        let extent = match subject.name {
            _ if all() => Extent::All,
            "apply, small" => Extent::Most(11),
            // A second and more for each run.
            "watch" | "scrub" => continue,
            "apply, many" => Extent::Some(97),
            _ => Extent::Some(41),
        };
        let start = std::time::Instant::now();
        let tally = try_all(subject, extent);
        print!("{}", tally.report(subject.name));
        println!("  {:.1} s", start.elapsed().as_secs_f64());
        wrong += tally.wrong.len();
        total += tally.total();
        calls += tally.calls;
    }
    let extent = if all() { "all of them" } else { "a part of them: LARDER_FAULTS=all tries all" };
    println!("{total} faults in {calls} calls: {extent}");
    assert_eq!(wrong, 0, "what is wrong is above");
}

/// With a real file system on a disk that has a cache of its own.
#[test]
fn the_power_may_go_at_any_write() {
    let only = std::env::var("LARDER_FAULTS_SUBJECT").unwrap_or_default();
    let kinds = std::env::var("LARDER_FAULTS_DISK").unwrap_or_default();
    if !power::is_possible() {
        eprintln!("SKIPPED: no power is cut: there is no /dev/fuse or no /dev/loop-control here");
        return;
    }
    power::own_mounts();
    let mut wrong = 0;
    let (mut cuts, mut writes) = (0, 0);
    for subject in subjects::all().iter().filter(|subject| subject.name.contains(&only)) {
        for (kind, size) in power::FILE_SYSTEMS.iter().filter(|(kind, _)| kind.contains(&kinds)) {
            let extent = match (subject.name, *kind) {
                // What they write is worked out again, or is a cache.
                _ if subject.keeps_on && *kind != "ext4" => continue,
                _ if all() => power::Extent { each: 1, random: 2 },
                ("apply, small", "ext4") => power::Extent { each: 5, random: 1 },
                ("apply, many", "ext4") => power::Extent { each: 60, random: 1 },
                _ => continue,
            };
            let start = std::time::Instant::now();
            let tally = power::try_cuts(subject, kind, *size, extent, Fault::None);
            println!(
                "{}, {kind}: {} writes, {} flushes, {} cuts, which left {:?}; {:.1} s",
                subject.name,
                tally.writes,
                tally.flushes,
                tally.cuts,
                tally.left,
                start.elapsed().as_secs_f64()
            );
            for (what, count) in tally.wrong.iter().take(20) {
                println!("  WRONG ({count}): {what}");
            }
            wrong += tally.wrong.len();
            cuts += tally.cuts;
            writes += tally.writes;
        }
    }
    let extent = if all() { "all of them" } else { "a part of them: LARDER_FAULTS=all tries all" };
    println!("{cuts} power cuts in {writes} writes: {extent}");
    assert_eq!(wrong, 0, "what is wrong is above");
}

/// What finds nothing must be able to.
#[test]
fn a_program_that_syncs_nothing_is_found_out() {
    if !power::is_possible() {
        eprintln!("SKIPPED: no power is cut: there is no /dev/fuse or no /dev/loop-control here");
        return;
    }
    power::own_mounts();
    let subjects = subjects::all();
    let (kind, size) = power::FILE_SYSTEMS[0];
    let extent = power::Extent { each: 8, random: 1 };
    let tally = power::try_cuts(&subjects[0], kind, size, extent, Fault::Unsynced);
    assert_ne!(tally.wrong.len(), 0, "{} cuts, and nothing was lost: {:?}", tally.cuts, tally.left);
    println!("of {} power cuts {} were found to lose something", tally.cuts, tally.wrong.len());
}
