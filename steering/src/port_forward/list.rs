//! What is forwarded, to be shown.

use std::net::IpAddr;

use netmig::table::ForwardedPort;
use netmig::tunnel;
use serde::Serialize;
use state::cause::Cause;
use state::directories::Directories;

use super::{Role, all};
use crate::peer_numbers;

/// What is forwarded for a container, as people and programs are told of it.
#[derive(Debug, Serialize)]
pub struct Forwarding {
    /// The container's name.
    pub container: String,
    /// The container's ID.
    pub id: String,
    /// `away`: this host's ports lead to the peer. `here`: the peer's lead to the container, which is here.
    pub role: &'static str,
    /// The peer's number on this host.
    pub peer: u8,
    /// Where its end of the tunnel is.
    pub peer_address: Option<IpAddr>,
    /// What leads where; of the peer's ports nothing is known.
    pub ports: Vec<ForwardedPort>,
}

/// Lists what is forwarded. Makes nothing on this host.
///
/// # Errors
/// This host's notes or its tunnels cannot be read.
pub async fn list(directories: &Directories) -> Result<Vec<Forwarding>, Cause> {
    let mut lines = Vec::new();
    for note in all(directories)? {
        let peer = peer_numbers::number(&directories.state, note.host)?;
        let known = tunnel::status(peer).await?.and_then(|status| status.address);
        let ports = match note.role {
            // The move is not decided yet.
            Role::Away(away) if !away.in_force => continue,
            Role::Away(away) => Some(away.ports),
            Role::Here => None,
        };
        lines.push(Forwarding {
            container: note.name,
            id: note.id,
            role: if ports.is_some() { "away" } else { "here" },
            peer: peer.get(),
            peer_address: known,
            ports: ports.unwrap_or_default(),
        });
    }
    Ok(lines)
}
