//! Messages on sockets of unix(7), with the descriptors that they carry: between a runtime and CRIU, and to what holds
//! descriptors of pages.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recv, recvmsg, sendmsg};

/// Largest message of either side, in bytes.
const MESSAGE: usize = 1 << 20;
/// Most descriptors that come with one.
const DESCRIPTORS: usize = 16;

/// One message and the descriptors that came with it.
pub(crate) struct Message {
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Message {
    pub(crate) fn send(&self, to: &OwnedFd) -> io::Result<()> {
        let descriptors: Vec<RawFd> = self.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let rights = if descriptors.is_empty() { &[][..] } else { &rights };
        let bytes = [IoSlice::new(&self.bytes)];
        loop {
            match sendmsg::<()>(to.as_raw_fd(), &bytes, rights, MsgFlags::MSG_NOSIGNAL, None) {
                Err(Errno::EINTR) => {}
                other => return other.map(drop).map_err(Into::into),
            }
        }
    }
}

/// Receives a whole message; `None` at the end.
pub(crate) fn receive(from: &OwnedFd) -> io::Result<Option<Message>> {
    let length = loop {
        match recv(from.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC) {
            Err(Errno::EINTR) => {}
            // The runtime was killed.
            Err(Errno::ECONNRESET) => return Ok(None),
            other => break other?,
        }
    };
    match length {
        0 => Ok(None),
        1..=MESSAGE => receive_with(from.as_raw_fd(), length),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

pub(crate) fn receive_with(from: RawFd, length: usize) -> io::Result<Option<Message>> {
    let mut bytes = vec![0; length];
    let mut space = nix::cmsg_space!([RawFd; DESCRIPTORS]);
    let (received, descriptors) = loop {
        let mut into = [IoSliceMut::new(&mut bytes)];
        match recvmsg::<()>(from, &mut into, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(message) => {
                let mut descriptors = Vec::new();
                for control in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(numbers) = control {
                        // SAFETY: the kernel has just made these descriptors for us alone.
                        descriptors.extend(
                            numbers.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                        );
                    }
                }
                break (message.bytes, descriptors);
            }
        }
    };
    if received == 0 {
        return Ok(None);
    }
    bytes.truncate(received);
    Ok(Some(Message { bytes, descriptors }))
}

/// Returns the request that comes; it stays where it is.
pub(crate) fn peek(socket: RawFd) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; MESSAGE];
    let length = loop {
        match recv(socket, &mut bytes, MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    if length > bytes.len() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    bytes.truncate(length);
    Ok(bytes)
}
