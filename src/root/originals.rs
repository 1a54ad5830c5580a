//! Originals: what was at a path before somebody replaced it, kept whole elsewhere and given back as it was.
//!
//! Where the file system is the same that is the inode itself, by another name: its bytes, mode, owner, times, ACLs and
//! other attributes cannot get lost, and neither way copies anything. Elsewhere it is a copy with all of these.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, fstatat, futimens, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, fsync, linkat, symlinkat, unlinkat};

use super::{Root, temporary};

impl Root {
    /// Makes what is at `to` what is at `from`, a file or a link; what was at `to` is replaced, at once. Its name is
    /// not yet synced. `false`: nothing is at `from` that could be kept.
    ///
    /// # Errors
    /// On I/O errors; what was at `to` still is then.
    pub fn keep(&self, from: &str, to: &str) -> Result<bool> {
        let context = || format!("keep {} as {}", self.show(from), self.show(to));
        let Some((old, old_name)) = self.parent(from)? else { return Ok(false) };
        let Some(stat) = look(&old, old_name).with_context(context)? else { return Ok(false) };
        let link = match kind(&stat) {
            SFlag::S_IFREG => false,
            SFlag::S_IFLNK => true,
            _ => return Ok(false),
        };
        // Two names of one inode: rename(2) would do nothing, and leave the temporary one.
        if self.is_same(from, to)? {
            return Ok(true);
        }
        let (new, new_name) = self.parent_for_writing(to)?;
        let temporary = temporary();
        let made = match linkat(&old, old_name, &new, temporary.as_str(), AtFlags::empty()) {
            // Another file system, one without hard links, or a file that has all the names that it may have.
            Err(Errno::EXDEV | Errno::EPERM | Errno::EMLINK | Errno::EOPNOTSUPP) if link => {
                copy_link(&old, old_name, &stat, &new, &temporary)
            }
            Err(Errno::EXDEV | Errno::EPERM | Errno::EMLINK | Errno::EOPNOTSUPP) => {
                copy_file(&old, old_name, &stat, &new, &temporary)
            }
            made => made.map_err(io::Error::from),
        };
        made.and_then(|()| Ok(renameat(&new, temporary.as_str(), &new, new_name)?))
            .inspect_err(|_| {
                let _ = unlinkat(&new, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
            })
            .with_context(context)?;
        Ok(true)
    }

    /// Whether two paths are one file or link by two names, or one is as good a copy as [`Root::keep`] makes.
    ///
    /// # Errors
    /// On I/O errors.
    pub fn is_same(&self, one: &str, other: &str) -> Result<bool> {
        let (Some((a, a_name)), Some((b, b_name))) = (self.parent(one)?, self.parent(other)?) else {
            return Ok(false);
        };
        let context = || format!("compare {} with {}", self.show(one), self.show(other));
        let (Some(first), Some(second)) =
            (look(&a, a_name).with_context(context)?, look(&b, b_name).with_context(context)?)
        else {
            return Ok(false);
        };
        if kind(&first) != kind(&second) || kind(&first) == SFlag::S_IFDIR {
            return Ok(false);
        }
        if (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino) {
            return Ok(true);
        }
        let known = |stat: &FileStat| {
            (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_size, stat.st_mtime, stat.st_mtime_nsec)
        };
        // On one file system it would be one inode.
        if first.st_dev == second.st_dev || known(&first) != known(&second) {
            return Ok(false);
        }
        Ok(self.entry(one)? == self.entry(other)?)
    }

    /// Gives a file or folder this time of its last change, in seconds and nanoseconds since 1970.
    ///
    /// # Errors
    /// On I/O errors, absence among them.
    pub fn set_modified(&self, path: &str, (seconds, nanoseconds): (i64, i64)) -> Result<()> {
        let (parent, name) = self.parent_for_writing(path)?;
        let modified = TimeSpec::new(seconds, nanoseconds);
        utimensat(&parent, name, &TimeSpec::UTIME_OMIT, &modified, UtimensatFlags::NoFollowSymlink)
            .with_context(|| format!("set the time of {}", self.show(path)))
    }

    /// Every file and link below a folder, sorted; no link is followed.
    ///
    /// # Errors
    /// On I/O errors.
    pub fn files_below(&self, folder: &str) -> Result<Vec<String>> {
        let mut files = Vec::new();
        for name in self.list(folder)? {
            let path = format!("{folder}/{name}");
            let Some((parent, name)) = self.parent(&path)? else { continue };
            match look(&parent, name).with_context(|| format!("read {}", self.show(&path)))? {
                Some(stat) if kind(&stat) == SFlag::S_IFDIR => files.extend(self.files_below(&path)?),
                Some(_) => files.push(path),
                None => {}
            }
        }
        Ok(files)
    }

    /// Removes every folder below this one, and it itself, that holds no file.
    ///
    /// # Errors
    /// On I/O errors.
    pub fn remove_empty_tree(&self, folder: &str) -> Result<()> {
        let context = || format!("remove {}", self.show(folder));
        let Some((parent, name)) = self.parent(folder)? else { return Ok(()) };
        match look(&parent, name).with_context(context)? {
            Some(stat) if kind(&stat) == SFlag::S_IFDIR => remove_empty(&parent, name).with_context(context),
            _ => Ok(()),
        }
    }
}

fn remove_empty(parent: &OwnedFd, name: &str) -> nix::Result<()> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(parent, name, flags, Mode::empty())?;
    let mut folders: Vec<CString> = Vec::new();
    for entry in Dir::from_fd(fd.try_clone().map_err(|_| Errno::EMFILE)?)?.iter() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            folders.push(entry.file_name().to_owned());
        }
    }
    for folder in folders {
        let Ok(folder) = folder.to_str() else { continue };
        if look(&fd, folder)?.is_some_and(|stat| kind(&stat) == SFlag::S_IFDIR) {
            remove_empty(&fd, folder)?;
        }
    }
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOENT) => Ok(()),
        result => result,
    }
}

