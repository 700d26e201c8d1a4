//! One conversation: introduction, then a new migration or the rest of an interrupted one.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use agent_core::cause::Cause;
use agent_core::directories::Directories;
use agent_core::identity::HostId;
use agent_core::journal::{self, Record};
use agent_core::message::{Failure, FailureCode, Finished, Hello, Message, MigrationId, Offer};
use agent_core::permissions::Permissions;
use agent_core::trust::{Name, Peers, Trust};
use agent_core::wire::Connection;
use agent_core::{deadline, expect};
use checkpoint::podman::{Info, Podman};
use netmig::sockets::room;

use crate::arrival::{Expected, abandon};
use crate::lease::{Decision, Prepared};
use crate::{anchor, arrival};

/// This host, as every conversation sees it.
#[derive(Debug)]
pub struct Host {
    /// Where state is kept.
    pub directories: Directories,
    /// Its identity.
    pub id: HostId,
    /// Its name, for people.
    pub name: String,
    /// Whom it is paired with.
    pub peers: Peers,
    /// The engine.
    pub podman: Podman,
    /// The engine's configuration, as it was when this agent started.
    pub engine: Info,
    /// The program that stands in for the OCI runtime while a container is staged.
    pub shim: PathBuf,
    /// Copies that wait for their source's decision.
    pub prepared: Prepared,
    stopping: AtomicBool,
}

impl Host {
    /// Makes the directories and asks the engine for its configuration.
    pub async fn open(directories: Directories, trust: Trust) -> Result<Self, Cause> {
        directories.create()?;
        let podman = Podman::default();
        let engine = podman.info().await?;
        Ok(Self {
            directories,
            id: trust.identity.fingerprint().host(),
            peers: trust.peers,
            name: agent_core::host::name(),
            podman,
            engine,
            shim: agent_core::host::find_shim()?,
            prepared: Prepared::default(),
            stopping: AtomicBool::new(false),
        })
    }

    /// The end of an arrival, if podman runs its container.
    pub fn handed_over(&self, migration: MigrationId) -> Result<Option<Finished>, journal::Error> {
        let records = journal::archived(&self.directories.state, migration)?.unwrap_or_default();
        Ok(records.iter().rev().find_map(|record| match record {
            Record::HandedOver { pid } => {
                let full_buffers = room::full_buffers(*pid).unwrap_or(0);
                Some(Finished { pid: *pid, full_buffers })
            }
            _ => None,
        }))
    }

    /// What is known of a migration, its copy taken out if one waits. No copy is denied as long as
    /// there is a journal: another process may be settling it, or nobody could.
    pub fn decision(&self, migration: MigrationId) -> Result<Decision, journal::Error> {
        let state = &self.directories.state;
        Ok(match self.prepared.take(migration) {
            Decision::Unknown if journal::path(state, migration).exists() => Decision::Busy,
            // In this order: a journal goes to the archive in one step.
            Decision::Unknown if self.handed_over(migration)?.is_some() => Decision::Activated,
            known => known,
        })
    }

    /// Lets no new migration begin.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

/// Holds one conversation with a paired host to its end.
pub async fn converse(host: &'static Host, connection: &mut Connection) -> Result<(), Cause> {
    expect!(connection, deadline::CONNECT, Hello)?;
    let ours = Hello { name: host.name.clone(), software: env!("CARGO_PKG_VERSION").to_owned() };
    connection.send(&Message::Hello(ours)).await?;
    let mut expected = None;
    let mut first = connection.receive(deadline::ANSWER).await?;
    if let Message::Expect(migration) = first {
        if may_move_here(host, connection)?.is_some() && !host.stopping.load(Ordering::Relaxed) {
            expected = Expected::begin(host, migration).await;
        }
        first = match connection.receive(deadline::ANSWER).await {
            Ok(message) => message,
            Err(e) => {
                abandon(expected).await;
                return Err(e.into());
            }
        };
        if !matches!(first, Message::Offer(_)) || host.stopping.load(Ordering::Relaxed) {
            abandon(expected.take()).await;
        }
    }
    match first {
        Message::Offer(_) if host.stopping.load(Ordering::Relaxed) => {
            let failure = Failure {
                code: FailureCode::Stopping,
                message: format!("agent-server on {} is stopping; try again later", host.name),
            };
            Ok(connection.send(&Message::Failure(failure)).await?)
        }
        Message::Offer(offer) => offered(host, connection, *offer, expected).await,
        Message::Resume(migration) => resume(host, connection, migration).await,
        Message::AnchorOffer(offer) => {
            anchor::agree(host, connection, connection.host(), offer).await
        }
        Message::ForwardEnd(id) => anchor::forward_ended(host, connection, &id).await,
        Message::Rehome(order) => anchor::rehome(host, connection, connection.host(), &order).await,
        other => Err(connection.unexpected(&other, "Offer").into()),
    }
}

/// Somebody wants to move a container here who is paired with this host in the other role.
#[derive(Debug, thiserror::Error)]
#[error("refused: it may receive containers from this host, but not move any here")]
struct NotASource;

/// The name of the host at the far end and what it may move here, as this host's user has it now; none
/// if nothing.
fn may_move_here(
    host: &Host,
    connection: &Connection,
) -> Result<Option<(Name, Permissions)>, Cause> {
    let peer = host.peers.find(connection.fingerprint())?;
    Ok(peer.and_then(|peer| Some((peer.name, peer.source?))))
}

/// Hears an offer, within what its sender may do here.
async fn offered(
    host: &'static Host,
    connection: &mut Connection,
    offer: Offer,
    expected: Option<Expected>,
) -> Result<(), Cause> {
    let allowed = match may_move_here(host, connection) {
        Ok(allowed) => allowed,
        Err(cause) => {
            abandon(expected).await;
            return Err(cause);
        }
    };
    let Some((name, permissions)) = allowed else {
        abandon(expected).await;
        let failure = Failure {
            code: FailureCode::NotAllowed,
            message: format!(
                "{0} does not let this host move containers there: run agent-server invite on {0}, \
                 and agent-client join TOKEN here",
                host.name
            ),
        };
        connection.send(&Message::Failure(failure)).await?;
        return Err(NotASource.into());
    };
    tracing::info!("{name} offers container {} ({})", offer.name, offer.migration);
    arrival::receive(host, connection, &permissions, offer, expected).await
}

/// Picks up a migration whose source lost its connection after the copy was prepared.
async fn resume(
    host: &'static Host,
    connection: &mut Connection,
    migration: MigrationId,
) -> Result<(), Cause> {
    let known = host.prepared.knows(migration)
        || journal::path(&host.directories.state, migration).exists()
        || host.handed_over(migration)?.is_some();
    if !known {
        connection.send(&Message::Failure(unknown(migration))).await?;
        return Ok(());
    }
    connection.send(&Message::Resumed(())).await?;
    arrival::decide(host, connection, migration).await
}

/// The answer that allows a source to go back even after its commit record.
pub fn unknown(migration: MigrationId) -> Failure {
    Failure {
        code: FailureCode::Unknown,
        message: format!(
            "this host holds no copy of migration {migration}: it was undone or never came"
        ),
    }
}
