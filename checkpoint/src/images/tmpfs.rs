//! A directory for images that never reaches a disk.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::Error;

/// The mount's source in the mount table: how a fresh process knows it for ours.
const SOURCE: &str = "netmig-images";

/// A file system in memory of its own, mode 0700, with a limit on its size.
#[derive(Debug)]
#[must_use = "the mount stays until remove is called"]
pub struct ImageDir {
    path: PathBuf,
}

impl ImageDir {
    /// Mounts one on `path`, which is made if it is absent; its parent must be private (mode
    /// 0700, owned by root). One of ours that is there already is replaced by an empty one.
    ///
    /// `limit` is in bytes; the memory is taken only as it is used. Where the kernel can (6.4),
    /// it is kept out of swap.
    ///
    /// # Errors
    /// [`Error::NotPrivate`], [`Error::Foreign`], or [`Error::Io`] when it cannot be mounted.
    pub fn create(path: &Path, limit: u64) -> Result<Self, Error> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        let meta = fs::metadata(parent).map_err(io_error("look at", parent))?;
        if meta.mode() & 0o077 != 0 || meta.uid() != nix::unistd::geteuid().as_raw() {
            return Err(Error::NotPrivate { path: parent.into() });
        }
        Self::remove_at(path)?;
        fs::DirBuilder::new().mode(0o700).create(path).map_err(io_error("make", path))?;
        Self::over(path, limit)
    }

    /// Mounts one over the existing directory `path`, for a directory that podman made.
    ///
    /// # Errors
    /// [`Error::Foreign`] when something else is mounted there, [`Error::Io`] when it cannot be
    /// mounted.
    pub fn over(path: &Path, limit: u64) -> Result<Self, Error> {
        unmount_at(path)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let options = format!("mode=0700,size={limit}");
        let try_mount = |options: &str| {
            mount(Some(SOURCE), path, Some("tmpfs"), flags, Some(options)).map_err(io::Error::from)
        };
        match try_mount(&format!("{options},noswap")) {
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => try_mount(&options),
            other => other,
        }
        .map_err(io_error("mount", path))?;
        Ok(Self { path: path.into() })
    }

    /// Where the images go.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts it and removes its directory; the memory is free again.
    ///
    /// # Errors
    /// [`Error::Io`]; it may be tried again with [`ImageDir::remove_at`].
    pub fn remove(self) -> Result<(), Error> {
        Self::remove_at(&self.path)
    }

    /// The same for one that another process left behind. Absent means done. An empty
    /// directory without a mount is removed too.
    ///
    /// # Errors
    /// [`Error::Foreign`] when something else is mounted there, [`Error::Io`].
    pub fn remove_at(path: &Path) -> Result<(), Error> {
        unmount_at(path)?;
        match fs::remove_dir(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(io_error("remove", path)),
        }
    }

    /// Unmounts one that was mounted by [`ImageDir::over`] and leaves the directory. Absent
    /// means done.
    ///
    /// # Errors
    /// As [`ImageDir::remove_at`].
    pub fn uncover(path: &Path) -> Result<(), Error> {
        unmount_at(path)
    }
}

/// Unmounts all of ours at `path`, should several lie on each other.
fn unmount_at(path: &Path) -> Result<(), Error> {
    loop {
        match source_at(path)? {
            None => return Ok(()),
            Some(source) if source == SOURCE => {}
            Some(_) => return Err(Error::Foreign { path: path.into() }),
        }
        // Detached: a CRIU in a mount namespace of its own may still hold it for a moment.
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(e) => return Err(io_error("unmount", path)(e.into())),
        }
    }
}

/// The source of the topmost mount at exactly `path`.
fn source_at(path: &Path) -> Result<Option<String>, Error> {
    let path = match path.canonicalize() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io_error("look at", path))?,
    };
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read(table).map_err(io_error("read", table))?;
    let wanted = path.to_string_lossy().replace(' ', "\\040");
    Ok(String::from_utf8_lossy(&text).lines().rev().find_map(|line| {
        // proc_pid_mountinfo(5): ID parent major:minor root point … - type source options
        let (front, back) = line.split_once(" - ")?;
        let point = front.split(' ').nth(4)?;
        (point == wanted).then(|| back.split(' ').nth(1).unwrap_or_default().to_owned())
    }))
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_parent_that_others_can_enter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let result = ImageDir::create(&dir.path().join("i"), 1 << 20);
        assert!(matches!(result, Err(Error::NotPrivate { .. })), "{result:?}");
        assert!(!dir.path().join("i").exists());
    }

    #[test]
    fn removing_what_is_not_there_is_done() {
        let dir = tempfile::tempdir().unwrap();
        ImageDir::remove_at(&dir.path().join("absent")).unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
        ImageDir::remove_at(&dir.path().join("empty")).unwrap();
        fs::create_dir_all(dir.path().join("full/x")).unwrap();
        assert!(ImageDir::remove_at(&dir.path().join("full")).is_err());
    }

    #[test]
    fn foreign_mounts_are_left_alone() {
        assert!(matches!(ImageDir::remove_at(Path::new("/proc")), Err(Error::Foreign { .. })));
    }

    /// Needs root; says so where it is not.
    #[test]
    fn limited_private_and_gone_afterwards() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let path = dir.path().join("with space");
        let images = ImageDir::create(&path, 1 << 20).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        fs::write(path.join("a"), vec![1; 512 << 10]).unwrap();
        let full = fs::write(path.join("b"), vec![1; 1 << 20]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        let again = ImageDir::create(&path, 1 << 20).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        drop(images);
        again.remove().unwrap();
        assert!(!path.exists());
    }

    /// Needs root; says so where it is not.
    #[test]
    fn images_are_kept_out_of_swap_where_the_kernel_can() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let options_at = |path: &Path| {
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let at = format!(" {} ", path.display());
            let line = table.lines().find(|line| line.contains(&at)).map(str::to_owned);
            line.unwrap_or_default()
        };
        let plain = dir.path().join("plain");
        fs::create_dir(&plain).unwrap();
        let none = MsFlags::empty();
        if mount(Some("t"), &plain, Some("tmpfs"), none, Some("size=4096,noswap")).is_err() {
            println!("skipped: this kernel cannot");
            return;
        }
        let can = options_at(&plain).contains("noswap");
        umount2(&plain, MntFlags::MNT_DETACH).unwrap();
        let path = dir.path().join("images");
        let images = ImageDir::create(&path, 1 << 20).unwrap();
        let options = options_at(&path);
        images.remove().unwrap();
        assert!(can && options.contains("noswap"), "{options}");
    }
}
