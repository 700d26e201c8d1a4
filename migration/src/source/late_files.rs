//! Files that somebody has changed from outside, by `podman cp` or otherwise, after they were read for the last time.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::inspect::{Container, MountKind};

/// Most entries that are looked at: removing the original waits for that.
const MOST: usize = 200_000;

/// Returns the first file of a frozen container that was changed after `since`, as a path in the container. Looks at its
/// writable layer, at `/dev/shm` and at its volumes. Of changes that the kernel stamps with the time of its last tick some may be missed.
pub fn find(container: &Container, since: SystemTime) -> Option<PathBuf> {
    let since = since.duration_since(UNIX_EPOCH).ok()?;
    let mut left = MOST;
    let upper = container.upper.as_deref().and_then(|root| search(root, since, &mut left));
    let upper = upper.map(|path| Path::new("/").join(path));
    let shm = || {
        let shm = container.shm.as_deref()?;
        search(shm, since, &mut left).map(|path| Path::new("/dev/shm").join(path))
    };
    upper.or_else(shm).or_else(|| {
        let mut volumes = container.mounts.iter().filter(|mount| mount.kind == MountKind::Volume);
        volumes.find_map(|mount| {
            search(&mount.source, since, &mut left).map(|path| mount.destination.join(path))
        })
    })
}

/// Returns the path below `root` of the first entry that was changed later.
fn search(root: &Path, since: Duration, left: &mut usize) -> Option<PathBuf> {
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            *left = left.checked_sub(1)?;
            let Ok(meta) = entry.metadata() else { continue };
            let seconds = u64::try_from(meta.ctime()).unwrap_or(0);
            let nanoseconds = u32::try_from(meta.ctime_nsec()).unwrap_or(0);
            if Duration::new(seconds, nanoseconds) > since && !meta.is_dir() {
                return entry.path().strip_prefix(root).ok().map(Path::to_path_buf);
            }
            if meta.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use engine::inspect::Mount;

    use super::*;

    #[test]
    fn what_was_changed_later_is_found() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tmp")).unwrap();
        fs::write(dir.path().join("tmp/old"), "x").unwrap();
        std::thread::sleep(Duration::from_millis(30));
        let since = SystemTime::now();
        let container = Container { upper: Some(dir.path().to_path_buf()), ..Container::default() };
        assert_eq!(find(&container, since), None);
        std::thread::sleep(Duration::from_millis(30));
        fs::write(dir.path().join("tmp/new"), "x").unwrap();
        assert_eq!(find(&container, since), Some("/tmp/new".into()));
        let mount = Mount {
            kind: MountKind::Volume,
            name: Some("data".to_owned()),
            source: dir.path().to_path_buf(),
            destination: "/data".into(),
            writable: true,
        };
        let container = Container { mounts: vec![mount], ..Container::default() };
        assert_eq!(find(&container, since), Some("/data/tmp/new".into()));
    }
}
