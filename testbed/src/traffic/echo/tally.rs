//! Accounts for replies. Each is expected, a duplicate, out of order, or corrupt.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use super::super::client_report::{EchoReport, Latency, Loss};
use super::super::gap::{GapMeter, milliseconds, unix_ns};
use super::echo_message::Message;

/// Error messages that are kept for the report.
const MESSAGES_KEPT: usize = 5;

/// The accounts of one client, over all its connections.
#[derive(Debug)]
pub(super) struct Tally {
    start: Instant,
    report: EchoReport,
    gaps: GapMeter,
    /// Connection and sequence of the messages without a reply, and when they were sent.
    waiting: BTreeMap<(u32, u64), u64>,
    round_trips: Duration,
    longest_round_trip: Duration,
    /// When each received message was sent and its round-trip time, if these are to be recorded.
    latencies: Option<Vec<(u64, Duration)>>,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The server closed it.
    Eof,
    /// An error, such as a reset.
    Error(io::Error),
}

impl Tally {
    pub(super) fn new(start: Instant, connections: u64, record_latencies: bool) -> Self {
        Self {
            start,
            report: EchoReport { connections, ..EchoReport::default() },
            gaps: GapMeter::default(),
            waiting: BTreeMap::new(),
            round_trips: Duration::ZERO,
            longest_round_trip: Duration::ZERO,
            latencies: record_latencies.then(Vec::new),
        }
    }

    /// Returns the nanoseconds since the client's start, as messages carry them.
    pub(super) fn clock_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    pub(super) fn sent(&mut self, message: &Message) {
        self.report.sent += 1;
        self.waiting.insert((message.connection, message.sequence), message.sent_ns);
    }

    /// Counts an intact reply to a message that had no reply yet.
    pub(super) fn received(&mut self, message: &Message) {
        let now = Instant::now();
        self.report.received += 1;
        self.waiting.remove(&(message.connection, message.sequence));
        self.gaps.event(now);
        let sent = self.start + Duration::from_nanos(message.sent_ns);
        let round_trip = now.saturating_duration_since(sent);
        self.round_trips += round_trip;
        self.longest_round_trip = self.longest_round_trip.max(round_trip);
        if let Some(latencies) = &mut self.latencies {
            latencies.push((message.sent_ns, round_trip));
        }
    }

    pub(super) fn duplicated(&mut self) {
        self.report.duplicated += 1;
    }

    pub(super) fn reordered(&mut self) {
        self.report.reordered += 1;
    }

    pub(super) fn corrupt(&mut self) {
        self.report.corrupt += 1;
    }

    /// Counts an error that does not end the channel.
    pub(super) fn error(&mut self, error: &io::Error) {
        self.report.errors += 1;
        self.keep(error.to_string());
    }

    pub(super) fn ended(&mut self, connection: usize, how: &Ended) {
        match how {
            Ended::Eof => {
                self.report.eof += 1;
                self.keep(format!("connection {connection}: closed by the server"));
            }
            Ended::Error(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                self.report.resets += 1;
                self.keep(format!("connection {connection}: {error}"));
            }
            Ended::Error(error) => {
                self.report.errors += 1;
                self.keep(format!("connection {connection}: {error}"));
            }
        }
    }

    fn keep(&mut self, message: String) {
        if self.report.error_messages.len() < MESSAGES_KEPT {
            self.report.error_messages.push(message);
        }
    }

    /// Returns the number of messages without a reply.
    pub(super) fn outstanding(&self) -> u64 {
        self.report.sent.saturating_sub(self.report.received)
    }

    pub(super) fn any_received(&self) -> bool {
        self.report.received > 0
    }

    /// Completes the report. `sending` is the time during which messages were sent.
    pub(super) fn finish(mut self, sending: Duration) -> EchoReport {
        if self.outstanding() > 0 {
            self.gaps.still_waiting(self.start + sending);
        }
        let mut report = self.report;
        let begin = unix_ns(self.start);
        let mut lost: Vec<u64> = self.waiting.values().map(|sent| begin + sent).collect();
        lost.sort_unstable();
        report.losses = Loss::gather(lost.into_iter());
        let latency = |(sent, round_trip)| Latency {
            sent_unix_ns: begin + sent,
            ms: milliseconds(round_trip),
        };
        report.latencies = self.latencies.into_iter().flatten().map(latency).collect();
        report.lost = report.sent.saturating_sub(report.received);
        report.seconds = milliseconds(sending) / 1e3;
        report.max_rtt_ms = milliseconds(self.longest_round_trip);
        if report.received > 0 {
            let mean = self.round_trips.as_secs_f64() / report.received as f64;
            report.mean_rtt_ms = milliseconds(Duration::from_secs_f64(mean));
        }
        report.max_gap_ms = self.gaps.longest_ms();
        report.max_gap_at_unix_ns = self.gaps.longest_at_unix_ns();
        report.gaps = self.gaps.into_notable();
        report
    }
}
