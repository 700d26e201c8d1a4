//! Pairing with a destination, and unpairing.

use protocol::expect;
use protocol::message::{Join, Message};
use protocol::trust::list::{Role, list};
use protocol::trust::peers::Name;
use protocol::trust::{Token, Trust};
use protocol::wire::{self, Connection};
use state::cause::Cause;
use state::peer_address::Destination;
use state::{deadline, host, private_file};

use crate::cli::{Peers, PeersCommand};

/// There is no such peer.
#[derive(Debug, thiserror::Error)]
#[error("containers may not be moved to a peer {0}; agent-client peers lists those that they may")]
struct NoSuchPeer(Name);

/// The server did not let this host in.
#[derive(Debug, thiserror::Error)]
#[error("not paired with {address}")]
struct NotJoined {
    address: Destination,
    #[source]
    source: wire::Error,
}

/// Presents a token to the host that has given it out, and stores that host; gives a sentence for
/// people. The secret is sent only to the host whose fingerprint is in the token.
pub async fn join(state: &std::path::Path, token: Token) -> Result<String, Cause> {
    let trust = Trust::open(state)?;
    let failed = |source| NotJoined { address: token.address.clone(), source };
    let mut connection = Connection::dial_to_join(&trust, &token).await.map_err(failed)?;
    let join = Message::Join(Join { secret: token.secret.clone(), name: host::name().into() });
    connection.send(&join).await.map_err(failed)?;
    let joined = expect!(connection, deadline::ANSWER, Joined).map_err(failed)?;
    let lock = private_file::lock(state)?;
    let (print, address) = (token.fingerprint, token.address.clone());
    let peer = trust.peers.add_destination(&lock, print, &joined.name, address)?;
    // As a host may be called here.
    let called = Name::like(&joined.called);
    Ok(format!(
        "Paired with {0} at {1}; it knows this host as {called}. To move a container there run: \
         agent-client migrate CONTAINER {0}",
        peer.name, token.address
    ))
}

/// Lists the destinations, or removes one; gives what there is to say.
pub fn peers(state: &std::path::Path, request: &Peers) -> Result<String, Cause> {
    let peers = protocol::trust::Peers::new(state);
    match &request.command {
        None => Ok(list(&peers, Role::Destination, request.json)?),
        Some(PeersCommand::Remove { name }) => {
            let lock = private_file::lock(state)?;
            if peers.remove_destination(&lock, name)? {
                Ok(format!("containers may not be moved to {name} any more"))
            } else {
                Err(NoSuchPeer(name.clone()).into())
            }
        }
    }
}
