//! The one read of a profile's layers.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};

use super::Source;
use super::document::{Document, Documents};
use super::problem::Problem;
use super::tree::Place;

/// A profile for a thousand upstreams has some 100 KiB.
const MAX_BYTES: u64 = 1 << 20;
const MAX_FILES: usize = 64;

const LAYERS: [&str; 2] = ["usr/lib/larder/profile.yaml", "etc/larder/profile.yaml"];
const DROP_INS: &str = "etc/larder/profile.d";

/// Reads every layer, the lowest first. What cannot be read is a problem; what is not there is not.
pub(super) fn read(source: &Source, documents: &mut Documents, problems: &mut Vec<Problem>) {
    match source {
        Source::Text { name, text } => {
            documents.add(Document::new(name.clone(), text.clone(), None));
        }
        Source::Stdin => {
            // Past the buffer of the standard library, which is never emptied.
            let stdin = io::stdin().as_fd().try_clone_to_owned().map(File::from);
            add("<stdin>", stdin.and_then(|stdin| read_bytes(stdin, None)), documents, problems);
        }
        Source::File(path) => {
            #[expect(clippy::disallowed_methods, reason = "the profile's one read")]
            let file = File::open(path);
            let bytes = file.and_then(read_file);
            add(&path.display().to_string(), bytes, documents, problems);
        }
        Source::Layers { root } => read_layers(root, documents, problems),
    }
}

fn read_layers(root: &Path, documents: &mut Documents, problems: &mut Vec<Problem>) {
    let mut layers: Vec<PathBuf> = LAYERS.iter().map(PathBuf::from).collect();
    match drop_ins(root, problems) {
        Ok(names) => layers.extend(names),
        Err(Errno::ENOENT) => {}
        Err(e) => problems.push(unreadable(&root.join(DROP_INS).display().to_string(), e.into())),
    }
    for layer in layers {
        let name = root.join(&layer).display().to_string();
        match open(root, &layer, OFlag::O_RDONLY | OFlag::O_NONBLOCK).map(File::from) {
            Err(Errno::ENOENT) => {}
            Err(e) => problems.push(unreadable(&name, e.into())),
            // A pipe that nobody writes to reads as an empty layer.
            Ok(file) => match file.metadata() {
                Ok(metadata) if metadata.is_file() || metadata.is_dir() => {
                    add(&name, read_file(file), documents, problems);
                }
                Ok(_) => {
                    let message = format!("read {name}: not a regular file");
                    problems.push(Problem::error(None, message).help("put a file there, or take it away"));
                }
                Err(error) => problems.push(unreadable(&name, error)),
            },
        }
    }
}

/// The drop-ins in name order.
fn drop_ins(root: &Path, problems: &mut Vec<Problem>) -> Result<Vec<PathBuf>, Errno> {
    let folder = open(root, Path::new(DROP_INS), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    let mut names = Vec::new();
    for entry in Dir::from_fd(folder)?.iter() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name.starts_with(b".") {
            continue;
        }
        let path = Path::new(DROP_INS).join(OsStr::from_bytes(&name));
        if name.ends_with(b".yaml") {
            names.push(path);
        } else if name.ends_with(b".yml") {
            let message = format!("{} is not read", root.join(&path).display());
            problems.push(Problem::warning(None, message).help("give it a name that ends in `.yaml`"));
        }
    }
    names.sort();
    if names.len() > MAX_FILES {
        let message = format!("read {}: more than {MAX_FILES} files", root.join(DROP_INS).display());
        problems.push(Problem::error(None, message));
        names.truncate(MAX_FILES);
    }
    Ok(names)
}

/// Opens `path` below `root`; no symbolic link leads out of it.
fn open(root: &Path, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlag::O_CLOEXEC;
    let folder = nix::fcntl::open(root, OFlag::O_PATH | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())?;
    let how = OpenHow::new()
        .flags(flags)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(&folder, path, how) {
        // Before Linux 5.6, and in sandboxes that do not know the call. Below `/` a plain open is the same.
        Err(Errno::ENOSYS | Errno::EPERM) if root == Path::new("/") => {
            nix::fcntl::openat(AT_FDCWD, &root.join(path), flags, nix::sys::stat::Mode::empty())
        }
        result => result,
    }
}

fn read_file(file: File) -> io::Result<(Vec<u8>, Option<u32>)> {
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    // The permissions of a pipe say nothing of who can read the profile.
    read_bytes(file, metadata.is_file().then(|| metadata.mode()))
}

fn read_bytes(from: impl io::Read, mode: Option<u32>) -> io::Result<(Vec<u8>, Option<u32>)> {
    let mut bytes = Vec::new();
    from.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("it has more than {} KiB", MAX_BYTES >> 10)));
    }
    Ok((bytes, mode))
}

fn add(
    name: &str,
    bytes: io::Result<(Vec<u8>, Option<u32>)>,
    documents: &mut Documents,
    problems: &mut Vec<Problem>,
) {
    match bytes {
        Err(error) => problems.push(unreadable(name, error)),
        Ok((bytes, mode)) => match String::from_utf8(bytes) {
            Ok(text) => {
                documents.add(Document::new(name.to_owned(), text, mode));
            }
            Err(error) => {
                let at = u32::try_from(error.utf8_error().valid_up_to()).unwrap_or(u32::MAX);
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                let file = documents.add(Document::broken(name.to_owned(), text));
                problems.push(Problem::error(Place { file, start: at, end: at }, "not UTF-8"));
            }
        },
    }
}

fn unreadable(name: &str, error: io::Error) -> Problem {
    Problem::error(None, format!("read {name}: {error}"))
}
