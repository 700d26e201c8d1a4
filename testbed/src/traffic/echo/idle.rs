//! Connections that are idle until the end, when each must still echo one message.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::echo_message::{Message, SIZE_MIN};
use super::tcp::CONNECT_LIMIT;

/// The run number of idle connections. No process ID is as high.
const RUN: u32 = u32::MAX;
/// The number of connections that are checked at a time. With more, most packets would be dropped at a full queue, and
/// TCP doubles the time between retransmissions.
const CROWD: usize = 256;
/// The shortest time limit for an echo: the kernel retransmits after 0.2, 0.6 and 1.4 seconds.
const LEAST: Duration = Duration::from_secs(3);
/// The number of silent connections that are reported.
const MOST_TOLD: usize = 3;
/// The number of batches with silent connections after which the check ends.
const PATIENT: usize = 4;

/// Open, idle connections.
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

    /// Sends one message on each connection. Returns how many echo it within `limit`, and descriptions of some that
    /// do not.
    pub(super) fn check(mut self, limit: Duration) -> (u64, Vec<String>) {
        let mut alive = 0;
        let mut told = Vec::new();
        let mut silent = 0;
        for (number, crowd) in self.0.chunks_mut(CROWD).enumerate() {
            if silent == PATIENT {
                told.push(format!("idle connections from {} on: not tried", number * CROWD));
                break;
            }
            let before = alive;
            let deadline = Instant::now() + limit.max(LEAST);
            for (index, answer) in answers(crowd, number * CROWD, deadline).into_iter().enumerate()
            {
                match answer {
                    Ok(()) => alive += 1,
                    Err(e) if told.len() < MOST_TOLD => {
                        let port = crowd[index].local_addr().map_or(0, |address| address.port());
                        let number = number * CROWD + index;
                        told.push(format!("idle connection {number} from port {port}: {e}"));
                    }
                    Err(_) => {}
                }
            }
            silent += usize::from(alive - before < crowd.len() as u64);
        }
        (alive, told)
    }
}

/// Sends a message on each of these connections, numbered from `first`, and returns the results.
fn answers(connections: &mut [TcpStream], first: usize, deadline: Instant) -> Vec<io::Result<()>> {
    let mut expected = [0; SIZE_MIN];
    let mut sent = Vec::with_capacity(connections.len());
    for (index, stream) in connections.iter_mut().enumerate() {
        message(first + index).encode(&mut expected);
        sent.push(stream.write_all(&expected));
    }
    let mut answers = Vec::with_capacity(connections.len());
    for ((index, stream), sent) in connections.iter_mut().enumerate().zip(sent) {
        message(first + index).encode(&mut expected);
        answers.push(sent.and_then(|()| {
            let left = deadline.saturating_duration_since(Instant::now());
            stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut reply = [0; SIZE_MIN];
            stream.read_exact(&mut reply)?;
            if reply == expected { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
        }));
    }
    answers
}

fn message(index: usize) -> Message {
    Message { connection: index as u32, run: RUN, sequence: 0, sent_ns: 0 }
}
