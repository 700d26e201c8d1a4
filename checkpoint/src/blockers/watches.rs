//! Watches of files and directories (inotify(7), fanotify(7)).
//!
//! CRIU restores a watch by the path of what is watched. On file systems with file handles, such as tmpfs, it finds the
//! path by the handle. On overlayfs it searches some directories that are often watched, and the paths that its
//! configuration names (`irmap-scan-path`, criu(8); criu/irmap.c). So netmig finds the paths while the container runs,
//! and names them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::findings::Found;
use super::inode_names::{Search, Wanted};
use super::process_snapshot::{Process, Processes};
use crate::mountinfo::Mounts;

const INOTIFY: &str = "anon_inode:inotify";
const FANOTIFY: &str = "anon_inode:[fanotify]";
/// Most paths that CRIU is told.
const MOST: usize = 4096;
/// Bytes that have a meaning in a configuration file of CRIU (criu/config.c).
const SPECIAL: &[u8] = b" \t\"'\\#=\n";

/// A watch whose path CRIU does not find by itself.
#[derive(Debug)]
struct Watch<'a> {
    process: &'a Process,
    wanted: Wanted,
    /// The kind of the file system, where its mount is known.
    kind: Option<String>,
}

/// The watches of a container.
#[derive(Debug)]
pub(super) struct Watches<'a>(Vec<Watch<'a>>);

impl<'a> Watches<'a> {
    /// Reads them, and has the paths searched.
    pub(super) fn read(processes: &'a Processes, mounts: &Mounts, search: &mut Search) -> Self {
        let mut all = Vec::new();
        for (process, descriptor) in processes.descriptors() {
            if descriptor.target != INOTIFY && descriptor.target != FANOTIFY {
                continue;
            }
            for (device, inode) in watched(&process.info(descriptor.number)) {
                let mut of_device = mounts.of_device(device).peekable();
                let kind = of_device.peek().map(|mount| mount.kind.clone());
                // CRIU opens handles by a directory.
                if takes_handles(kind.as_deref())
                    && of_device.any(|mount| is_directory(process, &mount.point))
                {
                    continue;
                }
                let wanted = Wanted::File(device, inode);
                search.want(wanted);
                all.push(Watch { process, wanted, kind });
            }
        }
        Self(all)
    }

    /// Returns the paths that CRIU has to be told; names watches whose path was not found.
    pub(super) fn check(&self, search: &Search, found: &mut Found<'_>) -> Vec<PathBuf> {
        let mut paths = BTreeSet::new();
        for Watch { process, wanted, kind } in &self.0 {
            let what = match search.name(*wanted) {
                Some(path) if paths.len() < MOST && is_plain(path) => {
                    paths.insert(path.to_owned());
                    continue;
                }
                Some(path) if paths.len() < MOST => {
                    format!("watches {}, whose name CRIU cannot be told", path.display())
                }
                Some(_) => format!("watches more than {MOST} files and directories"),
                None => {
                    let kind = kind.as_deref().unwrap_or("unknown");
                    format!("watches a file without a name, or on a file system of kind {kind}")
                }
            };
            found.add(
                process,
                "watch",
                what,
                "CRIU cannot restore this watch: end it (inotify, fanotify)",
            );
        }
        // CRIU searches below a path before it turns to the next: the deepest first.
        let mut paths: Vec<PathBuf> = paths.into_iter().collect();
        paths.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        paths
    }
}

/// Returns whether CRIU finds paths by the handles of this file system; on others it does without, or cannot.
fn takes_handles(kind: Option<&str>) -> bool {
    matches!(kind, Some("tmpfs" | "devtmpfs" | "ext4" | "ext3" | "ext2" | "xfs" | "btrfs" | "f2fs"))
}

fn is_directory(process: &Process, point: &str) -> bool {
    process.path("root").join(point.trim_start_matches('/')).is_dir()
}

/// Returns whether a path can stand in a line of a configuration file.
fn is_plain(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    path.to_str().is_some() && bytes.len() > 1 && !bytes.iter().any(|byte| SPECIAL.contains(byte))
}

/// Returns the device and the inode of each watch: lines `inotify wd:N ino:HEX sdev:HEX …` and
/// `fanotify ino:HEX sdev:HEX …` (proc_pid_fdinfo(5)). The kernel's own form of a device has the minor number in
/// its lower 20 bits.
fn watched(info: &str) -> Vec<((u64, u64), u64)> {
    let number = |line: &str, name: &str| {
        let word = line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name))?;
        u64::from_str_radix(word, 16).ok()
    };
    info.lines()
        .filter(|line| line.starts_with("inotify ") || line.starts_with("fanotify "))
        .filter_map(|line| {
            let device = number(line, "sdev:")?;
            Some(((device >> 20, device & 0xf_ffff), number(line, "ino:")?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_are_read() {
        let info = "pos:\t0\nflags:\t00\ninotify wd:2 ino:2a sdev:800013 mask:fc6 ignored_mask:0 \
                    fhandle-bytes:8 fhandle-type:1 f_handle:03\nfanotify flags:200 event-flags:0\n\
                    fanotify ino:ff sdev:b8 mflags:0 mask:2 ignored_mask:0\n";
        assert_eq!(watched(info), [((8, 0x13), 0x2a), ((0, 0xb8), 0xff)]);
    }

    #[test]
    fn names_with_special_bytes_are_not_told() {
        assert!(is_plain(Path::new("/srv/a-b_c.d")));
        for path in ["/", "/a b", "/a\nb", "/a#", "/\"a\"", "/a=b"] {
            assert!(!is_plain(Path::new(path)), "{path}");
        }
    }
}
