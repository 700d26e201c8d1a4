//! Container storage with the test images. It is built once and copied to every host.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use super::LabBuilder;
use crate::cache::{self, Key};
use crate::error::{Context, Result};
use crate::prepare::Needed;
use crate::test_images::Image;

/// The origin of a host's storage.
#[derive(Debug, Clone)]
pub(crate) enum Storage {
    /// The storage is empty.
    Empty,
    /// The storage is a copy of this directory.
    Copy(PathBuf),
}

impl Storage {
    /// Creates the storage at `path`.
    pub(crate) fn provide(&self, path: &Path) -> Result<()> {
        match self {
            Self::Empty => cache::create_private(path),
            Self::Copy(template) => copy(template, path, Place::Elsewhere),
        }
    }
}

/// Returns the storage with all test images. podman on a host builds it if the cache does not have it.
///
/// # Errors
/// An image could not be built or imported.
pub fn template(needed: &Needed) -> Result<PathBuf> {
    if let Some(storage) = &needed.storage {
        return Ok(storage.clone());
    }
    let images = Image::all();
    let mut key = Key::default()
        .with(needed.rootfs.to_string_lossy().as_bytes())
        .with_file(&needed.programs.probe)?;
    for image in &images {
        key = key.with(image.recipe());
    }
    cache::entry("storage", &key.finish(), |target| {
        eprintln!("building the test images");
        let lab = LabBuilder::new(&["images"]).start_with(
            &needed.rootfs,
            &needed.programs,
            &Storage::Empty,
        )?;
        let host = lab.host("images")?;
        for image in &images {
            let tree = lab.share().join("tree");
            image.assemble(&needed.rootfs, &needed.programs.probe, &tree)?;
            host.command("tar").args(["-C", "/lab/tree", "-cf", "/lab/image.tar", "."]).run()?;
            let command = format!("CMD {}", serde_json::json!(image.command));
            host.podman(["import", "--change", &command, "/lab/image.tar", image.name])?;
            cache::remove(&tree)?;
        }
        // The hosts get podman's database and layers, as they are when no podman runs.
        let inside = host.path("/var/lib/containers");
        copy(&inside, target, Place::Elsewhere)
    })
}

/// The part of the storage that has a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The contents of an image layer, which podman does not change in place.
    Layer,
    Elsewhere,
}

/// Copies a storage directory. Files of image layers become hard links where the file system supports them, which
/// takes milliseconds for a thousand files.
fn copy(from: &Path, to: &Path, place: Place) -> Result<()> {
    let what = || format!("copying {} to {}", from.display(), to.display());
    let metadata = fs::symlink_metadata(from).context(what)?;
    fs::create_dir(to).context(what)?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode())).context(what)?;
    chown(to, Some(metadata.uid()), Some(metadata.gid())).context(what)?;
    for entry in fs::read_dir(from).context(what)? {
        let entry = entry.context(what)?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let what = || format!("copying {} to {}", source.display(), target.display());
        let kind = entry.file_type().context(what)?;
        if kind.is_dir() {
            let inner = if is_layer_contents(&source) { Place::Layer } else { place };
            copy(&source, &target, inner)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source).context(what)?, &target).context(what)?;
        } else if kind.is_file()
            && (place == Place::Elsewhere || fs::hard_link(&source, &target).is_err())
        {
            fs::copy(&source, &target).context(what)?;
            let metadata = entry.metadata().context(what)?;
            chown(&target, Some(metadata.uid()), Some(metadata.gid())).context(what)?;
        }
    }
    Ok(())
}

/// Returns whether a path ends in `overlay/LAYER/diff`.
fn is_layer_contents(path: &Path) -> bool {
    let mut parts = path.iter().rev();
    parts.next().is_some_and(|name| name == "diff") && parts.nth(1).is_some_and(|n| n == "overlay")
}
