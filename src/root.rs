//! The only file access: everything happens below one root directory, held open, that the kernel lets no
//! path leave (openat2(2), `RESOLVE_IN_ROOT`), and a file appears whole or not at all.
//!
//! Paths are relative to that root and written without a leading slash.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{
    AtFlags, FcntlArg, OFlag, OpenHow, ResolveFlag, fcntl, open, openat, openat2, readlinkat, renameat,
};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, fsync, getegid, geteuid, symlinkat, unlinkat};

mod originals;
mod stored;
mod walk;
pub use walk::{Folder, Kind, Space, Stat};

/// Nothing that Larder reads is larger: a cap against a file that never ends.
const LARGEST: u64 = 64 << 20;
/// Up to here each file is synced by itself; beyond, one syncfs(2) is cheaper than all those journal commits.
const SYNC_ONE_BY_ONE: usize = 64;
/// A store has some 140 folders in each other at most. Another user's tree could have as many as would end us: each
/// costs a descriptor and some of the stack.
const DEEPEST: usize = 256;
/// Temporary files are recognised by this after a crash.
const TEMPORARY: &str = ".larder-new.";

/// A directory tree that stands for a machine: `/`, or an unpacked image.
pub struct Root {
    dir: OwnedFd,
    shown: PathBuf,
}

/// Who owns a file. The registry's user is looked up in the tree's own `etc/passwd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    Root,
    Id { uid: u32, gid: u32 },
}

impl Owner {
    fn ids(self) -> (Uid, Gid) {
        match self {
            Self::Root => (Uid::from_raw(0), Gid::from_raw(0)),
            Self::Id { uid, gid } => (Uid::from_raw(uid), Gid::from_raw(gid)),
        }
    }
}

/// Permission bits and owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    pub mode: u32,
    pub owner: Owner,
}

impl Access {
    #[must_use]
    pub fn root(mode: u32) -> Self {
        Self { mode, owner: Owner::Root }
    }

    fn of(stat: &FileStat) -> Self {
        let owner = if stat.st_uid == 0 && stat.st_gid == 0 {
            Owner::Root
        } else {
            Owner::Id { uid: stat.st_uid, gid: stat.st_gid }
        };
        Self { mode: stat.st_mode & 0o7777, owner }
    }
}

/// What is at a path; the last component is never followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Absent,
    File {
        bytes: Vec<u8>,
        access: Access,
    },
    Link {
        target: String,
    },
    Directory {
        access: Access,
    },
    /// A device, socket or pipe.
    Other,
}

/// A new file beside its final place, complete but for its name. It holds no descriptor: a run stages more
/// files than a process may have open.
pub struct Staged<'r> {
    root: &'r Root,
    path: String,
    temporary: String,
    /// Still to be removed when dropped.
    pending: bool,
}

impl Staged<'_> {
    /// The path that the file will have.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The temporary file's path below the root, for a trial run of a program on it.
    #[must_use]
    pub fn trial_path(&self) -> String {
        match folder_of(&self.path) {
            "" => self.temporary.clone(),
            folder => format!("{folder}/{}", self.temporary),
        }
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if self.pending {
            // A leftover is swept by the next run.
            let _ = self.root.remove(&self.trial_path());
        }
    }
}

/// Held for the life of a run.
pub struct Lock {
    #[allow(dead_code, reason = "the lock is the open file")]
    held: nix::fcntl::Flock<File>,
}

impl Root {
    /// # Errors
    /// When `dir` is no directory that can be opened.
    pub fn open(dir: &Path) -> Result<Self> {
        let fd = open(dir, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .with_context(|| format!("open {}", dir.display()))?;
        Ok(Self { dir: fd, shown: dir.to_owned() })
    }

    /// A path as a message shows it: `/etc/x` on the running machine, `DIR/etc/x` in an image.
    #[must_use]
    pub fn show(&self, path: &str) -> String {
        self.shown.join(path).display().to_string()
    }

    /// The path of the tree on the running machine.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.shown
    }

