//! The source's side: reads image files while CRIU writes them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::manifest::{CHUNK, Progress, is_plain};
use super::memory::io_error;
use super::{Chunk, Error, Manifest};

/// Files up to this length, in bytes, are read again at the end to make sure that CRIU did not
/// change what had been sent. It only ever appends (seen with 4.2: no write at an earlier
/// offset); the large files are memory pages, which go through a pipe and can only be appended.
const RECHECK: u64 = 256 << 10;

/// Follows a directory that grows.
#[derive(Debug)]
pub struct Follower {
    dir: PathBuf,
    files: BTreeMap<String, Followed>,
    buffer: BytesMut,
}

#[derive(Debug)]
struct Followed {
    inode: u64,
    sent: Progress,
}

impl Follower {
    /// Prepares to follow `dir`, which may be empty or not.
    ///
    /// # Errors
    /// [`Error::Io`] when it is no directory.
    pub fn new(dir: &Path) -> Result<Self, Error> {
        fs::read_dir(dir).map_err(io_error("read", dir))?;
        Ok(Self { dir: dir.into(), files: BTreeMap::new(), buffer: BytesMut::with_capacity(CHUNK) })
    }

    /// Hands on whatever was written since the last call and returns how many bytes that was.
    /// One look at a directory of 60 files takes 0.1 ms.
    ///
    /// # Errors
    /// What `sink` returns, or [`Error::Io`].
    pub fn poll(&mut self, sink: &mut dyn FnMut(Chunk) -> Result<(), Error>) -> Result<u64, Error> {
        let mut bytes = 0;
        for entry in fs::read_dir(&self.dir).map_err(io_error("read", &self.dir))? {
            let entry = entry.map_err(io_error("read", &self.dir))?;
            let path = entry.path();
            let meta = match entry.metadata() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(io_error("look at", &path))?,
            };
            if !meta.is_file() {
                return Err(Error::NotAFile { path });
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            if !is_plain(&name) {
                return Err(Error::BadName(name));
            }
            let followed = self.files.entry(name.clone()).or_insert_with(|| Followed::new(&meta));
            // Replaced or cut short: start it over.
            if followed.inode != meta.ino() || meta.len() < followed.sent.length {
                *followed = Followed::new(&meta);
            }
            if meta.len() > followed.sent.length {
                bytes += followed.send(&path, &name, &mut self.buffer, sink)?;
            }
        }
        Ok(bytes)
    }

    /// The last pass, once CRIU has ended: hands on the rest, reads the small files again, and
    /// names all files.
    ///
    /// # Errors
    /// What `sink` returns, or [`Error::Io`].
    pub fn finish(
        mut self,
        sink: &mut dyn FnMut(Chunk) -> Result<(), Error>,
    ) -> Result<Manifest, Error> {
        self.poll(sink)?;
        let mut manifest = Manifest::default();
        for (name, mut followed) in std::mem::take(&mut self.files) {
            let path = self.dir.join(&name);
            if followed.sent.length == 0 {
                // Files that stayed empty were not told of until now.
                if path.exists() {
                    sink(Chunk { name: name.clone(), offset: 0, bytes: Bytes::new() })?;
                } else {
                    continue;
                }
            } else if followed.sent.length <= RECHECK {
                let bytes = match fs::read(&path) {
                    // What is gone is left out of the list; the receiver refuses it then.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    other => other.map_err(io_error("read", &path))?,
                };
                let mut now = Progress::new();
                now.add(&bytes);
                if now.sum(&name) != followed.sent.sum(&name) {
                    followed.sent = Progress::new();
                    followed.send(&path, &name, &mut self.buffer, sink)?;
                }
            }
            manifest.files.push(followed.sent.sum(&name));
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
            if self.poll(sink)? == 0 {
                std::thread::park_timeout(pause);
            }
        }
        self.finish(sink)
    }
}

impl Followed {
    fn new(meta: &fs::Metadata) -> Self {
        Self { inode: meta.ino(), sent: Progress::new() }
    }

    /// Sends what lies beyond what was sent.
    fn send(
        &mut self,
        path: &Path,
        name: &str,
        buffer: &mut BytesMut,
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

/// Up to a chunk of bytes from `offset`; fewer at the end of the file.
fn read_at(file: &File, offset: u64, buffer: &mut BytesMut) -> io::Result<Bytes> {
    // Makes a new buffer where the receiver still holds the last one.
    buffer.resize(CHUNK, 0);
    let mut length = 0;
    while length < CHUNK {
        match file.read_at(&mut buffer[length..], offset + length as u64) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(buffer.split_to(length).freeze())
}
