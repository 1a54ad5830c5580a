//! Parse arguments, run, return the exit code.

use std::process::ExitCode;

use clap::Parser;
use larder::cli::{self, Cli};

// musl's own gives each emptied page back to the kernel and fetches it again for the next file: 240 system
// calls, and a third of the time, of a run that changes nothing.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    ExitCode::from(cli::run(Cli::parse()))
}
