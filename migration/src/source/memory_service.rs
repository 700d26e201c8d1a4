//! Pages of the frozen original that the destination asks for after the decision (post-copy). It asks over two connections of
//! its own: over one for pages that a process waits for, over the other for the rest. Each question is answered before the next
//! one. A connection that breaks is made anew.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use checkpoint::images::PAGE;
use ownership::source::{Answer, Next, after_pages};
use protocol::expect;
use protocol::message::{
    MemoryPages, MemoryRun, Message, ServeMemory, WANTED_BYTES, WANTED_RANGES, WantedPages,
};
use protocol::trust::Trust;
use protocol::wire::{BulkOptions, Connection, PIECE};
use state::cause::chain;
use state::deadline;
use state::peer_address::Destination;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinSet, spawn_blocking};

use super::destination_rpc::{Error, Peer};
use super::frozen_original::Original;
use crate::connect;
use crate::context::Context;
use crate::recovery::source::Event;

/// How long an agent goes on that cannot reach a destination which lacks pages; then its guardian does.
pub const PATIENCE: Duration = Duration::from_secs(3600);
/// Between two attempts to reach a destination that lacks pages.
const RETRY: Duration = Duration::from_secs(1);
/// How long a destination may ask for nothing: it asks for pages that a process waits for when one does. A broken connection is
/// noticed before.
const IDLE: Duration = Duration::from_secs(24 * 3600);
/// Between two messages that say that it cannot be reached.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// What a destination asks for is no part of a container.
#[derive(Debug, thiserror::Error)]
#[error("the destination asks for pages that no container has")]
struct NoPages;

/// Serves the destination's questions until it needs no more pages.
#[derive(Debug)]
pub struct MemoryService {
    original: Arc<Original>,
    lanes: JoinSet<Result<bool, Error>>,
    reach: UnboundedReceiver<Reach>,
}

/// Whether the destination is reached.
#[derive(Debug, Clone)]
pub enum Reach {
    /// It is not reached, and dialled again.
    Lost(String),
    /// It is reached again.
    Again,
}

/// How pages went over.
#[derive(Debug, Clone, Copy)]
pub struct Served {
    /// All have arrived. Otherwise the container has ended before.
    pub is_whole: bool,
    /// Bytes for which a process waited, with what is beside them.
    pub urgent: u64,
    /// All bytes.
    pub all: u64,
}

impl MemoryService {
    /// Connects with the destination. Whoever drops it ends it. A destination that cannot be reached is dialled anew for
    /// `patience` at a time. `state` is the directory of this host's identity. Pages that nothing waits for go as `bulk` says.
    ///
    /// # Errors
    /// The destination cannot be reached, or cannot take pages after the decision.
    pub async fn start(
        state: PathBuf,
        peer: Peer,
        original: Arc<Original>,
        patience: Duration,
        bulk: BulkOptions,
    ) -> Result<Self, Error> {
        let mut lanes = JoinSet::new();
        let (told, reach) = unbounded_channel();
        for is_urgent in [true, false] {
            let (state, peer) = (state.clone(), peer.clone());
            let lane = Lane { state, peer, is_urgent, patience, bulk, reach: told.clone() };
            let first = lane.dial().await?;
            let original = Arc::clone(&original);
            lanes.spawn(async move {
                match first {
                    Dialled::Serving(connection) => lane.serve(&original, *connection).await,
                    Dialled::Whole(is_whole) => Ok(is_whole),
                }
            });
        }
        Ok(Self { original, lanes, reach })
    }

    /// Returns whether the original has stood still all the time.
    #[must_use]
    pub fn has_original(&self) -> bool {
        self.original.stands_still().is_ok_and(|it| it)
    }

