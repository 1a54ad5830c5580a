//! Larder turns a plain Linux machine into a working part of a registry-mirror fleet, from one YAML file.
//!
//! ```text
//! YAML ─▶ profile ─▶ node ─┐
//!                          ├─▶ plan ─▶ diff ─▶ apply [journal · root · host] ─▶ verify ─▶ report
//! this machine ─▶ facts ───┘
//! ```
//!
//! Desired state is a value, and everything up to that value is pure. The modules below stand in the
//! pipeline's order.

// No input ends a run of ours by a panic: Cargo.toml denies the rest of what could.
#![cfg_attr(
    not(test),
    deny(clippy::string_slice, clippy::unreachable, clippy::get_unwrap, clippy::unchecked_time_subtraction)
)]

pub mod cli;
pub mod log;

pub mod profile;
pub mod node;
pub mod facts;
pub mod containerd;
pub mod plan;
pub mod template;
pub mod diff;
pub mod drift;
pub mod wake;
pub mod apply;
pub mod guard;
pub mod journal;
pub mod recover;
pub mod account;
pub mod remove;
pub mod root;
#[expect(clippy::disallowed_methods, reason = "this is where programs are run and the machine is asked")]
pub mod host;
pub mod verify;
pub mod caches;
pub mod certificate;
pub mod watch;
pub mod store;
pub mod renew;
pub mod status;

pub mod instance;

#[doc(hidden)]
pub mod fuzz;
