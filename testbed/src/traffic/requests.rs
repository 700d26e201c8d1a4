//! Clients that open a connection for each request, as those of a web server without keep-alive do.
//!
//! Requests are HTTP/1.0 (RFC 1945), whose answers end with the connection.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::client_report::RequestsReport;
use super::stop::Stop;

/// The time between two checks for the end.
const LOOK: Duration = Duration::from_millis(20);

/// The settings of the clients.
#[derive(Debug, Clone)]
pub struct RequestsPlan {
    /// The web server.
    pub server: SocketAddr,
    /// The path to request.
    pub path: String,
    /// The number of clients.
    pub clients: u32,
    /// The time limit for a connection or an answer.
    pub patience: Duration,
}

/// Sends requests until stopped. Calls `ready` after the first answer.
///
/// # Errors
/// Standard input could not be read. The report has the errors of requests.
pub fn run(plan: &RequestsPlan, stop: &Stop, ready: impl FnOnce()) -> io::Result<RequestsReport> {
    let (end, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let (failed, first_error) = (AtomicU64::new(0), Mutex::new(None));
    let longest = Mutex::new(Duration::ZERO);
    let client = || {
        while !end.load(Ordering::Relaxed) {
            let began = Instant::now();
            match request(plan) {
                Ok(()) => {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    failed.fetch_add(1, Ordering::Relaxed);
                    let took = began.elapsed().as_secs_f64();
                    keep(&first_error, |first| {
                        first.get_or_insert(format!("after {took:.2} s: {error}"));
                    });
                    std::thread::sleep(LOOK);
                }
            }
            keep(&longest, |longest| *longest = began.elapsed().max(*longest));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..plan.clients {
            scope.spawn(client);
        }
        let result = wait(stop, &answered, ready);
        end.store(true, Ordering::Relaxed);
        result
    })?;
    let longest = longest.into_inner().unwrap_or_default();
    Ok(RequestsReport {
        answered: answered.into_inner(),
        failed: failed.into_inner(),
        error: first_error.into_inner().unwrap_or_default(),
        longest_ms: longest.as_secs_f64() * 1e3,
    })
}

fn keep<T>(shared: &Mutex<T>, change: impl FnOnce(&mut T)) {
    if let Ok(mut value) = shared.lock() {
        change(&mut value);
    }
}

fn wait(stop: &Stop, answered: &AtomicU64, ready: impl FnOnce()) -> io::Result<()> {
    let mut ready = Some(ready);
    loop {
        if answered.load(Ordering::Relaxed) > 0
            && let Some(ready) = ready.take()
        {
            ready();
        }
        if stop.time_is_over(Instant::now()) || stop.was_asked()? {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

/// Sends one request over its own connection and checks that the answer is complete.
fn request(plan: &RequestsPlan) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&plan.server, plan.patience)?;
    stream.set_read_timeout(Some(plan.patience))?;
    stream.write_all(format!("GET {} HTTP/1.0\r\n\r\n", plan.path).as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if is_whole(&answer) { Ok(()) } else { Err(io::Error::other("the answer is not whole")) }
}

/// Returns whether an answer is successful and has the length in its header.
fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return false };
    let header = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let length = header.lines().find_map(|line| line.strip_prefix("content-length:"));
    let is_success = header.split(' ').nth(1) == Some("200");
    is_success && length.and_then(|text| text.trim().parse().ok()) == Some(answer.len() - end - 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_answers_count() {
        assert!(is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"));
        for answer in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n",
            b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nabc",
        ] {
            assert!(!is_whole(answer), "{}", String::from_utf8_lossy(answer));
        }
    }
}
