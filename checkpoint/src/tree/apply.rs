//! The destination's side: makes a tree like the source's. All input is a peer's.

mod regular_file;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, makedev, mkdirat, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, mkfifoat, symlinkat};
use twox_hash::XxHash3_128;

use super::relative_path::split;
use super::transfer_record::is_carried;
use super::{Error, Kind, Limits, Meta, Record, Stats, beneath, io_error};
use regular_file::Writing;

/// Longest symbolic link, in bytes: PATH_MAX less the final NUL.
const LINK_BYTES: usize = 4095;
/// Most extended attributes of one entry.
const XATTRS: usize = 128;
/// Most bytes in one attribute's value (XATTR_SIZE_MAX).
const XATTR_BYTES: usize = 64 << 10;
/// Nanoseconds in a second.
const SECOND: u32 = 1_000_000_000;

/// Applies records below one directory, in the order in which they were sent.
///
/// For a container the directory is the *mounted* root of the staged container, not its upper
/// directory: what happens to an upper directory behind a mounted overlay is undefined.
#[derive(Debug)]
#[must_use = "records are complete only after finish"]
pub struct Applier {
    path: PathBuf,
    root: OwnedFd,
    limits: Limits,
    /// Bytes of content that may come in all.
    room: u64,
    stats: Stats,
    /// Hashes of the paths that were named, to refuse doubles.
    seen: HashSet<u128>,
    /// The directory that the last record was in: records come directory by directory.
    parent: Option<(PathBuf, OwnedFd)>,
    /// The file whose data comes next.
    writing: Option<Writing>,
    /// Times to set at the end, as what is made in a directory changes them.
    directories: Vec<(Bytes, Meta)>,
}

