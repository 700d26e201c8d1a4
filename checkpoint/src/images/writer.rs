//! The destination's side: builds the directory up from what a peer sends.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::manifest::{Progress, Sum, is_plain};
use super::tmpfs::io_error;
use super::{CHUNK, Chunk, Error, FileSum, Limits, Manifest, Stats};

/// How many times all bytes may be sent at most, counting files that are started over.
const RESEND: u64 = 2;

/// Writes image files. All input is a peer's and is checked.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    dir: OwnedFd,
    limits: Limits,
    files: BTreeMap<String, Written>,
    /// The file that the last chunk went to: chunks of one file come in a row.
    current: Option<(String, File)>,
    /// Bytes in all files.
    total: u64,
    /// Bytes that came in, those that were replaced included.
    received: u64,
}

/// What has come of a file. The sum is known at any time: ten thousand of them are too many to be
/// made at the end.
#[derive(Debug)]
struct Written {
    sum: Sum,
    progress: Box<Progress>,
}

impl Writer {
    /// Prepares to write into `dir`. Files of the same names that are there are replaced.
    ///
    /// # Errors
    /// [`Error::Io`] when it is no directory.
    pub fn new(dir: &Path, limits: Limits) -> Result<Self, Error> {
        let fd = fs::OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW)
            .open(dir)
            .map_err(io_error("open", dir))?;
        Ok(Self {
            path: dir.into(),
            dir: fd.into(),
            limits,
            files: BTreeMap::new(),
            current: None,
            total: 0,
            received: 0,
        })
    }

    /// Takes a piece of a file.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::OutOfOrder`], [`Error::TooLarge`] for what no honest sender
    /// sends; [`Error::Io`] when it cannot be written. The images are of no use then.
    pub fn write(&mut self, chunk: &Chunk) -> Result<(), Error> {
        let Chunk { name, offset, bytes } = chunk;
        if !is_plain(name) {
            return Err(Error::BadName(name.chars().take(64).collect()));
        }
        let limit = self.limits.bytes.saturating_mul(RESEND);
        self.received = self.received.saturating_add(bytes.len() as u64);
        if bytes.len() > CHUNK {
            return Err(Error::TooLarge { what: "bytes in one piece", limit: CHUNK as u64 });
        }
        if self.received > limit {
            return Err(Error::TooLarge { what: "bytes sent", limit });
        }
        if *offset == 0 {
            self.start(name)?;
        }
        let there = self.files.get(name).map(|written| written.sum.length);
        if there != Some(*offset) {
            let expected = there.unwrap_or(0);
            return Err(Error::OutOfOrder { name: name.clone(), offset: *offset, expected });
        }
        if self.total + bytes.len() as u64 > self.limits.bytes {
            return Err(Error::TooLarge { what: "bytes", limit: self.limits.bytes });
        }
        if !matches!(&self.current, Some((current, _)) if current == name) {
            self.current = None;
            let file = self.open(name, OFlag::O_APPEND);
            let file = file.map_err(|e| io_error("open", &self.path.join(name))(e.into()))?;
            self.current = Some((name.clone(), file));
        }
        if let Some((_, file)) = &mut self.current {
            file.write_all(bytes).map_err(io_error("write", &self.path.join(name)))?;
        }
        if let Some(Written { sum, progress }) = self.files.get_mut(name) {
            progress.add(bytes);
            *sum = progress.sum();
            self.total += bytes.len() as u64;
        }
        Ok(())
    }

    /// Compares everything with the sender's list.
    ///
    /// # Errors
    /// [`Error::Differs`] naming the first file that is missing, too many, of another length or
    /// with another hash. The images must not be restored then.
    pub fn finish(self, manifest: &Manifest) -> Result<Stats, Error> {
        let differs = |name: &str, problem| Err(differs(name, problem));
        let mut stats = Stats::default();
        // Both lists are in order of names: ten thousand connections are as many files.
        let mut written = self.files.iter().peekable();
        let mut last = None;
        for FileSum { name, length, hash } in &manifest.files {
            if last.replace(name).is_some_and(|last| last >= name) {
                return differs(name, "named twice or out of order");
            }
            while let Some((other, Written { sum, .. })) =
                written.next_if(|(other, _)| *other < name)
            {
                self.drop_empty(other, *sum)?;
            }
            let Some((_, Written { sum, .. })) = written.next_if(|(other, _)| *other == name)
            else {
                return differs(name, "missing");
            };
            if sum.length != *length {
                return differs(name, "length");
            }
            if sum.hash != *hash {
                return differs(name, "hash");
            }
            stats.files += 1;
            stats.bytes += length;
        }
        written.try_for_each(|(other, Written { sum, .. })| self.drop_empty(other, *sum))?;
        Ok(stats)
    }

    /// Removes a file that is not in the sender's list: nothing but what CRIU removed again for being
    /// empty.
    fn drop_empty(&self, name: &str, sum: Sum) -> Result<(), Error> {
        if sum.length == 0 { self.unlink(name) } else { Err(differs(name, "not in the list")) }
    }

    /// Makes a file anew.
    fn start(&mut self, name: &str) -> Result<(), Error> {
        if !self.files.contains_key(name) && self.files.len() as u64 >= self.limits.files {
            return Err(Error::TooLarge { what: "number of files", limit: self.limits.files });
        }
        let file = match self.create(name) {
            Err(Errno::EEXIST) => {
                self.unlink(name)?;
                self.create(name)
            }
            other => other,
        };
        let file = file.map_err(|e| io_error("make", &self.path.join(name))(e.into()))?;
        let progress = Box::<Progress>::default();
        let written = Written { sum: progress.sum(), progress };
        let before = self.files.insert(name.to_owned(), written);
        self.total -= before.map_or(0, |written| written.sum.length);
        self.current = Some((name.to_owned(), file));
        Ok(())
    }

    fn create(&self, name: &str) -> nix::Result<File> {
        self.open(name, OFlag::O_CREAT | OFlag::O_EXCL)
    }

    fn open(&self, name: &str, how: OFlag) -> nix::Result<File> {
        let flags = how | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&self.dir, OsStr::new(name), flags, Mode::S_IRUSR | Mode::S_IWUSR).map(File::from)
    }

    fn unlink(&self, name: &str) -> Result<(), Error> {
        match unlinkat(&self.dir, OsStr::new(name), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(io_error("remove", &self.path.join(name))(e.into())),
        }
    }
}

/// A file is not what the sender's list says. The list is a peer's, and so is the name.
fn differs(name: &str, problem: &'static str) -> Error {
    Error::Differs { name: name.chars().take(64).collect(), problem }
}
