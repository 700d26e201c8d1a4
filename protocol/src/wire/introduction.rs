//! The exchange of introductions with which every conversation but that of pairing begins.

use std::time::Duration;

use super::{Connection, Error};
use crate::expect;
use crate::message::{Introduction, Message};

impl Connection {
    /// Introduces this agent to a server and returns the server's introduction.
    ///
    /// # Errors
    /// [`Error::Introduction`] for an introduction that no agent sends; otherwise as [`Connection::send`] and
    /// [`Connection::receive`].
    pub async fn introduce(
        &mut self,
        own: &Introduction,
        limit: Duration,
    ) -> Result<Introduction, Error> {
        self.send(&Message::Hello(own.into())).await?;
        self.receive_introduction(limit).await
    }

    /// Receives a client's introduction, introduces this agent, and returns what the client sent.
    ///
    /// # Errors
    /// As [`Connection::introduce`].
    pub async fn answer_introduction(
        &mut self,
        own: &Introduction,
        limit: Duration,
    ) -> Result<Introduction, Error> {
        let theirs = self.receive_introduction(limit).await?;
        self.send(&Message::Hello(own.into())).await?;
        Ok(theirs)
    }

    async fn receive_introduction(&mut self, limit: Duration) -> Result<Introduction, Error> {
        let hello = expect!(self, limit, Hello)?;
        let peer = self.peer;
        let theirs =
            Introduction::try_from(hello).map_err(|source| Error::Introduction { peer, source })?;
        self.capabilities.clone_from(&theirs.capabilities);
        Ok(theirs)
    }

    /// Returns whether the other host's agent has named a capability.
    #[must_use]
    pub fn has(&self, capability: &str) -> bool {
        self.capabilities.contains(capability)
    }
}
