//! Further connections to the destination, for bulk data.

use std::num::NonZeroUsize;

use protocol::expect;
use protocol::message::Message;
use protocol::wire::STREAMS;
use state::cause::Cause;
use state::deadline;
use state::peer_address::Destination;

use super::Preparation;
use crate::connect::dial_host;

impl Preparation<'_> {
    /// Opens so many further connections for bulk data, unless one is enough: then the conversation's own has it.
    pub(super) async fn open_streams(&mut self, count: NonZeroUsize) -> Result<(), Cause> {
        let migration = self.migration.plan.offer.migration;
        let context = self.migration.context;
        let link = &mut self.migration.plan.link;
        if count.get() == 1 || !link.connection.has(STREAMS) {
            return Ok(());
        }
        // The name may have other addresses, which are not reached by the same way.
        let there = link.connection.peer();
        let address = Destination { host: there.ip().to_string(), port: there.port() };
        let mut streams = Vec::new();
        for _ in 0..count.get() {
            let mut stream = dial_host(context, &address, link.host).await?;
            stream.send(&Message::Attach(migration)).await?;
            expect!(stream, deadline::ANSWER, Attached)?;
            streams.push(stream);
        }
        tracing::debug!("bulk data goes over {count} connections to {there}");
        link.connection.use_streams(streams);
        Ok(())
    }
}
