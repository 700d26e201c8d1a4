//! The files of one volume, as they arrive.

use std::path::{Path, PathBuf};

use checkpoint::tree::{self, Applier, Record};
use protocol::message::{TreeDigest, TreeRecord};
use state::cause::Cause;

use crate::convert::Wire;
use crate::offered_volume::OfferedVolume;

/// Bytes by which a volume may grow while it arrives, in any case.
const GROWTH: u64 = 1 << 30;
/// Files by which it may.
const MORE_FILES: u64 = 100_000;
/// Most passes over one volume, also of those in which nothing has changed.
const MOST_PASSES: usize = 256;

/// More than was offered.
#[derive(Debug, thiserror::Error)]
enum TooMuch {
    #[error(
        "a volume takes {taken} bytes, and {room} were expected at most from its size when the move began; try again, or see \
         `agent-server peers allow` (--disk)"
    )]
    Bytes { taken: u64, room: u64 },
    #[error(
        "a volume has {taken} files, and {room} were expected at most from their number when the move began; try again"
    )]
    Files { taken: u64, room: u64 },
    #[error("the source has sent the files of a volume more than {MOST_PASSES} times")]
    Passes,
}

/// What a peer may do with volumes here.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Most bytes of disk that the container's volumes may take together.
    pub disk: u64,
    /// Whether there may be device nodes in a volume.
    pub devices: bool,
}

/// A pass that has not ended.
#[derive(Debug)]
struct Pass {
    applier: Applier,
    digest: TreeDigest,
}

/// The files of one volume.
#[derive(Debug)]
pub(super) struct Receiver {
    place: PathBuf,
    limits: tree::Limits,
    /// Bytes of disk that the volume may take.
    room: u64,
    pass: Option<Pass>,
    passes: usize,
    /// Bytes of disk that the files took when they were looked at.
    looked_at: u64,
    /// Bytes that have come in passes since.
    unchecked: u64,
    /// Files that have come in passes since.
    unchecked_files: u64,
}

impl Receiver {
    pub(super) fn new(place: PathBuf, volume: &OfferedVolume, room: Room) -> Self {
        let grown = |size: u64| size.saturating_add(size / 2).saturating_add(GROWTH);
        let limits = tree::Limits {
            entries: volume.entries.saturating_mul(2).saturating_add(MORE_FILES),
            bytes: grown(volume.length),
            devices: room.devices,
        };
        let room = grown(volume.disk).min(room.disk);
        Self {
            place,
            limits,
            room,
            pass: None,
            passes: 0,
            looked_at: 0,
            unchecked: 0,
            unchecked_files: 0,
        }
    }

    /// Returns the directory into which they come.
    pub(super) fn place(&self) -> &Path {
        &self.place
    }

    /// Returns whether all that was announced has come.
    pub(super) fn is_whole(&self) -> bool {
        self.passes > 0 && self.pass.is_none()
    }

    /// Returns how many bytes of disk the files take at most.
    pub(super) fn taken(&self) -> u64 {
        let of_pass = self.pass.as_ref().map_or(0, |pass| pass.applier.bytes());
        self.looked_at.saturating_add(self.unchecked).saturating_add(of_pass)
    }

    /// Takes a change.
    pub(super) fn change(&mut self, record: TreeRecord) -> Result<(), Cause> {
        let pass = match &mut self.pass {
            Some(pass) => pass,
            None => {
                if self.passes >= MOST_PASSES {
                    return Err(TooMuch::Passes.into());
                }
                let entries = self.limits.entries.saturating_sub(self.unchecked_files);
                let limits = tree::Limits { entries, ..self.limits };
                let mut applier = Applier::new(&self.place, limits)?;
                applier.set_room(self.room.saturating_sub(self.unchecked));
                self.pass.insert(Pass { applier, digest: TreeDigest::default() })
            }
        };
        pass.digest.add(&record);
        Ok(pass.applier.apply(Record::from_wire(record)?)?)
    }

