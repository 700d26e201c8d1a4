//! Pages of memory that come after the decision (post-copy), on their way from the source to the server of pages that lacks them.
//! The relay keeps nothing: what is missing is known by the server, which outlives this program.

use std::io;
use std::time::{Duration, Instant};

use checkpoint::images::PAGE;
use checkpoint::lazy_pages::{
    self, Lane, QUESTION_BYTES, QUESTION_RANGES, Said, SourceLink, source_link_path,
};
use checkpoint::write_tracking;
use ownership::destination::{Order, Reply};
use protocol::message::{Message, ServeMemory, WANTED_BYTES, WANTED_RANGES, WantedPages};
use protocol::wire::Connection;
use state::cause::Cause;
use state::deadline;
use state::id::MigrationId;

use super::decision::answer;
use super::lease::{Copies, Decision};
use super::outstanding_pages::{is_whole, note_end, settle};
use super::refusal::give_up;

/// Between two looks for the server of pages, which starts with the restore.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long is looked for it: longer than a copy may be prepared and wait for its decision.
const LOOK: Duration = Duration::from_secs(1800);

/// The kernel cannot have pages put in place later.
#[derive(Debug, thiserror::Error)]
#[error(
    "the kernel of this host cannot have memory put in place after the decision (Linux 6.7 can)"
)]
struct NoUserfaults;

/// The source talks while it is to wait.
#[derive(Debug, thiserror::Error)]
#[error("the source speaks of pages that it was not asked for")]
struct NotAsked;

/// The source sends more than it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("the source sends more pages than it was asked for")]
struct TooMuch;

/// The source sends what are no whole pages.
#[derive(Debug, thiserror::Error)]
#[error("the source sends what are no pages of memory")]
struct NoPages;

/// A source answers every question of a server of pages.
const _: () = assert!(QUESTION_BYTES <= WANTED_BYTES && QUESTION_RANGES <= WANTED_RANGES);

/// There is no server of pages.
#[derive(Debug, thiserror::Error)]
#[error("nothing here asks for pages of this migration")]
struct NoServer;

/// Passes the questions of the server of pages on to the source, and pages back.
pub async fn relay(
    copies: &'static Copies,
    connection: &mut Connection,
    ServeMemory { migration, is_urgent }: ServeMemory,
) -> Result<(), Cause> {
    let lane = if is_urgent { Lane::Urgent } else { Lane::Others };
    // Earlier kernels have userfaults, too, and a container that changed its mappings meanwhile was seen to end there.
    let is_new = write_tracking::obstacle().is_none() && !write_tracking::stops();
    if !is_new || !lazy_pages::is_supported() {
        return give_up(connection, NoUserfaults.into()).await;
    }
    let give_up_at = Instant::now() + LOOK;
    let mut is_told = false;
    loop {
        let reply = match copies.decide(migration, connection.host(), Order::Serve)? {
            Decision::Answer(reply) => reply,
            // That order takes no copy.
            Decision::Take(_) => Reply::Undecided,
        };
        match reply {
            Reply::Fetch if !is_told => {
                connection.send(&Message::ServingMemory(())).await?;
                is_told = true;
            }
            Reply::Fetch => {}
            Reply::Whole => {
                let is_whole = is_whole(copies.host(), migration)?;
                return Ok(connection.send(&Message::MemoryWhole(is_whole)).await?);
            }
            other => return answer(copies, connection, migration, other).await,
        }
        let path = source_link_path(&copies.host().directories.run, &migration.to_string());
        match SourceLink::connect(&path, lane).await? {
            Some(link) => {
                if pass_on(copies, connection, migration, link).await? {
                    return Ok(());
                }
            }
            None => drop(settle(&copies.host().directories, migration).await?),
        }
        if Instant::now() >= give_up_at {
            return give_up(connection, NoServer.into()).await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Passes on what both say. Returns `false` if the server of pages has ended without a word.
async fn pass_on(
    copies: &'static Copies,
    connection: &mut Connection,
    migration: MigrationId,
    mut link: SourceLink,
) -> Result<bool, Cause> {
    loop {
        // Nothing is expected of the source here, so nothing is lost of what it says.
        let said = tokio::select! {
            biased;
            said = link.next() => said?,
            broken = connection.receive(Duration::MAX) => {
                broken?;
                return give_up(connection, NotAsked.into()).await.map(|()| true);
            }
        };
        match said {
            Some(Said::Wanted(ranges)) => {
                let of = |range: &checkpoint::images::MissingRange| WantedPages {
                    process: range.process,
                    start: range.at.start,
                    end: range.at.end,
                };
                let wanted: Vec<WantedPages> = ranges.iter().map(of).collect();
                let bytes = wanted.iter().map(|of| of.end - of.start).sum();
                connection.send(&Message::MemoryWanted(wanted)).await?;
                take_answer(connection, &mut link, bytes).await?;
            }
            Some(Said::Ended { is_whole }) => {
                note_end(copies.host(), migration, is_whole).await?;
                link.noted().await?;
                connection.send(&Message::MemoryWhole(is_whole)).await?;
                return Ok(true);
            }
            None => return Ok(false),
        }
    }
}

/// Takes the pages of one question.
async fn take_answer(
    connection: &mut Connection,
    link: &mut SourceLink,
    wanted: u64,
) -> Result<(), Cause> {
    let mut bytes = 0;
    let mut is_heard = true;
    loop {
        match connection.receive(deadline::ANSWER).await? {
            Message::MemoryPages(pages) => {
                for run in &pages.runs {
                    bytes += run.bytes.len() as u64;
                    if bytes > wanted {
                        return give_up(connection, TooMuch.into()).await;
                    }
                    // The server ends the container for what it cannot take.
                    let end = run.start.checked_add(run.bytes.len() as u64);
                    if !end.is_some_and(|end| (run.start | end).is_multiple_of(PAGE)) {
                        return give_up(connection, NoPages.into()).await;
                    }
                    // A server that was killed asks for them again, once another process has its place.
                    match link.pages(pages.process, run.start, &run.bytes).await {
                        Err(e) if is_closed(&e) => is_heard = false,
                        other => other?,
                    }
                }
            }
            Message::MemorySent(()) if !is_heard => return Ok(()),
            Message::MemorySent(()) => {
                return match link.sent().await {
                    Err(e) if is_closed(&e) => Ok(()),
                    other => Ok(other?),
                };
            }
            Message::MemoryGone(()) => return Ok(link.memory_gone().await?),
            other => return Err(connection.unexpected(&other, "MemoryPages").into()),
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
