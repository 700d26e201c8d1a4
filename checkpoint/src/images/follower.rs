//! The source's side: reads image files while CRIU writes them.
//!
//! inotify(7) reports which files were made and which were closed. So ten thousand connections, a small file each, cost
//! one read each and no searching.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::manifest::{CHUNK, Progress, Sum, is_plain};
use super::tmpfs::io_error;
use super::{Chunk, Error, FileSum, Manifest};

/// Files up to this length, in bytes, are read again when they are closed if something of them had
/// been sent before, to make sure that CRIU did not change it. It only ever appends (seen with 4.2:
/// no write at an earlier offset); the large files are memory pages, which go through a pipe and can
/// only be appended.
const RECHECK: u64 = 256 << 10;

/// A link to the images of an earlier dump (`CR_PARENT_LINK` in `criu/include/image.h`), which stay where they are.
const PARENT: &str = "parent";

/// Follows a directory that grows.
#[derive(Debug)]
pub struct Follower {
    dir: PathBuf,
    /// Without it the directory is searched each time.
    watch: Option<Inotify>,
    growing: BTreeMap<String, Growing>,
    whole: BTreeMap<String, Sum>,
}

/// A file that may not be whole yet.
#[derive(Debug, Default)]
struct Growing {
    /// What of it was handed on.
    sent: Progress,
    /// It was whole as this, and then something may have been written to it.
    before: Option<Sum>,
    /// Nobody writes to it any more.
    closed: bool,
}

/// What became of a file that was looked at.
enum Looked {
    /// There may be more of it later.
    Growing,
    /// All of it was handed on.
    Whole(Sum),
    /// It is no longer there, which an event tells.
    Gone,
}

