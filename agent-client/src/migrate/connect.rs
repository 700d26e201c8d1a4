//! Step 1: reach the destination and learn who it is.

use agent_core::cause::Cause;
use agent_core::expect;
use agent_core::identity::{self, HostId};
use agent_core::message::{Hello, Message};
use agent_core::wire::Connection;
use agent_core::{deadline, wire};
use netmig::peer::PeerNumber;

use super::Context;
use crate::cli::Destination;

/// A destination that has introduced itself.
#[derive(Debug)]
pub struct Link {
    /// The conversation.
    pub connection: Connection,
    /// Its identity.
    pub host: HostId,
    /// Its number on this host.
    pub peer: PeerNumber,
    /// As the user named it, to dial again.
    pub destination: Destination,
}

/// Both ends of the migration are one host.
#[derive(Debug, thiserror::Error)]
#[error("the destination is this host itself; give the address of another one")]
pub struct SameHost;

/// Dials, compares versions and exchanges identities.
pub async fn connect(context: &Context, destination: &Destination) -> Result<Link, Cause> {
    let (connection, host) = dial(context, destination).await?;
    if host == context.host {
        return Err(SameHost.into());
    }
    let peer = identity::peer_number(&context.directories.state, host)?;
    Ok(Link { connection, host, peer, destination: destination.clone() })
}

/// Dials and exchanges identities, for the first time or again.
pub async fn dial(
    context: &Context,
    destination: &Destination,
) -> Result<(Connection, HostId), wire::Error> {
    let mut connection = Connection::dial(&destination.host, destination.port).await?;
    let hello = Hello {
        host: context.host,
        name: nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        software: env!("CARGO_PKG_VERSION").to_owned(),
    };
    connection.send(&Message::Hello(hello)).await?;
    let theirs = expect!(connection, deadline::ANSWER, Hello)?;
    Ok((connection, theirs.host))
}
