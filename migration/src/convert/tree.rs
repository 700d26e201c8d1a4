//! Changes of directory trees. Paths are checked where they are resolved below a tree's root.

use checkpoint::tree::{Kind, Meta, Record, Xattr};
use protocol::message as wire;

use super::{Refused, Wire, plain_fields, same_fields};

plain_fields! {
    Xattr => wire::ExtendedAttribute { name, value }
}

same_fields! {
    Meta => wire::Metadata { mode, uid, gid, mtime, mtime_ns, xattrs }
}

impl Wire for Record {
    type Form = wire::TreeRecord;

    fn into_wire(self) -> wire::TreeRecord {
        match self {
            Self::Remove { path } => wire::TreeRecord::Remove { path },
            Self::Entry { path, meta, kind } => {
                wire::TreeRecord::Entry { path, metadata: meta.into_wire(), kind: kind.into_wire() }
            }
            Self::Data { offset, bytes } => wire::TreeRecord::Data { offset, bytes },
        }
    }

    fn from_wire(form: wire::TreeRecord) -> Result<Self, Refused> {
        Ok(match form {
            wire::TreeRecord::Remove { path } => Self::Remove { path },
            wire::TreeRecord::Entry { path, metadata, kind } => {
                Self::Entry { path, meta: Meta::from_wire(metadata)?, kind: Kind::from_wire(kind)? }
            }
            wire::TreeRecord::Data { offset, bytes } => Self::Data { offset, bytes },
        })
    }
}

impl Wire for Kind {
    type Form = wire::EntryKind;

    fn into_wire(self) -> wire::EntryKind {
        match self {
            Self::Directory { replace } => wire::EntryKind::Directory { replace },
            Self::File { length, patch } => wire::EntryKind::File { length, patch },
            Self::HardLink { target } => wire::EntryKind::HardLink { target },
            Self::Symlink { target } => wire::EntryKind::Symlink { target },
            Self::Fifo => wire::EntryKind::Fifo,
            Self::Device { block, major, minor } => wire::EntryKind::Device { block, major, minor },
            Self::Socket => wire::EntryKind::Socket,
        }
    }

    fn from_wire(form: wire::EntryKind) -> Result<Self, Refused> {
        Ok(match form {
            wire::EntryKind::Directory { replace } => Self::Directory { replace },
            wire::EntryKind::File { length, patch } => Self::File { length, patch },
            wire::EntryKind::HardLink { target } => Self::HardLink { target },
            wire::EntryKind::Symlink { target } => Self::Symlink { target },
            wire::EntryKind::Fifo => Self::Fifo,
            wire::EntryKind::Device { block, major, minor } => Self::Device { block, major, minor },
            wire::EntryKind::Socket => Self::Socket,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::comes_back;

    #[test]
    fn records_come_back() {
        let meta = Meta {
            mode: 0o4755,
            uid: 1000,
            gid: 100,
            mtime: -1,
            mtime_ns: 5,
            xattrs: vec![Xattr { name: "user.a".to_owned(), value: vec![0, 255].into() }],
        };
        let target = || vec![b'd', b'/', b'f'].into();
        for kind in [
            Kind::Directory { replace: true },
            Kind::File { length: 10, patch: true },
            Kind::HardLink { target: target() },
            Kind::Symlink { target: target() },
            Kind::Fifo,
            Kind::Device { block: true, major: 1, minor: 3 },
            Kind::Socket,
        ] {
            comes_back(&Record::Entry { path: target(), meta: meta.clone(), kind });
        }
        comes_back(&Record::Remove { path: target() });
        comes_back(&Record::Data { offset: 4096, bytes: vec![2; 9].into() });
    }
}
