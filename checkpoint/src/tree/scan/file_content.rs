//! A regular file of a tree: sent whole, as a further name of one that was sent, or by the blocks that differ.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, fstat};

use super::walk::{Place, Seen, Walk};
use super::{Node, Stamp, Tasks, What, entry};
use crate::tree::blocks::{self, Failed};
use crate::tree::transfer_record::Xattr;
use crate::tree::{Error, Kind, Record, beneath};

impl Walk<'_> {
    /// Looks at a regular file and sends it if it changed. `None` when it is gone.
    pub(super) fn file(
        &mut self,
        place: Place<'_>,
        name: &OsStr,
        seen: Seen,
    ) -> Result<Option<Node>, Error> {
        let stat = &seen.stat;
        let inode = (stat.st_dev, stat.st_ino);
        let first = if stat.st_nlink > 1 { self.links.get(&inode).cloned() } else { None };
        if seen.same && (!self.compare_content || first.is_some()) {
            self.remember_link(stat);
            return Ok(seen.old);
        }
        let (xattrs, marks) = entry::xattrs(place.names, name, &self.at())?;
        if marks.whiteout && place.marked_whiteouts {
            return self.whiteout(Stamp::of(stat), seen.old.as_ref()).map(Some);
        }
        if let Some(target) = first {
            self.emit(stat, xattrs, Kind::HardLink { target })?;
            // Its content went with the other name: should this become the first, all is sent.
            let stamp = Stamp::of(stat);
            return Ok(Some(Node { stamp, unsure: seen.unsure, what: What::Other }));
        }
        self.remember_link(stat);
        let metacopy = place.upper && marks.metacopy;
        self.content(place, name, seen, xattrs, metacopy)
    }

    /// Sends a regular file's content, or what differs in it.
    fn content(
        &mut self,
        place: Place<'_>,
        name: &OsStr,
        seen: Seen,
        xattrs: Vec<Xattr>,
        metacopy: bool,
    ) -> Result<Option<Node>, Error> {
        let Seen { mut stat, mut unsure, old, same } = seen;
        let opened = entry::open_file(place.names, name).map_err(self.fail("open"))?;
        let Some(mut file) = opened else { return Ok(None) };
        if self.tasks == Tasks::Running && !self.compare_content {
            // A page that was written to between the first look and the end of the cleaning
            // may be dirty still: unless the times are equal, nothing is sure.
            let before = Stamp::of(&stat);
            entry::clean(&file);
            stat = fstat(&file).map_err(self.fail("look at"))?;
            unsure |= before != Stamp::of(&stat) || self.is_unsure(&stat);
        }
        if let Some(merged) = self.merged.filter(|_| metacopy) {
            let path = Path::new(OsStr::from_bytes(&self.path));
            match beneath::open_file(merged, path) {
                Ok(whole) => file = whole,
                Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => return Ok(None),
                Err(e) => return Err(self.fail("open")(e)),
            }
        }
        let before = match old {
            Some(Node { what: What::File(before), .. }) => Some(before),
            _ => None,
        };
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        let mut header = Some(Record::Entry {
            path: Bytes::copy_from_slice(&self.path),
            meta: entry::meta(&stat, xattrs),
            kind: Kind::File { length, patch: before.is_some() },
        });
        // A file whose stamp is as it was is told of only if a block differs.
        if !same && let Some(header) = header.take() {
            (self.sink)(header)?;
            self.stats.entries += 1;
        }
        let (sink, stats) = (&mut self.sink, &mut self.stats);
        let sent = blocks::send(
            &file,
            length,
            before.as_deref(),
            &mut self.buffer,
            &mut |offset, bytes| {
                if let Some(header) = header.take() {
                    stats.entries += 1;
                    sink(header)?;
                }
                stats.bytes += bytes.len() as u64;
                sink(Record::Data { offset, bytes })
            },
        );
        let blocks = sent.map_err(|failed| match failed {
            Failed::Sink(error) => error,
            Failed::Read(source) => Error::Io { action: "read", path: self.at(), source },
        })?;
        let after = fstat(&file).map_err(self.fail("look at"))?;
        unsure |= !metacopy && Stamp::of(&after) != Stamp::of(&stat);
        Ok(Some(Node { stamp: Stamp::of(&stat), unsure, what: What::File(blocks) }))
    }

    fn remember_link(&mut self, stat: &FileStat) {
        if stat.st_nlink > 1 {
            self.links
                .entry((stat.st_dev, stat.st_ino))
                .or_insert_with(|| Bytes::copy_from_slice(&self.path));
        }
    }
}
