//! Connections of a container whose far ends have not answered since it was restored.

use netmig::netns::Namespace;
use netmig::sockets::{TcpInfo, TcpSockets};
use protocol::message::{MigrationId, SilentConnection};
use state::cause::chain;

use crate::destination::server_context::ServerContext;

/// Most connections that are named; whoever asks wants to know whether there are any.
const MOST: usize = 4096;

/// Returns whether nothing has come of a connection, or nothing that acknowledges what its socket has sent more than once. What an
/// end still waits for that has closed it the other end may not want any more.
fn is_silent(info: &TcpInfo) -> bool {
    info.segments_in == 0 || (info.is_established && info.retransmits > 0 && info.awaits_answer())
}

/// Returns those of a migration's container, if the engine runs it. A restored socket counts what comes from
/// zero, and when CRIU lets it go its kernel asks the far end for an answer (`tcp_send_window_probe`).
pub fn silent(host: &ServerContext, migration: MigrationId) -> Vec<SilentConnection> {
    let Ok(Some(finished)) = host.handed_over(migration) else { return Vec::new() };
    let listed = Namespace::of_pid(finished.pid)
        .map_err(Into::into)
        .and_then(|namespace| TcpSockets::open(&namespace)?.info());
    let connections = listed.unwrap_or_else(|e| {
        // The container may have ended, and its connections with it.
        tracing::debug!("{migration}: {}", chain(&e));
        Vec::new()
    });
    let silent = connections.iter().filter(|info| is_silent(info));
    let named = |info: &TcpInfo| SilentConnection {
        own: info.own,
        far: info.far,
        awaits_answer: info.awaits_answer(),
    };
    silent.take(MOST).map(named).collect()
}