    fn resolve(&self, path: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let plain = if path.is_empty() { "." } else { path };
        // EAGAIN: something was renamed underneath and the kernel could not rule out an escape.
        for _ in 0..64 {
            match openat2(&self.dir, plain, how) {
                Err(Errno::EAGAIN) => {}
                // RestrictSUIDSGID= hides openat2 from a unit, and so do kernels before 5.6. From the root of
                // all files no path leads out.
                Err(Errno::ENOSYS) if self.shown == Path::new("/") => {
                    return openat(&self.dir, plain, flags | OFlag::O_CLOEXEC, Mode::empty());
                }
                other => return other,
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Opens the directory that holds `path`; `None` where there is none.
    fn parent<'p>(&self, path: &'p str) -> Result<Option<(OwnedFd, &'p str)>> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if name.is_empty() || name == "." || name == ".." || path.starts_with('/') {
            bail!("open {path:?}: not a path below the root");
        }
        match self.resolve(parent, OFlag::O_DIRECTORY | OFlag::O_PATH) {
            Ok(fd) => Ok(Some((fd, name))),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(Errno::ENOSYS) => {
                bail!("open {}: openat2 is missing: Linux 5.6 is needed", self.show(parent))
            }
            Err(errno) => Err(errno).with_context(|| format!("open {}", self.show(parent))),
        }
    }

    fn parent_for_writing<'p>(&self, path: &'p str) -> Result<(OwnedFd, &'p str)> {
        self.parent(path)?.with_context(|| format!("write {}: its folder is missing", self.show(path)))
    }

