//! A client that increments a counter in redis over one connection and checks every answer.
//!
//! Requests are inline commands and answers are integers of RESP (`:42\r\n`), the protocol that
//! redis documents under "Redis serialization protocol specification".

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::client_report::CountReport;
use super::gap::GapMeter;
use super::stop::Stop;

/// Time between an answer and the next request.
const PAUSE: Duration = Duration::from_millis(1);

/// The settings of a counting client.
#[derive(Debug, Clone)]
pub struct CountPlan {
    /// The redis server.
    pub server: SocketAddr,
    /// The counter's key.
    pub key: String,
    /// The time limit for an answer.
    pub patience: Duration,
}

/// Counts until stopped or until an error. Calls `ready` after the first answer.
///
/// # Errors
/// The connection could not be established. The report has later errors.
pub fn run(plan: &CountPlan, stop: &Stop, ready: impl FnOnce()) -> io::Result<CountReport> {
    let stream = TcpStream::connect_timeout(&plan.server, Duration::from_secs(10))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(plan.patience))?;
    let mut answers = BufReader::new(stream.try_clone()?);
    let mut counter = Counter { stream, request: format!("INCR {}\r\n", plan.key) };
    let mut report = CountReport::default();
    let mut gaps = GapMeter::default();
    let mut ready = Some(ready);
    loop {
        match counter.increment(&mut answers) {
            Ok(value) => {
                report.increments += 1;
                report.wrong += u64::from(value != report.increments);
                gaps.event(Instant::now());
            }
            Err(error) => {
                gaps.still_waiting(Instant::now());
                report.error = Some(error.to_string());
                break;
            }
        }
        if let Some(ready) = ready.take() {
            ready();
        }
        if stop.time_is_over(Instant::now()) || stop.was_asked()? {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    report.max_gap_ms = gaps.longest_ms();
    Ok(report)
}

struct Counter {
    stream: TcpStream,
    request: String,
}

impl Counter {
    fn increment(&mut self, answers: &mut impl BufRead) -> io::Result<u64> {
        self.stream.write_all(self.request.as_bytes())?;
        let mut answer = String::new();
        answers.read_line(&mut answer)?;
        integer(&answer).ok_or_else(|| io::Error::other(format!("the answer is {answer:?}")))
    }
}

/// Parses an integer of RESP.
fn integer(answer: &str) -> Option<u64> {
    answer.strip_prefix(':')?.strip_suffix("\r\n")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_integers_are_answers() {
        assert_eq!(integer(":42\r\n"), Some(42));
        for text in ["", ":42", "42\r\n", "-ERR no\r\n", ":-1\r\n", ":\r\n"] {
            assert_eq!(integer(text), None, "{text:?}");
        }
    }
}
