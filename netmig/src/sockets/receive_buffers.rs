//! Receive buffers of a container's UDP sockets, enlarged for the burst at the end of a hold.
//!
//! When a hold ends, a container receives at once what came in during its interruption. A receive
//! buffer of the kernel's default size holds 277 small datagrams, which is too few for a receiver
//! that does not get the processor at once. So the buffers are enlarged before the dump, CRIU
//! carries their size along, and the destination restores the original size once the burst is over.
//!
//! The enlarged size is the original one plus [`EXTRA`], so any process that finds it knows the
//! original, also after a crash. No waiting datagram is lost when a buffer shrinks.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce, SockType};
use nix::sys::socket::{
    AddressFamily, SockType as Kind, SockaddrLike, SockaddrStorage, getsockname, getsockopt,
    setsockopt,
};
use thiserror::Error;

/// The bytes that are added, as the kernel counts them: more than all packets that a hold can have.
/// This is a limit, and uses no memory by itself.
pub const EXTRA: usize = 256 << 20;

/// The sockets of a process could not be read or changed.
#[derive(Debug, Error)]
#[error("cannot read or resize the sockets of process {pid}")]
pub struct Error {
    pid: i32,
    #[source]
    source: io::Error,
}

/// Enlarges the receive buffers of all UDP sockets of these processes; returns their number. Skips
/// processes and sockets that end meanwhile.
///
/// # Errors
/// When a process' descriptors cannot be read, for example without CAP_SYS_PTRACE, or a size is
/// refused.
pub fn enlarge(pids: &[i32]) -> Result<usize, Error> {
    resize(pids, |size| (size < EXTRA).then_some(size + EXTRA))
}

/// Restores the size of the buffers that [`enlarge`] enlarged, here or on another host; returns
/// their number.
///
/// # Errors
/// As [`enlarge`].
pub fn restore(pids: &[i32]) -> Result<usize, Error> {
    resize(pids, |size| size.checked_sub(EXTRA))
}

/// Returns the number of datagrams that were dropped for a full receive buffer in the network
/// namespace of a process, since the namespace was created: `RcvbufErrors` of `/proc/PID/net/snmp`
/// and `snmp6`.
///
/// # Errors
/// When the process is gone.
pub fn dropped_datagrams(pid: i32) -> io::Result<u64> {
    let four = fs::read_to_string(format!("/proc/{pid}/net/snmp"))?;
    // A kernel without IPv6 has no such file.
    let six = fs::read_to_string(format!("/proc/{pid}/net/snmp6")).unwrap_or_default();
    Ok(dropped_of_four(&four).unwrap_or(0) + dropped_of_six(&six).unwrap_or(0))
}

/// Parses `snmp`: two lines begin with `Udp:`, the names of the counters and their values.
fn dropped_of_four(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let column = lines.next()?.split(' ').position(|name| name == "RcvbufErrors")?;
    lines.next()?.split(' ').nth(column)?.parse().ok()
}

/// Parses `snmp6`: each line is a name and a value.
fn dropped_of_six(text: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix("Udp6RcvbufErrors"))?;
    value.trim().parse().ok()
}

fn resize(pids: &[i32], new_size: impl Fn(usize) -> Option<usize>) -> Result<usize, Error> {
    let mut count = 0;
    for &pid in pids {
        let failed = |source| Error { pid, source };
        let directory = PathBuf::from(format!("/proc/{pid}/fd"));
        let entries = match fs::read_dir(&directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(failed)?,
        };
        let Some(process) = gone_is_none(open_process(pid)).map_err(failed)? else { continue };
        for entry in entries {
            let Ok(entry) = entry else { break };
            let is_socket = fs::read_link(entry.path())
                .is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let (true, Some(number)) = (is_socket, number) else { continue };
            let Some(socket) = gone_is_none(borrow(&process, number)).map_err(failed)? else {
                continue;
            };
            if !is_udp(&socket) {
                continue;
            }
            let Some(size) = getsockopt(&socket, RcvBuf).ok().and_then(&new_size) else { continue };
            // The kernel doubles what it is given (socket(7), SO_RCVBUF).
            setsockopt(&socket, RcvBufForce, &(size / 2)).map_err(|e| failed(e.into()))?;
            count += 1;
        }
    }
    Ok(count)
}

fn is_udp(socket: &OwnedFd) -> bool {
    let family = getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok().and_then(|a| a.family());
    matches!(family, Some(AddressFamily::Inet | AddressFamily::Inet6))
        && getsockopt(socket, SockType) == Ok(Kind::Datagram)
}

/// Returns `None` for a process or descriptor that has gone meanwhile.
fn gone_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::EBADF)) => Ok(None),
        other => other.map(Some),
    }
}

fn open_process(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two numbers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    owned(fd)
}

/// Duplicates another process' descriptor into this one.
fn borrow(process: &OwnedFd, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_getfd(2) takes three numbers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    owned(fd)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    /// Needs CAP_NET_ADMIN to exceed the host's limit; prints that it was skipped without.
    #[test]
    fn udp_sockets_get_room_and_their_own_size_back() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let size = || getsockopt(&socket, RcvBuf).unwrap();
        let (before, of_other) = (size(), getsockopt(&other, RcvBuf).unwrap());
        let own = [i32::try_from(std::process::id()).unwrap()];
        match enlarge(&own) {
            Err(error) => return println!("skipped: {error}"),
            Ok(count) => assert!(count >= 1),
        }
        assert_eq!(size(), before + EXTRA);
        enlarge(&own).unwrap();
        assert_eq!(size(), before + EXTRA, "once is enough");
        assert_eq!(getsockopt(&other, RcvBuf).unwrap(), of_other);
        restore(&own).unwrap();
        assert_eq!(size(), before);
        restore(&own).unwrap();
        assert_eq!(size(), before);
    }

    #[test]
    fn a_process_that_is_gone_has_no_sockets() {
        assert_eq!(enlarge(&[i32::MAX]).unwrap(), 0);
    }

    #[test]
    fn full_buffers_are_found_in_the_kernels_tables() {
        let four = "Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors\n\
                    Udp: 5 0 9 5 7 0\nUdpLite: RcvbufErrors\nUdpLite: 3\n";
        assert_eq!(dropped_of_four(four), Some(7));
        assert_eq!(dropped_of_four("Udp: 1 2\n"), None);
        let six = "Udp6InErrors                    \t1\nUdp6RcvbufErrors                \t4\n";
        assert_eq!(dropped_of_six(six), Some(4));
        assert!(dropped_datagrams(i32::MAX).is_err());
    }
}
