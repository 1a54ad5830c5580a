//! A disk that writes down what it is told: every write and every flush, in their order, so that any state can be made
//! that a power cut may have left, as dm-log-writes does in kernels that have it.
//!
//! It is one file of a file system in user space (FUSE), and a loop device on that: what the real file system on the
//! device asks of it, a real disk with a volatile cache would be asked.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

pub const BLOCK: usize = 4096;
/// Of the FUSE file: the root folder is 1.
const FILE: u64 = 2;
const NAME: &str = "disk";
const LARGEST_WRITE: u32 = 1 << 20;

/// What the disk was told.
#[derive(Clone)]
pub enum Told {
    Write {
        at: u64,
        bytes: Vec<u8>,
    },
    /// All before this is on the disk for good.
    Flush,
}

/// Contents; blocks of zeros are not there.
#[derive(Clone, Default)]
pub struct Blocks(pub BTreeMap<u64, Vec<u8>>);

impl Blocks {
    pub fn of_file(path: &Path, size: u64) -> Self {
        let file = File::open(path).unwrap();
        let mut blocks = Self::default();
        let mut bytes = vec![0; 1 << 20];
        let mut at = 0;
        while at < size {
            let read = file.read_at(&mut bytes, at).unwrap();
            blocks.write(at, &bytes[..read]);
            at += read as u64;
        }
        blocks
    }

    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        let mut at = at;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (block, within) = (at / BLOCK as u64, usize::try_from(at % BLOCK as u64).unwrap());
            let (now, later) = rest.split_at(rest.len().min(BLOCK - within));
            let zeros = now.iter().all(|byte| *byte == 0);
            if !zeros || self.0.contains_key(&block) {
                let held = self.0.entry(block).or_insert_with(|| vec![0; BLOCK]);
                held[within..within + now.len()].copy_from_slice(now);
            }
            at += now.len() as u64;
            rest = later;
        }
    }

    fn read(&self, at: u64, size: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(size);
        while bytes.len() < size {
            let place = at + bytes.len() as u64;
            let (block, within) = (place / BLOCK as u64, usize::try_from(place % BLOCK as u64).unwrap());
            let more = (size - bytes.len()).min(BLOCK - within);
            match self.0.get(&block) {
                Some(held) => bytes.extend(&held[within..within + more]),
                None => bytes.resize(bytes.len() + more, 0),
            }
        }
        bytes
    }

    /// As a sparse file.
    pub fn save(&self, path: &Path, size: u64) {
        let file = File::create(path).unwrap();
        file.set_len(size).unwrap();
        for (block, bytes) in &self.0 {
            file.write_at(bytes, block * BLOCK as u64).unwrap();
        }
    }
}

struct Inner {
    blocks: Blocks,
    told: Vec<Told>,
}

pub struct Disk {
    folder: PathBuf,
    inner: Arc<Mutex<Inner>>,
    server: Option<JoinHandle<()>>,
}

impl Disk {
    /// Serves `blocks` in `folder`, which is empty.
    pub fn new(folder: &Path, blocks: Blocks, size: u64) -> Self {
        let fuse = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("larder-test"), folder, Some("fuse"), flags, Some(options.as_str())).unwrap();
        let inner = Arc::new(Mutex::new(Inner { blocks, told: Vec::new() }));
        let served = inner.clone();
        let server = std::thread::spawn(move || serve(fuse, &served, size));
        Self { folder: folder.to_owned(), inner, server: Some(server) }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.join(NAME)
    }

    pub fn told(&self) -> Vec<Told> {
        self.inner.lock().unwrap().told.clone()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.folder, MntFlags::MNT_DETACH);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Answers until it is unmounted. The layouts are those of linux/fuse.h, 7.31.
fn serve(mut fuse: File, inner: &Mutex<Inner>, size: u64) {
    let mut request = vec![0; LARGEST_WRITE as usize + BLOCK];
    loop {
        let length = match fuse.read(&mut request) {
            Ok(length) => length,
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => return,
            // The request was taken back.
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => continue,
            Err(error) => panic!("read /dev/fuse: {error}"),
        };
        let (head, body) = request[..length].split_at(40);
        let Some(answer) = answer(half(head, 4), number(head, 16), body, inner, size) else { continue };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(errno) => (-(errno as i32), Vec::new()),
        };
        let mut reply = Vec::with_capacity(16 + body.len());
        reply.extend(u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
        reply.extend(error.to_ne_bytes());
        reply.extend(&head[8..16]);
        reply.extend(body);
        // It may have been taken back meanwhile.
        let _ = fuse.write_all(&reply);
    }
}

/// Fields one after another.
fn fields(wide: &[u64], narrow: &[u32]) -> Vec<u8> {
    let wide = wide.iter().flat_map(|field| field.to_ne_bytes());
    wide.chain(narrow.iter().flat_map(|field| field.to_ne_bytes())).collect()
}

