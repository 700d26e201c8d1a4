//! One entry of a directory: its attributes, and the file behind it.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode};

use crate::tree::Error;
use crate::tree::transfer_record::{Meta, Xattr, is_carried};

/// overlayfs's marks on the files of an upper directory.
const OPAQUE: &str = "trusted.overlay.opaque";
const REDIRECT: &str = "trusted.overlay.redirect";
const METACOPY: &str = "trusted.overlay.metacopy";
const WHITEOUT: &str = "trusted.overlay.whiteout";

/// What overlayfs says about an entry of an upper directory.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Marks {
    /// The directory hides that of the image.
    pub(super) opaque: bool,
    /// The directory holds whiteouts that are marked files (`opaque` is `x`).
    pub(super) marked_whiteouts: bool,
    /// The directory's content is, in part, that of another one of the image.
    pub(super) redirect: bool,
    /// The content is the image's; only the metadata is here.
    pub(super) metacopy: bool,
    /// The file stands for one that is removed.
    pub(super) whiteout: bool,
}

/// The extended attributes of `name` in `dir`: those that are carried, and overlayfs's marks.
pub(super) fn xattrs(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    shown: &Path,
) -> Result<(Vec<Xattr>, Marks), Error> {
    let fail = |source| Error::Io { action: "read attributes of", path: shown.into(), source };
    let mut carried = Vec::new();
    let mut marks = Marks::default();
    // There is no lgetxattrat before Linux 6.13; the descriptor stands for the directory.
    let path = at(dir, name);
    let names = match xattr::list(&path) {
        Ok(names) => names,
        Err(e) if is_absent(&e) => return Ok((carried, marks)),
        Err(e) => return Err(fail(e)),
    };
    for name in names {
        let Some(text) = name.to_str() else { continue };
        if !is_carried(text) && !text.starts_with("trusted.overlay.") {
            continue;
        }
        let value = match xattr::get(&path, &name) {
            Ok(value) => value.unwrap_or_default(),
            Err(e) if is_absent(&e) => continue,
            Err(e) => return Err(fail(e)),
        };
        match text {
            OPAQUE => match value.as_slice() {
                b"x" => marks.marked_whiteouts = true,
                b"y" => marks.opaque = true,
                _ => {}
            },
            REDIRECT => marks.redirect = true,
            METACOPY => marks.metacopy = true,
            WHITEOUT => marks.whiteout = true,
            text if is_carried(text) => {
                carried.push(Xattr { name: text.to_owned(), value: Bytes::from(value) });
            }
            _ => {}
        }
    }
    carried.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((carried, marks))
}

/// A path that leads to `name` in the open directory `dir`; the empty name is `dir` itself.
fn at(dir: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    path.push(if name.is_empty() { OsStr::new(".") } else { name });
    path
}

/// Errors that mean that there is nothing: gone meanwhile, or no attributes on such files.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(nix::libc::ENOENT | nix::libc::ENODATA | nix::libc::EOPNOTSUPP | nix::libc::ESTALE)
    )
}

/// Owner, mode and time of a file.
pub(super) fn meta(stat: &FileStat, xattrs: Vec<Xattr>) -> Meta {
    Meta {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtime,
        mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        xattrs,
    }
}

/// Opens a regular file for reading; `None` when it is gone or has become something else.
pub(super) fn open_file(dir: BorrowedFd<'_>, name: &OsStr) -> nix::Result<Option<File>> {
    let base = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let opened = match openat(dir, name, base | OFlag::O_NOATIME, Mode::empty()) {
        // Only the owner may leave the access time alone.
        Err(Errno::EPERM) => openat(dir, name, base, Mode::empty()),
        other => other,
    };
    match opened {
        Ok(fd) => {
            let file = File::from(fd);
            Ok(file.metadata().is_ok_and(|m| m.is_file()).then_some(file))
        }
        Err(Errno::ENOENT | Errno::ELOOP | Errno::ENXIO | Errno::ESTALE) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Opens a sub-directory; `None` when it is gone or has become something else.
pub(super) fn open_directory(
    dir: BorrowedFd<'_>,
    name: &OsStr,
) -> nix::Result<Option<std::os::fd::OwnedFd>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(dir, name, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ESTALE) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Writes a file's dirty pages back, without waiting for the journal or the disk's cache.
///
/// That write-protects them in every mapping (`folio_mkclean` in the kernel), so that the next
/// write through a shared mapping faults and sets the file's time. Without it a page that was
/// dirty before the pass could change afterwards unseen.
pub(super) fn clean(file: &File) {
    let flags = nix::libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | nix::libc::SYNC_FILE_RANGE_WRITE
        | nix::libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: the descriptor is open for as long as `file` is borrowed; no memory is passed.
    let failed = unsafe { nix::libc::sync_file_range(file.as_fd().as_raw_fd(), 0, 0, flags) } != 0;
    if failed {
        // Not every file system has it; this one does more but has the same effect.
        let _ = file.sync_data();
    }
}

/// A name as it comes from a directory.
pub(super) fn name_of(name: &CStr) -> Option<&OsStr> {
    match name.to_bytes() {
        b"." | b".." => None,
        bytes => Some(OsStr::from_bytes(bytes)),
    }
}
