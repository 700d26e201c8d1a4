//! Messages that several producers make at once, sent over the one connection in the order in which
//! they come.

use std::io::{self, Write};

use agent_core::message::{Data, Message, Tree, TreeData};
use agent_core::wire::PIECE;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Messages that may wait for the connection; a producer that is faster than it waits.
const DEPTH: usize = 16;

/// Where producers put their messages.
pub type Outbox = Sender<Message>;

/// A bounded queue of messages.
pub fn outbox() -> (Outbox, Receiver<Message>) {
    channel(DEPTH)
}

/// What the pieces of an archive belong to.
#[derive(Clone, Copy, Debug)]
pub enum Archive {
    /// The container's image.
    Image,
    /// One of its trees.
    Tree(Tree),
}

/// A [`Write`] for blocking code that cuts what is written into messages.
#[derive(Debug)]
pub struct ArchiveWriter {
    archive: Archive,
    outbox: Outbox,
    piece: Vec<u8>,
    written: u64,
}

impl ArchiveWriter {
    /// Writes into `outbox`. Only for use outside of asynchronous code.
    pub fn new(archive: Archive, outbox: Outbox) -> Self {
        Self { archive, outbox, piece: Vec::new(), written: 0 }
    }

    /// Sends what is left, and the end of the archive if there was any content; gives the number
    /// of bytes.
    pub fn finish(mut self) -> io::Result<u64> {
        self.flush()?;
        if self.written > 0 {
            let end = match self.archive {
                Archive::Image => Message::ImageEnd(()),
                Archive::Tree(tree) => Message::TreeEnd(tree),
            };
            self.post(end)?;
        }
        Ok(self.written)
    }

    fn post(&self, message: Message) -> io::Result<()> {
        self.outbox
            .blocking_send(message)
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the connection has gone"))
    }
}

impl Write for ArchiveWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE - self.piece.len();
        let taken = bytes.len().min(room);
        self.piece.extend_from_slice(&bytes[..taken]);
        self.written += taken as u64;
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.piece);
        let message = match self.archive {
            Archive::Image => Message::ImageData(Data(bytes)),
            Archive::Tree(tree) => Message::TreeData(TreeData { tree, bytes }),
        };
        self.post(message)
    }
}
