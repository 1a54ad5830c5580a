//! Prints the profile's reference from its JSON Schema: `markdown` for docs/profile.md, `man` for larder-profile(5).

#![allow(clippy::indexing_slicing, reason = "a tool of the build: serde_json's and its own")]

use std::io::Write;
use std::process::ExitCode;

mod keys;
mod man;
mod markdown;

fn main() -> ExitCode {
    let schema = larder::node::schema();
    let (blocks, kinds) = (keys::blocks(&schema), keys::kinds(&schema));
    let page = match std::env::args().nth(1).as_deref() {
        Some("markdown") => markdown::page(&blocks, &kinds),
        Some("man") => man::page(&blocks, &kinds),
        _ => {
            eprintln!("usage: profile_reference markdown|man");
            return ExitCode::from(2);
        }
    };
    match std::io::stdout().write_all(page.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
