//! Flags of mounts that a restore by CRIU would lose.
//!
//! CRIU does not save that symbolic links are not followed in a mount (`MS_NOSYMFOLLOW`). It sets every flag that it
//! finds in the images, so this flag is written there.
//!
//! Mounts from outside are masked paths and files of the engine's. CRIU gives a mount its flags by mounting it again. It
//! skips that for a mount with the flags of another one with the same content, from which it would have them
//! (`do_bind_mount` in `criu/mount.c`, `do_bind_mount_v2` in `criu/mount-v2.c`). But mounts from outside are not made
//! from each other: of all masked paths, only one would be read-only afterwards. So no two of them have the same flags
//! in the images. They differ in flags of whole file systems, which the kernel ignores when it changes those of one
//! mount (mount(2), `MS_REMOUNT | MS_BIND`).

use std::fs;
use std::path::Path;

use super::Error;
use super::tmpfs::io_error;
use crate::protobuf::{MAGIC, Value, put_field, take, take_field, take_word};

/// How the names of these images begin: one for each mount namespace.
const PREFIX: &str = "mountpoints-";
/// Numbers of fields (CRIU's `mnt.proto`).
const FLAGS: u64 = 5;
const MOUNT_POINT: u64 = 7;
const EXTERNAL: u64 = 18;
/// `MS_NOSYMFOLLOW`.
const NO_SYMLINKS: u64 = 1 << 8;
/// `MS_SYNCHRONOUS`, `MS_MANDLOCK`, `MS_DIRSYNC`, `MS_SILENT`, `MS_POSIXACL`, `MS_I_VERSION`, `MS_LAZYTIME`.
const FOR_FILE_SYSTEMS: [u64; 7] = [1 << 4, 1 << 6, 1 << 7, 1 << 15, 1 << 16, 1 << 23, 1 << 25];

/// Sees to it that every mount gets the flags that it had; returns how many mounts from outside there are.
/// `without_symlinks` are the mount points in which symbolic links are not followed. The directory holds whole
/// images.
///
/// # Errors
/// [`Error::Io`], or [`Error::Differs`] for an image that is none, or has more such mounts than can be
/// told apart.
pub fn keep_mount_flags(directory: &Path, without_symlinks: &[String]) -> Result<usize, Error> {
    let mut all = 0;
    for entry in fs::read_dir(directory).map_err(io_error("list", directory))? {
        let entry = entry.map_err(io_error("list", directory))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with(PREFIX) {
            continue;
        }
        let path = entry.path();
        let image = fs::read(&path).map_err(io_error("read", &path))?;
        let unknown = || Error::Differs { name, problem: "format" };
        let (image, external) = with_flags(&image, without_symlinks).ok_or_else(unknown)?;
        fs::write(&path, image).map_err(io_error("write", &path))?;
        all += external;
    }
    Ok(all)
}

fn with_flags(mut image: &[u8], without_symlinks: &[String]) -> Option<(Vec<u8>, usize)> {
    let mut all = take(&mut image, 8)?.to_vec();
    if all[..4] != MAGIC.to_le_bytes() {
        return None;
    }
    let mut external = 0;
    while !image.is_empty() {
        let length = take_word(&mut image)?;
        let mut mount = Mount::of(take(&mut image, length.into())?)?;
        if mount.is_external {
            mount.flags = mount.flags & !of_file_systems() | combination(external)?;
            external += 1;
        }
        if without_symlinks.iter().any(|point| point.as_bytes() == mount.point) {
            mount.flags |= NO_SYMLINKS;
        }
        let entry = mount.entry()?;
        all.extend(u32::try_from(entry.len()).ok()?.to_le_bytes());
        all.extend(entry);
    }
    Some((all, external))
}

/// A mount's entry.
struct Mount<'a> {
    bytes: &'a [u8],
    flags: u64,
    point: &'a [u8],
    is_external: bool,
}

