//! A dump that leaves all pages of memory out, for memory that goes to the destination by other ways.
//!
//! CRIU dumps only pages that were written since an earlier dump, if it is given that one's images. They are marked by the
//! kernel's soft-dirty bit (`CONFIG_MEM_SOFT_DIRTY`, `Documentation/admin-guide/mm/soft-dirty.rst`). So it is given images of an
//! earlier dump that never was, which claim to have every page there can be, and no page has the bit:
//!
//! * where the kernel has the bit, it is cleared right before the dump;
//! * where the kernel has none, no page ever has it. CRIU refuses such a kernel, by what it has noted of it in
//!   `/run/criu.kdat` (`struct kerndat_s` in `criu/include/kerndat.h`). It gets a copy with another byte there, in its own mount
//!   namespace.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::Error;
use crate::images::whole_pagemap;
use crate::protobuf::{Value, put_field};

/// What CRIU has noted of the kernel.
pub(super) const NOTES: &std::ffi::CStr = c"/run/criu.kdat";
/// The place of `has_dirty_track` there.
const DIRTY_TRACK: usize = 32;
/// The place of `last_cap`, which the kernel tells as well.
const LAST_CAP: usize = 16;
/// The kernel's own word for that.
const KERNEL_LAST_CAP: &str = "/proc/sys/kernel/cap_last_cap";
/// CRIU's `INVENTORY_MAGIC`.
const INVENTORY_MAGIC: u32 = 0x5831_3116;
/// `inventory_entry`: `img_version` (here CRTOOLS_IMAGES_V1_1), `fdinfo_per_id`, `ns_per_id`, `dump_uptime`.
const INVENTORY: [(u64, u64); 4] = [(1, 2), (2, 1), (4, 1), (8, u64::MAX >> 1)];
/// The number of the file of pages, which nobody reads.
const PAGES_ID: u64 = 1;
/// How long CRIU may take to look at the kernel.
const CHECK: Duration = Duration::from_secs(10);
/// Clears the soft-dirty bits of a process (proc_pid_clear_refs(5)).
const CLEAR: &str = "4";

/// How a dump leaves memory out.
#[derive(Debug, Clone)]
pub struct MemoryApart {
    /// The images of the dump that never was.
    parent: PathBuf,
    /// What CRIU is to read in place of its notes; `None` where the kernel has the soft-dirty bit.
    notes: Option<PathBuf>,
}

impl MemoryApart {
    /// Prepares it in a directory of its own, below `directory`. `criu` is CRIU's program.
    ///
    /// # Errors
    /// [`Error::Config`] when files cannot be made, or CRIU's notes are not what is expected.
    pub async fn prepare(directory: &Path, criu: &Path) -> Result<Self, Error> {
        let parent = directory.join("parent");
        let fail = |path: &Path| {
            let path = path.to_path_buf();
            move |source| Error::Config { path, source }
        };
        match fs::DirBuilder::new().mode(0o700).create(&parent) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(fail(&parent))?,
        }
        write(&parent.join("inventory.img"), &inventory()).map_err(fail(&parent))?;
        write(&parent.join(format!("pages-{PAGES_ID}.img")), &[]).map_err(fail(&parent))?;
        let notes = if tracks_dirty_pages(criu).await.map_err(fail(criu))? {
            None
        } else {
            let path = directory.join("criu.kdat");
            let own = Path::new("/run/criu.kdat");
            let notes = fs::read(own).and_then(changed).map_err(fail(own))?;
            write(&path, &notes).map_err(fail(&path))?;
            Some(path)
        };
        Ok(Self { parent, notes })
    }

    /// Returns the images of the dump that never was.
    #[must_use]
    pub fn parent(&self) -> &Path {
        &self.parent
    }

    /// Returns what CRIU is to read in place of its notes.
    #[must_use]
    pub fn notes(&self) -> Option<&Path> {
        self.notes.as_deref()
    }

    /// Makes images for processes, each by the number that it has in its container. Of other processes the dump has all
    /// memory.
    ///
    /// # Errors
    /// [`Error::Config`] when a file cannot be written.
    pub fn expect(&self, inner: impl Iterator<Item = i32>) -> Result<(), Error> {
        let pagemap = whole_pagemap(PAGES_ID);
        for number in inner {
            let path = self.parent.join(format!("pagemap-{number}.img"));
            if !path.exists() {
                write(&path, &pagemap).map_err(|source| Error::Config { path, source })?;
            }
        }
        Ok(())
    }

    /// Has the dump that follows leave the memory of these frozen processes out. `is_cleared` says that their soft-dirty bits
    /// have been cleared since they were frozen.
    ///
    /// # Errors
    /// [`Error::Config`] when a file cannot be written.
    pub fn leave_out(&self, processes: &[(i32, i32)], is_cleared: bool) -> Result<(), Error> {
        self.expect(processes.iter().map(|(_, inner)| *inner))?;
        if is_cleared || self.notes.is_some() {
            return Ok(());
        }
        for (process, _) in processes {
            let path = PathBuf::from(format!("/proc/{process}/clear_refs"));
            fs::write(&path, CLEAR).map_err(|source| Error::Config { path, source })?;
        }
        Ok(())
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, bytes)
}

fn inventory() -> Vec<u8> {
    let mut entry = Vec::new();
    for (number, value) in INVENTORY {
        put_field(&mut entry, number, Value::Varint(value));
    }
    [&INVENTORY_MAGIC.to_le_bytes()[..], &(entry.len() as u32).to_le_bytes(), &entry].concat()
}

/// Returns whether CRIU finds the soft-dirty bit. It notes what it knows of the kernel meanwhile.
async fn tracks_dirty_pages(criu: &Path) -> io::Result<bool> {
    let mut check = Command::new(criu);
    check.args(["check", "--feature", "mem_dirty_track"]).kill_on_drop(true);
    check.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match tokio::time::timeout(CHECK, check.status()).await {
        Ok(status) => Ok(status?.success()),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Returns notes that say that the kernel has the soft-dirty bit.
fn changed(mut notes: Vec<u8>) -> io::Result<Vec<u8>> {
    let unknown = || io::Error::other("its format is not known");
    let last_cap: u32 =
        fs::read_to_string(KERNEL_LAST_CAP)?.trim().parse().map_err(|_| unknown())?;
    let noted = notes.get(LAST_CAP..LAST_CAP + 4).ok_or_else(unknown)?;
    match notes.get(DIRTY_TRACK) {
        Some(0) if noted == last_cap.to_ne_bytes() => {}
        _ => return Err(unknown()),
    }
    notes[DIRTY_TRACK] = 1;
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_another_format_are_refused() {
        let last_cap: u32 = fs::read_to_string(KERNEL_LAST_CAP).unwrap().trim().parse().unwrap();
        let mut notes = vec![0; 64];
        notes[LAST_CAP..LAST_CAP + 4].copy_from_slice(&last_cap.to_ne_bytes());
        assert_eq!(changed(notes.clone()).unwrap()[DIRTY_TRACK], 1);
        notes[DIRTY_TRACK] = 7;
        assert!(changed(notes.clone()).is_err());
        notes[DIRTY_TRACK] = 0;
        notes[LAST_CAP] ^= 1;
        assert!(changed(notes).is_err());
        assert!(changed(vec![0; 20]).is_err());
    }
}