impl Applier {
    /// Prepares to change what is below `root`.
    ///
    /// # Errors
    /// [`Error::Io`] when it is no directory.
    pub fn new(root: &Path, limits: Limits) -> Result<Self, Error> {
        let fd = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW)
            .open(root)
            .map_err(|source| Error::Io { action: "open", path: root.into(), source })?;
        Ok(Self {
            path: root.into(),
            root: fd.into(),
            limits,
            room: limits.bytes,
            stats: Stats::default(),
            seen: HashSet::new(),
            parent: None,
            writing: None,
            directories: Vec::new(),
        })
    }

    /// Returns how many bytes of content have come.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.stats.bytes
    }

    /// Lets no more than these bytes of content come in all, where others take of the same room. The
    /// length of a file is bounded as before: it may be one that is there, and changed in part.
    pub fn set_room(&mut self, bytes: u64) {
        self.room = bytes.min(self.limits.bytes);
    }

    /// Applies one record.
    ///
    /// # Errors
    /// [`Error::BadPath`], [`Error::Refused`], [`Error::TooMuch`] for what no honest source
    /// sends; [`Error::Io`]. The tree is in between then, and the staged container has to go.
    pub fn apply(&mut self, record: Record) -> Result<(), Error> {
        match record {
            Record::Data { offset, bytes } => {
                self.stats.bytes = self.stats.bytes.saturating_add(bytes.len() as u64);
                if self.stats.bytes > self.room {
                    return Err(Error::TooMuch { what: "bytes", limit: self.room });
                }
                let Some(writing) = &mut self.writing else {
                    return Err(refused(b"", "content without a file"));
                };
                writing.data(offset, &bytes)
            }
            Record::Remove { path } => {
                self.begin(&path)?;
                self.stats.removed += 1;
                let (parent, name) = split(&path)?;
                self.seen.remove(&XxHash3_128::oneshot(&path));
                match self.parent(parent) {
                    Ok(dir) => {
                        beneath::remove(dir, name).map_err(io_error("remove", self.shown(&path)))
                    }
                    // Without its directory it is not there either.
                    Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
                    Err(e) => Err(io_error("open", self.shown(&path))(e)),
                }?;
                self.forget_parent();
                Ok(())
            }
            Record::Entry { path, meta, kind } => {
                self.begin(&path)?;
                self.stats.entries += 1;
                check(&path, &meta)?;
                if !self.seen.insert(XxHash3_128::oneshot(&path)) {
                    return Err(refused(&path, "it is named twice"));
                }
                self.entry(path, meta, kind)
            }
        }
    }

    /// Completes the last file and sets the directories' times.
    ///
    /// # Errors
    /// As [`Applier::apply`].
    pub fn finish(mut self) -> Result<Stats, Error> {
        self.complete()?;
        for (path, meta) in std::mem::take(&mut self.directories).into_iter().rev() {
            let dir = beneath::open_directory(self.root.as_fd(), path_of(&path));
            let dir = match dir {
                // Replaced or removed by a later record.
                Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
                other => other.map_err(io_error("open", self.shown(&path)))?,
            };
            set_times(dir.as_fd(), OsStr::new("."), &meta)
                .map_err(io_error("set the time of", self.shown(&path)))?;
        }
        Ok(self.stats)
    }

    /// Ends the file before and counts.
    fn begin(&mut self, path: &[u8]) -> Result<(), Error> {
        self.complete()?;
        if self.stats.entries + self.stats.removed >= self.limits.entries {
            return Err(Error::TooMuch { what: "files", limit: self.limits.entries });
        }
        if !path.is_empty() {
            split(path)?;
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<(), Error> {
        match self.writing.take() {
            Some(writing) => writing.complete(),
            None => Ok(()),
        }
    }

    fn entry(&mut self, path: Bytes, meta: Meta, kind: Kind) -> Result<(), Error> {
        let shown = self.shown(&path);
        if path.is_empty() {
            let Kind::Directory { replace: false } = kind else {
                return Err(refused(&path, "the root stays a directory"));
            };
            let root = self.root.try_clone();
            let root = root.map_err(|source| Error::Io { action: "open", path: shown, source })?;
            return self.directory(root, path, meta);
        }
        let (parent, name) = split(&path)?;
        let link = match &kind {
            Kind::HardLink { target } => Some(self.link_target(&path, target)?),
            _ => None,
        };
        let limit = self.limits.bytes;
        let devices = self.limits.devices;
        let dir = self.parent(parent).map_err(io_error("open the directory of", &shown))?;
        let fail = |action| io_error(action, &shown);
        match kind {
            Kind::Directory { replace } => {
                let there = is_directory(dir, name).map_err(fail("look at"))?;
                if there != Some(true) || replace {
                    beneath::remove(dir, name).map_err(fail("remove"))?;
                    mkdirat(dir, name, Mode::S_IRWXU).map_err(fail("create"))?;
                }
                let fd = beneath::open_directory(dir, Path::new(name)).map_err(fail("open"))?;
                // Descriptors of what was there before are of no use now.
                self.forget_parent();
                return self.directory(fd, path, meta);
            }
            Kind::File { length, patch } => {
                if length > limit {
                    return Err(Error::TooMuch { what: "length of a file", limit });
                }
                let writing = Writing::open(dir, name, length, patch, meta, shown)?;
                self.writing = Some(writing);
                return Ok(());
            }
            Kind::HardLink { .. } => {
                let Some((from, target)) = link else {
                    return Err(refused(&path, "a link without a target"));
                };
                return hard_link(from.as_fd(), &target, dir, name).map_err(fail("link"));
            }
            Kind::Symlink { target } => {
                if target.is_empty() || target.len() > LINK_BYTES || target.contains(&0) {
                    return Err(refused(&path, "no content of a symbolic link"));
                }
                beneath::remove(dir, name).map_err(fail("remove"))?;
                symlinkat(OsStr::from_bytes(&target), dir, name).map_err(fail("create"))?;
            }
            Kind::Fifo => {
                beneath::remove(dir, name).map_err(fail("remove"))?;
                mkfifoat(dir, name, Mode::S_IRUSR).map_err(fail("create"))?;
                set_owner_and_mode(dir, name, &meta).map_err(fail("set the owner of"))?;
            }
            Kind::Socket => {
                beneath::remove(dir, name).map_err(fail("remove"))?;
                mknodat(dir, name, SFlag::S_IFSOCK, Mode::S_IRUSR, 0).map_err(fail("create"))?;
                set_owner_and_mode(dir, name, &meta).map_err(fail("set the owner of"))?;
            }
            Kind::Device { block, major, minor } => {
                if !devices {
                    return Err(refused(&path, "device nodes are not allowed"));
                }
                if (major, minor) == (0, 0) {
                    return Err(refused(&path, "overlayfs keeps device 0:0 for itself"));
                }
                let kind = if block { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
                let number = makedev(u64::from(major), u64::from(minor));
                beneath::remove(dir, name).map_err(fail("remove"))?;
                mknodat(dir, name, kind, Mode::S_IRUSR, number).map_err(fail("create"))?;
                set_owner_and_mode(dir, name, &meta).map_err(fail("set the owner of"))?;
            }
        }
        // Symbolic links have an owner but no mode.
        fchownat(dir, name, uid(&meta), gid(&meta), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(fail("set the owner of"))?;
        set_times(dir, name, &meta).map_err(fail("set the time of"))
    }

    /// Owner, mode and attributes of a directory now, its time at the end.
    fn directory(&mut self, fd: OwnedFd, path: Bytes, meta: Meta) -> Result<(), Error> {
        regular_file::set_meta(&File::from(fd), &meta, &self.shown(&path))?;
        self.directories.push((path, meta));
        Ok(())
    }

    /// The directory and name that a hard link points to: a regular file of this tree.
    fn link_target(&self, path: &[u8], target: &[u8]) -> Result<(OwnedFd, Vec<u8>), Error> {
        let (parent, name) = split(target)?;
        if path == target {
            return Err(refused(path, "it is a link to itself"));
        }
        let fail = || io_error("open the link's target", self.shown(target));
        let dir = beneath::open_directory(self.root.as_fd(), parent).map_err(fail())?;
        let stat = fstatat(&dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(fail())?;
        if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
            return Err(refused(path, "hard links lead to regular files"));
        }
        Ok((dir, name.as_bytes().to_vec()))
    }

    /// The directory `parent` below the root.
    fn parent(&mut self, parent: &Path) -> nix::Result<BorrowedFd<'_>> {
        if !matches!(&self.parent, Some((path, _)) if path == parent) {
            let fd = beneath::open_directory(self.root.as_fd(), parent)?;
            self.parent = Some((parent.into(), fd));
        }
        match &self.parent {
            Some((_, fd)) => Ok(fd.as_fd()),
            None => Err(Errno::ENOENT),
        }
    }

    fn forget_parent(&mut self) {
        self.parent = None;
    }

    /// A path for messages.
    fn shown(&self, path: &[u8]) -> PathBuf {
        self.path.join(path_of(path))
    }
}

fn path_of(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

/// Refuses metadata that no file can have.
fn check(path: &[u8], meta: &Meta) -> Result<(), Error> {
    if meta.mode & !0o7777 != 0 {
        return Err(refused(path, "no permission bits"));
    }
    // The highest number means "unchanged" to chown(2).
    if meta.uid == u32::MAX || meta.gid == u32::MAX {
        return Err(refused(path, "no owner"));
    }
    if meta.mtime_ns >= SECOND {
        return Err(refused(path, "no time"));
    }
    if meta.xattrs.len() > XATTRS {
        return Err(refused(path, "too many attributes"));
    }
    for xattr in &meta.xattrs {
        let name = &xattr.name;
        if !is_carried(name) || name.len() > 255 || name.contains('\0') {
            return Err(refused(path, "an attribute that is not carried over"));
        }
        if xattr.value.len() > XATTR_BYTES {
            return Err(refused(path, "too large an attribute"));
        }
    }
    Ok(())
}

/// Whether `name` is a directory; `None` when it is not there.
fn is_directory(dir: BorrowedFd<'_>, name: &OsStr) -> nix::Result<Option<bool>> {
    match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits())),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Makes `name` another name of `target`, unless it is one.
fn hard_link(
    from: BorrowedFd<'_>,
    target: &[u8],
    dir: BorrowedFd<'_>,
    name: &OsStr,
) -> nix::Result<()> {
    let target = OsStr::from_bytes(target);
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
    let wanted = fstatat(from, target, flags)?;
    if let Ok(there) = fstatat(dir, name, flags)
        && (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino)
    {
        return Ok(());
    }
    beneath::remove(dir, name)?;
    linkat(from, target, dir, name, AtFlags::empty())
}

/// For entries that were made just now and are no links, so that nothing is followed.
fn set_owner_and_mode(dir: BorrowedFd<'_>, name: &OsStr, meta: &Meta) -> nix::Result<()> {
    fchownat(dir, name, uid(meta), gid(meta), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_bits_truncate(meta.mode);
    fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)
}

fn set_times(dir: BorrowedFd<'_>, name: &OsStr, meta: &Meta) -> nix::Result<()> {
    let time = time_of(meta);
    utimensat(dir, name, &time, &time, UtimensatFlags::NoFollowSymlink)
}

fn time_of(meta: &Meta) -> TimeSpec {
    TimeSpec::new(meta.mtime, i64::from(meta.mtime_ns))
}

fn uid(meta: &Meta) -> Option<Uid> {
    Some(Uid::from_raw(meta.uid))
}

fn gid(meta: &Meta) -> Option<Gid> {
    Some(Gid::from_raw(meta.gid))
}

fn refused(path: &[u8], problem: &'static str) -> Error {
    let path = String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned();
    Error::Refused { path, problem }
}
