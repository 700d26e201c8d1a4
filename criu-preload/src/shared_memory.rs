//! Shared memory that goes to the destination by another way than CRIU's images.
//!
//! CRIU asks for the parts of a segment that have pages by lseek(2) with `SEEK_DATA`, and dumps these (`do_dump_one_shmem` in
//! `criu/shmem.c`). Of a segment that the agent has named, it gets the answer that there is none. Everything else about the
//! segment is dumped as always.

use std::ffi::OsStr;
use std::fs;
use std::sync::OnceLock;

use libc::c_int;

/// Names the file with the segments: the device of all of them, and their inode numbers, one a line.
pub const VARIABLE: &str = "NETMIG_SHARED_MEMORY";

/// Segments whose pages are left out.
static LEFT_OUT: OnceLock<Segments> = OnceLock::new();

#[derive(Debug, PartialEq, Eq)]
struct Segments {
    device: u64,
    inodes: Vec<u64>,
}

/// Reads the file with the segments. Without one, all pages are dumped.
pub fn read(path: &OsStr) {
    if let Some(segments) = fs::read_to_string(path).ok().as_deref().and_then(parse) {
        let _ = LEFT_OUT.set(segments);
    }
}

/// Returns whether a descriptor is that of a segment whose pages are left out.
pub fn is_left_out(descriptor: c_int) -> bool {
    let Some(segments) = LEFT_OUT.get() else { return false };
    // SAFETY: all zero is a value of this structure of numbers.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes a structure of this type.
    let result = unsafe { libc::fstat(descriptor, &raw mut found) };
    result == 0 && found.st_dev == segments.device && segments.inodes.contains(&found.st_ino)
}

/// Returns the segments of a file; `None` for one of another form.
fn parse(text: &str) -> Option<Segments> {
    let mut numbers = text.lines().map(|line| line.parse().ok());
    let device = numbers.next()??;
    Some(Segments { device, inodes: numbers.collect::<Option<_>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_named_file_seems_to_have_no_pages_and_others_have_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, [1; 5000]).unwrap();
            fs::File::open(path).unwrap()
        };
        let (named, other) = (file("named"), file("other"));
        let meta = named.metadata().unwrap();
        let list = dir.path().join("list");
        read(list.as_os_str());
        assert!(!is_left_out(named.as_raw_fd()), "there is no list");
        fs::write(&list, format!("{}\n7\n{}\n", meta.dev(), meta.ino())).unwrap();
        read(list.as_os_str());
        let seek = |file: &fs::File, whence| {
            // SAFETY: lseek(2) takes numbers alone.
            let at = unsafe { crate::lseek64(file.as_raw_fd(), 10, whence) };
            (at, std::io::Error::last_os_error().raw_os_error())
        };
        assert_eq!(seek(&named, libc::SEEK_DATA), (-1, Some(libc::ENXIO)));
        assert_eq!(seek(&named, libc::SEEK_SET).0, 10);
        assert_eq!(seek(&named, libc::SEEK_HOLE).0, 5000);
        assert_eq!(seek(&other, libc::SEEK_DATA).0, 10);
    }

    #[test]
    fn a_file_of_another_form_names_none() {
        let expected = Segments { device: 1, inodes: vec![2, 30] };
        assert_eq!(parse("1\n2\n30\n"), Some(expected));
        for text in ["", "1\nx\n", "x\n1\n", "1\n-2\n"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
