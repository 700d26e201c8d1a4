//! What a frozen container has not read, and CRIU's images do not hold: events of files, urgent data, packets.
//!
//! CRIU 4.2 saves what waits in pipes, terminals, unix sockets and TCP connections. It restores instances of inotify and
//! fanotify without their events (`criu/fsnotify.c`), sockets without urgent data (send(2), `MSG_OOB`), and raw and echo
//! sockets without what they have received. The same holds for packet sockets, of which a program that captures packets has
//! always some unread, and nobody misses them. Datagrams of UDP are counted elsewhere, since the move waits for the
//! container to read them.

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::socket_options::Kind;

/// What a kernel calls instances of inotify and fanotify in `/proc/PID/fd`.
const EVENTS: [(&str, Unread); 2] =
    [("anon_inode:inotify", Unread::Inotify), ("anon_inode:[fanotify]", Unread::Fanotify)];

/// Something that waits to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unread {
    /// Events of an instance of inotify.
    Inotify,
    /// Events of an instance of fanotify.
    Fanotify,
    /// Urgent data of a connection.
    UrgentData,
    /// Packets of a raw or echo socket.
    Packets,
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inotify => "events of files (inotify)",
            Self::Fanotify => "events of files (fanotify)",
            Self::UrgentData => "urgent data of a connection (MSG_OOB)",
            Self::Packets => "packets of a raw socket",
        })
    }
}

/// Returns what kind of events a descriptor brings, by what its link in `/proc/PID/fd` says.
pub(crate) fn kind_of_events(link: &str) -> Option<Unread> {
    EVENTS.iter().find(|(name, _)| *name == link).map(|(_, kind)| *kind)
}

/// Returns whether events wait at an instance of inotify or fanotify.
pub(crate) fn has_events(instance: &OwnedFd) -> bool {
    waiting(instance) > 0
}

/// Returns what waits at a socket.
pub(crate) fn of_socket(socket: &OwnedFd, kind: &Kind) -> Option<Unread> {
    let is_unix = kind.family == libc::AF_UNIX;
    let is_stream = kind.kind == libc::SOCK_STREAM && !kind.listens;
    if is_stream && (is_unix || kind.protocol == libc::IPPROTO_TCP) {
        return is_urgent(socket).then_some(Unread::UrgentData);
    }
    let is_counted = matches!(kind.protocol, libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE);
    let has_packets = !is_unix && !is_stream && !is_counted && waiting(socket) > 0;
    has_packets.then_some(Unread::Packets)
}

/// Returns whether urgent data can be had. Data that a program wants in line with all other (SO_OOBINLINE) is none.
fn is_urgent(socket: &OwnedFd) -> bool {
    let mut byte = [0_u8; 1];
    // SAFETY: the kernel writes at most the one byte for which there is room.
    let read = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            byte.as_mut_ptr().cast(),
            byte.len(),
            libc::MSG_OOB | libc::MSG_PEEK | libc::MSG_DONTWAIT,
        )
    };
    read == 1
}

/// Returns how many bytes a descriptor says that it has (FIONREAD).
fn waiting(descriptor: &OwnedFd) -> i32 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one number of this type.
    let done = unsafe { libc::ioctl(descriptor.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if done == 0 { bytes } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;

    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

    use super::*;

    fn urgent(from: &impl AsRawFd) {
        // SAFETY: the kernel reads the one byte that is there.
        let sent =
            unsafe { libc::send(from.as_raw_fd(), [7_u8].as_ptr().cast(), 1, libc::MSG_OOB) };
        assert_eq!(sent, 1);
    }

    fn unread(socket: OwnedFd) -> Option<Unread> {
        of_socket(&socket, &Kind::of(&socket).unwrap())
    }

    #[test]
    fn urgent_data_is_told_from_other() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        near.write_all(b"plain").unwrap();
        assert_eq!(unread(far.try_clone().unwrap().into()), None);
        urgent(&near);
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(unread(far.into()), Some(Unread::UrgentData));
        assert_eq!(unread(listener.into()), None);
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(b"plain").unwrap();
        assert_eq!(unread(far.into()), None);
    }

    #[test]
    fn datagrams_of_udp_are_counted_elsewhere() {
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        far.send_to(b"x", far.local_addr().unwrap()).unwrap();
        assert_eq!(unread(far.into()), None);
    }

    #[test]
    fn events_of_files_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let watch = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
        watch.add_watch(dir.path(), AddWatchFlags::IN_CREATE).unwrap();
        let link = std::fs::read_link(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsFd::as_fd(&watch).as_raw_fd()
        ));
        assert_eq!(kind_of_events(link.unwrap().to_str().unwrap()), Some(Unread::Inotify));
        let instance = std::os::fd::AsFd::as_fd(&watch).try_clone_to_owned().unwrap();
        assert!(!has_events(&instance));
        std::fs::write(dir.path().join("new"), "x").unwrap();
        assert!(has_events(&instance));
    }
}
