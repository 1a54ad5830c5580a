//! Parse arguments, run, return the exit code.

use std::process::ExitCode;

use clap::Parser;
use larder::cli::{self, Cli};
use zeroizing_alloc::ZeroAlloc;

// musl's own gives each emptied page back to the kernel and fetches it again for the next file: 240 system
// calls, and a third of the time, of a run that changes nothing.
#[cfg(target_env = "musl")]
use dlmalloc::GlobalDlmalloc as System;
#[cfg(not(target_env = "musl"))]
use std::alloc::System;

// Passwords pass through parsers, renderers and requests, whose buffers nobody can name: all memory is emptied as it is
// given back.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    larder::host::guard_process();
    ExitCode::from(cli::run(Cli::parse()))
}
