//! CRIU's log: its errors, what they mean, and where the time went.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Error;

/// How much of a log's end is looked at, in bytes. A log of level 4 has 100 bytes a line.
const TAIL_BYTES: u64 = 256 << 10;
/// Longest line handed on, in bytes.
const LINE_BYTES: usize = 400;
/// Most a timing reader takes in, in bytes.
const SPAN_BYTES: u64 = 64 << 20;

/// Why CRIU refused, where its log says so in words that we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Reason {
    /// A deleted file that is still open is larger than the ghost limit.
    GhostFile,
    /// The processes hold file locks and `--file-locks` was not given, or a lock is of a kind
    /// that CRIU cannot take along.
    FileLock,
    /// An io_uring instance is open.
    IoUring,
    /// A unix socket's other end is outside the container.
    ExternalUnixSocket,
    /// A TCP connection is not yet accepted (in flight).
    InFlightConnection,
    /// Established TCP connections, and `--tcp-established` was not given.
    EstablishedConnection,
    /// A socket, file or device of a kind that CRIU does not know.
    Unsupported,
    /// A session or terminal from outside the container.
    ExternalTerminal,
    /// A mount that CRIU cannot take along.
    Mount,
    /// The disk or memory for the images is full.
    NoSpace,
    /// The tasks could not be stopped in time.
    CannotFreeze,
    /// The container's process is gone.
    NoProcess,
    /// None of the above; the log says more.
    Other,
    /// A connection to a unix socket is not yet accepted.
    PendingUnixConnection,
    /// A file or directory is watched, and CRIU does not find its path.
    Watch,
    /// A file in use was replaced or removed, and has a name elsewhere.
    ReplacedFile,
}

impl Reason {
    /// Returns one sentence for the user: what it is and what to do.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            Self::GhostFile => {
                "a deleted file that is still open is too large; close it or raise the ghost limit"
            }
            Self::FileLock => "a file lock in the container cannot be carried over",
            Self::IoUring => "the container uses io_uring, which CRIU cannot dump",
            Self::ExternalUnixSocket => {
                "the container is connected to a unix socket outside it; disconnect it first"
            }
            Self::InFlightConnection => {
                "a TCP connection is being set up at this moment; try again"
            }
            Self::EstablishedConnection => {
                "established TCP connections were met although they were not asked for"
            }
            Self::Unsupported => "the container holds something that CRIU cannot dump",
            Self::ExternalTerminal => "the container is attached to a terminal outside it",
            Self::Mount => "a mount in the container cannot be carried over",
            Self::NoSpace => "no space for the images; raise the limit or free memory",
            Self::CannotFreeze => "the container's tasks could not be stopped in time",
            Self::NoProcess => "the container's process has ended",
            Self::Other => "what it said follows",
            Self::PendingUnixConnection => {
                "a connection to a unix socket in the container waits to be accepted; try again"
            }
            Self::Watch => {
                "a file is watched (inotify, fanotify) whose path CRIU does not find; try again, or end the \
                 watch"
            }
            Self::ReplacedFile => {
                "a file in use was replaced or removed; restart the process that uses it"
            }
        }
    }
}

/// Words in an error line of CRIU 4.x and what they mean; the first match counts.
const WORDS: [(&str, Reason); 31] = [
    ("No space left on device", Reason::NoSpace),
    ("Cannot allocate memory", Reason::NoSpace),
    ("io_uring", Reason::IoUring),
    ("Can't dump ghost file", Reason::GhostFile),
    ("--file-locks", Reason::FileLock),
    ("Dump file lock", Reason::FileLock),
    ("Unresolved lock", Reason::FileLock),
    ("Some file locks", Reason::FileLock),
    ("In-flight connection on", Reason::PendingUnixConnection),
    ("in-flight socket", Reason::PendingUnixConnection),
    ("In-flight connection", Reason::InFlightConnection),
    ("in-flight", Reason::InFlightConnection),
    ("--tcp-established", Reason::EstablishedConnection),
    ("--ext-unix-sk", Reason::ExternalUnixSocket),
    ("External socket is used", Reason::ExternalUnixSocket),
    ("unreachable peer", Reason::ExternalUnixSocket),
    ("Unable to freeze", Reason::CannotFreeze),
    ("Timeout reached", Reason::CannotFreeze),
    ("--shell-job", Reason::ExternalTerminal),
    ("session leader", Reason::ExternalTerminal),
    ("No such process", Reason::NoProcess),
    ("fsnotify: ", Reason::Watch),
    ("Use link-remap", Reason::ReplacedFile),
    ("mnt: ", Reason::Mount),
    ("of that type", Reason::Unsupported),
    ("MPTCP", Reason::Unsupported),
    ("corked", Reason::Unsupported),
    ("uprobes", Reason::Unsupported),
    ("not supported", Reason::Unsupported),
    ("nsupported", Reason::Unsupported),
    ("Unknown", Reason::Unsupported),
];

/// Errors that stand in every log and mean nothing: limits that a root without CAP_SYS_RESOURCE
/// cannot raise, optional probes, and a helper that ends with the restore.
const HARMLESS: [&str; 4] =
    ["RLIMIT_NOFILE", "rlimit", "libcriu_plugin", "cgroupd: recv req error"];

/// Returns what the error lines say. Where several match, the first recognisable one is the cause; the
/// rest is CRIU unwinding.
#[must_use]
pub fn reason<S: AsRef<str>>(lines: &[S]) -> Reason {
    lines
        .iter()
        .map(AsRef::as_ref)
        .filter(|line| is_error(line))
        .find_map(|line| WORDS.iter().find(|(words, _)| line.contains(words)))
        .map_or(Reason::Other, |(_, reason)| *reason)
}