    /// Waits until the destination needs no more pages, and tells `context` of a destination that is not reached. May be called
    /// again if it was cancelled. The move is decided: from now on the original may not run for a moment.
    ///
    /// # Errors
    /// The destination has lost its copy, or cannot be reached.
    pub async fn finished(
        &mut self,
        context: &Context,
        destination: &Destination,
    ) -> Result<Served, Error> {
        let mut failed = None;
        self.original.watch();
        loop {
            let ended = tokio::select! {
                Some(reach) = self.reach.recv() => {
                    let destination = destination.clone();
                    context.tell(match reach {
                        Reach::Lost(reason) => Event::NotReached { destination, reason },
                        Reach::Again => Event::ReachedAgain { destination },
                    });
                    continue;
                }
                ended = self.lanes.join_next() => ended,
            };
            match ended {
                Some(Ok(Ok(is_whole))) => {
                    let (all, urgent) = self.original.sent();
                    return Ok(Served { is_whole, urgent, all });
                }
                Some(Ok(Err(error))) => failed = Some(error),
                Some(Err(e)) => tracing::warn!("{}", chain(&e)),
                None => return Err(failed.unwrap_or(Error::NotServed)),
            }
        }
    }
}

/// What came of a dial.
enum Dialled {
    Serving(Box<Connection>),
    /// The destination needs no more pages.
    Whole(bool),
}

/// One of the two connections.
struct Lane {
    state: PathBuf,
    peer: Peer,
    is_urgent: bool,
    patience: Duration,
    /// How pages go over that nothing waits for.
    bulk: BulkOptions,
    reach: UnboundedSender<Reach>,
}

impl Lane {
    async fn dial(&self) -> Result<Dialled, Error> {
        let trust = Trust::open(&self.state).map_err(|e| Error::Own(e.into()))?;
        let mut connection = connect::dial_with(&trust, &self.peer.destination).await?;
        connection.set_bulk(self.bulk);
        if connection.host() != self.peer.host {
            return Err(Error::OtherHost(self.peer.destination.clone()));
        }
        let order = ServeMemory { migration: self.peer.migration, is_urgent: self.is_urgent };
        connection.send(&Message::ServeMemory(order)).await?;
        match connection.receive(deadline::ANSWER).await? {
            Message::ServingMemory(()) => Ok(Dialled::Serving(Box::new(connection))),
            Message::MemoryWhole(is_whole) => Ok(Dialled::Whole(is_whole)),
            other => Err(connection.unexpected(&other, "ServingMemory").into()),
        }
    }

