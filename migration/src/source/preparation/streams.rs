//! Further connections to the destination, for bulk data.

use std::num::NonZeroUsize;

use protocol::expect;
use protocol::message::Message;
use protocol::wire::STREAMS;
use state::cause::Cause;
use state::deadline;

use super::Preparation;
use crate::connect::dial_host;

impl Preparation<'_> {
    /// Has bulk data go over so many connections. One is the conversation's own.
    pub(super) async fn open_streams(&mut self, count: NonZeroUsize) -> Result<(), Cause> {
        let migration = self.migration.plan.offer.migration;
        let context = self.migration.context;
        let link = &mut self.migration.plan.link;
        if count.get() == 1 || !link.connection.has(STREAMS) {
            return Ok(());
        }
        let mut streams = Vec::new();
        for _ in 0..count.get() {
            let mut stream = dial_host(context, &link.destination, link.host).await?;
            stream.send(&Message::Attach(migration)).await?;
            expect!(stream, deadline::ANSWER, Attached)?;
            streams.push(stream);
        }
        link.connection.use_streams(streams);
        Ok(())
    }
}
