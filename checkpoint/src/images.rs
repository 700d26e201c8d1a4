//! CRIU's images: kept in memory, and carried to another host while CRIU writes them.
//!
//! [`ImageDir`] is a file system in memory with a limit. [`Follower`] reads a growing directory on the source, and
//! [`Writer`] builds it up on the destination. Between them travel [`Chunk`]s and at the end a [`Manifest`]. How these
//! travel is the caller's matter.

mod follower;
mod huge_pages;
mod inner_connections;
mod lazy_mappings;
mod manifest;
mod memory_store;
mod missing_pages;
mod mount_flags;
mod pagemap;
mod readdress;
mod shared_store;
mod syscall_restart;
mod tmpfs;
mod window_scale;
mod writer;

#[cfg(test)]
mod tests;

pub use follower::Follower;
pub use huge_pages::keep_huge_pages_out;
pub use inner_connections::InnerConnections;
pub use lazy_mappings::LazyMappings;
pub use manifest::{CHUNK, Chunk, FileSum, Limits, Manifest, Stats};
pub use memory_store::MemoryStore;
pub(crate) use missing_pages::MissingPages;
pub use missing_pages::MissingRange;
pub use mount_flags::keep_mount_flags;
pub use pagemap::{LazyRange, PAGE, Pagemap, lazy_bytes, whole_pagemap};
pub use readdress::readdress;
pub use shared_store::SharedStore;
pub use syscall_restart::rewind_calls;
pub use tmpfs::ImageDir;
pub use window_scale::settle_scales;
pub use writer::Writer;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What can go wrong with images.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be used.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried: "read", "mount", …
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory that is to hold memory images can be entered by others.
    #[error("{path} is open to other users or owned by one; images go only where its mode is 0700")]
    NotPrivate {
        /// The directory.
        path: PathBuf,
    },
    /// Something else is mounted where the images are expected.
    #[error("{path} is a mount that is not ours; it is left alone")]
    Foreign {
        /// The mount point.
        path: PathBuf,
    },
    /// More than the limits allow.
    #[error("images are too large: {what} is above the limit of {limit}")]
    TooLarge {
        /// What was counted: "number of files", "bytes", …
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A name that is no plain file name.
    #[error("{0:?} is not the name of an image file")]
    BadName(String),
    /// A chunk that does not continue its file.
    #[error("image {name}: got bytes at {offset} where {expected} was next")]
    OutOfOrder {
        /// The file.
        name: String,
        /// Where the chunk starts.
        offset: u64,
        /// What was expected.
        expected: u64,
    },
    /// What arrived is not what was sent.
    #[error("image {name} did not arrive whole: {problem}")]
    Differs {
        /// The file.
        name: String,
        /// "missing", "length", "hash", …
        problem: &'static str,
    },
    /// Something in the directory is not a regular file.
    #[error("{path} is not a regular file, which no image is")]
    NotAFile {
        /// The entry.
        path: PathBuf,
    },
    /// A connection within the container went on while it was dumped.
    #[error(
        "the connection {own} > {far} within the container carried data while it was dumped, and some are in no image; \
         try again"
    )]
    InMotion {
        /// One end.
        own: SocketAddr,
        /// The other end.
        far: SocketAddr,
    },
    /// The receiver of the chunks is gone.
    #[error("nobody takes the images any more")]
    Closed,
}
