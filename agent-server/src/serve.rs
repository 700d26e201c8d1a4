//! The accept loop: bounded, and it ends when it is told to.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use migration::destination::{self, Copies, ServerContext};
use protocol::message::{Failure, FailureCode, Message};
use protocol::trust::{Purpose, Servers};
use protocol::wire::{self, Connection};
use state::cause::{Cause, chain};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::malloc_arenas;
use crate::pairing;
use crate::unauthenticated::{Ticket, Unauthenticated};

/// Conversations with paired hosts at once. A source needs one, and another one to pick up a lost one.
const SESSIONS: usize = 64;
/// How long conversations may go on once the agent was told to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// What all connections share. It lives as long as the process: leases outlive the conversations that
/// made them.
struct Service {
    copies: Copies,
    servers: Servers,
    unauthenticated: Unauthenticated,
    places: Semaphore,
}

/// Serves conversations until `stop` is ready; then lets those under way come to their end.
pub async fn run(
    listener: TcpListener,
    host: ServerContext,
    servers: Servers,
    stop: impl Future<Output = ()>,
) {
    let service: &'static Service = Box::leak(Box::new(Service {
        copies: Copies::new(Box::leak(Box::new(host))),
        servers,
        unauthenticated: Unauthenticated::default(),
        places: Semaphore::new(SESSIONS),
    }));
    destination::watch_all(service.copies.host());
    let mut sessions = JoinSet::new();
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let ticket = service.unauthenticated.enter(peer.ip());
                let task = sessions.spawn(service.attend(stream, ticket));
                service.unauthenticated.serve(ticket, task);
            }
            // Out of file descriptors, or the connection went before it was accepted.
            Err(e) => {
                tracing::warn!("cannot accept a connection: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        while sessions.try_join_next().is_some() {}
    }
    drop(listener);
    tracing::info!("stopping");
    service.copies.host().stop();
    let all = async { while sessions.join_next().await.is_some() {} };
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        tracing::warn!("a conversation did not end in time; its migration is left to its deadline");
    }
    service.copies.drop_all().await;
}

impl Service {
    /// Authenticates the peer, dispatches its requests, and logs what went wrong.
    async fn attend(&'static self, stream: TcpStream, ticket: Ticket) {
        let accepted = Connection::accept(&self.servers, stream).await;
        if let Ok((Purpose::Join, connection)) = accepted {
            let peer = connection.peer();
            let outcome = pairing::welcome(self.copies.host(), connection).await;
            self.unauthenticated.leave(ticket);
            return note(peer, outcome);
        }
        if !self.unauthenticated.leave(ticket) {
            return;
        }
        match accepted {
            Ok((_, connection)) => {
                let peer = connection.peer();
                note(peer, self.serve(connection).await);
                malloc_arenas::give_back();
            }
            // A scan of the port, or a flood: not worth a line each.
            Err(e @ (wire::Error::Closed { .. } | wire::Error::Deadline { .. })) => {
                tracing::debug!("{}", chain(&e));
            }
            // It says whose connection it was.
            Err(e) => tracing::warn!("{}", chain(&e)),
        }
    }

    /// Converses with a paired host if there is a place for it.
    async fn serve(&'static self, mut connection: Connection) -> Result<(), Cause> {
        let Ok(_place) = self.places.try_acquire() else {
            let message =
                format!("agent-server on {} serves {SESSIONS} already", self.copies.host().name);
            let failure = Failure { code: FailureCode::Busy, message: message.into() };
            return Ok(connection.send(&Message::Failure(failure)).await?);
        };
        destination::converse(&self.copies, connection).await
    }
}

fn note(peer: SocketAddr, outcome: Result<(), Cause>) {
    if let Err(e) = outcome {
        tracing::warn!("{peer}: {}", chain(e.as_ref()));
    }
}
