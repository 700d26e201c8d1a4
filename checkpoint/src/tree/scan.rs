//! The source's side: lists files, finds what changed, and reads their content.

mod entry;
mod file_content;
mod walk;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::FileStat;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::{Error, Record, Stats};
use walk::Walk;

/// What the container's tasks do while a pass runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tasks {
    /// They run, and may write to what was just read.
    Running,
    /// They are frozen: this pass is the last.
    Frozen,
}

/// A tree of files to carry over.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    /// Where names and attributes come from.
    names: OwnedFd,
    /// The mounted overlay, if `names` is its upper directory.
    merged: Option<OwnedFd>,
    /// Times tell nothing here, only content does.
    compare_content: bool,
}

impl Source {
    /// Returns the source of what an overlay's upper directory holds beyond the image.
    ///
    /// Names, attributes and content are read from `upper`, as whiteouts and opaque directories
    /// can only be seen there; through `merged`, the mounted whole, goes what upper has but in
    /// part: files of which only the metadata was copied up (metacopy) and directories that
    /// were renamed (redirect). See the kernel's `Documentation/filesystems/overlayfs.rst`.
    ///
    /// # Errors
    /// [`Error::Io`] when one of them is no directory.
    pub fn overlay(upper: &Path, merged: &Path) -> Result<Self, Error> {
        let merged = open(merged)?;
        Ok(Self { merged: Some(merged), ..Self::plain(upper)? })
    }

    /// Returns the source of all that is in a directory, such as `/dev/shm`.
    ///
    /// On tmpfs every file is read and compared in each pass, since a write through a shared
    /// mapping leaves no trace in a file's times there.
    ///
    /// # Errors
    /// [`Error::Io`] when it is no directory.
    pub fn plain(dir: &Path) -> Result<Self, Error> {
        let names = open(dir)?;
        let kind = fstatfs(&names).map_err(super::io_error("look at", dir))?.filesystem_type();
        let compare_content = kind == TMPFS_MAGIC;
        Ok(Self { path: dir.into(), names, merged: None, compare_content })
    }

    /// Sends everything. Files that change meanwhile are sent as they were at some moment and
    /// again by the next pass.
    ///
    /// # Errors
    /// What `sink` returns, or [`Error::Io`]. Files that vanish meanwhile are no error.
    pub fn first_pass(
        &self,
        tasks: Tasks,
        sink: &mut dyn FnMut(Record) -> Result<(), Error>,
    ) -> Result<(Snapshot, Stats), Error> {
        self.pass(None, tasks, sink)
    }

    /// Sends what changed since the pass that made `snapshot`, and what is gone. May be called
    /// any number of times; the last time with the tasks frozen. An unchanged tree costs one
    /// stat for each file.
    ///
    /// # Errors
    /// What `sink` returns, or [`Error::Io`].
    pub fn changes_since(
        &self,
        snapshot: Snapshot,
        tasks: Tasks,
        sink: &mut dyn FnMut(Record) -> Result<(), Error>,
    ) -> Result<(Snapshot, Stats), Error> {
        self.pass(Some(snapshot.root), tasks, sink)
    }

    fn pass(
        &self,
        old: Option<Node>,
        tasks: Tasks,
        sink: &mut dyn FnMut(Record) -> Result<(), Error>,
    ) -> Result<(Snapshot, Stats), Error> {
        let merged = self.merged.as_ref().map(AsFd::as_fd);
        let mut walk = Walk::new(&self.path, merged, self.compare_content, tasks, sink);
        let root = walk.root(self.names.as_fd(), old)?;
        let stats = walk.stats();
        Ok((Snapshot { root }, stats))
    }
}

/// What a pass saw: the stamp of every file, and hashes of what was sent of it.
#[derive(Debug)]
pub struct Snapshot {
    root: Node,
}

/// One entry of a snapshot.
#[derive(Debug)]
struct Node {
    stamp: Stamp,
    /// It changed while it was read, or so shortly before that a later change may bear the same
    /// time: look at its content next time.
    unsure: bool,
    what: What,
}

#[derive(Debug)]
enum What {
    Directory(BTreeMap<OsString, Node>, entry::Marks),
    File(super::blocks::Blocks),
    /// A whiteout: an entry of the image that is removed.
    Whiteout,
    Other,
}

/// What changes when a file does. The ctime covers content, owner, mode, attributes and links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    kind: u32,
    size: i64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Stamp {
    fn of(stat: &FileStat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            kind: stat.st_mode & nix::libc::S_IFMT,
            size: stat.st_size,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Returns whether it is the same file, changed or not.
    fn same_file(&self, other: &Self) -> bool {
        (self.device, self.inode, self.kind) == (other.device, other.inode, other.kind)
    }
}

fn open(path: &Path) -> Result<OwnedFd, Error> {
    std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW)
        .open(path)
        .map(|file: File| file.into())
        .map_err(|source| Error::Io { action: "open", path: path.into(), source })
}
