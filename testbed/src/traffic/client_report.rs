//! The reports of traffic clients, which they print as JSON.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// A time without replies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// Its beginning, in nanoseconds since the Unix epoch.
    pub at_unix_ns: u64,
    /// Its length in milliseconds.
    pub ms: f64,
}

/// The round-trip time of one message.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// When the message was sent, in nanoseconds since the Unix epoch.
    pub sent_unix_ns: u64,
    /// The round-trip time in milliseconds.
    pub ms: f64,
}

/// The report of an echo client, over all its connections or flows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EchoReport {
    /// Connections (TCP) or flows (UDP) that carried the messages.
    pub connections: u64,
    /// Messages sent.
    pub sent: u64,
    /// Distinct messages that came back intact.
    pub received: u64,
    /// Messages sent and not received: `sent - received`.
    pub lost: u64,
    /// When lost messages were sent.
    #[serde(default)]
    pub losses: Vec<Loss>,
    /// Replies that had been received before.
    pub duplicated: u64,
    /// Replies that came after a later one of the same connection.
    pub reordered: u64,
    /// Replies that are not what was sent.
    pub corrupt: u64,
    /// Connections that ended with a reset.
    pub resets: u64,
    /// Connections that the server closed.
    pub eof: u64,
    /// Other errors of sending and receiving (for UDP: ICMP errors, too).
    pub errors: u64,
    /// The first few of those errors in words.
    pub error_messages: Vec<String>,
    /// The longest time between two successive replies on any connection, in milliseconds. The time from the last
    /// reply to the end of sending counts, too.
    pub max_gap_ms: f64,
    /// When that gap began, in nanoseconds since the Unix epoch.
    pub max_gap_at_unix_ns: u64,
    /// The longest gaps, longest first.
    pub gaps: Vec<Gap>,
    /// Longest round trip of a message, in milliseconds.
    pub max_rtt_ms: f64,
    /// Mean round trip, in milliseconds.
    pub mean_rtt_ms: f64,
    /// Time in which messages were sent, in seconds.
    pub seconds: f64,
    /// The round-trip time of each received message, if the client recorded them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latencies: Vec<Latency>,
    /// Connections that were opened and left idle.
    pub idle: u64,
    /// Idle connections whose one echo at the end came back intact.
    pub idle_alive: u64,
}

/// A burst of lost messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// When the first was sent, in nanoseconds since the Unix epoch.
    pub first_unix_ns: u64,
    /// When the last was sent.
    pub last_unix_ns: u64,
    /// The number of messages.
    pub messages: u64,
}

impl Loss {
    /// Groups ordered times whose distances are at most 100 ms.
    pub fn gather(moments: impl Iterator<Item = u64>) -> Vec<Self> {
        /// The largest distance within a group, in nanoseconds.
        const NEAR_NS: u64 = 100_000_000;
        let mut all: Vec<Self> = Vec::new();
        for at in moments {
            match all.last_mut() {
                Some(loss) if at.saturating_sub(loss.last_unix_ns) <= NEAR_NS => {
                    loss.last_unix_ns = at;
                    loss.messages += 1;
                }
                _ => all.push(Self { first_unix_ns: at, last_unix_ns: at, messages: 1 }),
            }
        }
        all
    }
}

impl EchoReport {
    /// Returns the faults of the conversation, if it has any. Reordering and gaps are not faults.
    pub fn fault(&self) -> Option<String> {
        self.fault_beyond(0)
    }

    /// Returns the faults of the conversation, if it has any besides at most `lost` lost messages.
    #[must_use]
    pub fn fault_beyond(&self, lost: u64) -> Option<String> {
        let mut faults = Vec::new();
        let mut note = |count: u64, what: &str| {
            if count > 0 {
                faults.push(format!("{count} {what}"));
            }
        };
        note(if self.lost > lost { self.lost } else { 0 }, "messages lost");
        note(self.duplicated, "duplicated");
        note(self.corrupt, "corrupt");
        note(self.resets, "resets");
        note(self.eof, "closed by the server");
        note(self.errors, "errors");
        note(self.idle - self.idle_alive.min(self.idle), "idle connections dead");
        if self.sent == 0 && self.connections > 0 {
            faults.push("nothing sent".to_owned());
        }
        if faults.is_empty() {
            return None;
        }
        let mut text = faults.join(", ");
        if let Some(first) = self.error_messages.first() {
            text = format!("{text} (first: {first})");
        }
        Some(text)
    }
}

/// Direction of a bulk transfer, seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Client to server.
    Up,
    /// Server to client.
    Down,
}