    /// Ends a pass; returns whether everything of it has come as it was sent.
    pub(super) fn end_pass(&mut self, digest: [u8; 16]) -> Result<bool, Cause> {
        if self.passes >= MOST_PASSES {
            return Err(TooMuch::Passes.into());
        }
        // A pass that changed nothing was never begun.
        let pass = self.pass.take();
        let own = pass.as_ref().map(|pass| pass.digest.clone()).unwrap_or_default();
        if own.value() != digest {
            return Ok(false);
        }
        if let Some(pass) = pass {
            let stats = pass.applier.finish()?;
            self.unchecked = self.unchecked.saturating_add(stats.bytes);
            self.unchecked_files = self.unchecked_files.saturating_add(stats.entries);
        }
        self.passes += 1;
        Ok(true)
    }

    /// Looks at how much the files take; what has come may have replaced what was there.
    pub(super) fn check_room(&mut self) -> Result<(), Cause> {
        let usage = tree::usage(&self.place)?;
        if usage.disk > self.room {
            return Err(TooMuch::Bytes { taken: usage.disk, room: self.room }.into());
        }
        if usage.entries > self.limits.entries {
            let (taken, room) = (usage.entries, self.limits.entries);
            return Err(TooMuch::Files { taken, room }.into());
        }
        (self.looked_at, self.unchecked, self.unchecked_files) = (usage.disk, 0, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use checkpoint::tree::{Kind, Meta};

    use super::*;

    fn file(name: &'static str, bytes: usize) -> [TreeRecord; 2] {
        let meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime: 1, mtime_ns: 2, xattrs: Vec::new() };
        let kind = Kind::File { length: bytes as u64, patch: false };
        let entry = Record::Entry { path: name.into(), meta, kind };
        let data = Record::Data { offset: 0, bytes: vec![7; bytes].into() };
        [entry, data].map(Wire::into_wire)
    }

    fn take(receiver: &mut Receiver, records: &[TreeRecord]) -> Result<bool, Cause> {
        let mut digest = TreeDigest::default();
        for record in records {
            digest.add(record);
            receiver.change(record.clone())?;
        }
        receiver.end_pass(digest.value())
    }

    fn receiver(dir: &Path, disk: u64) -> Receiver {
        Receiver::new(dir.to_owned(), &OfferedVolume::default(), Room { disk, devices: false })
    }

    #[test]
    fn a_volume_is_whole_after_a_pass_and_not_within_one() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut receiver = receiver(dir.path(), u64::MAX);
        assert!(!receiver.is_whole());
        assert!(take(&mut receiver, &file("a", 600)).unwrap());
        assert!(receiver.is_whole());
        receiver.change(file("b", 1)[0].clone()).unwrap();
        assert!(!receiver.is_whole());
        assert!(!receiver.end_pass([0; 16]).unwrap(), "another digest");
        assert_eq!(std::fs::read(dir.path().join("a")).unwrap(), [7; 600]);
    }

    #[test]
    fn no_more_comes_than_the_peer_may_send() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut receiver = receiver(dir.path(), 100_000);
        take(&mut receiver, &file("a", 60_000)).unwrap();
        assert!(take(&mut receiver, &file("b", 60_000)).is_err(), "before the files are looked at");
        let dir = tempfile::tempdir().unwrap();
        let mut receiver = self::receiver(dir.path(), 100_000);
        take(&mut receiver, &file("a", 60_000)).unwrap();
        receiver.check_room().unwrap();
        take(&mut receiver, &file("b", 60_000)).unwrap();
        assert!(receiver.check_room().is_err(), "both take more");
    }

    #[test]
    fn passes_and_files_are_counted_in_all() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut receiver = receiver(dir.path(), u64::MAX);
        receiver.limits.entries = 3;
        take(&mut receiver, &file("a", 1)).unwrap();
        take(&mut receiver, &file("b", 1)).unwrap();
        take(&mut receiver, &file("c", 1)).unwrap();
        assert!(take(&mut receiver, &file("d", 1)).is_err(), "in another pass");
        let mut receiver = self::receiver(dir.path(), u64::MAX);
        let empty = TreeDigest::default().value();
        let ends = (0..=MOST_PASSES).take_while(|_| receiver.end_pass(empty).is_ok());
        assert_eq!(ends.count(), MOST_PASSES, "passes without a change");
    }
}