    /// What is at `path`, with a file's whole contents.
    ///
    /// # Errors
    /// On I/O errors and on a file above 64 MiB; absence is no error.
    pub fn entry(&self, path: &str) -> Result<Entry> {
        let Some((parent, name)) = self.parent(path)? else { return Ok(Entry::Absent) };
        let context = || format!("read {}", self.show(path));
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = match openat(&parent, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(Entry::Absent),
            Err(Errno::ELOOP) => {
                let target = readlinkat(&parent, name).with_context(context)?;
                return match target.into_string() {
                    Ok(target) => Ok(Entry::Link { target }),
                    Err(_) => Ok(Entry::Other),
                };
            }
            Err(Errno::ENXIO) => return Ok(Entry::Other),
            Err(errno) => return Err(errno).with_context(context),
        };
        let stat = fstat(&fd).with_context(context)?;
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => {
                let bytes = read_all(fd, &stat).with_context(context)?;
                Ok(Entry::File { bytes, access: Access::of(&stat) })
            }
            SFlag::S_IFDIR => Ok(Entry::Directory { access: Access::of(&stat) }),
            _ => Ok(Entry::Other),
        }
    }

    /// The contents of a file, through symlinks that stay in the root; `None` where there is none.
    ///
    /// # Errors
    /// As [`Root::entry`].
    pub fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        match self.open_file(path)? {
            None => Ok(None),
            Some(file) => {
                let context = || format!("read {}", self.show(path));
                let stat = fstat(&file).with_context(context)?;
                Ok(Some(read_all(file.into(), &stat).with_context(context)?))
            }
        }
    }

    /// A regular file, open for reading, through symlinks that stay in the root.
    ///
    /// # Errors
    /// On anything but absence.
    pub fn open_file(&self, path: &str) -> Result<Option<File>> {
        match self.resolve(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
            Ok(fd) => {
                let stat = fstat(&fd).with_context(|| format!("read {}", self.show(path)))?;
                let regular = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits();
                Ok(regular.then(|| File::from(fd)))
            }
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(errno) => Err(errno).with_context(|| format!("read {}", self.show(path))),
        }
    }

    /// A regular file, open for writing at its end and made where it is missing. Neither it nor its folder may be a
    /// symlink.
    ///
    /// # Errors
    /// When the folder is missing, and on anything that is no such file.
    pub fn append(&self, path: &str, mode: u32) -> Result<File> {
        let context = || format!("write {}", self.show(path));
        let (folder, name) = path.rsplit_once('/').with_context(context)?;
        let (parent, last) = self.parent_for_writing(folder)?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let folder = openat(&parent, last, flags, Mode::empty()).with_context(context)?;
        // A pipe that nobody reads would stop us for good.
        let flags = OFlag::O_WRONLY
            | OFlag::O_APPEND
            | OFlag::O_CREAT
            | OFlag::O_NOFOLLOW
            | OFlag::O_NONBLOCK
            | OFlag::O_CLOEXEC;
        let file = openat(&folder, name, flags, Mode::from_bits_truncate(mode)).with_context(context)?;
        let stat = fstat(&file).with_context(context)?;
        if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
            bail!("{}: not a regular file", context());
        }
        fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND)).with_context(context)?;
        Ok(File::from(file))
    }

    /// Whether anything is there, through symlinks that stay in the root.
    #[must_use]
    pub fn exists(&self, path: &str) -> bool {
        self.resolve(path, OFlag::O_PATH).is_ok()
    }

    /// The names in a directory, sorted; empty where there is none.
    ///
    /// # Errors
    /// On I/O errors.
    pub fn list(&self, path: &str) -> Result<Vec<String>> {
        let context = || format!("list {}", self.show(path));
        let fd = match self.resolve(path, OFlag::O_DIRECTORY | OFlag::O_RDONLY) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno).with_context(context),
        };
        let mut names = BTreeSet::new();
        for entry in Dir::from_fd(fd).with_context(context)?.iter() {
            let entry = entry.with_context(context)?;
            if let Ok(name) = entry.file_name().to_str()
                && !matches!(name, "." | "..")
            {
                names.insert(name.to_owned());
            }
        }
        Ok(names.into_iter().collect())
    }

    /// Makes one directory whose parent is there, with exactly this mode and owner. Not yet synced.
    ///
    /// # Errors
    /// On I/O errors, also when something is there already.
    pub fn make_directory(&self, path: &str, access: Access) -> Result<()> {
        let context = || format!("make {}", self.show(path));
        let (parent, name) = self.parent_for_writing(path)?;
        let make = |name: &str, mode: Mode| {
            mkdirat(&parent, name, mode)?;
            let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            set_access(&openat(&parent, name, flags, Mode::empty())?, access)
        };
        // One that a kill leaves here is ours, as it shall be.
        if access.owner.ids() == (geteuid(), getegid()) {
            return make(name, Mode::from_bits_truncate(access.mode)).with_context(context);
        }
        // Another's would stay ours, and nobody asks again: it gets its name last, like a file.
        if self.entry(path)? != Entry::Absent {
            return Err(Errno::EEXIST).with_context(context);
        }
        let temporary = temporary();
        make(&temporary, Mode::S_IRWXU)
            .and_then(|()| renameat(&parent, temporary.as_str(), &parent, name))
            .inspect_err(|_| {
                let _ = unlinkat(&parent, temporary.as_str(), UnlinkatFlags::RemoveDir);
            })
            .with_context(context)
    }

    /// Makes every folder of `path` that is missing, durably. Another run may be doing the same.
    ///
    /// # Errors
    /// On I/O errors.
    pub fn make_directories(&self, path: &str, access: Access) -> Result<()> {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for folder in ends.filter_map(|end| path.get(..end)) {
            if self.exists(folder) {
                self.open_abandoned(folder, access)?;
                continue;
            }
            match self.make_directory(folder, access) {
                Err(error) if error.downcast_ref::<Errno>() == Some(&Errno::EEXIST) => {}
                result => result?,
            }
            self.sync_folder(folder)?;
        }
        Ok(())
    }

    /// Under a strict umask a new folder is closed at first: one that is, and empty, is left of somebody who died then.
    fn open_abandoned(&self, folder: &str, access: Access) -> Result<()> {
        match self.entry(folder)? {
            Entry::Directory { access: now }
                if now.owner.ids() == access.owner.ids()
                    && now.mode != access.mode
                    && now.mode == access.mode & 0o700
                    && self.list(folder)?.is_empty() =>
            {
                self.set_access(folder, access)
            }
            _ => Ok(()),
        }
    }

    /// Gives a file or folder that is there this mode and owner. A file is replaced, so that it has both at once; a
    /// folder is open to nobody meanwhile who may not look into it now and then.
    ///
    /// # Errors
    /// On I/O errors, and on anything else.
    pub fn set_access(&self, path: &str, access: Access) -> Result<()> {
        let context = || format!("change the mode of {}", self.show(path));
        match self.entry(path)? {
            // One that is given back keeps its time.
            Entry::File { access: now, .. } if now == access => return Ok(()),
            Entry::File { bytes, .. } => return self.write(path, &bytes, access).with_context(context),
            Entry::Directory { .. } => {}
            Entry::Absent | Entry::Link { .. } | Entry::Other => bail!("{}: it is no file", context()),
        }
        let (parent, name) = self.parent_for_writing(path)?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&parent, name, flags, Mode::empty()).with_context(context)?;
        let now = fstat(&fd).with_context(context)?.st_mode;
        fchmod(&fd, Mode::from_bits_truncate(now & access.mode)).with_context(context)?;
        set_access(&fd, access).with_context(context)?;
        fsync(&fd).with_context(context)
    }

    /// Writes a new file beside `path`: mode and owner first, then the contents. Not yet synced.
    ///
    /// # Errors
    /// On I/O errors; nothing is left then.
    pub fn stage(&self, path: &str, bytes: &[u8], access: Access) -> Result<Staged<'_>> {
        self.stage_with(path, access, |file| file.write_all(bytes))
    }

    fn stage_with(
        &self,
        path: &str,
        access: Access,
        fill: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<Staged<'_>> {
        let context = || format!("write {}", self.show(path));
        let (parent, _) = self.parent_for_writing(path)?;
        let temporary = temporary();
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&parent, temporary.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .with_context(context)?;
        let staged = Staged { root: self, path: path.to_owned(), temporary, pending: true };
        set_access(&fd, access).with_context(context)?;
        fill(&mut File::from(fd)).with_context(context)?;
        Ok(staged)
    }

    /// Makes staged contents durable, before any of them gets its name.
    ///
    /// # Errors
    /// On I/O errors, a full disk among them.
    pub fn sync(&self, staged: &[Staged]) -> Result<()> {
        if staged.len() > SYNC_ONE_BY_ONE {
            return self.sync_filesystems(&staged.iter().map(|one| folder_of(&one.path)).collect());
        }
        for one in staged {
            let context = || format!("sync {}", self.show(&one.path));
            let (parent, _) = self.parent_for_writing(&one.path)?;
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let fd = openat(&parent, one.temporary.as_str(), flags, Mode::empty()).with_context(context)?;
            fsync(&fd).with_context(context)?;
        }
        Ok(())
    }

    /// Gives a staged file its name.
    ///
    /// # Errors
    /// On I/O errors; the old file is still there then.
    pub fn commit(&self, mut staged: Staged) -> Result<()> {
        let (parent, name) = self.parent_for_writing(&staged.path)?;
        renameat(&parent, staged.temporary.as_str(), &parent, name)
            .with_context(|| format!("write {}", self.show(&staged.path)))?;
        staged.pending = false;
        Ok(())
    }

    /// Writes one file whole and durably.
    ///
    /// # Errors
    /// On I/O errors; the old file is still there then.
    pub fn write(&self, path: &str, bytes: &[u8], access: Access) -> Result<()> {
        self.write_with(path, access, |file| file.write_all(bytes))
    }

    /// The same for contents that `fill` writes piece by piece.
    ///
    /// # Errors
    /// As [`Root::write`], and what `fill` says.
    pub fn write_with(
        &self,
        path: &str,
        access: Access,
        fill: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<()> {
        let staged = self.stage_with(path, access, fill)?;
        self.sync(std::slice::from_ref(&staged))?;
        self.commit(staged)?;
        self.sync_folder(path)
    }

    /// Makes the names in the folder of `path` durable.
    ///
    /// # Errors
    /// On I/O errors.
    pub fn sync_folder(&self, path: &str) -> Result<()> {
        self.sync_folders(&BTreeSet::from([folder_of(path)]))
    }

    /// Makes folders and the names in them durable; one that is gone is no error.
    ///
    /// # Errors
    /// On I/O errors.
    pub fn sync_folders(&self, folders: &BTreeSet<&str>) -> Result<()> {
        // However many: the first brings the journal to disk, with the others' changes in it.
        for folder in folders {
            if let Some(fd) = self.folder_to_sync(folder)? {
                fsync(&fd).with_context(|| format!("sync {}", self.show(folder)))?;
            }
        }
        Ok(())
    }

    /// Syncs each file system that one of the folders is on.
    fn sync_filesystems(&self, folders: &BTreeSet<&str>) -> Result<()> {
        let mut synced = BTreeSet::new();
        for folder in folders {
            let context = || format!("sync {}", self.show(folder));
            if let Some(fd) = self.folder_to_sync(folder)?
                && synced.insert(fstat(&fd).with_context(context)?.st_dev)
            {
                nix::unistd::syncfs(&fd).with_context(context)?;
            }
        }
        Ok(())
    }

    /// An `O_PATH` descriptor can neither be synced nor listed.
    fn folder_to_sync(&self, folder: &str) -> Result<Option<OwnedFd>> {
        match self.resolve(folder, OFlag::O_DIRECTORY | OFlag::O_RDONLY) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(errno) => Err(errno).with_context(|| format!("sync {}", self.show(folder))),
        }
    }

    /// Puts a symbolic link in place of whatever file or link is at `path`.
    ///
    /// # Errors
    /// On I/O errors; what was there still is then.
    pub fn link(&self, path: &str, target: &str) -> Result<()> {
        let context = || format!("link {}", self.show(path));
        let (parent, name) = self.parent_for_writing(path)?;
        let temporary = temporary();
        symlinkat(target, &parent, temporary.as_str()).with_context(context)?;
        // Links have no mode of their own; the owner may be another in a user namespace.
        fchownat(
            &parent,
            temporary.as_str(),
            Some(Uid::from_raw(0)),
            Some(Gid::from_raw(0)),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )
        .and_then(|()| renameat(&parent, temporary.as_str(), &parent, name))
        .inspect_err(|_| {
            let _ = unlinkat(&parent, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
        })
        .with_context(context)
    }

    /// Removes a file or link; absence is no error.
    ///
    /// # Errors
    /// On I/O errors.
    pub fn remove(&self, path: &str) -> Result<()> {
        self.unlink(path, UnlinkatFlags::NoRemoveDir, &[Errno::ENOENT])
    }

    /// Removes a directory if nothing is in it.
    ///
    /// # Errors
    /// On I/O errors other than that something is in it.
    pub fn remove_empty_directory(&self, path: &str) -> Result<()> {
        self.unlink(path, UnlinkatFlags::RemoveDir, &[Errno::ENOENT, Errno::ENOTEMPTY, Errno::EEXIST])
    }

    fn unlink(&self, path: &str, flag: UnlinkatFlags, fine: &[Errno]) -> Result<()> {
        let Some((parent, name)) = self.parent(path)? else { return Ok(()) };
        match unlinkat(&parent, name, flag) {
            Err(errno) if !fine.contains(&errno) => {
                Err(errno).with_context(|| format!("remove {}", self.show(path)))
            }
            _ => Ok(()),
        }
    }

    /// Removes a directory with all that is in it, following no link.
    ///
    /// # Errors
    /// On I/O errors.
    pub fn remove_tree(&self, path: &str) -> Result<()> {
        let Some((parent, name)) = self.parent(path)? else { return Ok(()) };
        remove_below(&parent, OsString::from(name), DEEPEST)
            .with_context(|| format!("remove {}", self.show(path)))
    }

    /// Removes what an interrupted run may have left in a folder that nobody else writes to now.
    ///
    /// # Errors
    /// On I/O errors.
    pub fn sweep(&self, folder: &str) -> Result<()> {
        self.sweep_older(folder, Duration::ZERO)
    }

    /// The same in one where others may be at work: what is younger than that may be theirs.
    ///
    /// # Errors
    /// On I/O errors.
    pub fn sweep_older(&self, folder: &str, age: Duration) -> Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let before = i64::try_from(now.saturating_sub(age).as_secs()).unwrap_or(i64::MAX);
        for name in self.list(folder)? {
            if !name.starts_with(TEMPORARY) {
                continue;
            }
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            let young =
                || Ok::<_, anyhow::Error>(self.file_stat(&path)?.is_some_and(|stat| stat.st_mtime > before));
            if !age.is_zero() && young()? {
                continue;
            }
            match self.entry(&path)? {
                Entry::Directory { .. } => self.remove_empty_directory(&path)?,
                _ => self.remove(&path)?,
            }
        }
        Ok(())
    }

    /// Locks a directory against other runs, waiting as long as `patience` says so.
    ///
    /// # Errors
    /// When the directory cannot be opened, or patience ran out.
    pub fn lock(&self, folder: &str, mut patience: impl FnMut() -> bool) -> Result<Lock> {
        let context = || format!("lock {}", self.show(folder));
        let fd = self.resolve(folder, OFlag::O_DIRECTORY | OFlag::O_RDONLY).with_context(context)?;
        let mut file = File::from(fd);
        loop {
            match nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock) {
                Ok(held) => {
                    // Whoever had it may have removed the folder: a lock of what has no name keeps nobody out.
                    let now =
                        self.resolve(folder, OFlag::O_DIRECTORY | OFlag::O_RDONLY).with_context(context)?;
                    let (mine, there) =
                        (fstat(&*held).with_context(context)?, fstat(&now).with_context(context)?);
                    if (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino) {
                        return Ok(Lock { held });
                    }
                    file = File::from(now);
                }
                Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => {
                    file = back;
                    if !patience() {
                        bail!("{}: another larder is at work", context());
                    }
                }
                Err((_, errno)) => return Err(errno).with_context(context),
            }
        }
    }
}

