//! Bulk transfer client: a long TCP stream in which every byte is checked by its receiver.
//!
//! The service speaks one line per connection: `up LENGTH` (0: until the client shuts down its
//! side) is answered by `up RECEIVED BAD FIRST_BAD|-` when the bytes are in; `down LENGTH` (0: until
//! the client shuts down its side) is answered by the bytes and end of file.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::client_report::{BulkReport, Direction, ServerStats};
use super::gap::{GapMeter, milliseconds, unix_ns};
use super::pattern::{self, Mismatch};
use super::stop::Stop;

/// Bytes read or written at a time.
pub(super) const CHUNK: usize = 64 * 1024;
/// Without progress for this long a transfer counts a stall.
const STALL: Duration = Duration::from_millis(200);

/// The settings of a bulk client.
#[derive(Debug, Clone)]
pub struct BulkPlan {
    /// The bulk service.
    pub server: SocketAddr,
    /// Direction of the transfer.
    pub direction: Direction,
    /// Bytes to transfer; 0: until stopped.
    pub bytes: u64,
    /// Bytes a second; 0: no limit. A downloading client limits by reading slowly.
    pub rate_limit: u64,
    /// The time without progress after which the client gives up.
    pub patience: Duration,
}

/// Runs a transfer to its end. Calls `ready` when the first bytes have arrived.
///
/// # Errors
/// The connection could not be established. The report has later errors.
pub fn run(plan: &BulkPlan, stop: &Stop, ready: impl FnOnce()) -> io::Result<BulkReport> {
    let mut stream = TcpStream::connect_timeout(&plan.server, Duration::from_secs(10))?;
    stream.set_nodelay(true)?;
    let word = match plan.direction {
        Direction::Up => "up",
        Direction::Down => "down",
    };
    stream.write_all(format!("{word} {}\n", plan.bytes).as_bytes())?;
    stream.set_nonblocking(true)?;
    let start = Instant::now();
    let mut transfer = Transfer {
        stream,
        stop,
        plan: plan.clone(),
        start,
        progress: start,
        position: 0,
        gaps: GapMeter::default(),
        stalls: 0,
    };
    transfer.gaps.event(start);
    let mut ready = Some(ready);
    let outcome = match plan.direction {
        Direction::Up => transfer.up(&mut ready),
        Direction::Down => transfer.down(&mut ready),
    };
    Ok(transfer.report(outcome))
}

/// The receiver's counts.
struct Received {
    bytes: u64,
    found: Mismatch,
    complete: bool,
}

struct Transfer<'a> {
    stream: TcpStream,
    stop: &'a Stop,
    plan: BulkPlan,
    start: Instant,
    progress: Instant,
    position: u64,
    gaps: GapMeter,
    stalls: u64,
}

