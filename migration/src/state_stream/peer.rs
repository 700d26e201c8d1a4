//! State that goes to a peer over the conversation's one connection.

use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{Error, StatePart, StateSink};

/// Number of parts that may wait for the connection. A producer that is faster waits.
const DEPTH: usize = 16;

/// The end of a bounded queue into which parts are put.
#[derive(Clone, Debug)]
pub struct PeerSink(Sender<StatePart>);

impl PeerSink {
    /// Returns a sink, and the parts that are put into it, for the task that has the connection. They end when every
    /// clone of the sink is gone.
    #[must_use]
    pub fn new() -> (Self, Receiver<StatePart>) {
        let (sender, parts) = channel(DEPTH);
        (Self(sender), parts)
    }
}

impl StateSink for PeerSink {
    fn put(&self, part: StatePart) -> Result<(), Error> {
        self.0.blocking_send(part).map_err(|_| Error::ConnectionGone)
    }
}
