//! A regular file that is being written.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstatat, futimens};
use nix::unistd::{fchown, ftruncate};
use xattr::FileExt as _;

use super::{gid, refused, time_of, uid};
use crate::tree::transfer_record::{CHUNK, is_carried};
use crate::tree::{Error, Meta, beneath, io_error};

/// The file that data belongs to until the next entry.
#[derive(Debug)]
pub(super) struct Writing {
    file: File,
    length: u64,
    /// Where the next data may start.
    position: u64,
    meta: Meta,
    shown: PathBuf,
}

impl Writing {
    /// Makes `name` in `dir`, or opens it to be patched; its length is set at once, so that
    /// whatever no data comes for is a hole.
    pub(super) fn open(
        dir: BorrowedFd<'_>,
        name: &OsStr,
        length: u64,
        patch: bool,
        meta: Meta,
        shown: PathBuf,
    ) -> Result<Self, Error> {
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = if patch {
            // Not by opening it: that alone could do something to a device.
            let stat = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(io_error("look at", &shown))?;
            if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
                return Err(refused(name.as_encoded_bytes(), "only regular files are patched"));
            }
            openat(dir, name, flags, Mode::empty())
        } else {
            beneath::remove(dir, name).map_err(io_error("remove", &shown))?;
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            openat(dir, name, flags | OFlag::O_CREAT | OFlag::O_EXCL, mode)
        };
        let file = File::from(fd.map_err(io_error("open", &shown))?);
        let size = i64::try_from(length).map_err(|_| io_error("extend", &shown)(Errno::EFBIG))?;
        ftruncate(&file, size).map_err(io_error("set the length of", &shown))?;
        Ok(Self { file, length, position: 0, meta, shown })
    }

    /// Writes a piece; pieces come in ascending order.
    pub(super) fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = offset.checked_add(bytes.len() as u64);
        let fits = end.is_some_and(|end| end <= self.length);
        if bytes.is_empty() || bytes.len() > CHUNK || offset < self.position || !fits {
            let shown = self.shown.as_os_str().as_encoded_bytes();
            return Err(refused(shown, "content outside of the file, or out of order"));
        }
        self.file.write_all_at(bytes, offset).map_err(|source| Error::Io {
            action: "write",
            path: self.shown.clone(),
            source,
        })?;
        self.position = offset + bytes.len() as u64;
        Ok(())
    }

    /// Sets owner, mode, attributes and time, in the order in which they do not undo each other.
    pub(super) fn complete(self) -> Result<(), Error> {
        set_meta(&self.file, &self.meta, &self.shown)?;
        let time = time_of(&self.meta);
        futimens(&self.file, &time, &time).map_err(io_error("set the time of", &self.shown))
    }
}

/// Owner, mode and attributes: chown(2) clears setuid and the file's capabilities, so it comes
/// first.
pub(super) fn set_meta(file: &File, meta: &Meta, shown: &Path) -> Result<(), Error> {
    fchown(file.as_fd(), uid(meta), gid(meta)).map_err(io_error("set the owner of", shown))?;
    let mode = Mode::from_bits_truncate(meta.mode);
    fchmod(file.as_fd(), mode).map_err(io_error("set the mode of", shown))?;
    let fail = |source: io::Error| Error::Io {
        action: "set attributes of",
        path: shown.to_path_buf(),
        source,
    };
    let names = match file.list_xattr() {
        Ok(names) => names.filter(|n| n.to_str().is_some_and(is_carried)).collect(),
        Err(e) if e.kind() == io::ErrorKind::Unsupported => Vec::new(),
        Err(e) => return Err(fail(e)),
    };
    for name in names {
        if !meta.xattrs.iter().any(|xattr| name == *xattr.name) {
            file.remove_xattr(&name).map_err(fail)?;
        }
    }
    for xattr in &meta.xattrs {
        file.set_xattr(&xattr.name, &xattr.value).map_err(fail)?;
    }
    Ok(())
}
