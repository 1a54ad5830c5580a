//! What the registries of this node have cached: how much it is, what of it is used, and what goes when it is too
//! much.
//!
//! [`layout`] knows the paths, [`scan`] reads a store whole, [`evict`] decides, [`remove`] does it.
//!
//! All of it runs as the registries' own user while they serve. Distribution takes nothing amiss that is missing: it
//! fetches it again, as long as no descriptor cache is configured.

use anyhow::Result;
use nix::unistd::{getegid, geteuid};

pub mod accesslog;
pub mod budget;
pub mod evict;
pub mod layout;
pub mod refresh;
pub mod remove;
pub mod scan;
pub mod scrub;
pub mod size;
pub mod tend;
pub mod usage;
pub mod walk;

pub use layout::{Digest, Layout};

use crate::root::{Access, Lock, Owner, Root};

/// Files of a store belong to whom this process runs as: the registries' user.
#[must_use]
pub fn own_access(mode: u32) -> Access {
    let owner = Owner::Id { uid: geteuid().as_raw(), gid: getegid().as_raw() };
    Access { mode, owner }
}

/// Makes a store's folder of our own, where it is missing.
///
/// # Errors
/// On I/O errors, a full disk among them.
pub fn prepare_own(root: &Root, layout: &Layout) -> Result<()> {
    root.make_directories(&layout.trash(), own_access(0o750))
}

/// Whoever removes something from a store holds this, waiting as long as `patience` says so. It is the kernel's lock
/// of the folder `.larder`: it ends with the process.
///
/// # Errors
/// When the folder cannot be made, or patience ran out.
pub fn lock(root: &Root, layout: &Layout, patience: impl FnMut() -> bool) -> Result<Lock> {
    prepare_own(root, layout)?;
    root.lock(&layout.own(), patience)
}
