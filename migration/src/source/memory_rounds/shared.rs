//! Memory that processes share, in rounds: pages whose hash is another one than in the round before.

use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use checkpoint::shared_memory::{Changed, Content, SharedMemory};
use protocol::message::{EmptyRun, MemoryRun, SharedEmpty, SharedPages};
use state::cause::Cause;

use crate::convert::Wire;
use crate::state_stream::{Error, StatePart, StateSink};

/// Most parts of empty memory in one message.
const EMPTY_RUNS: usize = 4096;

/// Memory that processes share.
#[derive(Debug)]
pub(super) struct SharedRounds {
    memory: SharedMemory,
    /// How long the last round took to read everything, without what it took to send.
    look: Duration,
}

/// What a round has done.
pub(super) struct Round {
    /// Bytes that went over.
    pub(super) sent: u64,
    /// How long it took to read everything, without what it took to send.
    pub(super) look: Duration,
}

/// A pass failed: segments could not be read, or nothing takes the pages any more.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("cannot read memory that processes share")]
    Read(#[from] io::Error),
    #[error(transparent)]
    Send(#[from] Error),
}

impl SharedRounds {
    /// Prepares it. Nothing is read yet.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { memory: SharedMemory::new()?, look: Duration::ZERO })
    }

    /// Returns the device and the inode numbers of the segments of which pages have gone over.
    pub(super) fn files(&self) -> Option<(u64, Vec<u32>)> {
        Some(self.memory.files()).filter(|(_, segments)| !segments.is_empty())
    }

    /// Returns how long a look at everything takes, of a container that is frozen.
    pub(super) fn expected(&self) -> Duration {
        self.look / threads() as u32
    }

    /// Looks for segments of processes that run. Nothing goes over yet.
    pub(super) fn find(&mut self, pids: &[i32]) -> io::Result<()> {
        self.memory.find(pids, true)
    }

    /// Sends what has changed since the last round. Blocks.
    pub(super) fn round(&mut self, sink: &dyn StateSink) -> Result<Round, Cause> {
        // What runs has the other processors.
        let (round, _) = self.pass(1, sink)?;
        self.look = round.look;
        Ok(round)
    }

    /// Sends what has changed since the last round, of processes that are frozen, and says what there is in all. Blocks.
    pub(super) fn rest(&mut self, pids: &[i32], sink: &dyn StateSink) -> Result<u64, Cause> {
        if self.files().is_none() {
            return Ok(0);
        }
        self.memory.find(pids, false)?;
        let (round, contents) = self.pass(threads(), sink)?;
        tracing::debug!(sent = round.sent, took = ?round.look, "shared memory was read");
        sink.put(StatePart::SharedMemoryEnd(contents.into_wire()))?;
        Ok(round.sent)
    }

    fn pass(
        &mut self,
        threads: usize,
        sink: &dyn StateSink,
    ) -> Result<(Round, Vec<Content>), Cause> {
        let began = Instant::now();
        let sent = Mutex::new((0, Duration::ZERO));
        let take = |changed| {
            let began = Instant::now();
            let bytes = put(changed, sink)?;
            if let Ok(mut sent) = sent.lock() {
                sent.0 += bytes;
                sent.1 += began.elapsed();
            }
            Ok::<_, Failed>(())
        };
        let contents = self.memory.changed(threads, take)?;
        let (sent, sending) = sent.into_inner().unwrap_or_default();
        Ok((Round { sent, look: began.elapsed().saturating_sub(sending) }, contents))
    }
}

/// Sends what has changed of a segment. Returns how many bytes there are.
fn put(changed: Changed, sink: &dyn StateSink) -> Result<u64, Error> {
    let Changed { segment, pages, empty } = changed;
    let sent = pages.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    if !pages.is_empty() {
        let run = |(start, bytes)| MemoryRun { start, bytes: Bytes::from(bytes) };
        let runs = pages.into_iter().map(run).collect();
        sink.put(StatePart::SharedMemory(SharedPages { segment, runs }))?;
    }
    for part in empty.chunks(EMPTY_RUNS) {
        let runs = part.iter().map(|&(start, length)| EmptyRun { start, length }).collect();
        sink.put(StatePart::EmptySharedMemory(SharedEmpty { segment, runs }))?;
    }
    Ok(sent)
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(8))
}
