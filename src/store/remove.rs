//! Takes parts of a store away while its registry serves: each is moved to the trash on the same file system, at once
//! and whole, and deleted there. A reader that has it open reads on.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use anyhow::Result;
use nix::errno::Errno;

use super::evict::Piece;
use super::layout::Layout;
use crate::root::Root;

/// What is about to happen: for tests, which end the process there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Move,
    Delete,
    Tidy,
}

/// Takes one piece away; one that is gone already is no error. Whoever calls this holds the store's lock.
///
/// # Errors
/// On I/O errors. Each state in between is one that the registry can serve from.
pub fn remove(root: &Root, layout: &Layout, piece: &Piece, step: &mut dyn FnMut(Step)) -> Result<()> {
    take_away(root, layout, &path(layout, piece), step).map(drop)
}

/// The same for any folder of the store; `false`: it was not there.
pub(super) fn take_away(
    root: &Root,
    layout: &Layout,
    path: &str,
    step: &mut dyn FnMut(Step),
) -> Result<bool> {
    let trash = format!("{}/{:016x}", layout.trash(), RandomState::new().build_hasher().finish());
    step(Step::Move);
    let moved = match root.move_away(path, &trash) {
        Ok(false) => return Ok(false),
        Ok(true) => trash,
        // A full disk may have no room for another name, and a part of a store may be a mount of its own.
        Err(error) if is_in_the_way(&error) => path.to_owned(),
        Err(error) => return Err(error),
    };
    step(Step::Delete);
    root.remove_tree(&moved)?;
    Ok(true)
}

fn is_in_the_way(error: &anyhow::Error) -> bool {
    let errno = error.downcast_ref::<Errno>();
    matches!(errno, Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EXDEV))
}

fn path(layout: &Layout, piece: &Piece) -> String {
    match piece {
        Piece::Tag { repository, tag } => layout.tag(repository, tag),
        Piece::Revision { repository, digest } => layout.revision(repository, digest),
        Piece::Layer { repository, digest } => layout.layer(repository, digest),
        Piece::Blob { digest } => layout.blob(digest),
        Piece::Upload { repository, name } => format!("{}/{name}", layout.uploads(repository)),
    }
}

/// Of a repository, the innermost first: where nothing is in the first four, nothing is left of it. Distribution 3's
/// collector stops at one that has manifests and no layers: those go last, together.
const FOLDERS: [&str; 7] = [
    "_manifests/revisions/sha256",
    "_layers/sha256",
    "_manifests/tags",
    "_uploads",
    "_manifests/revisions",
    "_manifests",
    "_layers",
];

/// Takes away a repository that holds nothing any more, and the folders above it that held only that.
///
/// # Errors
/// On I/O errors.
pub fn tidy(root: &Root, layout: &Layout, repository: &str, step: &mut dyn FnMut(Step)) -> Result<()> {
    let base = layout.repository(repository);
    for part in FOLDERS.iter().take(4) {
        if !root.list(&format!("{base}/{part}"))?.is_empty() {
            return Ok(());
        }
    }
    for part in FOLDERS {
        step(Step::Tidy);
        // Where something has appeared meanwhile it stays: a folder goes only when it is empty.
        root.remove_empty_directory(&format!("{base}/{part}"))?;
    }
    let mut name = repository;
    loop {
        step(Step::Tidy);
        root.remove_empty_directory(&layout.repository(name))?;
        match name.rsplit_once('/') {
            Some((above, _)) => name = above,
            None => return Ok(()),
        }
    }
}

/// Writing a file takes no longer.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Deletes what an eviction that was cut short has left in the trash, and unfinished files of whoever died.
///
/// # Errors
/// On I/O errors.
pub fn sweep(root: &Root, layout: &Layout) -> Result<()> {
    let trash = layout.trash();
    for name in root.list(&trash)? {
        root.remove_tree(&format!("{trash}/{name}"))?;
    }
    // A scrub and whoever reads the access log write there without this lock.
    root.sweep_older(&layout.own(), ABANDONED)
}
