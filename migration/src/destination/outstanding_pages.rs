//! What a host notes of containers that it runs and whose memory has not arrived whole (post-copy).

use std::fs;
use std::time::{Duration, Instant};

use checkpoint::lazy_pages::{Lane, Said, SourceLink, source_link_path};
use ownership::destination::{Holding, Server, settle_pages};
use state::cause::{Cause, chain};
use state::deadline;
use state::directories::Directories;
use state::id::MigrationId;
use state::journal::{self, Record};

use super::server_context::ServerContext;

/// Between two looks whether an engine has taken a container over.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The engine has not taken the container over.
#[derive(Debug, thiserror::Error)]
#[error("all memory has arrived, and the engine has not taken the container over yet")]
struct NotHandedOver;

/// Notes that no page is missing any more, once the engine has taken the container over.
pub(super) async fn note_end(
    host: &ServerContext,
    migration: MigrationId,
    is_whole: bool,
) -> Result<(), Cause> {
    let state = &host.directories.state;
    let give_up = Instant::now() + deadline::STAGE;
    loop {
        if let Some(records) = journal::archived(state, migration)? {
            if journal::remembered(&records) == Holding::Outstanding {
                let record = if is_whole { Record::PagesWhole } else { Record::EndedIncomplete };
                journal::append_archived(state, migration, &record)?;
                let name = name(&records);
                match is_whole {
                    true => {
                        tracing::info!("{migration}: all memory of container {name} has arrived")
                    }
                    false => tracing::warn!(
                        "{migration}: container {name} has ended before all of its memory had arrived"
                    ),
                }
            }
            return Ok(());
        }
        if !journal::exists(state, migration)? && journal::archived(state, migration)?.is_none() {
            // The copy was given up.
            return Ok(());
        }
        if Instant::now() >= give_up {
            return Err(NotHandedOver.into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Returns whether all memory of an arrival has arrived that wants no page any more. Otherwise the container has ended before.
pub(super) fn is_whole(host: &ServerContext, migration: MigrationId) -> Result<bool, Cause> {
    let records = journal::archived(&host.directories.state, migration)?.unwrap_or_default();
    Ok(!records.contains(&Record::EndedIncomplete))
}

/// Finds out what has become of an arrival whose memory has not arrived whole, and notes it. Others are left alone.
///
/// # Errors
/// The records cannot be read or written, or the server of pages cannot be asked.
pub async fn settle(directories: &Directories, migration: MigrationId) -> Result<(), Cause> {
    let state = &directories.state;
    let is_outstanding = || {
        let records = journal::archived(state, migration)?.unwrap_or_default();
        let is_kept = !records.is_empty() && journal::remembered(&records) == Holding::Outstanding;
        Ok::<_, journal::Error>(is_kept.then_some(records))
    };
    if is_outstanding()?.is_none() {
        return Ok(());
    }
    let path = source_link_path(&directories.run, &migration.to_string());
    let found = match SourceLink::connect(&path, Lane::Watch).await? {
        Some(_) => Server::Working,
        None => Server::Gone,
    };
    // A server that has ended by itself has had that noted before.
    if let Some(records) = is_outstanding()?
        && settle_pages(found) == Holding::Lost
    {
        journal::append_archived(state, migration, &Record::Lost)?;
        // Servers that were killed have left it.
        let _ = fs::remove_file(&path);
        tracing::error!(
            "{migration}: container {} ran here without all of its memory, and was ended: the rest is on {} alone, where the \
             original is kept frozen until a person decides (agent-client recover --rollback-anyway there); lazy-pages.log in \
             the run directory tells why",
            name(&records),
            source(&records)
        );
    }
    Ok(())
}

/// Settles all arrivals whose memory has not arrived whole. Returns whether it could.
pub(crate) async fn settle_all(directories: &Directories) -> Result<bool, journal::Error> {
    let mut is_settled = true;
    for (migration, _) in journal::outstanding(&directories.state)? {
        if let Err(e) = settle(directories, migration).await {
            tracing::error!("{migration}: {}", chain(e.as_ref()));
            is_settled = false;
        }
    }
    Ok(is_settled)
}

/// Watches the servers of pages of all arrivals whose memory has not arrived whole.
pub fn watch_all(host: &'static ServerContext) {
    match journal::outstanding(&host.directories.state) {
        Ok(all) => {
            for (migration, records) in all {
                tracing::info!(
                    "{migration}: pages of the memory of container {} are outstanding, which {} has",
                    name(&records),
                    source(&records)
                );
                watch(host, migration);
            }
        }
        Err(e) => tracing::error!("{}", chain(&e)),
    }
}

/// Watches the server of pages of an arrival, to note its end whether or not the source is there.
pub(super) fn watch(host: &'static ServerContext, migration: MigrationId) {
    tokio::spawn(async move {
        if let Err(e) = watched(host, migration).await {
            tracing::warn!("{migration}: {}", chain(e.as_ref()));
        }
    });
}

async fn watched(host: &ServerContext, migration: MigrationId) -> Result<(), Cause> {
    let path = source_link_path(&host.directories.run, &migration.to_string());
    // A server that is killed says nothing, and another process takes its place.
    while let Some(mut link) = SourceLink::connect(&path, Lane::Watch).await? {
        if let Some(Said::Ended { is_whole }) = link.next().await? {
            match note_end(host, migration, is_whole).await {
                Ok(()) => return Ok(link.noted().await?),
                // The server waits until it is noted.
                Err(e) => tracing::warn!("{migration}: {}", chain(e.as_ref())),
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    settle(&host.directories, migration).await
}

fn name(records: &[Record]) -> &str {
    match records.first() {
        Some(Record::Arrival { name, .. }) => name,
        _ => "?",
    }
}

fn source(records: &[Record]) -> &str {
    match records.first() {
        Some(Record::Arrival { source, .. }) => source,
        _ => "?",
    }
}
