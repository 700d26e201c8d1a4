//! The unix sockets of a network namespace, as the kernel knows them (sock_diag(7)).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{MsgFlags, recv, send};

/// Most bytes of an answer of the kernel.
const ANSWER: usize = 64 << 10;
/// `SOCK_DIAG_BY_FAMILY` (`linux/sock_diag.h`).
const BY_FAMILY: u16 = 20;
/// `UDIAG_SHOW_NAME`, `UDIAG_SHOW_VFS`, `UDIAG_SHOW_PEER` (`linux/unix_diag.h`).
const SHOW: u32 = 1 | 2 | 4;
/// `UNIX_DIAG_NAME`, `UNIX_DIAG_VFS`, `UNIX_DIAG_PEER`.
const NAME: u16 = 0;
const VFS: u16 = 1;
const PEER: u16 = 2;
/// Bytes of a netlink header, and of `unix_diag_msg` behind it.
const HEADER: usize = 16;
/// See [`HEADER`].
const DIAG: usize = 16;

/// A unix socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnixSocket {
    /// Its inode, as `/proc/PID/fd` shows it.
    pub inode: u32,
    /// The name that it was bound to; one that begins with zero is no file's.
    pub name: Option<Vec<u8>>,
    /// The lower bits of the inode of its file.
    pub file: Option<u32>,
    /// The socket that it is connected to.
    pub peer: Option<u32>,
}

/// Lists the sockets of this network namespace.
///
/// # Errors
/// The kernel has no sock_diag for them.
pub fn list() -> io::Result<Vec<UnixSocket>> {
    dump(&socket()?)
}

/// Lists the sockets of the network namespace of a process. Its socket is opened by a thread that visits the
/// namespace and ends.
///
/// # Errors
/// As [`list`]; the process is gone.
pub fn list_of(pid: i32) -> io::Result<Vec<UnixSocket>> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    let visit = move || -> io::Result<OwnedFd> {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        socket()
    };
    let visitor = std::thread::Builder::new().name("netns-visit".to_owned()).spawn(visit)?;
    let socket =
        visitor.join().map_err(|_| io::Error::other("the visit of a namespace failed"))??;
    dump(&socket)
}

fn socket() -> io::Result<OwnedFd> {
    let (family, kind) = (libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC);
    // SAFETY: socket(2) takes numbers alone.
    let socket = unsafe { libc::socket(family, kind, libc::NETLINK_SOCK_DIAG) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

fn dump(socket: &OwnedFd) -> io::Result<Vec<UnixSocket>> {
    // nlmsghdr, then unix_diag_req: family, protocol, padding, states, inode, what to show, cookie.
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut request = Vec::new();
    request.extend(40_u32.to_ne_bytes());
    request.extend(BY_FAMILY.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(0_u32.to_ne_bytes());
    request.extend(SHOW.to_ne_bytes());
    request.extend([0xff; 8]);
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut all = Vec::new();
    let mut answer = vec![0; ANSWER];
    loop {
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        if !read_messages(&answer[..length], &mut all) {
            return Ok(all);
        }
    }
}

/// Takes the sockets of one answer; `false` when it was the last one.
fn read_messages(mut rest: &[u8], all: &mut Vec<UnixSocket>) -> bool {
    while let Some(length) = number(rest, 0) {
        let length = length as usize;
        let kind = rest.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
        let Some(message) = rest.get(..length).filter(|message| message.len() >= HEADER) else {
            return false;
        };
        if kind != Some(BY_FAMILY) {
            return false;
        }
        if let Some(inode) = number(message, HEADER + 4) {
            let attributes = message.get(HEADER + DIAG..).unwrap_or_default();
            all.push(with_attributes(inode, attributes));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    rest.is_empty()
}

fn with_attributes(inode: u32, mut rest: &[u8]) -> UnixSocket {
    let mut socket = UnixSocket { inode, ..UnixSocket::default() };
    while let Some(header) = rest.get(..4) {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]])).max(4);
        let value = rest.get(4..length).unwrap_or_default();
        match u16::from_ne_bytes([header[2], header[3]]) {
            NAME => socket.name = Some(value.to_owned()),
            VFS => socket.file = number(value, 0),
            PEER => socket.peer = number(value, 0),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    socket
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn names_files_and_other_ends_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let (one, other) = UnixStream::pair().unwrap();
        let inode = |fd: i32| std::fs::metadata(format!("/proc/self/fd/{fd}")).unwrap().ino();
        let own = i32::try_from(std::process::id()).unwrap();
        for all in [list().unwrap(), list_of(own).unwrap()] {
            let find = |fd: i32| all.iter().find(|socket| u64::from(socket.inode) == inode(fd));
            let bound = find(listener.as_raw_fd()).unwrap();
            let name = bound.name.as_deref().unwrap();
            assert_eq!(name.strip_suffix(b"\0").unwrap_or(name), path.as_os_str().as_bytes());
            assert_eq!(bound.file, Some(std::fs::metadata(&path).unwrap().ino() as u32));
            let connected = find(one.as_raw_fd()).unwrap();
            assert_eq!(connected.peer.map(u64::from), Some(inode(other.as_raw_fd())));
        }
    }
}
