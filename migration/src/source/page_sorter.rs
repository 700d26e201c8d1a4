//! Pages of memory on their way to a sink: empty ones apart from those with content.

use bytes::Bytes;
use checkpoint::images::PAGE;
use protocol::message::{EmptyPages, EmptyRun, MemoryPages, MemoryRun};
use protocol::wire::PIECE;

use crate::state_stream::{Error, StatePart, StateSink};

/// Most runs of empty pages in one message.
const EMPTY_RUNS: usize = 4096;

/// Pages of one process that wait to be sent.
#[derive(Debug, Default)]
pub struct PageSorter {
    process: i32,
    leaves_out_empty: bool,
    runs: Vec<MemoryRun>,
    waiting: usize,
    empty: Vec<EmptyRun>,
}

impl PageSorter {
    /// Makes one without pages for a process, named by the number that it has in its container. With `leaves_out_empty`,
    /// empty pages are told from others.
    pub fn new(process: i32, leaves_out_empty: bool) -> Self {
        Self { process, leaves_out_empty, ..Self::default() }
    }

    /// Returns how many bytes of pages can wait still.
    pub fn room(&self) -> u64 {
        (PIECE - self.waiting) as u64
    }

    /// Adds pages that follow each other, at most as many as there is room for. Returns how many bytes of them have to be sent.
    pub fn add(&mut self, start: u64, bytes: &Bytes) -> u64 {
        let mut at = 0;
        let before = self.waiting;
        while at < bytes.len() {
            let is_empty = self.is_empty(bytes, at);
            let mut end = at;
            while end < bytes.len() && self.is_empty(bytes, end) == is_empty {
                end = (end + PAGE as usize).min(bytes.len());
            }
            let address = start + at as u64;
            if is_empty {
                self.add_empty(address, (end - at) as u64);
            } else {
                self.runs.push(MemoryRun { start: address, bytes: bytes.slice(at..end) });
                self.waiting += end - at;
            }
            at = end;
        }
        (self.waiting - before) as u64
    }

    fn is_empty(&self, bytes: &Bytes, at: usize) -> bool {
        const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
        self.leaves_out_empty && bytes.get(at..at + PAGE as usize) == Some(&ZEROS)
    }

    fn add_empty(&mut self, start: u64, length: u64) {
        match self.empty.last_mut() {
            Some(last) if last.start + last.length == start => last.length += length,
            _ => self.empty.push(EmptyRun { start, length }),
        }
    }

    /// Sends what waits, if there is enough of it, or `all`.
    ///
    /// # Errors
    /// The sink takes no more.
    pub fn put(&mut self, sink: &dyn StateSink, all: bool) -> Result<(), Error> {
        let process = self.process;
        if self.waiting >= PIECE || all && self.waiting > 0 {
            self.waiting = 0;
            let runs = std::mem::take(&mut self.runs);
            sink.put(StatePart::Memory(MemoryPages { process, runs }))?;
        }
        if self.empty.len() >= EMPTY_RUNS || all && !self.empty.is_empty() {
            let runs = std::mem::take(&mut self.empty);
            sink.put(StatePart::EmptyMemory(EmptyPages { process, runs }))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Kept(Mutex<Vec<StatePart>>);

    impl StateSink for Kept {
        fn put(&self, part: StatePart) -> Result<(), Error> {
            self.0.lock().unwrap().push(part);
            Ok(())
        }
    }

    fn sorted(leaves_out_empty: bool) -> (u64, Vec<StatePart>) {
        let page = |byte: u8| vec![byte; PAGE as usize];
        let mut nearly = page(0);
        nearly[PAGE as usize - 1] = 1;
        let all = Bytes::from([page(0), page(1), nearly, page(0), page(0)].concat());
        let kept = Kept::default();
        let mut sorter = PageSorter::new(3, leaves_out_empty);
        let sent = sorter.add(10 * PAGE, &all);
        let more = sorter.add(15 * PAGE, &Bytes::from(page(0)));
        sorter.put(&kept, false).unwrap();
        assert!(kept.0.lock().unwrap().is_empty(), "little waits for more");
        sorter.put(&kept, true).unwrap();
        (sent + more, kept.0.into_inner().unwrap())
    }

    #[test]
    fn of_empty_pages_only_the_place_is_sent() {
        let (sent, parts) = sorted(true);
        assert_eq!(sent, 2 * PAGE);
        let [StatePart::Memory(pages), StatePart::EmptyMemory(empty)] = &parts[..] else {
            panic!("{parts:?}")
        };
        assert_eq!((pages.process, pages.runs.len(), pages.runs[0].start), (3, 1, 11 * PAGE));
        assert_eq!(pages.runs[0].bytes.len() as u64, 2 * PAGE);
        let runs = [
            EmptyRun { start: 10 * PAGE, length: PAGE },
            EmptyRun { start: 13 * PAGE, length: 3 * PAGE },
        ];
        assert_eq!((empty.process, &empty.runs[..]), (3, &runs[..]));
    }

    #[test]
    fn an_older_destination_gets_every_page() {
        let (sent, parts) = sorted(false);
        assert_eq!(sent, 6 * PAGE);
        let [StatePart::Memory(pages)] = &parts[..] else { panic!("{parts:?}") };
        assert_eq!(pages.runs.iter().map(|run| run.bytes.len() as u64).sum::<u64>(), 6 * PAGE);
    }
}
