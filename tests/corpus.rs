//! What the fuzzers keep (`fuzz/corpus/`), fed to every reader without a fuzzer: no panic, no broken property, and
//! nothing that takes long.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use larder::fuzz::TARGETS;

/// Of this thread's own time, without optimisation.
const LONG: Duration = Duration::from_secs(20);

#[test]
fn every_reader_takes_what_was_once_found() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut wrong = Vec::new();
    let (mut count, mut bytes) = (0, 0);
    for (name, target) in TARGETS {
        let mut files: Vec<_> = fs::read_dir(here.join(name))
            .unwrap_or_else(|e| panic!("{name}: {e}"))
            .map(|file| file.unwrap().path())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "{name}: no corpus");
        for file in files {
            let input = fs::read(&file).unwrap();
            (count, bytes) = (count + 1, bytes + input.len());
            let started = support::own_time();
            // And cut short anywhere, as a full disk leaves it.
            for input in [&input[..], input.get(..input.len() / 2).unwrap()] {
                if let Err(why) = target(input) {
                    wrong.push(format!("{}: {why}", file.display()));
                }
            }
            let took = support::own_time() - started;
            if took > LONG {
                wrong.push(format!("{}: {took:?}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(bytes < 500 << 10, "{bytes} bytes: everybody has to fetch them");
    println!("{count} inputs, {bytes} bytes");
}
