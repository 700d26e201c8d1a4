//! Opens and removes files below a directory without ever leaving it (openat2(2), `RESOLVE_BENEATH`).
//!
//! The tree belongs to a container: by the time that a directory in it is opened, it may be a symbolic link to the host's
//! `/etc`. The kernel refuses to follow that.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Deepest tree that is removed; each level holds a descriptor.
const REMOVE_DEPTH: usize = 512;

/// Opens the directory at `path` below `root`; the empty path is `root` itself.
pub(super) fn open_directory(root: BorrowedFd<'_>, path: &Path) -> nix::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    open(root, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

/// Opens the file at `path` below `root` for reading.
pub(super) fn open_file(root: BorrowedFd<'_>, path: &Path) -> nix::Result<File> {
    open(root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK).map(File::from)
}

fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    let how = OpenHow::new().flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).resolve(resolve);
    loop {
        match openat2(root, path, how) {
            // A rename elsewhere made the kernel unsure (openat2(2)).
            Err(Errno::EAGAIN) => {}
            other => return other,
        }
    }
}

/// Removes `name` in `dir`, with all below it if it is a directory. Absent is done.
pub(super) fn remove(dir: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
    remove_to(dir, name, REMOVE_DEPTH)
}

fn remove_to(dir: BorrowedFd<'_>, name: &OsStr, depth: usize) -> nix::Result<()> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        // EPERM is what POSIX wants for a directory, EISDIR what Linux says.
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(e) => return Err(e),
    }
    if depth == 0 {
        return Err(Errno::ELOOP);
    }
    let below = open(dir, Path::new(name), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    let mut names = Vec::new();
    for entry in Dir::from_fd(below.try_clone().map_err(errno)?)?.iter() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    for name in names {
        remove_to(below.as_fd(), OsStr::from_bytes(&name), depth - 1)?;
    }
    match unlinkat(dir, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(e) => Err(e),
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_and_dots_lead_nowhere() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir(top.path().join("outside")).unwrap();
        fs::write(top.path().join("outside/f"), "x").unwrap();
        symlink("../outside", root.join("link")).unwrap();
        symlink("a", root.join("inner")).unwrap();
        let fd = File::open(&root).unwrap();
        assert!(open_directory(fd.as_fd(), Path::new("")).is_ok());
        assert!(open_directory(fd.as_fd(), Path::new("a/b")).is_ok());
        for path in ["link", "inner", "inner/b", "..", "a/../..", "/etc", "a/b/../../.."] {
            assert!(open_directory(fd.as_fd(), Path::new(path)).is_err(), "{path}");
        }
        assert!(open_file(fd.as_fd(), Path::new("link/f")).is_err());
        // Removing a link removes the link.
        remove(fd.as_fd(), OsStr::new("link")).unwrap();
        assert!(top.path().join("outside/f").exists() && !root.join("link").exists());
        symlink(top.path().join("outside"), root.join("a/b/l")).unwrap();
        fs::write(root.join("a/b/f"), "x").unwrap();
        remove(fd.as_fd(), OsStr::new("a")).unwrap();
        assert!(!root.join("a").exists() && top.path().join("outside/f").exists());
        remove(fd.as_fd(), OsStr::new("absent")).unwrap();
    }
}
