//! The kernel's own counters of a packet queue.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Longest file read: 1,000 queues of about 60 bytes each.
const LONGEST: usize = 64 << 10;

/// One line of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Packets in the queue.
    pub(super) waiting: u64,
    /// Packets dropped because the queue was full or its socket could not take the notification.
    pub(super) dropped: u64,
    /// ID of the newest packet, which is also the number of packets so far.
    pub(super) sequence: u64,
}

/// `/proc/net/netfilter/nfnetlink_queue`, opened in the network namespace of the queue.
pub(super) struct Statistics {
    file: File,
    number: u16,
}

impl Statistics {
    /// Opens the file in the calling thread's network namespace, to which it stays bound.
    pub(super) fn open(number: u16) -> io::Result<Self> {
        File::open("/proc/thread-self/net/netfilter/nfnetlink_queue")
            .map(|file| Self { file, number })
    }

    pub(super) fn read(&self) -> io::Result<Line> {
        let mut bytes = vec![0; LONGEST];
        let mut length = 0;
        while length < bytes.len() {
            match self.file.read_at(&mut bytes[length..], length as u64)? {
                0 => break,
                read => length += read,
            }
        }
        let text = String::from_utf8_lossy(&bytes[..length]);
        find(&text, self.number)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the queue is not listed"))
    }
}

/// Parses the columns: number, port ID, waiting, copy mode, copy range, dropped (queue full),
/// dropped (socket full), sequence, 1 (`seq_show` in `nfnetlink_queue.c`).
fn find(text: &str, number: u16) -> Option<Line> {
    text.lines().find_map(|line| {
        let columns: Vec<u64> =
            line.split_ascii_whitespace().map(|word| word.parse().ok()).collect::<Option<_>>()?;
        let [of, _, waiting, _, _, full, unread, sequence, _] = columns[..] else { return None };
        let dropped = full.saturating_add(unread);
        (of == u64::from(number)).then_some(Line { waiting, dropped, sequence })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "    7   1234     0 2 65531     0     0        0  1\n\
                        27904  4711   200 1     0     3     4     1207  1\n";

    #[test]
    fn the_line_of_the_queue_is_found() {
        let line = find(TEXT, 27904).unwrap();
        assert_eq!(line, Line { waiting: 200, dropped: 7, sequence: 1207 });
        assert_eq!(find(TEXT, 8), None);
    }

    #[test]
    fn lines_of_another_shape_are_not_taken() {
        assert_eq!(find("27904 1 2 3\n27904 a b c d e f g h\n", 27904), None);
    }
}
