//! What the server of pages and the agent say to each other about pages that are still at the source (post-copy). The agent
//! passes questions on to the source, and pages back. It may end and be replaced: the server alone knows what is missing.
//!
//! ```text
//! agent                                     server
//!   lane ──────────────────────────────────▶
//!        [◀───────────────────────────────── wanted
//!   pages* sent ───────────────────────────▶]*          or gone: the source has no such memory any more
//!         ◀───────────────────────────────── ended
//!   noted ─────────────────────────────────▶            the journal says so
//! ```
//!
//! Each message has its length before it, four bytes in the host's order.

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::images::MissingRange;

/// Kinds of messages, their first byte.
pub(super) const LANE: u8 = b'L';
pub(super) const WANTED: u8 = b'W';
pub(super) const PAGES: u8 = b'P';
pub(super) const SENT: u8 = b'S';
pub(super) const GONE: u8 = b'G';
pub(super) const ENDED: u8 = b'E';
pub(super) const NOTED: u8 = b'N';
/// Bytes in front of the pages: the kind, the process and the address.
pub(super) const PAGES_HEAD: usize = 1 + 4 + 8;
/// Most bytes that one question is about: as much as goes over while a question and its answer are on their way.
pub const QUESTION_BYTES: u64 = 4 << 20;
/// Most ranges in one question.
pub const QUESTION_RANGES: usize = 64;
/// Bytes of pages in one message.
const PIECE: usize = 256 << 10;
/// Largest message, without its length.
pub(super) const MESSAGE: usize = PAGES_HEAD + PIECE;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Pages that a process waits for.
    Urgent,
    /// The other pages, in order.
    Others,
    /// To hear of the end alone.
    Watch,
}

impl Lane {
    pub(super) fn byte(self) -> u8 {
        match self {
            Self::Urgent => 0,
            Self::Others => 1,
            Self::Watch => 2,
        }
    }

    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Urgent, Self::Others, Self::Watch].into_iter().find(|lane| lane.byte() == byte)
    }
}

/// What the server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It wants these pages.
    Wanted(Vec<MissingRange>),
    /// It wants none any more.
    Ended {
        /// All have arrived. Otherwise the container has ended before.
        is_whole: bool,
    },
}

/// Returns where the server of a migration's pages listens, in the run directory.
#[must_use]
pub fn source_link_path(run: &Path, migration: &str) -> PathBuf {
    run.join(super::LOCKS).join(format!("{migration}.pages"))
}

/// A connection with a server of pages.
#[derive(Debug)]
pub struct SourceLink(UnixStream);

impl SourceLink {
    /// Connects to the server that listens at `path`. Returns `None` if none does.
    ///
    /// # Errors
    /// The connection cannot be made.
    pub async fn connect(path: &Path, lane: Lane) -> io::Result<Option<Self>> {
        let stream = match UnixStream::connect(path).await {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            other => other?,
        };
        let mut link = Self(stream);
        link.send(&[&[LANE, lane.byte()]]).await?;
        Ok(Some(link))
    }

    /// Waits for the server's next word; `None` if the server has ended without one.
    ///
    /// # Errors
    /// The connection fails, or what comes is no word of a server.
    pub async fn next(&mut self) -> io::Result<Option<Said>> {
        let mut length = [0; 4];
        match self.0.read_exact(&mut length).await {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
                ) =>
            {
                return Ok(None);
            }
            other => other?,
        };
        let length = u32::from_ne_bytes(length) as usize;
        if length > MESSAGE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).await?;
        match bytes.split_first() {
            Some((&WANTED, ranges)) => Ok(Some(Said::Wanted(serde_json::from_slice(ranges)?))),
            Some((&ENDED, [is_whole])) => Ok(Some(Said::Ended { is_whole: *is_whole == 1 })),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Hands over whole pages that the source has sent.
    ///
    /// # Errors
    /// The server is gone.
    pub async fn pages(&mut self, process: i32, start: u64, bytes: &[u8]) -> io::Result<()> {
        let mut at = start;
        for piece in bytes.chunks(PIECE) {
            let head = [&[PAGES][..], &process.to_ne_bytes(), &at.to_ne_bytes()].concat();
            self.send(&[&head, piece]).await?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Says that the source has sent all that was wanted.
    ///
    /// # Errors
    /// The server is gone.
    pub async fn sent(&mut self) -> io::Result<()> {
        self.send(&[&[SENT]]).await
    }

    /// Says that the source does not have the memory any more. The server ends the container.
    ///
    /// # Errors
    /// The server is gone.
    pub async fn memory_gone(&mut self) -> io::Result<()> {
        self.send(&[&[GONE]]).await
    }

    /// Says that the end which the server has told is noted: nobody needs it for that any more.
    ///
    /// # Errors
    /// The server is gone.
    pub async fn noted(&mut self) -> io::Result<()> {
        self.send(&[&[NOTED]]).await
    }

    async fn send(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let length = u32::try_from(length).map_err(io::Error::other)?;
        self.0.write_all(&length.to_ne_bytes()).await?;
        for part in parts {
            self.0.write_all(part).await?;
        }
        Ok(())
    }
}
