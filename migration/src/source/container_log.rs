//! The container's log, which its engine keeps in a file on this host.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use protocol::message::Data;
use protocol::wire::PIECE;

use crate::state_stream::{self, StatePart, StateSink};

/// A log that is read on from where the last pass ended.
#[derive(Debug)]
pub struct CarriedLog {
    file: File,
}

/// A pass over the log failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the container's log")]
    Read(#[from] io::Error),
    /// The sink does not take it.
    #[error(transparent)]
    Sink(#[from] state_stream::Error),
}

impl CarriedLog {
    /// Opens the log at its beginning.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)? })
    }

    /// Sends what was written since the last pass; gives the number of bytes. Only for blocking
    /// code.
    pub fn pass(&mut self, sink: &dyn StateSink) -> Result<u64, Error> {
        let mut sent = 0;
        loop {
            let mut piece = Vec::new();
            (&mut self.file).take(PIECE as u64).read_to_end(&mut piece)?;
            if piece.is_empty() {
                return Ok(sent);
            }
            sent += piece.len() as u64;
            sink.put(StatePart::LogData(Data(piece)))?;
        }
    }
}
