//! How much a tree takes on disk, as `du` counts it.

use std::ffi::CStr;

use anyhow::Result;

use crate::root::{Folder, Kind};

/// Distribution's deepest path has some 140 components: a repository's name is at most 255 characters long.
pub const DEEPEST: usize = 160;

/// A tree's size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// With the folders themselves.
    pub bytes: u64,
    /// When something in it was last changed, in seconds since 1970; of files only.
    pub modified: u64,
}

/// Everything in `folder` and the folder itself.
///
/// # Errors
/// On I/O errors.
pub fn size(folder: &mut Folder) -> Result<Size> {
    let mut size = Size { bytes: folder.own()?.bytes, modified: 0 };
    below(folder, DEEPEST, &mut size)?;
    Ok(size)
}

/// What is behind one name in `folder`, with all that is in it.
///
/// # Errors
/// On I/O errors.
pub fn size_of(folder: &Folder, name: &CStr) -> Result<Size> {
    let Some(stat) = folder.stat(name)? else { return Ok(Size::default()) };
    if stat.kind == Kind::Folder
        && let Some(mut child) = folder.open(name)?
    {
        return size(&mut child);
    }
    Ok(Size { bytes: stat.bytes, modified: stat.modified })
}

fn below(folder: &mut Folder, depth: usize, size: &mut Size) -> Result<()> {
    for (name, is_folder) in folder.names()? {
        if is_folder {
            if depth > 0
                && let Some(mut child) = folder.open(&name)?
            {
                size.bytes += child.own()?.bytes;
                below(&mut child, depth - 1, size)?;
            }
        } else if let Some(stat) = folder.stat(name.as_c_str())? {
            size.bytes += stat.bytes;
            size.modified = size.modified.max(stat.modified);
        }
    }
    Ok(())
}
