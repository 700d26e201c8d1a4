//! The source's side: reads image files while CRIU writes them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use super::manifest::{CHUNK, Progress, is_plain};
use super::memory::io_error;
use super::{Chunk, Error, Manifest};

/// Files up to this length, in bytes, are read again later to make sure that CRIU did not
/// change what had been sent. It only ever appends (seen with 4.2: no write at an earlier
/// offset); the large files are memory pages, which go through a pipe and can only be appended.
const RECHECK: u64 = 256 << 10;
/// A file that was read so long after its last change would show a later one by its time. The clock
/// behind it ticks every 10 ms at the slowest.
const TICK: Duration = Duration::from_millis(20);
/// Small files that have come to rest are looked at only so often while CRIU works: ten thousand
/// connections are ten thousand of them.
const ALL: u32 = 8;

/// Follows a directory that grows.
#[derive(Debug)]
pub struct Follower {
    dir: PathBuf,
    files: BTreeMap<String, Followed>,
    looks: u32,
    buffer: Vec<u8>,
}

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// At what is new, large, or growing.
    Brief,
    /// At every file, and again at those that have come to rest.
    All,
    /// The same, and CRIU has ended: at rest is everything.
    Last,
}

#[derive(Debug)]
struct Followed {
    inode: u64,
    sent: Progress,
    /// Small, and nothing was added between two looks.
    rests: bool,
    /// Time of the last change before it was read for the second time.
    verified: Option<SystemTime>,
    /// The last look that found it.
    seen: u32,
}

impl Follower {
    /// Prepares to follow `dir`, which may be empty or not.
    ///
    /// # Errors
    /// [`Error::Io`] when it is no directory.
    pub fn new(dir: &Path) -> Result<Self, Error> {
        fs::read_dir(dir).map_err(io_error("read", dir))?;
        Ok(Self { dir: dir.into(), files: BTreeMap::new(), looks: 0, buffer: vec![0; CHUNK] })
    }

    /// Hands on what was written since the last call and returns how many bytes that was. One look
    /// at a directory of 60 files takes 0.1 ms.
    ///
    /// # Errors
    /// What `sink` returns, or [`Error::Io`].
    pub fn poll(&mut self, sink: &mut dyn FnMut(Chunk) -> Result<(), Error>) -> Result<u64, Error> {
        self.look(if self.looks.is_multiple_of(ALL) { Look::All } else { Look::Brief }, sink)
    }

    fn look(
        &mut self,
        look: Look,
        sink: &mut dyn FnMut(Chunk) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        self.looks = self.looks.wrapping_add(1);
        let mut bytes = 0;
        for entry in fs::read_dir(&self.dir).map_err(io_error("read", &self.dir))? {
            let entry = entry.map_err(io_error("read", &self.dir))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if look == Look::Brief && self.files.get(&*name).is_some_and(|file| file.rests) {
                continue;
            }
            let path = entry.path();
            let meta = match entry.metadata() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(io_error("look at", &path))?,
            };
            if !meta.is_file() {
                return Err(Error::NotAFile { path });
            }
            if !is_plain(&name) {
                return Err(Error::BadName(name.into_owned()));
            }
            let followed =
                self.files.entry(name.clone().into_owned()).or_insert_with(|| Followed::new(&meta));
            // Replaced or cut short: start it over.
            if followed.inode != meta.ino() || meta.len() < followed.sent.length {
                *followed = Followed::new(&meta);
            }
            followed.seen = self.looks;
            if meta.len() > followed.sent.length {
                followed.rests = false;
                bytes += followed.send(&path, &name, &mut self.buffer, sink)?;
            } else {
                followed.rests = meta.len() <= RECHECK;
            }
            if look != Look::Brief && meta.len() <= RECHECK {
                followed.verify(look, &meta, &path, &name, &mut self.buffer, sink)?;
            }
        }
        Ok(bytes)
    }

    /// The last pass, once CRIU has ended: hands on the rest, reads the small files again that were
    /// not yet, and names all files.
    ///
    /// # Errors
    /// What `sink` returns, or [`Error::Io`].
    pub fn finish(
        mut self,
        sink: &mut dyn FnMut(Chunk) -> Result<(), Error>,
    ) -> Result<Manifest, Error> {
        self.look(Look::Last, sink)?;
        let mut manifest = Manifest::default();
        // What is gone is left out of the list; the receiver refuses it then.
        for (name, followed) in self.files.iter().filter(|(_, file)| file.seen == self.looks) {
            if followed.sent.length == 0 {
                // Files that stayed empty were not told of until now.
                sink(Chunk { name: name.clone(), offset: 0, bytes: Bytes::new() })?;
            }
            manifest.files.push(followed.sent.sum(name));
        }
        Ok(manifest)
    }

    /// Follows until `done` is set, then finishes. For a thread of its own: it sleeps `pause`
    /// (1 to 2 ms are good) between two looks.
    ///
    /// # Errors
    /// What `sink` returns, or [`Error::Io`].
    pub fn run(
        mut self,
        done: &AtomicBool,
        pause: Duration,
        sink: &mut dyn FnMut(Chunk) -> Result<(), Error>,
    ) -> Result<Manifest, Error> {
        while !done.load(Ordering::Acquire) {
            let began = Instant::now();
            if self.poll(sink)? == 0 {
                // CRIU needs the processor more.
                std::thread::park_timeout(pause.max(began.elapsed()));
            }
        }
        self.finish(sink)
    }
}

impl Followed {
    fn new(meta: &fs::Metadata) -> Self {
        let sent = Progress::new();
        Self { inode: meta.ino(), sent, rests: false, verified: None, seen: 0 }
    }

    /// Reads the file again, unless that was done since its last change, and sends it anew if it is
    /// not what was sent.
    fn verify(
        &mut self,
        look: Look,
        meta: &fs::Metadata,
        path: &Path,
        name: &str,
        buffer: &mut [u8],
        sink: &mut dyn FnMut(Chunk) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let changed = meta.modified().map_err(io_error("look at", path))?;
        if self.sent.length == 0 || self.verified == Some(changed) {
            return Ok(());
        }
        let still = changed.elapsed().is_ok_and(|age| age > TICK);
        if !still && look != Look::Last {
            return Ok(());
        }
        let bytes = match fs::read(path) {
            // Not seen in the last look.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.seen = 0;
                return Ok(());
            }
            other => other.map_err(io_error("read", path))?,
        };
        let mut now = Progress::new();
        now.add(&bytes);
        if now.sum(name) != self.sent.sum(name) {
            self.sent = Progress::new();
            self.send(path, name, buffer, sink)?;
        } else {
            self.verified = Some(changed);
        }
        Ok(())
    }

    /// Sends what lies beyond what was sent.
    fn send(
        &mut self,
        path: &Path,
        name: &str,
        buffer: &mut [u8],
        sink: &mut dyn FnMut(Chunk) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let open = fs::OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(path);
        let file = match open {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
            other => other.map_err(io_error("open", path))?,
        };
        let start = self.sent.length;
        loop {
            let offset = self.sent.length;
            let bytes = read_at(&file, offset, buffer).map_err(io_error("read", path))?;
            if bytes.is_empty() {
                return Ok(offset - start);
            }
            self.sent.add(&bytes);
            sink(Chunk { name: name.to_owned(), offset, bytes })?;
        }
    }
}

/// Up to a buffer full of bytes from `offset`; fewer at the end of the file.
fn read_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<Bytes> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], offset + length as u64) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(Bytes::copy_from_slice(&buffer[..length]))
}
