//! Files that processes read and write by direct I/O (open(2), `O_DIRECT`).
//!
//! A direct read has the device write into pages of the process that the kernel has pinned. The processor's page tables take
//! no part in that, so neither soft-dirty bits nor userfaultfd's write protection note it. A page whose read is on its
//! way while it is sent would stay as it was before the read. Reads that a stopped task waits for are complete: the kernel
//! freezes no task within one.

use std::fs;

use crate::procfs;

/// `O_DIRECT` (`include/uapi/asm-generic/fcntl.h`; other processors have other numbers).
const DIRECT: u32 = libc::O_DIRECT.unsigned_abs();

/// A file that is open for direct I/O.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "process {process} of the container has {path} open for direct I/O, which the kernel does not note as a change of memory"
)]
pub struct DirectFile {
    /// The process, as the container numbers it.
    pub process: i32,
    /// The file, as the kernel calls it.
    pub path: String,
}

/// Returns the first file that any of these processes has open for direct I/O.
#[must_use]
pub fn find(pids: &[i32]) -> Option<DirectFile> {
    pids.iter().find_map(|pid| {
        let path = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten().find_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            let path = target.to_str().filter(|path| path.starts_with('/'))?;
            let number = entry.file_name().into_string().ok()?;
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
            is_direct(&info).then(|| path.to_owned())
        })?;
        Some(DirectFile { process: procfs::inner_pid(*pid).unwrap_or(*pid), path })
    })
}

/// Reads the line `flags:  OCTAL` (proc_pid_fdinfo(5)).
fn is_direct(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok());
    flags.is_some_and(|flags| flags & DIRECT != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    #[test]
    fn a_file_for_direct_io_is_found_and_others_are_not() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("direct");
        let own = std::process::id() as i32;
        let of_this =
            || find(&[i32::MAX, own]).filter(|found| found.path == path.to_str().unwrap());
        let _plain = fs::File::create(&path).unwrap();
        assert_eq!(of_this(), None);
        match fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path) {
            Ok(_direct) => assert!(of_this().is_some()),
            Err(e) => println!("skipped: {e}"),
        }
    }
}
