//! One TCP connection of an echo client.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::client::Channel;
use super::echo_message::Message;
use super::tally::{Ended, Tally};

/// Bytes read from a connection at a time.
const READ_SIZE: usize = 16 * 1024;
/// The time limit for a connection to be established.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A connection with its unsent bytes and a partial reply.
#[derive(Debug)]
pub(super) struct TcpChannel {
    stream: TcpStream,
    size: usize,
    unsent: Vec<u8>,
    partial: Vec<u8>,
    next_reply: u64,
}

impl TcpChannel {
    pub(super) fn connect(server: SocketAddr, size: usize) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&server, CONNECT_LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, size, unsent: Vec::new(), partial: Vec::new(), next_reply: 0 })
    }

    /// Accounts for a complete reply.
    fn take(&mut self, bytes: &[u8], id: (u32, u32), tally: &mut Tally) {
        match Message::decode(bytes) {
            Some(message) if (message.connection, message.run) == id => {
                if message.sequence == self.next_reply {
                    tally.received(&message);
                    self.next_reply += 1;
                } else if message.sequence < self.next_reply {
                    tally.duplicated();
                } else {
                    tally.reordered();
                    tally.received(&message);
                    self.next_reply = message.sequence + 1;
                }
            }
            _ => tally.corrupt(),
        }
    }
}

impl Channel for TcpChannel {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn send(&mut self, message: &Message, tally: &mut Tally) -> Result<(), Ended> {
        let mut bytes = vec![0; self.size];
        message.encode(&mut bytes);
        tally.sent(message);
        self.unsent.extend_from_slice(&bytes);
        self.flush()
    }

    fn flush(&mut self) -> Result<(), Ended> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Ended::Error(error)),
            }
        }
        Ok(())
    }

    fn wants_to_write(&self) -> bool {
        !self.unsent.is_empty()
    }

    fn receive(&mut self, id: (u32, u32), tally: &mut Tally) -> Result<(), Ended> {
        let mut buffer = [0; READ_SIZE];
        loop {
            let length = match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Ended::Eof),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Ended::Error(error)),
            };
            let mut held = std::mem::take(&mut self.partial);
            held.extend_from_slice(&buffer[..length]);
            let mut replies = held.chunks_exact(self.size);
            for reply in &mut replies {
                self.take(reply, id, tally);
            }
            self.partial = replies.remainder().to_vec();
            if length < READ_SIZE {
                return Ok(());
            }
        }
    }
}
