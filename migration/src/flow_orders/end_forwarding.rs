//! Ends the forwarding of new connections to a container that has moved.

use netmig::tunnel;
use protocol::expect;
use protocol::message::Message;
use state::cause::{Cause, chain};
use state::container_lock::ContainerLock;
use state::deadline;
use state::id::HostId;
use state::peer_address::{DEFAULT_PORT, Destination};
use steering::port_forward::{self, Note};
use steering::{peer_numbers, tunnels};

use super::Done;
use crate::connect::dial_host;
use crate::context::Context;

/// Nothing is forwarded for that container.
#[derive(Debug, thiserror::Error)]
#[error("nothing is forwarded for a container {0} here; agent-client forward list shows what is")]
struct NotForwarded(String);

/// Ends the forwarding to a container here, and tells the other host.
///
/// # Errors
/// Nothing is forwarded to that container, another process works on it, or the kernel refuses something.
pub async fn end_forwarding(context: &Context, container: &str) -> Result<Done, Cause> {
    let directories = &context.directories;
    let chosen = |note: &Note| {
        let decided = note.away().is_none_or(|away| away.in_force);
        decided && (note.name == container || note.id == container)
    };
    // Nothing else may work on the container meanwhile.
    let mut locks = Vec::new();
    let mut ids: Vec<_> = port_forward::all(directories)?.into_iter().filter(chosen).collect();
    ids.dedup_by(|a, b| a.id == b.id);
    for note in ids {
        locks.push(ContainerLock::begin(directories, &note.id, &note.name)?);
    }
    let removed = port_forward::remove(directories, chosen).await?;
    if removed.is_empty() {
        return Err(NotForwarded(container.to_owned()).into());
    }
    let told = format!("new connections for {container} are not forwarded any more");
    let mut left = Vec::new();
    for note in removed {
        if let Some(away) = note.away()
            && let Err(e) = tell(context, &away.destination, note.host, &note.id).await
        {
            let name = context.host_name(note.host);
            let name = name.unwrap_or_else(|| away.destination.to_string());
            left.push(format!(
                "{name} could not be told ({}), and keeps its end of the tunnel: run agent-client forward remove \
                 {container} on {name}, too",
                chain(e.as_ref())
            ));
        }
        if let Some(peer) = peer_numbers::find_number(&directories.state, note.host)? {
            tunnels::release(directories, peer, None).await?;
        }
    }
    Ok(Done { told, left })
}

/// Tells the container's host that no new connections come from here.
async fn tell(
    context: &Context,
    destination: &Destination,
    host: HostId,
    id: &str,
) -> Result<(), Cause> {
    // A name may have been that of a peer; its address is known to the tunnel as well.
    let peer = peer_numbers::number(&context.directories.state, host)?;
    let known = tunnel::status(peer).await?.and_then(|status| status.address);
    let address = match known {
        Some(address) => Destination {
            host: address.to_string(),
            port: if destination.port == 0 { DEFAULT_PORT } else { destination.port },
        },
        None => destination.clone(),
    };
    let mut connection = dial_host(context, &address, host).await?;
    connection.send(&Message::ForwardEnd(id.to_owned())).await?;
    Ok(expect!(connection, deadline::ANSWER, ForwardEnded)?)
}