impl<'a> Mount<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let mut mount = Self { bytes, flags: 0, point: &[], is_external: false };
        let mut rest = bytes;
        while !rest.is_empty() {
            match take_field(&mut rest)? {
                (FLAGS, Value::Varint(flags)) => mount.flags = flags,
                (MOUNT_POINT, Value::Bytes(point)) => mount.point = point,
                (EXTERNAL, Value::Bytes(key)) => mount.is_external = !key.is_empty(),
                _ => {}
            }
        }
        Some(mount)
    }

    /// Returns the entry with the flags.
    fn entry(&self) -> Option<Vec<u8>> {
        let mut all = Vec::with_capacity(self.bytes.len());
        let mut rest = self.bytes;
        while !rest.is_empty() {
            let (number, value) = take_field(&mut rest)?;
            let value = if number == FLAGS { Value::Varint(self.flags) } else { value };
            put_field(&mut all, number, value);
        }
        Some(all)
    }
}

fn of_file_systems() -> u64 {
    FOR_FILE_SYSTEMS.iter().sum()
}

/// Returns the combination of flags of file systems with that number.
fn combination(number: usize) -> Option<u64> {
    let flags = FOR_FILE_SYSTEMS.iter().enumerate();
    let chosen = flags.filter(|(bit, _)| number >> bit & 1 == 1).map(|(_, flag)| flag).sum();
    (number >> FOR_FILE_SYSTEMS.len() == 0).then_some(chosen)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const READ_ONLY: u64 = 1;

    fn mount(flags: u64, key: Option<&[u8]>) -> Vec<u8> {
        let mut entry = Vec::new();
        put_field(&mut entry, FLAGS, Value::Varint(flags));
        put_field(&mut entry, MOUNT_POINT, Value::Bytes(b"/proc/keys"));
        if let Some(key) = key {
            put_field(&mut entry, EXTERNAL, Value::Bytes(key));
        }
        entry
    }

    fn image(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut image = MAGIC.to_le_bytes().to_vec();
        image.extend([1, 2, 3, 4]);
        for entry in entries {
            image.extend((entry.len() as u32).to_le_bytes());
            image.extend(entry);
        }
        image
    }

    fn flags(mut image: &[u8]) -> Vec<u64> {
        let mut all = Vec::new();
        take(&mut image, 8).unwrap();
        while !image.is_empty() {
            let length = take_word(&mut image).unwrap();
            let mut entry = take(&mut image, length.into()).unwrap();
            while let Some((number, value)) = take_field(&mut entry) {
                if let (FLAGS, Value::Varint(flags)) = (number, value) {
                    all.push(flags);
                }
            }
        }
        all
    }

    #[test]
    fn mounts_from_outside_differ_and_keep_their_own_flags() {
        let mut mounts = vec![mount(READ_ONLY, None), mount(READ_ONLY, Some(b""))];
        mounts.extend((0..40).map(|_| mount(READ_ONLY, Some(b"/proc/keys"))));
        let (after, external) = with_flags(&image(&mounts), &[]).unwrap();
        assert_eq!(external, 40);
        let flags = flags(&after);
        assert_eq!(flags[..2], [READ_ONLY; 2], "others stay");
        let outside: BTreeSet<u64> = flags[2..].iter().copied().collect();
        assert_eq!(outside.len(), 40);
        assert!(outside.iter().all(|flags| flags & 0xf == READ_ONLY));
        let (again, _) = with_flags(&after, &[]).unwrap();
        assert_eq!(again, after);
    }

    #[test]
    fn symbolic_links_are_not_followed_where_they_were_not() {
        let mounts = [mount(READ_ONLY, None), mount(0, Some(b"x"))];
        let point = "/proc/keys".to_owned();
        let (after, _) = with_flags(&image(&mounts), std::slice::from_ref(&point)).unwrap();
        assert_eq!(flags(&after), [READ_ONLY | NO_SYMLINKS, NO_SYMLINKS]);
        let (after, _) = with_flags(&image(&mounts), &["/proc".to_owned()]).unwrap();
        assert_eq!(flags(&after), [READ_ONLY, 0]);
    }

    #[test]
    fn too_many_and_what_is_no_image_are_refused() {
        let many: Vec<Vec<u8>> = (0..129).map(|_| mount(0, Some(b"x"))).collect();
        assert!(with_flags(&image(&many[..128]), &[]).is_some());
        assert!(with_flags(&image(&many), &[]).is_none());
        let whole = image(&[mount(1, Some(b"x"))]);
        for end in (0..8).chain(9..whole.len()) {
            assert!(with_flags(&whole[..end], &[]).is_none(), "cut at {end}");
        }
    }
}