/// Whether a path is a temporary file's.
#[must_use]
pub fn is_temporary(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.starts_with(TEMPORARY))
}

/// The folder that a path is in; empty for what is in the root itself.
#[must_use]
pub fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn set_access(fd: impl AsFd, access: Access) -> nix::Result<()> {
    let (uid, gid) = access.owner.ids();
    let stat = fstat(&fd)?;
    if (stat.st_uid, stat.st_gid) != (uid.as_raw(), gid.as_raw()) {
        fchown(&fd, Some(uid), Some(gid))?;
    }
    fchmod(&fd, Mode::from_bits_truncate(access.mode))
}

fn read_all(fd: OwnedFd, stat: &FileStat) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(stat.st_size).unwrap_or(0).saturating_add(1));
    let read = File::from(fd).take(LARGEST + 1).read_to_end(&mut bytes)?;
    if read as u64 > LARGEST {
        bail!("larger than 64 MiB");
    }
    Ok(bytes)
}

fn remove_below(parent: &OwnedFd, name: OsString, levels: usize) -> nix::Result<()> {
    match unlinkat(parent, name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(errno) => return Err(errno),
    }
    let levels = levels.checked_sub(1).ok_or(Errno::ELOOP)?;
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(parent, name.as_os_str(), flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::from_fd(fd.try_clone().map_err(|_| Errno::EMFILE)?)?.iter() {
        let entry = entry?;
        let bytes = entry.file_name().to_bytes();
        if bytes != b"." && bytes != b".." {
            names.push(<OsString as std::os::unix::ffi::OsStringExt>::from_vec(bytes.to_vec()));
        }
    }
    for child in names {
        remove_below(&fd, child, levels)?;
    }
    unlinkat(parent, name.as_os_str(), UnlinkatFlags::RemoveDir)
}

/// A name that nobody can guess: the standard library seeds its hasher from the kernel's random numbers.
fn temporary() -> String {
    format!("{TEMPORARY}{:016x}", RandomState::new().build_hasher().finish())
}
