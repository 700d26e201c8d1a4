//! A connection of the server of pages with the agent ([`source_link`](super::source_link)).

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::sys::socket::{Shutdown, UnixAddr, getsockname, shutdown};

use super::source_link::{ENDED, Lane, MESSAGE, WANTED};
use crate::images::MissingRange;

/// A connection with the agent.
#[derive(Debug)]
pub(super) struct AgentConnection {
    pub(super) socket: UnixStream,
    /// What has come of messages that are not whole.
    received: Vec<u8>,
    /// `None` until the agent has said.
    pub(super) lane: Option<Lane>,
    /// What was asked for and has not come whole.
    pub(super) asked: Vec<MissingRange>,
    /// Whether a process waits for that.
    pub(super) is_for_a_fault: bool,
    pub(super) is_gone: bool,
}

impl AgentConnection {
    /// Takes one that an agent has made.
    pub(super) fn new(socket: UnixStream) -> Self {
        let (received, asked) = (Vec::new(), Vec::new());
        Self { socket, received, lane: None, asked, is_for_a_fault: false, is_gone: false }
    }

    /// Leaves the connection of a server that was killed alone: its descriptor may be another one by now.
    pub(super) fn forget(self) {
        let _ = self.socket.into_raw_fd();
    }

    /// Takes what has come, as far as there is room for it.
    pub(super) fn receive(&mut self) {
        let known = self.received.len();
        self.received.resize(2 * (4 + MESSAGE), 0);
        let read = self.socket.read(self.received.get_mut(known..).unwrap_or_default());
        let read = match read {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof),
            Ok(read) => Ok(read),
            Err(e) => Err(e.kind()),
        };
        self.received.truncate(known + read.unwrap_or(0));
        self.is_gone |= read.is_err_and(|kind| {
            !matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        });
    }

    /// Takes the next message that is whole.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        let length = u32::from_ne_bytes(*self.received.first_chunk::<4>()?) as usize;
        if length > MESSAGE {
            self.is_gone = true;
            self.received.clear();
            return None;
        }
        let message = self.received.get(4..4 + length)?.to_vec();
        self.received.drain(..4 + length);
        Some(message)
    }

    pub(super) fn ask(&mut self, wanted: Vec<MissingRange>) {
        let encoded = serde_json::to_vec(&wanted).unwrap_or_default();
        self.asked = wanted;
        self.tell(&[&[WANTED][..], &encoded].concat());
    }

    pub(super) fn tell_end(&mut self, is_whole: bool) {
        self.tell(&[ENDED, is_whole.into()]);
    }

    /// Says something that is far shorter than the socket's buffer. Who does not take it is gone.
    pub(super) fn tell(&mut self, message: &[u8]) {
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_ne_bytes();
        self.is_gone |= self.socket.write_all(&[&length, message].concat()).is_err();
    }
}

/// Ends all connections that servers before this one have accepted at `path`: nobody reads them, and an agent does not see that,
/// for their descriptors are this process's, too.
pub(super) fn end_others(listener: &UnixListener, path: &Path) -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_string_lossy().parse().map_err(io::Error::other)?;
        // Of all else there is no such name.
        let is_one = getsockname::<UnixAddr>(number).is_ok_and(|name| name.path() == Some(path));
        if is_one && number != listener.as_raw_fd() {
            // It may have ended by itself.
            let _ = shutdown(number, Shutdown::Both);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_sees_that_nobody_reads_its_connection() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pages");
        let listener = UnixListener::bind(&path).unwrap();
        let mut agent = UnixStream::connect(&path).unwrap();
        // What the kernel has accepted for a server that was killed.
        let number = listener.accept().unwrap().0.into_raw_fd();
        let other = UnixListener::bind(dir.path().join("other")).unwrap();
        let mut apart = UnixStream::connect(dir.path().join("other")).unwrap();
        let (mut kept, _) = other.accept().unwrap();
        let waiting = UnixStream::connect(&path).unwrap();
        end_others(&listener, &path).unwrap();
        assert_eq!(agent.read(&mut [0]).unwrap(), 0);
        kept.write_all(&[7]).unwrap();
        let mut byte = [0];
        apart.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [7], "another socket is left alone");
        let (mut served, _) = listener.accept().unwrap();
        served.write_all(&[8]).unwrap();
        (&waiting).read_exact(&mut byte).unwrap();
        assert_eq!(byte, [8], "who has not been accepted yet is");
        assert!(number > 0);
    }
}
