//! Folders held open, for those who look at a hundred thousand files: one name at a time below a descriptor, so that
//! no path is resolved again and no link is followed.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use nix::NixPath;
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::Root;

/// A directory, open.
pub struct Folder {
    dir: Dir,
    shown: String,
}

/// What is behind a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Folder,
    /// A link, a device, a socket or a pipe.
    Other,
}

/// One thing in a folder, as it was a moment ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub kind: Kind,
    /// What it takes on disk, as `du` counts: without what is in it.
    pub bytes: u64,
    /// The length of its contents.
    pub size: u64,
    /// Seconds since 1970; 0 for what is before.
    pub modified: u64,
}

impl Stat {
    fn of(stat: &FileStat) -> Self {
        let kind = match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => Kind::File,
            SFlag::S_IFDIR => Kind::Folder,
            _ => Kind::Other,
        };
        Self {
            kind,
            bytes: u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: u64::try_from(stat.st_mtime).unwrap_or(0),
        }
    }
}

/// Bytes of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Tells file systems apart.
    pub device: u64,
    pub size: u64,
    pub used: u64,
    /// To a process that is not root's.
    pub available: u64,
}

/// Gone meanwhile, or not what it should be: as good as not there.
fn there<T>(result: nix::Result<T>) -> nix::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno),
    }
}

impl Root {
    /// Opens a directory; `None` where there is none.
    ///
    /// # Errors
    /// On anything but absence.
    pub fn folder(&self, path: &str) -> Result<Option<Folder>> {
        let shown = self.show(path);
        let opened = there(self.resolve(path, OFlag::O_DIRECTORY | OFlag::O_RDONLY));
        match opened.and_then(|fd| fd.map(Dir::from_fd).transpose()) {
            Ok(dir) => Ok(dir.map(|dir| Folder { dir, shown })),
            Err(errno) => Err(errno).with_context(|| format!("open {shown}")),
        }
    }

    /// The nearest folder to `path` that is there, where its file system can only be read.
    ///
    /// # Errors
    /// When the file system does not say.
    pub fn read_only(&self, path: &str) -> Result<Option<String>> {
        let context = || format!("ask whether {} can be written to", self.show(path));
        let mut path = path;
        let fd = loop {
            match self.resolve(path, OFlag::O_PATH) {
                Err(Errno::ENOENT | Errno::ENOTDIR) if !path.is_empty() => path = super::folder_of(path),
                result => break result.with_context(context)?,
            }
        };
        let flags = fstatvfs(&fd).with_context(context)?.flags();
        Ok(flags.contains(FsFlags::ST_RDONLY).then(|| path.to_owned()))
    }

    /// The number of a folder, by which the kernel lists who locks it.
    #[must_use]
    pub fn inode(&self, folder: &str) -> Option<u64> {
        Some(fstat(self.resolve(folder, OFlag::O_PATH).ok()?).ok()?.st_ino)
    }

    /// When what is at `path` last changed in any way, a link itself, in seconds since 1970. What is gone went when
    /// a name in the nearest folder that is there last changed, or before.
    ///
    /// # Errors
    /// On anything but absence.
    pub fn last_change(&self, path: &str) -> Result<Option<u64>> {
        let context = || format!("look at {}", self.show(path));
        if let Some((parent, name)) = self.parent(path)?
            && let Some(stat) =
                there(fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)).with_context(context)?
        {
            return Ok(u64::try_from(stat.st_ctime).ok());
        }
        let mut folder = super::folder_of(path);
        loop {
            match self.resolve(folder, OFlag::O_PATH) {
                Ok(fd) => return Ok(u64::try_from(fstat(&fd).with_context(context)?.st_mtime).ok()),
                Err(Errno::ENOENT | Errno::ENOTDIR) if !folder.is_empty() => {
                    folder = super::folder_of(folder);
                }
                Err(errno) => return Err(errno).with_context(context),
            }
        }
    }

    /// How much room there is where `path`, or the nearest folder above it, is.
    ///
    /// # Errors
    /// When the file system does not say.
    pub fn space(&self, path: &str) -> Result<Space> {
        let context = || format!("ask for the room in {}", self.show(path));
        let mut path = path;
        let fd = loop {
            match self.resolve(path, OFlag::O_PATH) {
                Err(Errno::ENOENT | Errno::ENOTDIR) if !path.is_empty() => path = super::folder_of(path),
                result => break result.with_context(context)?,
            }
        };
        let stat = fstatvfs(&fd).with_context(context)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
        Ok(Space {
            device: fstat(&fd).with_context(context)?.st_dev,
            size: bytes(stat.blocks()),
            used: bytes(stat.blocks().saturating_sub(stat.blocks_free())),
            available: bytes(stat.blocks_available()),
        })
    }
}

