//! What travels from source to destination.

use bytes::Bytes;

/// Unit in which large files are compared, in bytes.
pub const BLOCK: usize = 64 << 10;
/// Most bytes in one [`Record::Data`].
pub const CHUNK: usize = 8 * BLOCK;

/// One step of making a tree like another. Paths are relative to the tree's root, with `/`
/// between names and no `.` or `..`; the root itself is the empty path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Remove whatever is there, with all below it. Absent is done.
    Remove {
        /// The path.
        path: Bytes,
    },
    /// Make this path be this. What is there is replaced, unless both are directories or the
    /// entry says otherwise.
    Entry {
        /// The path.
        path: Bytes,
        /// Owner, mode, times.
        meta: Meta,
        /// What it is.
        kind: Kind,
    },
    /// Content of the file that the last `Entry` named, in ascending order; what no record
    /// covers is a hole, or stays as it is in a file that is patched.
    Data {
        /// Where the bytes go.
        offset: u64,
        /// At most [`CHUNK`] bytes, at least one.
        bytes: Bytes,
    },
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory {
        /// What is there must go first: the directory hides one of the image (it is opaque).
        replace: bool,
    },
    /// A regular file.
    File {
        /// Its length in bytes.
        length: u64,
        /// The destination has an earlier state of this very file; change that.
        patch: bool,
    },
    /// Another name of a file that came earlier.
    HardLink {
        /// That file's path.
        target: Bytes,
    },
    /// A symbolic link.
    Symlink {
        /// Its content, which is not looked at.
        target: Bytes,
    },
    /// A named pipe.
    Fifo,
    /// A device node.
    Device {
        /// A block device, else a character device.
        block: bool,
        /// The device's major number.
        major: u32,
        /// The device's minor number.
        minor: u32,
    },
    /// The file of a unix socket. CRIU makes those anew that are in use.
    Socket,
}

/// Owner, mode, times and extended attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits with setuid, setgid and sticky: 0o7777.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Time of the last change of content: seconds since the epoch.
    pub mtime: i64,
    /// The rest of it, in nanoseconds.
    pub mtime_ns: u32,
    /// Extended attributes: `user.*`, `security.capability`, POSIX ACLs. Only files and
    /// directories carry any.
    pub xattrs: Vec<Xattr>,
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xattr {
    /// Its full name.
    pub name: String,
    /// Its value.
    pub value: Bytes,
}

/// Whether an attribute is carried over. Left out are overlayfs's own (`trusted.overlay.*`) and
/// SELinux labels, which differ from container to container and are podman's to set.
pub(super) fn is_carried(name: &str) -> bool {
    name.starts_with("user.")
        || matches!(
            name,
            "security.capability" | "system.posix_acl_access" | "system.posix_acl_default"
        )
}

/// What was carried over, or applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Entries of any kind.
    pub entries: u64,
    /// Removals.
    pub removed: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// What a destination accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most entries and removals.
    pub entries: u64,
    /// Most bytes of content that are sent, and most that a file may be long (holes included).
    pub bytes: u64,
    /// Whether device nodes may be made.
    pub devices: bool,
}

impl Default for Limits {
    /// Two million entries, 64 GiB, no devices.
    fn default() -> Self {
        Self { entries: 2_000_000, bytes: 64 << 30, devices: false }
    }
}
