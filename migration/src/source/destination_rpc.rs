//! What the destination is told once the decision is made, over the first connection or a new one.

use ownership::source::{Answer, Next, after_order};
use protocol::expect;
use protocol::message::{
    self, AskPassage, FailureCode, Finished, Message, MigrationId, SilentConnection,
};
use protocol::wire::{self, Connection};
use state::cause::Cause;
use state::deadline;
use state::id::HostId;
use state::peer_address::Destination;

use crate::connect;
use crate::context::Context;

/// The far end of a migration, to be found again.
#[derive(Clone, Debug)]
pub struct Peer {
    /// As the user named it.
    pub destination: Destination,
    /// Its identity.
    pub host: HostId,
    /// The migration.
    pub migration: MigrationId,
}

/// The destination did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The conversation broke, or the destination gave a reason.
    #[error(transparent)]
    Wire(#[from] wire::Error),
    /// Whoever answers is somebody else: what it says about copies counts for nothing.
    #[error("{0} is another host now than the one that the container was moved to")]
    OtherHost(Destination),
    /// Something on this host failed.
    #[error("pages of memory could not be sent")]
    Own(#[source] Cause),
    /// Nothing sends pages any more.
    #[error("pages of memory are not sent any more")]
    NotServed,
}

impl Error {
    /// Returns what the source knows from it.
    #[must_use]
    pub fn answer(&self) -> Answer {
        match self {
            Self::Wire(wire::Error::Failure { failure, .. }) => match failure.code {
                FailureCode::Unknown => Answer::NoCopy,
                FailureCode::Lost => Answer::Lost,
                _ => Answer::Undecided,
            },
            Self::Wire(_) | Self::OtherHost(_) | Self::Own(_) | Self::NotServed => Answer::Silence,
        }
    }

    /// Returns what follows from it after the commit record.
    #[must_use]
    pub fn next(&self) -> Next {
        after_order(self.answer())
    }
}

impl Peer {
    /// Dials anew and picks the migration up.
    pub async fn resume(&self, context: &Context) -> Result<Connection, Error> {
        let mut connection = connect::dial(context, &self.destination).await?;
        if connection.host() != self.host {
            return Err(Error::OtherHost(self.destination.clone()));
        }
        connection.send(&Message::Resume(self.migration)).await?;
        expect!(connection, deadline::ANSWER, Resumed)?;
        Ok(connection)
    }
}

/// Has the destination undo its part, over a new connection, and waits until it has.
pub async fn abort(context: &Context, peer: &Peer) -> Result<(), Error> {
    let mut connection = peer.resume(context).await?;
    connection.send(&Message::Abort(peer.migration)).await?;
    Ok(expect!(connection, deadline::ANSWER, Aborted)?)
}

/// Makes the copy audible.
pub async fn commit(connection: &mut Connection, migration: MigrationId) -> Result<(), Error> {
    connection.send(&Message::Commit(migration)).await?;
    Ok(expect!(connection, deadline::ANSWER, Committed)?)
}

/// Lets the destination's engine take the container over.
pub async fn finish(connection: &mut Connection) -> Result<Finished, Error> {
    connection.send(&Message::Finish(())).await?;
    Ok(expect!(connection, deadline::STAGE, Finished)?)
}

/// Asks the destination for the container's connections on which nothing has come yet.
pub async fn silent(
    connection: &mut Connection,
    migration: MigrationId,
) -> Result<Vec<SilentConnection>, Error> {
    connection.send(&Message::AskSilent(migration)).await?;
    Ok(expect!(connection, deadline::ANSWER, Silent)?)
}

/// Asks the destination for packets of flows; `None` if it cannot tell.
pub async fn passage(
    connection: &mut Connection,
    ask: AskPassage,
) -> Result<Option<Vec<message::FlowPassage>>, Error> {
    connection.send(&Message::AskPassage(ask)).await?;
    Ok(expect!(connection, deadline::ANSWER, Passage)?)
}

/// Tells the destination that this host needs no answer about the migration any more.
pub async fn settled(connection: &mut Connection, migration: MigrationId) -> Result<(), Error> {
    Ok(connection.send(&Message::Settled(migration)).await?)
}

/// Tells the destination that no anchor's packets come by way of this host any more.
pub async fn led_past(connection: &mut Connection, migration: MigrationId) -> Result<(), Error> {
    Ok(connection.send(&Message::LedPast(migration)).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::message::Failure;

    #[test]
    fn only_the_destinations_own_words_deny_a_copy() {
        let said = |code| {
            let failure = Failure { code, message: "".into() };
            Error::Wire(wire::Error::Failure { host: "b".to_owned(), failure })
        };
        assert_eq!(said(FailureCode::Unknown).next(), Next::GoBack);
        assert_eq!(said(FailureCode::Lost).next(), Next::AskPerson);
        for code in [FailureCode::Step, FailureCode::Deadline, FailureCode::Stopping] {
            assert_eq!(said(code).next(), Next::AskAgain);
        }
        let other = Destination { host: "b".to_owned(), port: 1 };
        assert_eq!(Error::OtherHost(other).next(), Next::AskAgain);
        let peer = "192.0.2.1:1".parse().unwrap();
        assert_eq!(Error::Wire(wire::Error::Closed { peer }).next(), Next::AskAgain);
    }
}
