//! Further connections of a conversation, for bulk data: one TCP connection alone does not fill every link.
//!
//! The conversation's own connection keeps the order. In place of a message that goes another way it has
//! `Elsewhere`, with that message's number, and the message itself comes as `Numbered` over any of the further
//! connections. The receiver waits for it there before it reads on. So everything arrives in the order in which it
//! was sent, and nothing that follows bulk data has to wait for it on the sender's side.
//!
//! A further connection is read only as long as its next message is less than [`AHEAD`] messages before its turn.
//! Each connection has its messages in ascending order, so the one that is waited for is never behind one that has
//! to wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use state::deadline;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Connection, Error};
use crate::message::{Data, Message, Numbered};

/// The capability to take bulk data over further connections.
pub const STREAMS: &str = "streams";
/// Maximum number of further connections of one conversation.
pub const MAX_STREAMS: usize = 16;
/// Number of messages that are received before their turn.
const AHEAD: u64 = 32;

/// An encoded message and its number.
type Piece = (u64, Vec<u8>);

/// The messages that are to be sent, for all connections.
type Queue = Arc<tokio::sync::Mutex<mpsc::Receiver<Piece>>>;

/// The sender's side.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// Encoded messages with their numbers. Each goes to the first connection that is free.
    queue: mpsc::Sender<Piece>,
    next: u64,
    failed: Arc<Mutex<Option<Error>>>,
    _tasks: JoinSet<()>,
}

/// The receiver's side.
#[derive(Debug)]
pub(super) struct Incoming {
    /// Connections that the other host has made for this conversation.
    offered: mpsc::Receiver<Connection>,
    sender: mpsc::Sender<Result<(u64, Message), Error>>,
    pieces: mpsc::Receiver<Result<(u64, Message), Error>>,
    /// Messages before their turn.
    waiting: BTreeMap<u64, Message>,
    /// The number of the message whose turn it is.
    next: watch::Sender<u64>,
    tasks: JoinSet<()>,
}

impl Connection {
    /// Sends bulk data over these connections from now on. The other host has to have attached them to this
    /// conversation.
    pub fn use_streams(&mut self, streams: Vec<Self>) {
        let (queue, messages) = mpsc::channel(1);
        let messages = Arc::new(tokio::sync::Mutex::new(messages));
        let failed = Arc::new(Mutex::new(None));
        let mut tasks = JoinSet::new();
        for mut stream in streams {
            stream.bulk = self.bulk.for_stream();
            tasks.spawn(send_all(stream, Arc::clone(&messages), Arc::clone(&failed)));
        }
        self.outgoing = Some(Outgoing { queue, next: 0, failed, _tasks: tasks });
    }

    /// Accepts the connections that come out of `offered` as those over which the other host sends bulk data.
    pub fn accept_streams(&mut self, offered: mpsc::Receiver<Self>) {
        let (sender, pieces) = mpsc::channel(1);
        self.incoming = Some(Incoming {
            offered,
            sender,
            pieces,
            waiting: BTreeMap::new(),
            next: watch::Sender::new(0),
            tasks: JoinSet::new(),
        });
    }

    pub(super) fn has_streams(&self) -> bool {
        self.outgoing.is_some()
    }

    /// Sends an encoded message over one of the further connections.
    pub(super) async fn send_elsewhere(&mut self, encoded: Vec<u8>) -> Result<(), Error> {
        let peer = self.peer;
        let Some(outgoing) = &mut self.outgoing else { return Err(Error::Closed { peer }) };
        let number = outgoing.next;
        outgoing.next += 1;
        let limit = deadline::SEND;
        let queued = timeout(limit, outgoing.queue.send((number, encoded))).await;
        match queued {
            Ok(Ok(())) => self.send(&Message::Elsewhere(number)).await,
            Ok(Err(_)) => {
                let failed = outgoing.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
                // The other host may have said why.
                let words = self.last_words().await;
                Err(words.or(failed).unwrap_or(Error::Closed { peer }))
            }
            Err(_) => Err(Error::Deadline { peer, what: "take our data", limit }),
        }
    }

    /// Waits for the message with this number, which comes over a further connection.
    pub(super) async fn receive_elsewhere(&mut self, number: u64) -> Result<Message, Error> {
        let unexpected = self.unexpected(&Message::Elsewhere(number), "a message in its turn");
        let Some(incoming) = &mut self.incoming else { return Err(unexpected) };
        if *incoming.next.borrow() != number {
            return Err(unexpected);
        }
        loop {
            if let Some(message) = incoming.waiting.remove(&number) {
                incoming.next.send_replace(number + 1);
                return Ok(message);
            }
            tokio::select! {
                Some(stream) = incoming.offered.recv(), if incoming.tasks.len() < MAX_STREAMS => {
                    let (sender, next) = (incoming.sender.clone(), incoming.next.subscribe());
                    incoming.tasks.spawn(receive_all(stream, sender, next));
                }
                Some(piece) = incoming.pieces.recv() => {
                    let (number, message) = piece?;
                    incoming.waiting.insert(number, message);
                }
            }
        }
    }
}

/// Sends messages over one connection until there are no more, or one cannot be sent.
async fn send_all(mut stream: Connection, messages: Queue, failed: Arc<Mutex<Option<Error>>>) {
    loop {
        let next = messages.lock().await.recv().await;
        let Some((number, encoded)) = next else { break };
        if let Err(error) = stream.send_numbered(number, encoded).await {
            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            // Nothing more is sent: the receiver would wait for this message for ever.
            return messages.lock().await.close();
        }
    }
    stream.close().await;
}

/// Receives messages over one connection, none of them long before its turn.
async fn receive_all(
    mut stream: Connection,
    pieces: mpsc::Sender<Result<(u64, Message), Error>>,
    mut next: watch::Receiver<u64>,
) {
    loop {
        // The sender keeps it open to the end of the conversation, when nothing is awaited here any more. One that
        // closes before has failed, and what it had to bring will not come.
        let piece = stream.read_numbered().await;
        if let Ok((number, _)) = &piece {
            let Ok(next) = next.wait_for(|next| *number < next.saturating_add(AHEAD)).await else {
                return;
            };
            if *number < *next {
                return;
            }
        }
        let is_last = piece.is_err();
        if pieces.send(piece).await.is_err() || is_last {
            return;
        }
    }
}

impl Connection {
    async fn send_numbered(&mut self, number: u64, encoded: Vec<u8>) -> Result<(), Error> {
        let encoded = self.compressed(encoded)?;
        self.encode(&Message::Numbered(Numbered { number, message: Data(encoded) }))?;
        self.write_paced().await
    }

    async fn read_numbered(&mut self) -> Result<(u64, Message), Error> {
        let peer = self.peer;
        match self.read_frame().await? {
            Message::Numbered(Numbered { number, message: Data(bytes) }) => {
                let message = Message::decode_frame(&bytes, self.frame_limit)
                    .map_err(|source| Error::Codec { peer, source })?;
                Ok((number, message))
            }
            other => Err(self.unexpected(&other, "Numbered")),
        }
    }
}
