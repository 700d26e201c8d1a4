//! Locks that are ranges of one file (`F_OFD_SETLK`, fcntl_locking(2)), a byte for each ID: nothing is left of
//! them after a crash.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Number of an ID's hexadecimal digits that make up its offset in the file: as many as fit into a positive
/// `off_t`.
const DIGITS: usize = 15;

/// Returns the place of an ID in a file; `None` if it does not begin with enough hexadecimal digits.
pub(crate) fn place(id: &str) -> Option<i64> {
    i64::from_str_radix(id.get(..DIGITS)?, 16).ok()
}

/// Takes a place of a file; `None` if another process, or another part of this one, has it. It is given back
/// when the file is dropped.
///
/// # Errors
/// The file cannot be opened or locked.
pub(crate) fn try_take(path: &Path, place: i64) -> io::Result<Option<File>> {
    let file = open(path)?;
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&range(place))) {
        Ok(_) => Ok(Some(file)),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Returns whether somebody has a place of a file. Does not take it, not even for a moment.
///
/// # Errors
/// The file cannot be opened or asked about.
pub(crate) fn is_taken(path: &Path, place: i64) -> io::Result<bool> {
    let mut range = range(place);
    fcntl(&open(path)?, FcntlArg::F_OFD_GETLK(&mut range))?;
    Ok(range.l_type != libc::F_UNLCK as libc::c_short)
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn range(place: i64) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: place,
        l_len: 1,
        l_pid: 0,
    }
}
