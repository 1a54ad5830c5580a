//! One minimal bad profile per rule: `tests/cases/NN-bad-name/profile.yaml` and the whole report it must give,
//! `stderr.txt`. `UPDATE=1 cargo test --test profile_cases` writes the reports; read them before you commit.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may"
)]

use std::path::{Path, PathBuf};

use larder::profile::{self, Source};

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        // Those with a machine to go with the profile are `cases.rs`'s.
        .filter(|path| {
            path.file_name().unwrap().to_string_lossy().contains("-bad-") && !path.join("root").exists()
        })
        .collect();
    cases.sort();
    cases
}

fn report(text: &str) -> String {
    let source = Source::Text { name: "profile.yaml".to_owned(), text: text.to_owned() };
    match profile::load(&source).and_then(|loaded| loaded.node()) {
        Ok((_, warnings)) => warnings.to_string(),
        Err(problems) => problems.to_string(),
    }
}

#[test]
fn every_bad_profile_gives_its_report() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    for case in cases() {
        let text = std::fs::read_to_string(case.join("profile.yaml")).unwrap();
        let got = report(&text);
        let path = case.join("stderr.txt");
        if update {
            std::fs::write(&path, &got).unwrap();
        }
        let wanted = std::fs::read_to_string(&path).unwrap_or_default();
        if got != wanted || got.is_empty() {
            wrong.push(format!("{}\n--- wanted\n{wanted}\n--- got\n{got}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cases().len() > 50, "the cases are gone");
}
