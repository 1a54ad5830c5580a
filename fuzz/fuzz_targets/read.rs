//! One program for every target, so that it is built once: `LARDER_FUZZ` names the one. See `tests/fuzz`.
#![no_main]

use std::sync::OnceLock;

use larder::fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

fn target() -> Target {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("LARDER_FUZZ").expect("LARDER_FUZZ names a target");
        let found = TARGETS.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("no target {name}")).1
    })
}

fuzz_target!(|bytes: &[u8]| {
    if let Err(wrong) = target()(bytes) {
        panic!("{wrong}");
    }
});
