//! Puts the relay between an OCI runtime and the CRIU that this process becomes.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, getsockopt, sendmsg, socketpair,
};

use super::relay::SOCKET;
use super::rpc;
use crate::pidfd::PidFd;
use crate::seqpacket::peek;

/// Puts a relay between the runtime's socket and the CRIU that this process becomes: CRIU gets the other
/// end of a new pair under the same number.
///
/// CRIU takes the maker of its socket for its client, and looks for files of the client's by their numbers
/// there (`/proc/PID/fd`, `criu/cr-service.c`). The maker of the new pair is this process, so it gets these
/// files, under the same numbers.
pub(super) fn divert(dir: &Path, socket: RawFd) -> io::Result<()> {
    let numbers = rpc::descriptors(&peek(socket)?);
    // SAFETY: the runtime's socket is open for as long as this process is here.
    let client = getsockopt(&unsafe { BorrowedFd::borrow_raw(socket) }, PeerCredentials)?.pid();
    put_between(dir, socket)?;
    // Everything of this process's own is closed by now, so that no value owns a number that is given away.
    for number in numbers.into_iter().filter(|number| *number > 2 && *number != socket) {
        let file = PidFd::open(client)?.descriptor(number)?;
        if file.as_raw_fd() == number {
            // SAFETY: fcntl(2) on a descriptor of ours.
            unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
            let _ = file.into_raw_fd();
        } else {
            put(file.as_raw_fd(), number)?;
        }
    }
    Ok(())
}

/// Hands the runtime's socket to the relay and puts the other end of a new pair in its place.
fn put_between(dir: &Path, socket: RawFd) -> io::Result<()> {
    let stream = UnixStream::connect(dir.join(SOCKET))?;
    let (theirs, ours) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let sockets = [socket, theirs.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&sockets)];
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(b"+")], &rights, MsgFlags::empty(), None)?;
    put(ours.as_raw_fd(), socket)
}

/// Makes `number` another name of a descriptor, one that does not close on exec.
fn put(descriptor: RawFd, number: RawFd) -> io::Result<()> {
    // SAFETY: dup2(2) of a descriptor of ours. What had the number is the runtime's, or closes on exec: no
    // value of this process is used afterwards.
    if unsafe { libc::dup2(descriptor, number) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
