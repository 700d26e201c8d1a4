//! The first step of everything: reach another host and learn who it is.

use netmig::peer_number::PeerNumber;
use protocol::message::Introduction;
use protocol::trust::Trust;
use protocol::wire;
use protocol::wire::Connection;
use state::cause::Cause;
use state::id::HostId;
use state::peer_address::Destination;
use state::{deadline, host};
use steering::tunnels;

use crate::context::Context;

/// A destination that has introduced itself.
#[derive(Debug)]
pub struct Introduced {
    /// The conversation.
    pub connection: Connection,
    /// Its identity.
    pub host: HostId,
    /// As the user named it, to dial again.
    pub destination: Destination,
}

/// A destination that has agreed to a move.
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

impl Introduced {
    /// Gives the destination its number on this host: something is about to be made for it.
    ///
    /// # Errors
    /// The numbers of this host's peers cannot be read or written, or all are taken.
    pub async fn agreed(self, context: &Context) -> Result<Link, Cause> {
        let Self { connection, host, destination } = self;
        let peer = tunnels::allot(&context.directories, host).await?;
        Ok(Link { connection, host, peer, destination })
    }
}

/// Dials a destination, compares versions and exchanges identities.
///
/// # Errors
/// As [`Connection::dial`], and the destination does not introduce itself.
pub async fn connect(context: &Context, destination: &Destination) -> Result<Introduced, Cause> {
    let connection = dial(context, destination).await?;
    let host = connection.host();
    Ok(Introduced { connection, host, destination: destination.clone() })
}

/// Dials a destination and exchanges introductions, for the first time or again.
///
/// # Errors
/// As [`Connection::dial`] and [`Connection::introduce`].
pub async fn dial(context: &Context, destination: &Destination) -> Result<Connection, wire::Error> {
    dial_with(&context.trust, destination).await
}

/// Does the same for a program that has nothing but this host's identity and peers.
///
/// # Errors
/// As [`dial`].
pub(crate) async fn dial_with(
    trust: &Trust,
    destination: &Destination,
) -> Result<Connection, wire::Error> {
    introduce(Connection::dial(trust, destination).await?).await
}

/// Dials a host that is known by its identity and exchanges introductions.
///
/// # Errors
/// As [`Connection::dial_host`] and [`Connection::introduce`].
pub async fn dial_host(
    context: &Context,
    address: &Destination,
    host: HostId,
) -> Result<Connection, wire::Error> {
    introduce(Connection::dial_host(&context.trust, address, host).await?).await
}

async fn introduce(mut connection: Connection) -> Result<Connection, wire::Error> {
    let own = Introduction::of_this_agent(&host::name(), env!("CARGO_PKG_VERSION"));
    connection.introduce(&own, deadline::ANSWER).await?;
    Ok(connection)
}