/// `struct fuse_attr`.
fn attributes(node: u64, size: u64) -> Vec<u8> {
    let (mode, size) = if node == FILE { (0o100_600, size) } else { (0o040_700, 0) };
    fields(&[node, size, size / 512, 0, 0, 0], &[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0])
}

const FOREVER: u64 = 1 << 20;

fn answer(
    operation: u32,
    node: u64,
    body: &[u8],
    inner: &Mutex<Inner>,
    size: u64,
) -> Option<Result<Vec<u8>, Errno>> {
    Some(match operation {
        // FORGET, INTERRUPT, BATCH_FORGET
        2 | 36 | 42 => return None,
        // LOOKUP
        1 if node == 1 && body == b"disk\0" => {
            let mut entry = fields(&[FILE, 0, FOREVER, FOREVER], &[0, 0]);
            entry.extend(attributes(FILE, size));
            Ok(entry)
        }
        1 => Err(Errno::ENOENT),
        // GETATTR; SETATTR changes nothing that counts
        3 | 4 => {
            let mut out = fields(&[FOREVER], &[0, 0]);
            out.extend(attributes(node, size));
            Ok(out)
        }
        // OPEN, OPENDIR
        14 | 27 => Ok(fields(&[0], &[0, 0])),
        // READ
        15 => {
            let at = number(body, 8);
            let wanted = u64::from(half(body, 16)).min(size.saturating_sub(at));
            Ok(inner.lock().unwrap().blocks.read(at, usize::try_from(wanted).unwrap()))
        }
        // WRITE
        16 => {
            let (at, length) = (number(body, 8), half(body, 16));
            let bytes = &body[40..40 + length as usize];
            let mut inner = inner.lock().unwrap();
            inner.blocks.write(at, bytes);
            inner.told.push(Told::Write { at, bytes: bytes.to_vec() });
            Ok(fields(&[], &[length, 0]))
        }
        // STATFS
        17 => Ok(fields(&[0; 5], &[512, 255, 512, 0, 0, 0, 0, 0, 0, 0])),
        // FSYNC
        20 => {
            inner.lock().unwrap().told.push(Told::Flush);
            Ok(Vec::new())
        }
        // RELEASE, FLUSH, RELEASEDIR, ACCESS, DESTROY
        18 | 25 | 29 | 34 | 38 => Ok(Vec::new()),
        // INIT: large writes, in one piece
        26 => {
            let flags = 1 << 5 | 1 << 22;
            let background = u32::from(64_u16) << 16 | 64;
            let pages = LARGEST_WRITE / 4096;
            let mut out = fields(&[], &[7, 31, 0, flags, background, LARGEST_WRITE, 1, pages, 0, 0]);
            out.resize(64, 0);
            Ok(out)
        }
        // FALLOCATE: no holes, so nothing is discarded
        _ => Err(Errno::ENOSYS),
    })
}

/// A loop device, and a file system mounted from it; both go with the value.
pub struct Mounted {
    at: PathBuf,
}

impl Mounted {
    pub fn new(kind: &str, file: &Path, at: &Path) -> Result<Self, String> {
        let mut command = Command::new("mount");
        // Each state of one disk has the same name, which xfs wants to see but once.
        let options = if kind == "xfs" { "loop,noatime,nouuid" } else { "loop,noatime" };
        command.args(["-t", kind, "-o", options]).arg(file).arg(at);
        run(&mut command)?;
        Ok(Self { at: at.to_owned() })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whatever a thread beside this one starts has our files open until it is another program.
        for patience in [10, 100, 1000, 5000] {
            if run(Command::new("umount").arg(&self.at)).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(patience));
        }
        if let Err(error) = run(Command::new("umount").arg(&self.at)) {
            eprintln!("{error}");
        }
    }
}

pub fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {said}")) }
}

/// A new file system with `fill` in it.
pub fn format(kind: &str, folder: &Path, size: u64, fill: impl FnOnce(&Path)) -> Result<Blocks, String> {
    let image = folder.join("new.img");
    File::create(&image).unwrap().set_len(size).unwrap();
    let options: &[&str] = match kind {
        "ext4" => &["-q", "-F", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"],
        "xfs" => &["-q", "-f", "-K"],
        _ => &["-q", "-f", "-K", "-M"],
    };
    run(Command::new(format!("mkfs.{kind}")).args(options).arg(&image))?;
    let at = folder.join("new");
    fs::create_dir_all(&at).unwrap();
    let mounted = Mounted::new(kind, &image, &at)?;
    fill(&at);
    drop(mounted);
    let blocks = Blocks::of_file(&image, size);
    fs::remove_file(&image).unwrap();
    Ok(blocks)
}
