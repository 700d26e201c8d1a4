//! A tmpfs that two hosts share, so that no data has to be transferred between them.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;

use crate::error::{Context, Result};
use crate::host::Host;
use crate::subprocess;

/// The mount point on both hosts.
pub(super) const PLACE: &str = "/memory";
const PLACE_C: &CStr = c"/memory";

/// Mounts one tmpfs at [`PLACE`] on both hosts, instead of an earlier one.
pub(super) fn share(first: &Host, second: &Host) -> Result<()> {
    let what = || format!("sharing {PLACE} between hosts {} and {}", first.name(), second.name());
    let (first, second) = (
        subprocess::pidfd(first.init()).context(what)?,
        subprocess::pidfd(second.init()).context(what)?,
    );
    // A thread of its own: it leaves this program's mount namespace and never comes back.
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS)?;
            setns(&first, CloneFlags::CLONE_NEWNS)?;
            clear()?;
            mount(Some("tmpfs"), PLACE, Some("tmpfs"), MsFlags::empty(), Some("mode=700"))?;
            let tree = detached_copy()?;
            setns(&second, CloneFlags::CLONE_NEWNS)?;
            clear()?;
            attach(&tree)
        });
        worker.join().unwrap_or_else(|_| Err(io::Error::other("the mounting thread died")))
    })
    .context(what)
}

/// Creates the directory, or unmounts what is mounted there.
fn clear() -> io::Result<()> {
    match nix::unistd::mkdir(PLACE, Mode::S_IRWXU) {
        Ok(()) => return Ok(()),
        Err(Errno::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    match umount2(PLACE, MntFlags::MNT_DETACH) {
        // Not a mount point.
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Returns a copy of the mount that belongs to no mount namespace (open_tree(2)).
fn detached_copy() -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: open_tree reads a constant C string and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, PLACE_C.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Attaches such a copy in the mount namespace of this thread (move_mount(2)).
fn attach(tree: &OwnedFd) -> io::Result<()> {
    // SAFETY: move_mount reads two constant C strings and takes two descriptors that are valid.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            PLACE_C.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