impl Follower {
    /// Prepares to follow `dir`, which may be empty or not.
    ///
    /// # Errors
    /// [`Error::Io`] when it is no directory or cannot be watched.
    pub fn new(dir: &Path) -> Result<Self, Error> {
        let watch = match watch(dir) {
            // A user may have 128 of them by default, and root's other programs may have them all.
            Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOSPC) => None,
            other => Some(other.map_err(|e| io_error("watch", dir)(e.into()))?),
        };
        Self::with(watch, dir)
    }

    pub(super) fn with(watch: Option<Inotify>, dir: &Path) -> Result<Self, Error> {
        let (growing, whole) = (BTreeMap::new(), BTreeMap::new());
        let mut follower = Self { dir: dir.into(), watch, growing, whole };
        follower.search()?;
        Ok(follower)
    }

    /// Hands on what was written since the last call and returns how many bytes that was.
    ///
    /// # Errors
    /// What `sink` returns, or [`Error::Io`].
    pub fn poll(&mut self, sink: &mut dyn FnMut(Chunk) -> Result<(), Error>) -> Result<u64, Error> {
        self.take_events()?;
        self.look(sink)
    }

    /// Runs the last pass, once CRIU has ended: hands on the rest, and names all files.
    ///
    /// # Errors
    /// What `sink` returns, or [`Error::Io`].
    pub fn finish(
        mut self,
        sink: &mut dyn FnMut(Chunk) -> Result<(), Error>,
    ) -> Result<Manifest, Error> {
        self.take_events()?;
        self.growing.values_mut().for_each(|file| file.closed = true);
        self.look(sink)?;
        // The kernel takes some ten milliseconds to end a watch (fs/notify/mark.c waits until nobody
        // can be looking at it), which nobody has to wait for here.
        let watch = self.watch;
        drop(thread::Builder::new().name("netmig-unwatch".to_owned()).spawn(|| drop(watch)));
        let mut manifest = Manifest::default();
        for (name, Sum { length, hash }) in self.whole {
            if length == 0 {
                // Files that stayed empty were not told of until now.
                sink(Chunk { name: name.clone(), offset: 0, bytes: Bytes::new() })?;
            }
            manifest.files.push(FileSum { name, length, hash });
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
                thread::park_timeout(pause.max(began.elapsed()));
            }
        }
        self.finish(sink)
    }

    /// Learns what was made, closed and removed since the last call.
    fn take_events(&mut self) -> Result<(), Error> {
        loop {
            let Some(watch) = &self.watch else { return self.search() };
            let events = match watch.read_events() {
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => continue,
                other => other.map_err(|e| io_error("watch", &self.dir)(e.into()))?,
            };
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    self.search()?;
                } else if let Some(name) = &event.name {
                    self.take_event(event.mask, name)?;
                }
            }
        }
    }

    fn take_event(&mut self, mask: AddWatchFlags, name: &OsStr) -> Result<(), Error> {
        if mask.contains(AddWatchFlags::IN_ISDIR) {
            return Err(Error::NotAFile { path: self.dir.join(name) });
        }
        if name == PARENT {
            return Ok(());
        }
        let name = plain(name)?;
        if mask.contains(AddWatchFlags::IN_CLOSE_WRITE) {
            self.doubt(name, true);
            return Ok(());
        }
        // Made anew, or gone.
        self.whole.remove(&name);
        self.growing.remove(&name);
        if mask.intersects(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO) {
            self.growing.insert(name, Growing::default());
        }
        Ok(())
    }

    /// Marks a file to be looked at, whatever was known of it.
    fn doubt(&mut self, name: String, closed: bool) {
        let before = self.whole.remove(&name);
        let file = self.growing.entry(name).or_default();
        file.before = before.or_else(|| file.before.take());
        file.closed = closed;
    }

    /// Doubts all files: at the beginning, and when the kernel had more to tell than it keeps. A small
    /// one counts as closed: if it is not, an event will come.
    fn search(&mut self) -> Result<(), Error> {
        let mut there = BTreeMap::new();
        for entry in fs::read_dir(&self.dir).map_err(io_error("read", &self.dir))? {
            let entry = entry.map_err(io_error("read", &self.dir))?;
            if entry.file_name() == PARENT {
                continue;
            }
            let meta = match entry.metadata() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(io_error("look at", &entry.path()))?,
            };
            if !meta.is_file() {
                return Err(Error::NotAFile { path: entry.path() });
            }
            there.insert(plain(&entry.file_name())?, meta.len() <= RECHECK);
        }
        self.whole.retain(|name, _| there.contains_key(name));
        self.growing.retain(|name, _| there.contains_key(name));
        there.into_iter().for_each(|(name, small)| self.doubt(name, small));
        Ok(())
    }

    /// Looks at the files that may have grown.
    fn look(&mut self, sink: &mut dyn FnMut(Chunk) -> Result<(), Error>) -> Result<u64, Error> {
        let mut bytes = 0;
        let mut sink = |chunk: Chunk| {
            bytes += chunk.bytes.len() as u64;
            sink(chunk)
        };
        for (name, mut file) in std::mem::take(&mut self.growing) {
            match self.look_at(&name, &mut file, &mut sink)? {
                Looked::Growing => drop(self.growing.insert(name, file)),
                Looked::Whole(sum) => drop(self.whole.insert(name, sum)),
                Looked::Gone => {}
            }
        }
        Ok(bytes)
    }

    /// Hands on what is new in a file, or all of it if it is not what was handed on.
    fn look_at(
        &mut self,
        name: &str,
        file: &mut Growing,
        sink: &mut dyn FnMut(Chunk) -> Result<(), Error>,
    ) -> Result<Looked, Error> {
        let path = self.dir.join(name);
        let open = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(&path);
        let opened = match open {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Looked::Gone),
            // A symbolic link.
            Err(e) if e.raw_os_error() == Some(nix::libc::ELOOP) => {
                return Err(Error::NotAFile { path });
            }
            other => other.map_err(io_error("open", &path))?,
        };
        let failed = |e| io_error("read", &path)(e);
        let meta = opened.metadata().map_err(failed)?;
        if !meta.is_file() {
            return Err(Error::NotAFile { path });
        }
        if let Some(sum) = file.before {
            if !file.closed {
                return Ok(Looked::Growing);
            }
            if Self::sum(&opened).map_err(failed)? == sum {
                return Ok(Looked::Whole(sum));
            }
            file.sent = Progress::default();
        } else if file.sent.length > 0 {
            let cut = meta.len() < file.sent.length;
            let check = file.closed && file.sent.length <= RECHECK;
            if cut || check && !Self::begins_with(&file.sent, &opened).map_err(failed)? {
                file.sent = Progress::default();
            }
        }
        loop {
            let offset = file.sent.length;
            let bytes =
                read_at(&opened, offset, meta.len().saturating_sub(offset)).map_err(failed)?;
            if bytes.is_empty() {
                break;
            }
            file.sent.add(&bytes);
            sink(Chunk { name: name.to_owned(), offset, bytes })?;
        }
        Ok(if file.closed { Looked::Whole(file.sent.sum()) } else { Looked::Growing })
    }

    /// Returns the length and the hash of what the file has now.
    fn sum(file: &File) -> io::Result<Sum> {
        let mut now = Progress::default();
        loop {
            let bytes = read_at(file, now.length, CHUNK as u64)?;
            if bytes.is_empty() {
                return Ok(now.sum());
            }
            now.add(&bytes);
        }
    }

    /// Returns whether the file begins with what was handed on of it, which is at most [`RECHECK`] bytes.
    fn begins_with(sent: &Progress, file: &File) -> io::Result<bool> {
        let bytes = read_at(file, 0, sent.length)?;
        let mut now = Progress::default();
        now.add(&bytes);
        Ok(now.sum() == sent.sum())
    }
}

/// Has the kernel tell what happens in the directory.
fn watch(dir: &Path) -> nix::Result<Inotify> {
    let events = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_ONLYDIR;
    let watch = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    watch.add_watch(dir, events)?;
    Ok(watch)
}

/// Returns the name, if it is one that an image can have.
fn plain(name: &OsStr) -> Result<String, Error> {
    let name = name.to_string_lossy();
    if is_plain(&name) { Ok(name.into_owned()) } else { Err(Error::BadName(name.into_owned())) }
}

/// Returns `most` bytes from `offset`, at most [`CHUNK`]; fewer at the end of the file. They are where the kernel has put them: a
/// dump can have many gigabytes, and the processors have enough to do.
fn read_at(mut file: &File, offset: u64, most: u64) -> io::Result<Bytes> {
    let most = most.min(CHUNK as u64);
    let mut bytes = Vec::with_capacity(most as usize);
    file.seek(SeekFrom::Start(offset))?;
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}
