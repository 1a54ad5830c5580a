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

mod judge;
mod subjects;
#[path = "../support/mod.rs"]
mod support;
mod tracer;
mod tree;

use judge::{Extent, try_all};

fn all() -> bool {
    std::env::var("LARDER_FAULTS").as_deref() == Ok("all")
}

#[test]
fn every_call_may_fail_or_be_the_last() {
    let only = std::env::var("LARDER_FAULTS_SUBJECT").unwrap_or_default();
    let mut wrong = 0;
    let (mut total, mut calls) = (0, 0);
    for subject in subjects::all().iter().filter(|subject| subject.name.contains(&only)) {
        let extent = match subject.name {
            _ if all() => Extent::All,
            "apply, small" => Extent::Most(11),
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