/// Returns whether a log line is an error that matters.
fn is_error(line: &str) -> bool {
    line.contains("Error (") && !HARMLESS.iter().any(|words| line.contains(words))
}

/// Returns the first `n` error lines of a log, each cut to 400 bytes: the first one is the cause, the rest is
/// CRIU unwinding. Where it holds no error line, its last `n` lines. Only the last 256 KiB of the file are
/// read. The log quotes names chosen in the container, so control characters are replaced.
///
/// # Errors
/// [`Error::Log`] when the file cannot be read.
pub fn log_tail(path: &Path, n: usize) -> Result<Vec<String>, Error> {
    let text = end_of(path).map_err(|source| Error::Log { path: path.into(), source })?;
    let mut lines: Vec<&str> = text.lines().filter(|line| is_error(line)).collect();
    if lines.is_empty() {
        lines = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines.drain(..lines.len().saturating_sub(n));
    }
    Ok(lines.iter().take(n).map(|line| printable(line)).collect())
}

/// Returns the last part of a file, starting at a line.
fn end_of(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let skip = length.saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(skip))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if skip == 0 {
        return Ok(text);
    }
    Ok(text.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned()))
}

/// Returns a line that can be shown: bounded, without control characters.
fn printable(line: &str) -> String {
    let mut end = line.len().min(LINE_BYTES);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A stretch of time between two lines of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// When the first of the two lines was written, counted from CRIU's start.
    pub start: Duration,
    /// How long it took until the next line.
    pub length: Duration,
    /// The line that was written first: CRIU logs before it acts.
    pub after: String,
    /// The line that was written next.
    pub before: String,
}

/// Returns where the time of a dump or restore went: every silence of at least `least` in the log, in
/// order, and the time of the last line. CRIU stamps each line `(seconds.microseconds)` from log
/// level 3 on.
///
/// # Errors
/// [`Error::Log`] when the file cannot be read.
pub fn spans(path: &Path, least: Duration) -> Result<(Vec<Span>, Duration), Error> {
    let mut text = String::new();
    let read = |text: &mut String| -> std::io::Result<()> {
        let mut bytes = Vec::new();
        File::open(path)?.take(SPAN_BYTES).read_to_end(&mut bytes)?;
        *text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(())
    };
    read(&mut text).map_err(|source| Error::Log { path: path.into(), source })?;
    let mut found = Vec::new();
    let mut last: Option<(Duration, &str)> = None;
    for line in text.lines() {
        let Some(time) = stamp(line) else { continue };
        if let Some((start, after)) = last
            && let Some(length) = time.checked_sub(start)
            && length >= least
        {
            found.push(Span { start, length, after: printable(after), before: printable(line) });
        }
        last = Some((time, line));
    }
    Ok((found, last.map_or(Duration::ZERO, |(time, _)| time)))
}

/// Returns the time in `(00.012345) text`.
fn stamp(line: &str) -> Option<Duration> {
    let (seconds, rest) = line.strip_prefix('(')?.split_once('.')?;
    let (micros, _) = rest.split_once(')')?;
    if micros.len() != 6 {
        return None;
    }
    Some(Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn tail_holds_the_errors_alone() {
        let log = file(
            "(00.000001) Error (criu/cr-service.c:1): rlimit: Can't setup RLIMIT_NOFILE for self\n\
             (00.000002) Dumping\n\
             (00.000003) Error (criu/files-reg.c:9): Can't dump ghost file /a\x1b[2J of 9 size, \
             increase limit\n\
             (00.000004) Unlock network\n\
             (00.000005) Error (criu/cr-dump.c:2): Dumping FAILED.\n",
        );
        let tail = log_tail(log.path(), 10).unwrap();
        assert_eq!(tail.len(), 2);
        assert!(!tail[0].contains('\x1b'));
        assert_eq!(reason(&tail), Reason::GhostFile);
        let first = log_tail(log.path(), 1).unwrap();
        assert!(first.len() == 1 && first[0].contains("ghost"), "{first:?}");
    }

    #[test]
    fn tail_of_a_log_without_errors_is_its_end() {
        let log = file("one\ntwo\nthree\n");
        assert_eq!(log_tail(log.path(), 2).unwrap(), ["two", "three"]);
        let full = "(0.1) Error (a:1): Can't send ghost to image: No space left on device";
        assert_eq!(reason(&[full]), Reason::NoSpace);
        assert_eq!(reason(&["(00.1) External socket is used"]), Reason::Other);
        let unix = "(0.1) Error (criu/sk-unix.c:494): unix: In-flight connection on 0x7";
        assert_eq!(reason(&[unix]), Reason::PendingUnixConnection);
        let tcp = "(0.1) Error (criu/sk-inet.c:186): inet: In-flight connection (l) for 7";
        assert_eq!(reason(&[tcp]), Reason::InFlightConnection);
    }

    #[test]
    fn tail_of_a_large_log_is_bounded() {
        let mut text = "x".repeat(1000) + "\n";
        text = text.repeat(2000);
        text.push_str(&format!("Error (a:1): {}\n", "é".repeat(5000)));
        let tail = log_tail(file(&text).path(), 100).unwrap();
        assert_eq!(tail.len(), 1);
        assert!(tail[0].len() <= LINE_BYTES);
    }

    #[test]
    fn spans_find_the_silence() {
        let log = file("(00.000100) a\n(00.000200) b\nno stamp\n(00.024200) c\n(01.000000) d\n");
        let (found, end) = spans(log.path(), Duration::from_millis(2)).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].length, Duration::from_millis(24));
        assert!(found[0].after.ends_with('b') && found[0].before.ends_with('c'));
        assert_eq!(end, Duration::from_secs(1));
    }
}
