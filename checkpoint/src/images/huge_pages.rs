//! Restores with memory that follows, on kernels that give huge pages to any memory (`always` in
//! `/sys/kernel/mm/transparent_hugepage/enabled`, `Documentation/admin-guide/mm/transhuge.rst`).
//!
//! CRIU fills some pages of a mapping, and leaves the others to follow. If the kernel gives the first of them a huge page, the
//! others beside it are there as well, empty, and nobody asks for them: the process finds zeros. CRIU asks the kernel for small
//! pages alone meanwhile, but only if the images have those of an earlier dump (`maybe_disable_thp` in `criu/mem.c`). So they get
//! some, with no page in them.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::Error;
use super::pagemap::encode;
use super::tmpfs::io_error;

/// CRIU's link to the images of the earlier dump (`CR_PARENT_LINK` in `criu/include/image.h`). A directory does as well.
const PARENT: &str = "parent";
/// The number of the file of pages, which is empty.
const PAGES_ID: u64 = 1;

/// Has CRIU restore the memory of these images without huge pages. The processes get them again afterwards.
///
/// # Errors
/// [`Error::Io`].
pub fn keep_huge_pages_out(images: &Path) -> Result<(), Error> {
    let parent = images.join(PARENT);
    match DirBuilder::new().mode(0o700).create(&parent) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.map_err(io_error("make", &parent))?,
    }
    let write = |name: &str, bytes: &[u8]| {
        let path = parent.join(name);
        fs::write(&path, bytes).map_err(io_error("write", &path))
    };
    write(&format!("pages-{PAGES_ID}.img"), &[])?;
    for entry in fs::read_dir(images).map_err(io_error("list", images))? {
        let name = entry.map_err(io_error("list", images))?.file_name();
        let name = name.to_string_lossy();
        let number = name.strip_prefix("pagemap-").and_then(|name| name.strip_suffix(".img"));
        if number.is_some_and(|number| number.parse::<i32>().is_ok()) {
            write(&name, &encode(PAGES_ID, &[]))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::pagemap::decode_entries;
    use super::*;

    #[test]
    fn every_process_has_an_earlier_dump_without_pages() {
        let images = tempfile::tempdir().unwrap();
        for name in ["pagemap-1.img", "pagemap-17.img", "pagemap-shmem-3.img", "mm-1.img"] {
            fs::write(images.path().join(name), "x").unwrap();
        }
        keep_huge_pages_out(images.path()).unwrap();
        let parent = images.path().join(PARENT);
        for process in [1, 17] {
            let bytes = fs::read(parent.join(format!("pagemap-{process}.img"))).unwrap();
            assert_eq!(decode_entries(&bytes), Some((PAGES_ID, Vec::new())));
        }
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 3);
    }
}
