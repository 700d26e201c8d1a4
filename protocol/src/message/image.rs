//! Checkpoint images: pieces of files, and the list of all files at the end.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use state::id::MigrationId;

/// A piece of a checkpoint image.
///
/// The pieces of a file come in order and without gaps. A piece at offset 0 of a file that has bytes already
/// starts that file over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The file's name, without a directory.
    pub name: String,
    /// Where the piece starts, in bytes.
    pub offset: u64,
    /// The piece; empty for an empty file.
    pub bytes: Bytes,
}

/// Pages of the memory of one process. They may come several times: the last content counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPages {
    /// The number that the process has in its container.
    pub process: i32,
    /// Its pages.
    pub runs: Vec<MemoryRun>,
}

/// Pages that follow each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRun {
    /// The address of the first one in the process.
    pub start: u64,
    /// Their content.
    pub bytes: Bytes,
}

/// Pages of the memory of one process that have nothing but zeros, in place of what came before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmptyPages {
    /// The number that the process has in its container.
    pub process: i32,
    /// Its empty pages.
    pub runs: Vec<EmptyRun>,
}

/// Empty pages that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmptyRun {
    /// The address of the first one in the process.
    pub start: u64,
    /// Their length in bytes.
    pub length: u64,
}

/// The length and the hash of a checkpoint image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSum {
    /// The file's name, without a directory.
    pub name: String,
    /// The file's length in bytes.
    pub length: u64,
    /// XXH3 of 128 bits over the file's content, big-endian.
    pub hash: [u8; 16],
}

/// All files of a checkpoint, sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The files.
    pub files: Vec<FileSum>,
}

/// Pages of one process that are sent once the destination asks for them ([`MemoryWanted`](super::Message::MemoryWanted)).
/// What came of them before counts no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaterPages {
    /// The number that the process has in its container.
    pub process: i32,
    /// The address of the first page and the address after the last one, of each range.
    pub ranges: Vec<(u64, u64)>,
}

/// Makes a connection one over which the destination asks for pages of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeMemory {
    /// The migration.
    pub migration: MigrationId,
    /// Whether it is for pages that a process waits for, and not for the others.
    pub is_urgent: bool,
}

/// Pages of one process that the destination asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedPages {
    /// The number that the process has in its container.
    pub process: i32,
    /// The address of the first page.
    pub start: u64,
    /// The address after the last page.
    pub end: u64,
}

/// Maximum number of ranges in one question for pages.
pub const WANTED_RANGES: usize = 64;
/// Maximum number of bytes that one question for pages is about.
pub const WANTED_BYTES: u64 = 4 << 20;
