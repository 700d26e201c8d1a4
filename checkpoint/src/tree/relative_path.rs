//! Paths that a peer names.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::Error;

/// PATH_MAX less the final NUL.
const PATH_BYTES: usize = 4095;
/// NAME_MAX.
const NAME_BYTES: usize = 255;
/// Most directories above one another.
pub(super) const DEPTH: usize = 256;

/// The parent and the last name of a path below the root, after checking every name in it.
pub(super) fn split(path: &[u8]) -> Result<(&Path, &OsStr), Error> {
    let refuse = || Error::BadPath(String::from_utf8_lossy(&path[..path.len().min(200)]).into());
    if path.len() > PATH_BYTES || path.contains(&0) {
        return Err(refuse());
    }
    let mut depth = 0;
    for name in path.split(|b| *b == b'/') {
        depth += 1;
        if name.is_empty()
            || name == b"."
            || name == b".."
            || name.len() > NAME_BYTES
            || depth > DEPTH
        {
            return Err(refuse());
        }
    }
    let cut = path.iter().rposition(|b| *b == b'/');
    let (parent, name) = match cut {
        Some(cut) => (&path[..cut], &path[cut + 1..]),
        None => (&path[..0], path),
    };
    Ok((Path::new(OsStr::from_bytes(parent)), OsStr::from_bytes(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_below_the_root_are_split() {
        assert_eq!(split(b"a/b/c").unwrap(), (Path::new("a/b"), OsStr::new("c")));
        assert_eq!(split(b"a").unwrap(), (Path::new(""), OsStr::new("a")));
        assert!(split("ä/\u{1f600} x".as_bytes()).is_ok());
        assert!(split(b"..a/...").is_ok());
        assert!(split(b"\xff\xfe").is_ok());
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let long = vec![b'a'; 256];
        let deep = b"a/".repeat(DEPTH);
        let deep = [deep.as_slice(), b"a"].concat();
        let huge = b"abcdefg/".repeat(600);
        for path in
            [b"".as_slice(), b"/", b"/a", b"a/", b"a//b", b".", b"..", b"a/..", b"../a", b"a/./b"]
        {
            assert!(split(path).is_err(), "{}", String::from_utf8_lossy(path));
        }
        for path in [b"a\0b".as_slice(), &long, &deep, &huge] {
            assert!(split(path).is_err());
        }
    }
}
