//! What only the registries' stores need: when a file was last used, and moves within a store.

use std::fs::File;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, futimens};
use nix::sys::time::TimeSpec;

use super::Root;

impl Root {
    /// What the file system knows of a regular file; `None` where there is none.
    ///
    /// # Errors
    /// On anything but absence.
    pub fn file_stat(&self, path: &str) -> Result<Option<FileStat>> {
        Ok(self.regular(path, OFlag::O_PATH)?.map(|(_, stat)| stat))
    }

    /// A regular file for reading that leaves no trace in its access time; no link is followed at its end.
    ///
    /// # Errors
    /// On anything but absence.
    pub fn open_unseen(&self, path: &str) -> Result<Option<(File, FileStat)>> {
        let opened = match self.regular(path, OFlag::O_RDONLY | OFlag::O_NOATIME) {
            // Only its owner may ask for that.
            Err(error) if error.downcast_ref::<Errno>() == Some(&Errno::EPERM) => {
                self.regular(path, OFlag::O_RDONLY)?
            }
            other => other?,
        };
        Ok(opened.map(|(fd, stat)| (File::from(fd), stat)))
    }

    /// A regular file for reading and writing in place.
    ///
    /// # Errors
    /// On anything but absence.
    pub fn open_in_place(&self, path: &str) -> Result<Option<(File, FileStat)>> {
        Ok(self.regular(path, OFlag::O_RDWR)?.map(|(fd, stat)| (File::from(fd), stat)))
    }

    /// Moves a file's modification time on to `seconds` since 1970, never back; its access time stays.
    ///
    /// # Errors
    /// On anything but absence.
    pub fn touch(&self, path: &str, seconds: u64) -> Result<()> {
        let Some((fd, stat)) = self.regular(path, OFlag::O_RDONLY | OFlag::O_NOATIME)? else { return Ok(()) };
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        if stat.st_mtime >= seconds {
            return Ok(());
        }
        futimens(&fd, &TimeSpec::UTIME_OMIT, &TimeSpec::new(seconds, 0))
            .with_context(|| format!("set the time of {}", self.show(path)))
    }

    /// Moves a file or folder to where nothing is, on the same file system; `false` where there is none.
    ///
    /// # Errors
    /// On anything but absence.
    pub fn move_away(&self, from: &str, to: &str) -> Result<bool> {
        let context = || format!("move {} to {}", self.show(from), self.show(to));
        let Some((old, old_name)) = self.parent(from)? else { return Ok(false) };
        let (new, new_name) = self.parent_for_writing(to)?;
        match renameat(&old, old_name, &new, new_name) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno).with_context(context),
        }
    }

    fn regular(&self, path: &str, flags: OFlag) -> Result<Option<(OwnedFd, FileStat)>> {
        let context = || format!("open {}", self.show(path));
        let Some((parent, name)) = self.parent(path)? else { return Ok(None) };
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = match openat(&parent, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO | Errno::EISDIR) => {
                return Ok(None);
            }
            Err(errno) => return Err(errno).with_context(context),
        };
        let stat = fstat(&fd).with_context(context)?;
        let regular = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits();
        Ok(regular.then_some((fd, stat)))
    }
}
