//! Connections that carry nothing until the end, when each must still echo one message.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::message::{Message, SIZE_MIN};
use super::tcp::CONNECT_LIMIT;

/// Marks the messages of idle connections, which no client's process number reaches.
const RUN: u32 = u32::MAX;

/// Open and silent connections.
#[derive(Debug)]
pub(super) struct IdleConnections(Vec<TcpStream>);

impl IdleConnections {
    pub(super) fn open(server: SocketAddr, count: u32) -> io::Result<Self> {
        let mut all = Vec::with_capacity(count as usize);
        for _ in 0..count {
            all.push(TcpStream::connect_timeout(&server, CONNECT_LIMIT)?);
        }
        Ok(Self(all))
    }

    /// Sends one message on each connection and counts those that echo it within `limit`.
    pub(super) fn check(mut self, limit: Duration) -> u64 {
        let deadline = Instant::now() + limit.max(Duration::from_secs(1));
        let mut expected = [0; SIZE_MIN];
        let mut sent = Vec::with_capacity(self.0.len());
        for (index, stream) in self.0.iter_mut().enumerate() {
            message(index).encode(&mut expected);
            sent.push(stream.write_all(&expected).is_ok());
        }
        let mut alive = 0;
        for (index, stream) in self.0.iter_mut().enumerate().filter(|(index, _)| sent[*index]) {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut reply = [0; SIZE_MIN];
            message(index).encode(&mut expected);
            let whole = stream
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))
                .and_then(|()| stream.read_exact(&mut reply))
                .is_ok();
            alive += u64::from(whole && reply == expected);
        }
        alive
    }
}

fn message(index: usize) -> Message {
    Message { connection: index as u32, run: RUN, sequence: 0, sent_ns: 0 }
}
