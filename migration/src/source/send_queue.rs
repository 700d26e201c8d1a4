//! Messages that several producers make at once, sent over the one connection in the order in which
//! they come.

use protocol::message::Message;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Messages that may wait for the connection; a producer that is faster than it waits.
const DEPTH: usize = 16;

/// Where producers put their messages.
pub type Outbox = Sender<Message>;

/// A bounded queue of messages.
pub fn outbox() -> (Outbox, Receiver<Message>) {
    channel(DEPTH)
}

/// Posts a message from blocking code.
pub fn post(outbox: &Outbox, message: Message) -> Result<(), ConnectionGone> {
    outbox.blocking_send(message).map_err(|_| ConnectionGone)
}

/// Nobody takes messages any more: the connection failed, which is told elsewhere.
#[derive(Debug, thiserror::Error)]
#[error("the connection to the destination has gone")]
pub struct ConnectionGone;
