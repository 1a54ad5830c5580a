//! The registries' user: made by systemd-sysusers, and taken away with `larder remove --purge` if it was we who had it
//! made.

use std::collections::BTreeMap;
use std::fs::File;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use serde::{Deserialize, Serialize};

use crate::facts::USER;
use crate::host::{Done, Host};
use crate::journal::{Manifest, digest};
use crate::root::{Entry, Root};

/// The files that systemd-sysusers writes, by our names for how they were.
const FILES: [&str; 9] = [
    "etc/passwd",
    "etc/group",
    "etc/shadow",
    "etc/gshadow",
    "etc/passwd-",
    "etc/group-",
    "etc/shadow-",
    "etc/gshadow-",
    "etc/.pwd.lock",
];
/// How long another program may hold the account files (lckpwdf(3) waits as long).
const LOCK_LIMIT: Duration = Duration::from_secs(15);
const LOCK_POLL: Duration = Duration::from_millis(50);

/// What making the user did to the account files. No copy of them: they hold what others have to keep secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    files: BTreeMap<String, Change>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    /// Nothing: it was not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<Was>,
    /// What it was directly after; nothing: nobody has looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wrote: Option<String>,
}

/// A file as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Was {
    digest: String,
    /// Seconds and nanoseconds since 1970.
    modified: (i64, i64),
}

/// Has the user made, and notes in the manifest that it is ours.
///
/// # Errors
/// When that fails; the manifest says nothing of it then.
pub fn make(root: &Root, host: &dyn Host, manifest: &mut Manifest) -> Result<Done> {
    manifest.account = Some(Account::before(root)?);
    manifest.write(root)?;
    let made = host.make_user(root, USER);
    let account = match &made {
        Ok(Done::Now) => manifest.account.take().map(|account| account.after(root)).transpose()?,
        _ => None,
    };
    manifest.account = account;
    manifest.write(root)?;
    made
}

impl Account {
    fn before(root: &Root) -> Result<Self> {
        let mut files = BTreeMap::new();
        for path in FILES {
            let before = match (root.entry(path)?, root.file_stat(path)?) {
                (Entry::File { bytes, .. }, Some(stat)) => {
                    Some(Was { digest: digest(&bytes), modified: (stat.st_mtime, stat.st_mtime_nsec) })
                }
                _ => None,
            };
            files.insert(path.to_owned(), Change { before, wrote: None });
        }
        Ok(Self { files })
    }

    fn after(mut self, root: &Root) -> Result<Self> {
        for (path, change) in &mut self.files {
            change.wrote = now(root, path)?.map(|bytes| digest(&bytes));
        }
        Ok(self)
    }

    /// Whether a file that was not there before is just what systemd-sysusers makes.
    fn is_new(&self, path: &str, change: &Change, bytes: &[u8]) -> bool {
        let copy_of = path.strip_suffix('-').and_then(|path| self.files.get(path));
        match (&change.wrote, copy_of) {
            (Some(wrote), _) => *wrote == digest(bytes),
            // The run that made the user died before it looked.
            (None, Some(Change { before: Some(was), .. })) => was.digest == digest(bytes),
            (None, _) => without(bytes).is_empty(),
        }
    }

    /// Takes the user away. Files that nobody has changed since become what they were, to the byte; of others only its
    /// lines go.
    ///
    /// # Errors
    /// On I/O errors, and when userdel(8) refuses. Again: what is done is done.
    pub fn remove(&self, root: &Root, host: &dyn Host) -> Result<()> {
        let mut changed_since = false;
        for (path, change) in &self.files {
            let bytes = now(root, path)?;
            changed_since |= is_account_file(path)
                && bytes.is_some_and(|bytes| change.wrote.as_ref() != Some(&digest(&bytes)));
        }
        // With what else the machine does when a user goes, where it has the means.
        if changed_since {
            host.remove_user(USER)?;
        }
        let _lock = lock(root)?;
        // One that was killed here may have left half a file.
        root.sweep("etc")?;
        for (path, change) in &self.files {
            let Entry::File { bytes, access } = root.entry(path)? else { continue };
            if change.before.is_none() && self.is_new(path, change, &bytes) {
                root.remove(path)?;
                root.sync_folder(path)?;
            } else if is_account_file(path) {
                let without = without(&bytes);
                if without != bytes {
                    root.write(path, &without, access)?;
                }
                if let Some(was) = change.before.as_ref().filter(|was| was.digest == digest(&without)) {
                    root.set_modified(path, was.modified)?;
                }
            }
        }
        Ok(())
    }
}

fn now(root: &Root, path: &str) -> Result<Option<Vec<u8>>> {
    Ok(match root.entry(path)? {
        Entry::File { bytes, .. } => Some(bytes),
        _ => None,
    })
}

/// Not a copy of one, nor the lock.
fn is_account_file(path: &str) -> bool {
    !path.ends_with('-') && !path.ends_with(LOCK)
}

const LOCK: &str = ".pwd.lock";

/// What lckpwdf(3) does.
fn lock(root: &Root) -> Result<File> {
    let context = "lock the account files";
    let file = root.append(&format!("etc/{LOCK}"), 0o600).context(context)?;
    let whole = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as _,
        l_whence: nix::libc::SEEK_SET as _,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole)) {
            Ok(_) => return Ok(file),
            Err(Errno::EAGAIN | Errno::EACCES | Errno::EINTR) if Instant::now() < deadline => {
                sleep(LOCK_POLL)
            }
            Err(errno) => return Err(errno).context(context),
        }
    }
}

/// Account files are lines of fields, the first of which is the name (passwd(5), group(5), shadow(5)).
fn without(bytes: &[u8]) -> Vec<u8> {
    let ours = |line: &&[u8]| line.strip_prefix(USER.as_bytes()).is_some_and(|rest| rest.starts_with(b":"));
    bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| !ours(line)).flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lines_of_the_user_itself_go() {
        let text = "root:x:0:0\nlarder:x:999:999\nlarders:x:1:1\nx:larder:1\n";
        assert_eq!(without(text.as_bytes()), b"root:x:0:0\nlarders:x:1:1\nx:larder:1\n");
    }
}
