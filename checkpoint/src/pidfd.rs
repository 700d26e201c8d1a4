//! Descriptors of other processes, duplicated into this process (pidfd_getfd(2)).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockaddrStorage, getsockname};

/// A process, held by a descriptor: its number is not given to another process while this value exists.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Takes hold of a process.
    ///
    /// # Errors
    /// ESRCH when there is none of that number.
    pub fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: pidfd_open(2) takes numbers alone.
        owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).map(Self)
    }

    /// Returns a descriptor of our own for the file that one of the process's descriptors means.
    ///
    /// # Errors
    /// EBADF when it is not open, EPERM without CAP_SYS_PTRACE.
    pub fn descriptor(&self, number: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: pidfd_getfd(2) takes numbers alone.
        owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), number, 0) })
    }

    /// Returns whether the process has ended: the descriptor is readable then (pidfd_open(2)).
    ///
    /// # Errors
    /// That of poll(2).
    pub fn has_ended(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut polled, PollTimeout::ZERO)? > 0)
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns the own address of a socket of IPv4 or IPv6.
#[must_use]
pub fn own_address(socket: &OwnedFd) -> Option<SocketAddr> {
    let address = getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok()?;
    let of_four = address.as_sockaddr_in().map(|four| SocketAddr::from((four.ip(), four.port())));
    let of_six = || address.as_sockaddr_in6().map(|six| SocketAddr::from((six.ip(), six.port())));
    of_four.or_else(of_six)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
