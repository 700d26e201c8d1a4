//! The names of files of which only the numbers are known.
//!
//! A watch (inotify(7)) and a bound unix socket tell the inode that they mean and not its name. One walk
//! through the container's files, if any is wanted, finds the names of all.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::mountinfo::Mounts;

/// How long the walk may take. The container runs meanwhile.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at the clock, in entries.
const GLANCE: u64 = 1024;

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wanted {
    /// The file or directory with this inode on the device with these numbers.
    File((u64, u64), u64),
    /// The socket with an inode of which these are the lower 32 bits. The device that overlayfs shows of a
    /// file is not always that of the mount.
    Socket(u32),
}

/// A search for names.
#[derive(Debug)]
pub(super) struct Search {
    root: PathBuf,
    skipped: Vec<PathBuf>,
    names: BTreeMap<Wanted, Option<PathBuf>>,
    missing: usize,
}

impl Search {
    /// A search for nothing yet, among the files that a process sees.
    pub(super) fn new(pid: i32, mounts: &Mounts) -> Self {
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        let below = |point: &String| root.join(point.trim_start_matches('/'));
        let skipped =
            mounts.0.iter().filter(|mount| mount.is_kernels()).map(|m| below(&m.point)).collect();
        Self { root, skipped, names: BTreeMap::new(), missing: 0 }
    }

    /// Adds something that is wanted.
    pub(super) fn want(&mut self, wanted: Wanted) {
        if self.names.insert(wanted, None).is_none() {
            self.missing += 1;
        }
    }

    /// Looks for the names of all; ends as soon as it has them.
    pub(super) fn run(&mut self) {
        let end = Instant::now() + LIMIT;
        let mut count: u64 = 0;
        if self.missing > 0
            && let Ok(root) = fs::metadata(&self.root)
        {
            self.take(&self.root.clone(), &root);
        }
        let mut directories = vec![self.root.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                count += 1;
                if self.missing == 0 || (count.is_multiple_of(GLANCE) && Instant::now() > end) {
                    return;
                }
                // Does not follow links.
                let Ok(file) = entry.metadata() else { continue };
                let path = entry.path();
                self.take(&path, &file);
                if file.is_dir() && !self.skipped.contains(&path) {
                    directories.push(path);
                }
            }
        }
    }

    /// The name in the container of something that was wanted, if it has one.
    pub(super) fn name(&self, wanted: Wanted) -> Option<&Path> {
        self.names.get(&wanted)?.as_deref()
    }

    fn take(&mut self, path: &Path, file: &Metadata) {
        let device = (libc::major(file.dev()), libc::minor(file.dev()));
        let number = Wanted::File((device.0.into(), device.1.into()), file.ino());
        // The kernel tells 32 bits of it.
        let socket = file.file_type().is_socket().then_some(Wanted::Socket(file.ino() as u32));
        for wanted in [Some(number), socket].into_iter().flatten() {
            if let Some(name @ None) = self.names.get_mut(&wanted) {
                *name = path.strip_prefix(&self.root).ok().map(|rest| Path::new("/").join(rest));
                self.missing -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn names_are_found_by_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er");
        fs::create_dir_all(&path).unwrap();
        let listener = UnixListener::bind(path.join("socket")).unwrap();
        let mut search = Search::new(1, &Mounts::default());
        search.root = dir.path().to_owned();
        let file = fs::metadata(&path).unwrap();
        let device = (libc::major(file.dev()).into(), libc::minor(file.dev()).into());
        let socket = Wanted::Socket(fs::metadata(path.join("socket")).unwrap().ino() as u32);
        let (known, unknown) = (Wanted::File(device, file.ino()), Wanted::File(device, u64::MAX));
        [known, unknown, socket].into_iter().for_each(|wanted| search.want(wanted));
        search.run();
        assert_eq!(search.name(known), Some(Path::new("/deep/er")));
        assert_eq!(search.name(socket), Some(Path::new("/deep/er/socket")));
        assert_eq!(search.name(unknown), None);
        drop(listener);
    }
}
