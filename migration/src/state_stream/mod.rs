//! A container's state as a stream of parts.
//!
//! A capture puts the parts into a [`StateSink`]: to a peer ([`peer`]), or to a file ([`mod@file`]). A restore takes the
//! same parts from either. The parts are the protocol's own types, so a file has the same format as a conversation,
//! and the same rules: the body of a part never changes once it is released.

pub mod file;
pub mod peer;

use std::io;
use std::path::PathBuf;

use protocol::message::{
    Chunk, CodecError, Data, EmptyPages, FlowBatch, LaterPages, MemoryPages, Message, Settings,
    SharedEmpty, SharedPages, SharedSegment, TreeChange, TreeEnd, TreeRecord, VolumeChange,
    VolumeEnd,
};

/// A part of a container's state. Parts of one kind are in order; those of different kinds come as they are made.
#[derive(Debug)]
pub enum StatePart {
    /// Pieces of CRIU's images.
    Chunks(Vec<Chunk>),
    /// A change of a directory tree.
    TreeChange(TreeChange),
    /// The end of a pass over a directory tree.
    TreeEnd(TreeEnd),
    /// A change of a volume's files.
    VolumeChange(VolumeChange),
    /// The end of a pass over a volume.
    VolumeEnd(VolumeEnd),
    /// The next bytes of the container's log.
    LogData(Data),
    /// Flows.
    Flows(FlowBatch),
    /// Settings that CRIU does not restore.
    Settings(Settings),
    /// Pages of memory.
    Memory(MemoryPages),
    /// Pages of memory without content.
    EmptyMemory(EmptyPages),
    /// Pages of memory that come after the decision.
    MemoryLater(LaterPages),
    /// Pages of shared memory.
    SharedMemory(SharedPages),
    /// Pages of shared memory without content.
    EmptySharedMemory(SharedEmpty),
    /// What segments of shared memory have in the end.
    SharedMemoryEnd(Vec<SharedSegment>),
}

impl StatePart {
    /// Returns the number of bytes of the container's files, log and memory in this part.
    #[must_use]
    pub fn payload(&self) -> u64 {
        let bytes = match self {
            Self::Chunks(chunks) => chunks.iter().map(|chunk| chunk.bytes.len()).sum(),
            Self::TreeChange(TreeChange { record: TreeRecord::Data { bytes, .. }, .. })
            | Self::VolumeChange(VolumeChange { record: TreeRecord::Data { bytes, .. }, .. }) => {
                bytes.len()
            }
            Self::LogData(Data(bytes)) => bytes.len(),
            Self::Memory(pages) => pages.runs.iter().map(|run| run.bytes.len()).sum(),
            Self::SharedMemory(pages) => pages.runs.iter().map(|run| run.bytes.len()).sum(),
            _ => 0,
        };
        bytes as u64
    }
}

impl From<StatePart> for Message {
    fn from(part: StatePart) -> Self {
        match part {
            StatePart::Chunks(chunks) => Self::Chunks(chunks),
            StatePart::TreeChange(change) => Self::TreeChange(change),
            StatePart::TreeEnd(end) => Self::TreeEnd(end),
            StatePart::VolumeChange(change) => Self::VolumeChange(change),
            StatePart::VolumeEnd(end) => Self::VolumeEnd(end),
            StatePart::LogData(data) => Self::LogData(data),
            StatePart::Flows(batch) => Self::Flows(batch),
            StatePart::Settings(settings) => Self::Settings(settings),
            StatePart::Memory(pages) => Self::MemoryPages(pages),
            StatePart::EmptyMemory(pages) => Self::EmptyPages(pages),
            StatePart::MemoryLater(pages) => Self::MemoryLater(pages),
            StatePart::SharedMemory(pages) => Self::SharedPages(pages),
            StatePart::EmptySharedMemory(pages) => Self::SharedEmpty(pages),
            StatePart::SharedMemoryEnd(segments) => Self::SharedEnd(segments),
        }
    }
}

impl TryFrom<Message> for StatePart {
    type Error = Message;

    /// Returns the message itself if it is not a part of a container's state.
    fn try_from(message: Message) -> Result<Self, Message> {
        match message {
            Message::Chunks(chunks) => Ok(Self::Chunks(chunks)),
            Message::TreeChange(change) => Ok(Self::TreeChange(change)),
            Message::TreeEnd(end) => Ok(Self::TreeEnd(end)),
            Message::VolumeChange(change) => Ok(Self::VolumeChange(change)),
            Message::VolumeEnd(end) => Ok(Self::VolumeEnd(end)),
            Message::LogData(data) => Ok(Self::LogData(data)),
            Message::Flows(batch) => Ok(Self::Flows(batch)),
            Message::Settings(settings) => Ok(Self::Settings(settings)),
            Message::MemoryPages(pages) => Ok(Self::Memory(pages)),
            Message::EmptyPages(pages) => Ok(Self::EmptyMemory(pages)),
            Message::MemoryLater(pages) => Ok(Self::MemoryLater(pages)),
            Message::SharedPages(pages) => Ok(Self::SharedMemory(pages)),
            Message::SharedEmpty(pages) => Ok(Self::EmptySharedMemory(pages)),
            Message::SharedEnd(segments) => Ok(Self::SharedMemoryEnd(segments)),
            other => Err(other),
        }
    }
}

/// Takes the parts of a container's state, from several threads at once.
pub trait StateSink: Send + Sync {
    /// Takes the next part. May block: for blocking code only.
    ///
    /// # Errors
    /// The sink cannot take more.
    fn put(&self, part: StatePart) -> Result<(), Error>;
}

/// A stream of state failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing takes parts any more: the connection failed, which is told elsewhere.
    #[error("the connection to the destination has gone")]
    ConnectionGone,
    /// There is more than may be kept.
    #[error("the container's files are larger than the {limit} bytes that are allowed")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// A file fails.
    #[error("cannot keep or read the container's state in {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A part cannot be encoded, or a file does not hold parts.
    #[error("cannot encode or decode a part of the container's state in {path}")]
    Codec {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: CodecError,
    },
    /// A file holds a message that is not a part of a container's state.
    #[error("{path} holds a {name} message, which is not a part of a container's state")]
    NotState {
        /// The file.
        path: PathBuf,
        /// The message's name.
        name: &'static str,
    },
}