impl Folder {
    /// The path, for a message.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Each name, in no order, and whether it is a folder's.
    ///
    /// # Errors
    /// On I/O errors.
    pub fn names(&mut self) -> Result<Vec<(CString, bool)>> {
        let mut names = Vec::new();
        let mut untold = Vec::new();
        for entry in self.dir.iter() {
            let entry = entry.with_context(|| format!("list {}", self.shown))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if entry.file_type().is_none() {
                untold.push(names.len());
            }
            names.push((name.to_owned(), entry.file_type() == Some(Type::Directory)));
        }
        // Some file systems do not say it in passing.
        for at in untold {
            if let Some((name, is_folder)) = names.get_mut(at) {
                *is_folder = self.stat(name.as_c_str())?.is_some_and(|stat| stat.kind == Kind::Folder);
            }
        }
        Ok(names)
    }

    /// What is behind `path`, that of a link being the link itself.
    ///
    /// # Errors
    /// On anything but absence.
    pub fn stat<P: ?Sized + NixPath>(&self, path: &P) -> Result<Option<Stat>> {
        let stat = there(fstatat(&self.dir, path, AtFlags::AT_SYMLINK_NOFOLLOW));
        Ok(stat.with_context(|| self.at("look at", path))?.as_ref().map(Stat::of))
    }

    /// What the folder itself takes.
    ///
    /// # Errors
    /// On I/O errors.
    pub fn own(&self) -> Result<Stat> {
        let stat = fstat(&self.dir).with_context(|| format!("look at {}", self.shown))?;
        Ok(Stat::of(&stat))
    }

    /// Opens a folder in this one; `None` where there is none, or a link.
    ///
    /// # Errors
    /// On anything but absence.
    pub fn open(&self, name: &CStr) -> Result<Option<Self>> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = there(openat(&self.dir, name, flags, Mode::empty()));
        let dir =
            opened.and_then(|fd| fd.map(Dir::from_fd).transpose()).with_context(|| self.at("open", name))?;
        Ok(dir.map(|dir| Self { dir, shown: format!("{}/{}", self.shown, name.to_string_lossy()) }))
    }

    /// The contents of a regular file; `None` where there is none, and where it is longer than `most`.
    ///
    /// # Errors
    /// On anything but absence.
    pub fn read<P: ?Sized + NixPath>(&self, path: &P, most: u64) -> Result<Option<Vec<u8>>> {
        let context = || self.at("read", path);
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let Some(fd) = there(openat(&self.dir, path, flags, Mode::empty())).with_context(context)? else {
            return Ok(None);
        };
        read_at_most(fd, most).with_context(context)
    }

    fn at<P: ?Sized + NixPath>(&self, verb: &str, path: &P) -> String {
        let name = path.with_nix_path(|path| path.to_string_lossy().into_owned());
        format!("{verb} {}/{}", self.shown, name.unwrap_or_default())
    }
}

fn read_at_most(fd: OwnedFd, most: u64) -> Result<Option<Vec<u8>>> {
    let stat = Stat::of(&fstat(&fd)?);
    if stat.kind != Kind::File || stat.size > most {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(stat.size).unwrap_or(0).saturating_add(1));
    File::from(fd).take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}