    /// Answers questions, over new connections where one breaks.
    async fn serve(self, original: &Arc<Original>, first: Connection) -> Result<bool, Error> {
        let mut connection = Some(first);
        // Since when the destination is not reached, and when that was said.
        let mut lost: Option<(Instant, Instant)> = None;
        loop {
            let served = match connection.take() {
                Some(open) => self.answer_all(original, open).await,
                None => match self.dial().await {
                    Ok(Dialled::Whole(is_whole)) => Ok(is_whole),
                    Ok(Dialled::Serving(open)) => {
                        if lost.take().is_some() {
                            self.tell(Reach::Again);
                        }
                        connection = Some(*open);
                        continue;
                    }
                    Err(e) => Err(e),
                },
            };
            let error = match served {
                Ok(is_whole) => return Ok(is_whole),
                Err(error) => error,
            };
            let now = Instant::now();
            let since = lost.map_or(now, |(since, _)| since);
            if after_pages(error.answer()) != Next::AskAgain || now - since >= self.patience {
                return Err(error);
            }
            if lost.is_none_or(|(_, told)| now - told >= TELL_EVERY) {
                self.tell(Reach::Lost(chain(&error)));
                lost = Some((since, now));
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Tells of the connection that always has something to do.
    fn tell(&self, reach: Reach) {
        if !self.is_urgent {
            // Nobody may listen.
            let _ = self.reach.send(reach);
        }
    }

    /// Answers the questions of one connection.
    async fn answer_all(
        &self,
        original: &Arc<Original>,
        mut connection: Connection,
    ) -> Result<bool, Error> {
        loop {
            match connection.receive(IDLE).await? {
                Message::MemoryWhole(is_whole) => return Ok(is_whole),
                Message::MemoryWanted(wanted) => {
                    let wanted = pieces(&wanted).map_err(|e| Error::Own(e.into()))?;
                    if !self.answer(original, &mut connection, wanted).await? {
                        connection.send(&Message::MemoryGone(())).await?;
                        // Its answer is that the copy is lost.
                        expect!(connection, deadline::STAGE, MemorySent)?;
                    }
                }
                other => return Err(connection.unexpected(&other, "MemoryWanted").into()),
            }
        }
    }

    /// Sends pages; returns `false` if they cannot be had.
    async fn answer(
        &self,
        original: &Arc<Original>,
        connection: &mut Connection,
        wanted: Vec<WantedPages>,
    ) -> Result<bool, Error> {
        for piece in wanted {
            let from = Arc::clone(original);
            let read = spawn_blocking(move || from.read(piece)).await;
            let read = read.map_err(|e| Error::Own(e.into()))?.map_err(Error::Own)?;
            let Some(bytes) = read else { return Ok(false) };
            original.count(bytes.len() as u64, self.is_urgent);
            let runs = vec![MemoryRun { start: piece.start, bytes }];
            let pages = MemoryPages { process: piece.process, runs };
            let pages = Message::MemoryPages(pages);
            match self.is_urgent {
                true => connection.send(&pages).await?,
                false => connection.send_bulk(&pages).await?,
            }
        }
        connection.send(&Message::MemorySent(())).await?;
        Ok(true)
    }
}

/// Checks what a destination asks for, and splits it into what one message takes.
fn pieces(wanted: &[WantedPages]) -> Result<Vec<WantedPages>, NoPages> {
    let is_sound = |of: &WantedPages| {
        of.process > 0 && of.start < of.end && (of.start | of.end).is_multiple_of(PAGE)
    };
    let bytes =
        wanted.iter().try_fold(0_u64, |sum, of| sum.checked_add(of.end.checked_sub(of.start)?));
    if wanted.len() > WANTED_RANGES
        || !wanted.iter().all(is_sound)
        || bytes.is_none_or(|bytes| bytes > WANTED_BYTES)
    {
        return Err(NoPages);
    }
    let mut pieces = Vec::new();
    for of in wanted {
        let starts = (of.start..of.end).step_by(PIECE);
        let piece =
            |start: u64| WantedPages { start, end: of.end.min(start + PIECE as u64), ..*of };
        pieces.extend(starts.map(piece));
    }
    Ok(pieces)
}

/// Returns whether an error of the destination says that its copy is lost.
#[must_use]
pub fn is_lost(error: &Error) -> bool {
    matches!(error.answer(), Answer::Lost | Answer::NoCopy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(start: u64, end: u64) -> WantedPages {
        WantedPages { process: 7, start, end }
    }

    #[test]
    fn questions_have_bounds() {
        let piece = PIECE as u64;
        let split = pieces(&[pages(PAGE, PAGE + 2 * piece + PAGE)]).unwrap();
        assert_eq!(split.len(), 3);
        assert_eq!(split[2], pages(PAGE + 2 * piece, PAGE + 2 * piece + PAGE));
        for wrong in [pages(1, PAGE), pages(PAGE, PAGE), pages(2 * PAGE, PAGE), pages(0, 1 << 40)] {
            assert!(pieces(&[wrong]).is_err(), "{wrong:?}");
        }
        assert!(pieces(&[WantedPages { process: 0, ..pages(0, PAGE) }]).is_err());
        assert!(pieces(&vec![pages(0, PAGE); WANTED_RANGES + 1]).is_err());
        assert!(pieces(&[pages(0, WANTED_BYTES), pages(0, PAGE)]).is_err());
    }
}
