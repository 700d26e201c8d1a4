//! Changes of a directory tree that is carried beside the checkpoint.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

/// A directory tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Tree {
    /// What the container changed in its root filesystem.
    Root,
    /// The container's `/dev/shm`.
    SharedMemory,
}

/// A change of a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeChange {
    /// The tree.
    pub tree: Tree,
    /// The change.
    pub record: TreeRecord,
}

/// The end of a pass over a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeEnd {
    /// The tree.
    pub tree: Tree,
    /// The [`TreeDigest`] of all records of this pass.
    pub digest: [u8; 16],
}

/// One step of making a tree like another. Paths are relative to the tree's root, with `/` between names
/// and without `.` and `..`; the root itself is the empty path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TreeRecord {
    /// Removes what is at a path, with everything below it. An absent path is no error.
    Remove {
        /// The path.
        path: Bytes,
    },
    /// Makes an entry. It replaces what is there, unless both are directories or the entry says otherwise.
    Entry {
        /// The path.
        path: Bytes,
        /// Owner, mode, times.
        metadata: Metadata,
        /// What the entry is.
        kind: EntryKind,
    },
    /// A part of the content of the file that the last `Entry` named, in ascending order. What no record
    /// covers is a hole, or stays as it is in a file that is patched.
    Data {
        /// Where the bytes go.
        offset: u64,
        /// The bytes, at least one.
        bytes: Bytes,
    },
}

/// What an entry of a tree is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A directory.
    Directory {
        /// Whether what is there goes first: the directory is opaque and hides one of the image.
        replace: bool,
    },
    /// A regular file.
    File {
        /// The length in bytes.
        length: u64,
        /// Whether the destination changes the earlier state of this file that it has.
        patch: bool,
    },
    /// Another name of a file that came earlier.
    HardLink {
        /// The path of that file.
        target: Bytes,
    },
    /// A symbolic link.
    Symlink {
        /// The content of the link.
        target: Bytes,
    },
    /// A named pipe.
    Fifo,
    /// A device node.
    Device {
        /// Whether it is a block device; otherwise it is a character device.
        block: bool,
        /// The major number.
        major: u32,
        /// The minor number.
        minor: u32,
    },
    /// The file of a unix socket.
    Socket,
}

/// Owner, mode, times and extended attributes of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Permission bits with setuid, setgid and sticky: 0o7777.
    pub mode: u32,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// When the content last changed, in seconds since 1970.
    pub mtime: i64,
    /// The rest of that time, in nanoseconds.
    pub mtime_ns: u32,
    /// Extended attributes; only files and directories have any.
    pub xattrs: Vec<ExtendedAttribute>,
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtendedAttribute {
    /// The full name.
    pub name: String,
    /// The value.
    pub value: Bytes,
}

/// A hash over all records of one pass, in their order: XXH3 of 128 bits, big-endian.
///
/// Both hosts add what they send and what they apply, and a copy is not restored unless the hashes are equal.
/// It guards against defects and broken memory; the authenticated connection guards against others.
///
/// What is hashed is defined here and independent of every encoding: each record is its number (its place in
/// [`TreeRecord`], from 0) and then its fields in order. Numbers are 8 bytes, little-endian; byte strings and
/// lists have their length before them; an enumeration is the number of its variant, then the variant's fields.
#[derive(Clone)]
pub struct TreeDigest(XxHash3_128);

impl Default for TreeDigest {
    fn default() -> Self {
        Self(XxHash3_128::new())
    }
}

impl TreeDigest {
    /// Adds the next record.
    pub fn add(&mut self, record: &TreeRecord) {
        match record {
            TreeRecord::Remove { path } => {
                self.number(0);
                self.bytes(path);
            }
            TreeRecord::Entry { path, metadata, kind } => {
                self.number(1);
                self.bytes(path);
                self.metadata(metadata);
                self.kind(kind);
            }
            TreeRecord::Data { offset, bytes } => {
                self.number(2);
                self.number(*offset);
                self.bytes(bytes);
            }
        }
    }

    /// Returns the hash of everything that was added.
    #[must_use]
    pub fn value(&self) -> [u8; 16] {
        self.0.clone().finish_128().to_be_bytes()
    }

    fn metadata(&mut self, metadata: &Metadata) {
        let Metadata { mode, uid, gid, mtime, mtime_ns, xattrs } = metadata;
        self.number((*mode).into());
        self.number((*uid).into());
        self.number((*gid).into());
        self.number(mtime.cast_unsigned());
        self.number((*mtime_ns).into());
        self.number(xattrs.len() as u64);
        for ExtendedAttribute { name, value } in xattrs {
            self.bytes(name.as_bytes());
            self.bytes(value);
        }
    }

    fn kind(&mut self, kind: &EntryKind) {
        match kind {
            EntryKind::Directory { replace } => {
                self.number(0);
                self.number((*replace).into());
            }
            EntryKind::File { length, patch } => {
                self.number(1);
                self.number(*length);
                self.number((*patch).into());
            }
            EntryKind::HardLink { target } => {
                self.number(2);
                self.bytes(target);
            }
            EntryKind::Symlink { target } => {
                self.number(3);
                self.bytes(target);
            }
            EntryKind::Fifo => self.number(4),
            EntryKind::Device { block, major, minor } => {
                self.number(5);
                self.number((*block).into());
                self.number((*major).into());
                self.number((*minor).into());
            }
            EntryKind::Socket => self.number(6),
        }
    }

    fn number(&mut self, number: u64) {
        self.0.write(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.write(bytes);
    }
}

impl std::fmt::Debug for TreeDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TreeDigest({:02x?})", self.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(records: &[TreeRecord]) -> [u8; 16] {
        let mut digest = TreeDigest::default();
        records.iter().for_each(|record| digest.add(record));
        digest.value()
    }

    #[test]
    fn every_byte_and_the_order_count() {
        let data = |offset, byte| TreeRecord::Data { offset, bytes: Bytes::from(vec![byte; 3]) };
        let one = digest(&[data(0, 1), data(3, 2)]);
        assert_eq!(one, digest(&[data(0, 1), data(3, 2)]));
        for other in [
            digest(&[data(3, 2), data(0, 1)]),
            digest(&[data(0, 1), data(3, 3)]),
            digest(&[data(0, 1), data(4, 2)]),
            digest(&[data(0, 1)]),
            digest(&[]),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn the_hash_is_that_of_the_defined_bytes() {
        let attribute = ExtendedAttribute { name: "user.a".to_owned(), value: Bytes::from("b") };
        let metadata = Metadata {
            mode: 0o644,
            uid: 1000,
            gid: 100,
            mtime: -2,
            mtime_ns: 5,
            xattrs: vec![attribute],
        };
        let kind = EntryKind::File { length: 9, patch: true };
        let entry = TreeRecord::Entry { path: Bytes::from("d/f"), metadata, kind };
        let mut bytes = Vec::new();
        let number = |number: u64| number.to_le_bytes().to_vec();
        for part in [
            number(1),
            number(3),
            b"d/f".to_vec(),
            number(0o644),
            number(1000),
            number(100),
            number(u64::MAX - 1),
            number(5),
            number(1),
            number(6),
            b"user.a".to_vec(),
            number(1),
            b"b".to_vec(),
            number(1),
            number(9),
            number(1),
        ] {
            bytes.extend(part);
        }
        assert_eq!(digest(&[entry]), XxHash3_128::oneshot(&bytes).to_be_bytes());
    }
}