/// The report of a bulk transfer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BulkReport {
    /// Direction of the transfer.
    pub direction: Direction,
    /// Bytes that arrived, as counted by the receiver.
    pub bytes: u64,
    /// Bytes that were handed to the sending socket, where the client is the sender.
    pub sent: u64,
    /// Bytes that differ from the pattern at their position.
    pub bad_bytes: u64,
    /// Position of the first of them.
    pub first_bad: Option<u64>,
    /// Whether everything that was sent has arrived.
    pub complete: bool,
    /// Whether the connection was reset.
    pub reset: bool,
    /// Another error, in words.
    pub error: Option<String>,
    /// Times longer than 200 ms without progress.
    pub stalls: u64,
    /// Longest time without progress, in milliseconds.
    pub max_gap_ms: f64,
    /// When that gap began, in nanoseconds since the Unix epoch.
    pub max_gap_at_unix_ns: u64,
    /// Duration of the transfer in seconds.
    pub seconds: f64,
    /// Mean throughput in megabits (10^6 bits) a second.
    pub mbit_s: f64,
}

impl BulkReport {
    /// Returns the fault of the transfer, if it is not complete and intact.
    pub fn fault(&self) -> Option<String> {
        if self.reset {
            return Some(format!("connection reset after {} bytes", self.bytes));
        }
        if let Some(error) = &self.error {
            return Some(format!("{error} after {} bytes", self.bytes));
        }
        if self.bad_bytes > 0 {
            return Some(format!(
                "{} of {} bytes wrong, the first at {}",
                self.bad_bytes,
                self.bytes,
                self.first_bad.unwrap_or_default()
            ));
        }
        (!self.complete).then(|| format!("incomplete after {} bytes", self.bytes))
    }
}

/// The report of a client that increments a counter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CountReport {
    /// Answers received, which is how often it incremented.
    pub increments: u64,
    /// Answers that are not the number of increments so far.
    pub wrong: u64,
    /// Why it ended before it was asked to, in words.
    pub error: Option<String>,
    /// Longest time between two answers, in milliseconds.
    pub max_gap_ms: f64,
}

/// The report of a client that asks redis for values and changes them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ValuesReport {
    /// Values that redis was filled with.
    pub keys: u64,
    /// Requests that were answered.
    pub requests: u64,
    /// Values that were read one after another at the end.
    pub read: u64,
    /// Values that were not as they had been written last.
    pub wrong: u64,
    /// Why it ended early, in words.
    pub error: Option<String>,
    /// Longest time from a request to its answer, in milliseconds.
    pub longest_ms: f64,
    /// The time that each request took.
    pub latencies: Vec<Latency>,
}

impl ValuesReport {
    /// Returns what is wrong with the conversation, if something is.
    pub fn fault(&self) -> Option<String> {
        match &self.error {
            Some(error) => Some(format!("{error}, after {} requests", self.requests)),
            None if self.wrong > 0 => Some(format!("{} values are wrong", self.wrong)),
            None if self.read < self.keys => Some(format!("{} of {} values", self.read, self.keys)),
            None => None,
        }
    }
}

/// The report of clients that open a connection for each request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestsReport {
    /// Requests with a whole answer.
    pub answered: u64,
    /// Requests without one.
    pub failed: u64,
    /// Why the first of them failed, in words.
    pub error: Option<String>,
    /// Longest time from a request to its answer, in milliseconds.
    pub longest_ms: f64,
}

/// The counters of a `serve` process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerStats {
    /// TCP connections accepted since its start.
    pub accepted: u64,
    /// TCP connections open now.
    pub open: u64,
    /// Bytes echoed over TCP.
    pub tcp_bytes: u64,
    /// Datagrams received.
    pub udp_received: u64,
    /// Datagrams sent back.
    pub udp_sent: u64,
    /// Bytes of filled memory.
    pub memory_bytes: u64,
    /// Bytes of it that no longer hold what was written.
    pub memory_bad: u64,
    /// Lines appended to the log file.
    pub log_lines: u64,
}

/// The packets that a client's host received from a container's address and port, by the hosts that forwarded them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireReport {
    /// Packets of the container on the host with that address.
    pub original: u64,
    /// Packets of its copy on another host, through the tunnel.
    pub copy: u64,
    /// Packets of the original after the first one of the copy.
    pub original_after_copy: u64,
    /// Packets that the host itself sent.
    pub host: u64,
    /// Packets from another address, or by another path.
    pub foreign: u64,
    /// The address and the time to live of the first of these.
    #[serde(default)]
    pub first_foreign: Option<(Ipv4Addr, u8)>,
    /// Resets of TCP connections, by any sender.
    pub resets: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_lost_together_are_told_together() {
        let ms = |ms: u64| ms * 1_000_000;
        let all = Loss::gather([ms(0), ms(50), ms(150), ms(300)].into_iter());
        let loss = |first, last, messages| Loss {
            first_unix_ns: ms(first),
            last_unix_ns: ms(last),
            messages,
        };
        assert_eq!(all, [loss(0, 150, 3), loss(300, 300, 1)]);
    }
}
