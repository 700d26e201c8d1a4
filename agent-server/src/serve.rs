//! The accept loop: bounded, and it ends when it is told to.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use agent_core::cause::chain;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::session::{self, Host};

/// Conversations at once. A source needs one, and another one to pick up a lost one.
const SESSIONS: usize = 64;
/// How long conversations may go on once the agent was told to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves conversations until `stop` is ready; then lets those under way come to their end.
pub async fn run(listener: TcpListener, host: Host, stop: impl Future<Output = ()>) {
    // Leases outlive the conversations that made them, so this lives as long as the process.
    let host: &'static Host = Box::leak(Box::new(host));
    let places = Arc::new(Semaphore::new(SESSIONS));
    let mut sessions = JoinSet::new();
    tokio::pin!(stop);
    loop {
        // Taking the place first leaves further connections in the kernel's backlog.
        let place = tokio::select! {
            () = &mut stop => break,
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                sessions.spawn(async move {
                    let _place = place;
                    if let Err(e) = session::converse(host, stream).await {
                        tracing::warn!("{peer}: {}", chain(e.as_ref()));
                    }
                });
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
    host.stop();
    let all = async { while sessions.join_next().await.is_some() {} };
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        tracing::warn!("a conversation did not end in time; its migration is left to its deadline");
    }
    host.prepared.drop_all().await;
}
