//! One accepted TCP connection of the server and its state.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::epoll::EpollFlags;

use super::super::bulk::CHUNK;
use super::super::client_report::ServerStats;
use super::super::pattern::{self, Mismatch};
use super::checked_state::Memory;

/// Longest control line.
const LINE_MAX: usize = 64;

/// The service of a port.
#[derive(Debug, Clone, Copy)]
pub(super) enum Service {
    /// Every byte is sent back.
    Echo,
    /// A control line selects the transfer.
    Command,
}

/// What the event loop does with a connection after an event.
pub(super) enum Step {
    /// Nothing has changed.
    Keep,
    /// Wait for these events from now on.
    Want(EpollFlags),
    /// The connection is closed.
    Close,
}

enum Doing {
    /// Echoing. `unsent` has the bytes that could not be sent yet.
    Echo { unsent: Vec<u8>, eof: bool },
    /// Reading the control line.
    Line(Vec<u8>),
    /// Sending the pattern: next position, end (`u64::MAX`: until the client shuts down).
    Down { position: u64, end: u64 },
    /// Receiving the pattern: next position, end, findings.
    Up { position: u64, end: u64, found: Mismatch },
    /// Sending an answer, then closing.
    Answer { text: Vec<u8>, sent: usize },
}

/// A connection and its state.
pub(super) struct Connection {
    stream: TcpStream,
    doing: Doing,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, service: Service) -> Self {
        let doing = match service {
            Service::Echo => Doing::Echo { unsent: Vec::new(), eof: false },
            Service::Command => Doing::Line(Vec::new()),
        };
        Self { stream, doing }
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Reads and writes as far as the events allow.
    pub(super) fn step(
        &mut self,
        flags: EpollFlags,
        stats: &mut ServerStats,
        memory: &Memory,
    ) -> Step {
        let outcome = match &mut self.doing {
            Doing::Echo { unsent, eof } => echo(&mut self.stream, unsent, eof, stats, memory),
            Doing::Line(line) => match read_line(&mut self.stream, line) {
                Ok(Some(doing)) => {
                    self.doing = doing.unwrap_or_else(|| answer_stats(stats, memory));
                    return self.step(flags, stats, memory);
                }
                Ok(None) => Ok(Step::Keep),
                Err(error) => Err(error),
            },
            Doing::Down { position, end } => down(&mut self.stream, flags, position, end),
            Doing::Up { position, end, found } => {
                match up(&mut self.stream, position, *end, found) {
                    Ok(true) => {
                        let first = found.first.map_or("-".to_owned(), |at| at.to_string());
                        let text = format!("up {position} {} {first}\n", found.bad);
                        self.doing = Doing::Answer { text: text.into_bytes(), sent: 0 };
                        return self.step(flags, stats, memory);
                    }
                    Ok(false) => Ok(Step::Keep),
                    Err(error) => Err(error),
                }
            }
            Doing::Answer { text, sent } => answer(&mut self.stream, text, sent),
        };
        match outcome {
            Ok(step) => step,
            Err(error) if transient(&error) => Step::Keep,
            Err(_) => Step::Close,
        }
    }
}

fn echo(
    stream: &mut TcpStream,
    unsent: &mut Vec<u8>,
    eof: &mut bool,
    stats: &mut ServerStats,
    memory: &Memory,
) -> io::Result<Step> {
    if unsent.is_empty() && !*eof {
        let mut buffer = [0; CHUNK];
        let length = stream.read(&mut buffer)?;
        *eof = length == 0;
        unsent.extend_from_slice(&buffer[..length]);
        if !memory.touch(stats.tcp_bytes) {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let was_waiting = stats.tcp_bytes;
    while !unsent.is_empty() {
        match stream.write(unsent) {
            Ok(written) => {
                unsent.drain(..written);
                stats.tcp_bytes += written as u64;
            }
            // Reading goes on after the client has received this.
            Err(error) if transient(&error) => return Ok(Step::Want(EpollFlags::EPOLLOUT)),
            Err(error) => return Err(error),
        }
    }
    unsent.shrink_to(0);
    if *eof {
        return Ok(Step::Close);
    }
    Ok(if was_waiting == stats.tcp_bytes { Step::Keep } else { Step::Want(EpollFlags::EPOLLIN) })
}

/// Reads the control line. `Some(None)` asks for the statistics.
fn read_line(stream: &mut TcpStream, line: &mut Vec<u8>) -> io::Result<Option<Option<Doing>>> {
    let mut byte = [0];
    loop {
        if stream.read(&mut byte)? == 0 || line.len() >= LINE_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if byte[0] == b'\n' {
            break;
        }
        line.push(byte[0]);
    }
    let text = String::from_utf8_lossy(line).into_owned();
    let words: Vec<&str> = text.split(' ').collect();
    let length = |word: &str| word.parse::<u64>().map_err(|_| io::ErrorKind::InvalidData);
    let until = |length: u64| if length == 0 { u64::MAX } else { length };
    match words[..] {
        ["up", bytes] => {
            let end = until(length(bytes)?);
            Ok(Some(Some(Doing::Up { position: 0, end, found: Mismatch::default() })))
        }
        ["down", bytes] => Ok(Some(Some(Doing::Down { position: 0, end: until(length(bytes)?) }))),
        ["stats"] => Ok(Some(None)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn down(
    stream: &mut TcpStream,
    flags: EpollFlags,
    position: &mut u64,
    end: &mut u64,
) -> io::Result<Step> {
    if flags.contains(EpollFlags::EPOLLIN) {
        let mut scratch = [0; 64];
        match stream.read(&mut scratch) {
            // The client has shut down its side: the transfer ends with what was sent so far.
            Ok(0) => *end = *position,
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            Err(error) if transient(&error) => {}
            Err(error) => return Err(error),
        }
    }
    if *position >= *end {
        return Ok(Step::Close);
    }
    let mut buffer = [0; CHUNK];
    let chunk = &mut buffer[..(*end - *position).min(CHUNK as u64) as usize];
    pattern::fill(*position, chunk);
    match stream.write(chunk) {
        Ok(written) => *position += written as u64,
        Err(error) if transient(&error) => {}
        Err(error) => return Err(error),
    }
    if *position >= *end {
        return Ok(Step::Close);
    }
    Ok(Step::Want(EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT))
}

/// Receives. Returns whether everything has arrived.
fn up(
    stream: &mut TcpStream,
    position: &mut u64,
    end: u64,
    found: &mut Mismatch,
) -> io::Result<bool> {
    let mut buffer = [0; CHUNK];
    if *position < end {
        let wanted = (end - *position).min(CHUNK as u64) as usize;
        let length = stream.read(&mut buffer[..wanted])?;
        found.add(pattern::check(*position, &buffer[..length]));
        *position += length as u64;
        return Ok(length == 0 || *position >= end);
    }
    Ok(true)
}

fn answer_stats(stats: &ServerStats, memory: &Memory) -> Doing {
    let (memory_bytes, memory_bad) = memory.check();
    let all = ServerStats { memory_bytes, memory_bad, ..stats.clone() };
    let text = serde_json::to_vec(&all).unwrap_or_default();
    Doing::Answer { text, sent: 0 }
}

fn answer(stream: &mut TcpStream, text: &[u8], sent: &mut usize) -> io::Result<Step> {
    while *sent < text.len() {
        match stream.write(&text[*sent..]) {
            Ok(written) => *sent += written,
            Err(error) if transient(&error) => return Ok(Step::Want(EpollFlags::EPOLLOUT)),
            Err(error) => return Err(error),
        }
    }
    Ok(Step::Close)
}

fn transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
