//! What travels between the hosts: pieces of files, and at the end the list of all files.

use std::fmt;

use bytes::Bytes;
use twox_hash::XxHash3_128;

/// Most bytes in one chunk.
pub const CHUNK: usize = 512 << 10;
/// Longest name of an image file, in bytes. CRIU's are below 40.
pub(super) const NAME_BYTES: usize = 96;

/// A piece of an image file.
///
/// The pieces of a file come in order and without gaps. A piece at offset 0 of a file that has
/// bytes already starts that file over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The file's name, without any directory.
    pub name: String,
    /// Where the piece starts, in bytes.
    pub offset: u64,
    /// The piece, at most [`CHUNK`] bytes; empty for an empty file.
    pub bytes: Bytes,
}

/// The file in which crun and runc list a container's descriptors.
const DESCRIPTORS: &str = "descriptors.json";

impl Chunk {
    /// Returns whether a file begins with it.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.offset == 0
    }

    /// Returns whether this is the whole file that the runtime writes before it calls CRIU, and reads before
    /// it calls CRIU on the other host.
    #[must_use]
    pub fn is_descriptors(&self) -> bool {
        self.name == DESCRIPTORS
            && self.is_first()
            && serde_json::from_slice::<serde::de::IgnoredAny>(&self.bytes).is_ok()
    }
}

/// Length and hash of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSum {
    /// The file's name.
    pub name: String,
    /// Its length in bytes.
    pub length: u64,
    /// XXH3 of 128 bits, big-endian. It guards against our own mistakes and broken memory; who
    /// sent it is the business of the authenticated channel. Chosen for its cost: it runs at
    /// the speed of memory, where a cryptographic hash of 1 GiB takes 0.3 s and more of the two
    /// cores that CRIU needs at this moment.
    pub hash: [u8; 16],
}

/// All files of a dump, sorted by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The files.
    pub files: Vec<FileSum>,
}

/// What was carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Files.
    pub files: u64,
    /// Bytes, not counting what had to be sent again.
    pub bytes: u64,
}

/// What a receiver accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most files.
    pub files: u64,
    /// Most bytes in all.
    pub bytes: u64,
}

impl Default for Limits {
    /// Returns 65,536 files, which 8,000 processes need, and 64 GiB.
    fn default() -> Self {
        Self { files: 1 << 16, bytes: 64 << 30 }
    }
}

/// Returns whether `name` can be nothing but a file in the directory itself: letters, digits and
/// `.`, `-`, `_`, not starting with a dot.
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

/// Length and hash of a file whose name is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) length: u64,
    pub(super) hash: [u8; 16],
}

/// A file's length and hash, as far as it is known.
#[derive(Clone, Default)]
pub(super) struct Progress {
    pub(super) length: u64,
    hash: XxHash3_128,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").field("length", &self.length).finish_non_exhaustive()
    }
}

impl Progress {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.hash.write(bytes);
        self.length += bytes.len() as u64;
    }

    pub(super) fn sum(&self) -> Sum {
        Sum { length: self.length, hash: self.hash.finish_128().to_be_bytes() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_or_refused() {
        for name in ["core-1.img", "tmpfs-dev-72.tar.gz.img", "descriptors.json", "a_b"] {
            assert!(is_plain(name), "{name}");
        }
        let long = "a".repeat(NAME_BYTES + 1);
        for name in ["", ".", "..", ".hidden", "a/b", "/a", "a\0b", "a b", "ä", "a\n", &long] {
            assert!(!is_plain(name), "{name:?}");
        }
    }

    #[test]
    fn hash_does_not_depend_on_the_pieces() {
        let (mut one, mut two) = (Progress::default(), Progress::default());
        one.add(b"hello world");
        two.add(b"hello");
        two.add(b" world");
        assert_eq!(one.sum(), two.sum());
        two.add(b"!");
        assert_ne!(one.sum().hash, two.sum().hash);
    }
}
