//! A client that fills redis with random values, asks for them and changes them at a steady rate, and reads every value
//! at the end.
//!
//! Requests and answers are arrays, bulk strings and simple strings of RESP, as redis documents under "Redis
//! serialization protocol specification".

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::client_report::{Latency, ValuesReport};
use super::gap::{milliseconds, unix_ns};
use super::pattern;
use super::stop::Stop;

/// The length of a value in bytes.
const VALUE: usize = 8 << 10;
/// Values that are under way at once while redis is filled or read.
const AT_ONCE: u32 = 32;
/// One request in so many writes a value; the others read one.
const WRITES: u64 = 5;
/// The time limit for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// The settings of such a client.
#[derive(Debug, Clone)]
pub struct ValuesPlan {
    /// The redis server.
    pub server: SocketAddr,
    /// Mebibytes of values.
    pub mebibytes: u32,
    /// Requests a second.
    pub rate: f64,
    /// The time limit for an answer.
    pub patience: Duration,
}

/// Fills redis, sends requests until stopped or until an error, and reads every value. Calls `ready` once redis is
/// filled.
///
/// # Errors
/// The connection could not be established, or redis did not take the values. The report has later errors.
pub fn run(plan: &ValuesPlan, stop: &Stop, ready: impl FnOnce()) -> io::Result<ValuesReport> {
    let keys = plan.mebibytes * ((1 << 20) / VALUE as u32);
    let mut client = Client::connect(plan)?;
    client.fill(keys)?;
    ready();
    let mut report = ValuesReport { keys: u64::from(keys), ..ValuesReport::default() };
    let outcome = client.ask(plan, stop, &mut report).and_then(|()| client.read_all(&mut report));
    report.error = outcome.err().map(|error| error.to_string());
    Ok(report)
}

struct Client {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
    /// How often each value was written.
    versions: Vec<u32>,
}

impl Client {
    fn connect(plan: &ValuesPlan) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&plan.server, CONNECT_LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(plan.patience))?;
        let answers = BufReader::with_capacity(64 << 10, stream.try_clone()?);
        Ok(Self { stream, answers, versions: Vec::new() })
    }

    fn fill(&mut self, keys: u32) -> io::Result<()> {
        self.versions = vec![0; keys as usize];
        self.all_keys(Self::send_write, |client, key| client.take_written(key))
    }

    /// Sends requests at the plan's rate. A request that is late because of the one before is sent right after it.
    fn ask(&mut self, plan: &ValuesPlan, stop: &Stop, report: &mut ValuesReport) -> io::Result<()> {
        let began = Instant::now();
        let keys = self.versions.len().max(1) as u64;
        let interval = Duration::try_from_secs_f64(1.0 / plan.rate).unwrap_or(CONNECT_LIMIT);
        loop {
            let now = Instant::now();
            if stop.time_is_over(now) || stop.was_asked()? {
                return Ok(());
            }
            let due = began + interval.mul_f64(report.requests as f64);
            std::thread::sleep(due.saturating_duration_since(now));
            let key = (pattern::mix(report.requests) % keys) as u32;
            let sent = Instant::now();
            if report.requests.is_multiple_of(WRITES) {
                let version = self.versions.get_mut(key as usize);
                version.into_iter().for_each(|version| *version += 1);
                self.send_write(key)?;
                self.take_written(key)?;
            } else {
                self.send_read(key)?;
                report.wrong += u64::from(!self.take_value(key)?);
            }
            let took = milliseconds(sent.elapsed());
            report.requests += 1;
            report.latencies.push(Latency { sent_unix_ns: unix_ns(sent), ms: took });
            report.longest_ms = report.longest_ms.max(took);
        }
    }

    fn read_all(&mut self, report: &mut ValuesReport) -> io::Result<()> {
        self.all_keys(Self::send_read, |client, key| {
            report.read += 1;
            report.wrong += u64::from(!client.take_value(key)?);
            Ok(())
        })
    }

    /// Sends a request for each key, several at once, and takes the answers.
    fn all_keys(
        &mut self,
        send: fn(&mut Self, u32) -> io::Result<()>,
        mut take: impl FnMut(&mut Self, u32) -> io::Result<()>,
    ) -> io::Result<()> {
        let keys = self.versions.len() as u32;
        for first in (0..keys).step_by(AT_ONCE as usize) {
            let some = first..keys.min(first + AT_ONCE);
            some.clone().try_for_each(|key| send(self, key))?;
            some.into_iter().try_for_each(|key| take(self, key))?;
        }
        Ok(())
    }

    fn send_write(&mut self, key: u32) -> io::Result<()> {
        let name = format!("value{key}");
        let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{name}\r\n${VALUE}\r\n", name.len());
        let mut request = head.into_bytes();
        request.extend(self.value(key));
        request.extend(b"\r\n");
        self.stream.write_all(&request)
    }

    fn send_read(&mut self, key: u32) -> io::Result<()> {
        let name = format!("value{key}");
        let request = format!("*2\r\n$3\r\nGET\r\n${}\r\n{name}\r\n", name.len());
        self.stream.write_all(request.as_bytes())
    }

    fn take_written(&mut self, key: u32) -> io::Result<()> {
        let answer = self.line()?;
        match answer.as_str() {
            "+OK" => Ok(()),
            _ => Err(io::Error::other(format!("redis answers {answer:?} to a write of {key}"))),
        }
    }

    /// Takes a value, and returns whether it is the last one that was written.
    fn take_value(&mut self, key: u32) -> io::Result<bool> {
        let answer = self.line()?;
        if answer != format!("${VALUE}") {
            let text = format!("redis answers {answer:?} to a read of {key}");
            return Err(io::Error::other(text));
        }
        let mut value = vec![0; VALUE + 2];
        self.answers.read_exact(&mut value)?;
        value.truncate(VALUE);
        Ok(value == self.value(key))
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(line) => Ok(line.to_owned()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Returns the value of a key as it was written last. No two are alike, and none has a part that repeats.
    fn value(&self, key: u32) -> Vec<u8> {
        let version = self.versions.get(key as usize).copied().unwrap_or_default();
        value(key, version)
    }
}

fn value(key: u32, version: u32) -> Vec<u8> {
    let mut value = vec![0; VALUE];
    let place = (u64::from(version) << 32 | u64::from(key)) * VALUE as u64;
    pattern::fill(place, &mut value);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_of_each_value_is_another() {
        let all = [value(0, 0), value(1, 0), value(0, 1), value(1, 1)];
        for (place, one) in all.iter().enumerate() {
            assert_eq!(one.len(), VALUE);
            assert!(all.iter().skip(place + 1).all(|other| other != one));
        }
        assert_eq!(value(7, 3), value(7, 3));
    }
}