fn look(parent: &OwnedFd, name: &str) -> nix::Result<Option<FileStat>> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn times(stat: &FileStat) -> (TimeSpec, TimeSpec) {
    (TimeSpec::new(stat.st_atime, stat.st_atime_nsec), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec))
}

fn copy_file(old: &OwnedFd, name: &str, stat: &FileStat, new: &OwnedFd, temporary: &str) -> io::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut from = File::from(openat(old, name, flags, Mode::empty())?);
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut to = File::from(openat(new, temporary, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    let now = fstat(&to)?;
    if (now.st_uid, now.st_gid) != (stat.st_uid, stat.st_gid) {
        fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    }
    io::copy(&mut from, &mut to)?;
    fchmod(&to, Mode::from_bits_truncate(stat.st_mode & 0o7777))?;
    copy_attributes(&from, &to)?;
    let (accessed, modified) = times(stat);
    futimens(&to, &accessed, &modified)?;
    fsync(&to)?;
    Ok(())
}

fn copy_link(old: &OwnedFd, name: &str, stat: &FileStat, new: &OwnedFd, temporary: &str) -> io::Result<()> {
    let target = readlinkat(old, name)?;
    symlinkat(target.as_os_str(), new, temporary)?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchownat(new, temporary, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let (accessed, modified) = times(stat);
    utimensat(new, temporary, &accessed, &modified, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

/// ACLs are among them (acl(5), "OBJECT ATTRIBUTES").
fn copy_attributes(from: &File, to: &File) -> io::Result<()> {
    use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
    let mut names = vec![0_u8; 64 << 10];
    let length = match flistxattr(from, names.as_mut_slice()) {
        Err(rustix::io::Errno::NOTSUP) => return Ok(()),
        length => length?,
    };
    for name in
        names.get(..length).unwrap_or_default().split(|byte| *byte == 0).filter(|name| !name.is_empty())
    {
        let mut value = vec![0_u8; 64 << 10];
        let length = fgetxattr(from, name, value.as_mut_slice())?;
        match fsetxattr(to, name, value.get(..length).unwrap_or_default(), XattrFlags::empty()) {
            // A file system that has none of these: the bytes are more than nothing.
            Err(rustix::io::Errno::NOTSUP) => {}
            result => result?,
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may")]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use super::*;

    fn describe(path: &Path) -> (u32, u32, u32, i64, i64, Vec<u8>) {
        let meta = path.symlink_metadata().unwrap();
        let bytes = if meta.is_symlink() {
            fs::read_link(path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            fs::read(path).unwrap()
        };
        (meta.mode(), meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec(), bytes)
    }

    /// Below /dev/shm, as good as always another file system than /tmp.
    fn elsewhere() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").unwrap()
    }

    fn file(path: &Path) {
        fs::write(path, "theirs").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o2640)).unwrap();
        let file = File::options().write(true).open(path).unwrap();
        rustix::fs::fsetxattr(&file, "user.larder.test", b"x", rustix::fs::XattrFlags::empty()).unwrap();
        futimens(&file, &TimeSpec::new(11, 12), &TimeSpec::new(1_234_567, 89)).unwrap();
    }

    #[test]
    fn what_is_kept_is_the_inode_itself_and_replaces_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        file(&dir.path().join("a"));
        fs::write(dir.path().join("kept"), "an older one").unwrap();
        assert!(root.keep("a", "kept").unwrap());
        assert!(root.keep("a", "kept").unwrap(), "twice is once");
        let meta = dir.path().join("kept").metadata().unwrap();
        assert_eq!((meta.ino(), meta.nlink()), (dir.path().join("a").metadata().unwrap().ino(), 2));
        assert_eq!(root.list("").unwrap(), ["a", "kept"]);
        assert!(root.is_same("a", "kept").unwrap());
        symlink("nowhere", dir.path().join("link")).unwrap();
        assert!(root.keep("link", "kept").unwrap());
        assert_eq!(fs::read_link(dir.path().join("kept")).unwrap(), Path::new("nowhere"));
        assert!(!root.keep("none", "kept").unwrap());
        assert!(!root.is_same("a", "kept").unwrap());
    }

    #[test]
    fn a_copy_on_another_file_system_has_all_that_the_file_has() {
        let (here, there) = (tempfile::tempdir().unwrap(), elsewhere());
        file(&here.path().join("a"));
        symlink("nowhere", here.path().join("b")).unwrap();
        let open = |path: &Path| OwnedFd::from(File::open(path).unwrap());
        let (old, new) = (open(here.path()), open(there.path()));
        for (name, copy) in [("a", copy_file as fn(&_, &_, &_, &_, &_) -> _), ("b", copy_link)] {
            copy(&old, name, &look(&old, name).unwrap().unwrap(), &new, name).unwrap();
            assert_eq!(describe(&here.path().join(name)), describe(&there.path().join(name)), "{name}");
        }
        let copy = File::open(there.path().join("a")).unwrap();
        let mut value = [0_u8; 8];
        let length = rustix::fs::fgetxattr(&copy, "user.larder.test", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"x");
    }

    #[test]
    fn folders_without_a_file_go_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        fs::create_dir_all(dir.path().join("a/d")).unwrap();
        fs::write(dir.path().join("a/d/e"), "").unwrap();
        assert_eq!(root.files_below("a").unwrap(), ["a/d/e"]);
        root.remove_empty_tree("a").unwrap();
        assert_eq!(root.list("a").unwrap(), ["d"]);
        fs::remove_file(dir.path().join("a/d/e")).unwrap();
        root.remove_empty_tree("a").unwrap();
        assert_eq!(root.list("").unwrap(), [""; 0]);
    }
}