impl Transfer<'_> {
    fn up(&mut self, ready: &mut Option<impl FnOnce()>) -> Result<Received, (Mismatch, io::Error)> {
        let none = Mismatch::default();
        let mut buffer = vec![0; CHUNK];
        while self.plan.bytes == 0 || self.position < self.plan.bytes {
            if self.pause(PollFlags::POLLOUT).map_err(|error| (none, error))? {
                break;
            }
            let left = match self.plan.bytes {
                0 => CHUNK as u64,
                bytes => bytes - self.position,
            };
            let chunk = &mut buffer[..left.min(CHUNK as u64) as usize];
            pattern::fill(self.position, chunk);
            match self.stream.write(chunk) {
                Ok(length) => self.progressed(length as u64, ready),
                Err(error) if transient(&error) => {}
                Err(error) => return Err((none, error)),
            }
        }
        self.stream.shutdown(Shutdown::Write).map_err(|error| (none, error))?;
        let answer = self.answer().map_err(|error| (none, error))?;
        let complete = answer.bytes == self.position;
        Ok(Received { complete, ..answer })
    }

    /// Reads the server's counts.
    fn answer(&mut self) -> io::Result<Received> {
        self.stream.set_nonblocking(false)?;
        self.stream.set_read_timeout(Some(self.plan.patience))?;
        let mut text = String::new();
        (&mut self.stream).take(256).read_to_string(&mut text)?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let bad_answer = || io::Error::new(io::ErrorKind::InvalidData, format!("answer {text:?}"));
        let ["up", bytes, bad, first] = words[..] else { return Err(bad_answer()) };
        Ok(Received {
            bytes: bytes.parse().map_err(|_| bad_answer())?,
            found: Mismatch {
                bad: bad.parse().map_err(|_| bad_answer())?,
                first: first.parse().ok(),
            },
            complete: false,
        })
    }

    fn down(
        &mut self,
        ready: &mut Option<impl FnOnce()>,
    ) -> Result<Received, (Mismatch, io::Error)> {
        let mut found = Mismatch::default();
        let mut buffer = vec![0; CHUNK];
        let mut asked_to_end = false;
        loop {
            if self.pause(PollFlags::POLLIN).map_err(|error| (found, error))? && !asked_to_end {
                asked_to_end = true;
                self.plan.rate_limit = 0;
                self.stream.shutdown(Shutdown::Write).map_err(|error| (found, error))?;
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => {
                    found.add(pattern::check(self.position, &buffer[..length]));
                    self.progressed(length as u64, ready);
                }
                Err(error) if transient(&error) => {}
                Err(error) => return Err((found, error)),
            }
        }
        let bytes = self.position;
        let complete = bytes == self.plan.bytes || (asked_to_end && bytes > 0);
        Ok(Received { bytes, found, complete })
    }

    fn progressed(&mut self, bytes: u64, ready: &mut Option<impl FnOnce()>) {
        let now = Instant::now();
        if now - self.progress > STALL {
            self.stalls += 1;
        }
        self.progress = now;
        self.gaps.event(now);
        self.position += bytes;
        ready.take().into_iter().for_each(|call| call());
    }

    /// Waits until the socket is ready and the rate limit allows more. Returns whether the client was asked to end.
    fn pause(&mut self, flags: PollFlags) -> io::Result<bool> {
        if self.plan.rate_limit > 0 {
            let due = self.position as f64 / self.plan.rate_limit as f64;
            let ahead = due - self.start.elapsed().as_secs_f64();
            if ahead > 0.0 {
                std::thread::sleep(Duration::from_secs_f64(ahead.min(0.1)));
                // A wait for the rate limit counts as progress.
                self.progress = Instant::now();
                self.gaps.event(self.progress);
            }
        }
        let mut polled = vec![PollFd::new(self.stream.as_fd(), flags)];
        polled.extend(
            self.stop.descriptors().into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)),
        );
        match nix::poll::poll(&mut polled, PollTimeout::from(100u8)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if self.progress.elapsed() > self.plan.patience {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no progress for {} s", self.plan.patience.as_secs()),
            ));
        }
        Ok(self.stop.was_asked()? || self.stop.time_is_over(Instant::now()))
    }

    fn report(mut self, outcome: Result<Received, (Mismatch, io::Error)>) -> BulkReport {
        let seconds = self.start.elapsed().as_secs_f64();
        let down = self.plan.direction == Direction::Down;
        let (received, error) = match outcome {
            Ok(received) => (received, None),
            Err((found, error)) => {
                self.gaps.still_waiting(Instant::now());
                let bytes = if down { self.position } else { 0 };
                (Received { bytes, found, complete: false }, Some(error))
            }
        };
        let reset = error.as_ref().is_some_and(|e| e.kind() == io::ErrorKind::ConnectionReset);
        BulkReport {
            direction: self.plan.direction,
            bytes: received.bytes,
            sent: if down { 0 } else { self.position },
            bad_bytes: received.found.bad,
            first_bad: received.found.first,
            complete: received.complete,
            reset,
            error: error.filter(|_| !reset).map(|error| error.to_string()),
            stalls: self.stalls,
            max_gap_ms: self.gaps.longest_ms(),
            max_gap_at_unix_ns: self.gaps.longest_at_unix_ns(),
            seconds: milliseconds(Duration::from_secs_f64(seconds)) / 1e3,
            mbit_s: (received.bytes as f64 * 8e-6 / seconds * 10.0).round() / 10.0,
        }
    }
}

/// Asks a `serve` process for its counters and a check of its memory.
///
/// # Errors
/// The connection failed, or the answer is malformed.
pub fn stats(server: SocketAddr) -> io::Result<ServerStats> {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(b"stats\n")?;
    let mut text = String::new();
    stream.take(4096).read_to_string(&mut text)?;
    serde_json::from_str(&text).map_err(|error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("answer {text:?}: {error}"))
    })
}

fn transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Returns the current time in nanoseconds since the Unix epoch.
pub(super) fn now_unix_ns() -> u64 {
    unix_ns(Instant::now())
}
