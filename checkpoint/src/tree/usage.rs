//! How large a tree is.

use std::collections::HashSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::{Error, relative_path};

/// Bytes of a block as stat(2) counts them.
const BLOCK: u64 = 512;

/// What is in a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Files and directories of any kind, without the root.
    pub entries: u64,
    /// The length of all regular files in bytes, holes included. A file with several names counts for each.
    pub length: u64,
    /// Bytes that files and directories take of the disk.
    pub disk: u64,
    /// Device nodes.
    pub devices: u64,
}

/// Returns what is in a tree that may change meanwhile.
///
/// # Errors
/// [`Error::Io`] when the directory itself, or one below it, cannot be read; what vanishes counts nothing.
pub fn usage(root: &Path) -> Result<Usage, Error> {
    let read = |path: &Path| {
        std::fs::read_dir(path).map_err(|source| Error::Io {
            action: "read",
            path: path.to_path_buf(),
            source,
        })
    };
    let mut open = vec![read(root)?];
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    while let Some(directory) = open.last_mut() {
        let Some(entry) = directory.next() else {
            open.pop();
            continue;
        };
        let Ok(entry) = entry else { continue };
        // Of the entry itself, wherever a link leads.
        let Ok(meta) = entry.metadata() else { continue };
        usage.entries += 1;
        if meta.is_dir() || meta.nlink() == 1 || linked.insert((meta.dev(), meta.ino())) {
            usage.disk = usage.disk.saturating_add(meta.blocks().saturating_mul(BLOCK));
        }
        let kind = meta.file_type();
        if kind.is_file() {
            usage.length = usage.length.saturating_add(meta.len());
        } else if kind.is_block_device() || kind.is_char_device() {
            usage.devices += 1;
        } else if kind.is_dir() && open.len() < relative_path::DEPTH {
            match read(&entry.path()) {
                Ok(below) => open.push(below),
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn holes_take_no_room_and_a_second_name_neither() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/f"), vec![1; 10_000]).unwrap();
        fs::hard_link(dir.path().join("d/f"), dir.path().join("g")).unwrap();
        fs::File::create(dir.path().join("sparse")).unwrap().set_len(1 << 30).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("link")).unwrap();
        let seen = usage(dir.path()).unwrap();
        assert_eq!((seen.entries, seen.length, seen.devices), (5, 20_000 + (1 << 30), 0));
        assert!(seen.disk < 100_000, "{seen:?}");
        assert!(usage(&dir.path().join("absent")).is_err());
    }
}
