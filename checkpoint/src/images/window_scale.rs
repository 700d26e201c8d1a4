//! TCP connections without window scaling.
//!
//! CRIU sets the window scales of a restored connection only if the connection had any. A socket without them takes the
//! scale that a new connection would offer, and shifts each window that it announces by up to 14 bits. Its far end knows
//! of no scale and sees windows of a few bytes; the connection nearly stops. Scales of zero mean the same as none. So
//! zeros are written into the images of such connections before they are restored.

use std::fs;
use std::path::Path;

use super::Error;
use super::tmpfs::io_error;
use crate::protobuf::{MAGIC, put_varint, take_varint};

/// Two magic numbers and the length of the entry.
const HEAD: usize = 12;
/// Numbers of fields (CRIU's `tcp-stream.proto`).
const OPTIONS: u64 = 5;
const SEND_SCALE: u64 = 6;
const RECEIVE_SCALE: u64 = 8;
/// `TCPI_OPT_WSCALE` (`include/uapi/linux/tcp.h`).
const SCALED: u64 = 4;

/// Gives connections without scaling scales of zero; tells how many there were. The directory holds
/// whole images.
///
/// # Errors
/// [`Error::Io`].
pub fn settle_scales(directory: &Path) -> Result<usize, Error> {
    let mut settled = 0;
    for entry in fs::read_dir(directory).map_err(io_error("list", directory))? {
        let entry = entry.map_err(io_error("list", directory))?;
        if !entry.file_name().to_string_lossy().starts_with("tcp-stream-") {
            continue;
        }
        let path = entry.path();
        let image = fs::read(&path).map_err(io_error("read", &path))?;
        if let Some(image) = with_scales(&image) {
            fs::write(&path, image).map_err(io_error("write", &path))?;
            settled += 1;
        }
    }
    Ok(settled)
}

/// Returns the image with scales of zero; `None` if it has scales, or is none that this knows.
fn with_scales(image: &[u8]) -> Option<Vec<u8>> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?));
    if word(0)? != MAGIC {
        return None;
    }
    let length = word(8)? as usize;
    let entry = image.get(HEAD..HEAD.checked_add(length)?)?;
    let options = options(entry)?;
    if options & SCALED != 0 {
        return None;
    }
    // Of a field that is there twice the last one counts (Protocol Buffers, encoding).
    let mut entry = entry.to_vec();
    for (field, value) in [(OPTIONS, options | SCALED), (SEND_SCALE, 0), (RECEIVE_SCALE, 0)] {
        put_varint(&mut entry, field << 3);
        put_varint(&mut entry, value);
    }
    let mut whole = image[..8].to_vec();
    whole.extend(u32::try_from(entry.len()).ok()?.to_le_bytes());
    whole.extend(entry);
    whole.extend(&image[HEAD + length..]);
    Some(whole)
}

/// Returns the options of an entry, whose fields are all numbers.
fn options(mut entry: &[u8]) -> Option<u64> {
    let mut options = None;
    while !entry.is_empty() {
        let tag = take_varint(&mut entry)?;
        if tag & 7 != 0 {
            return None;
        }
        let value = take_varint(&mut entry)?;
        if tag >> 3 == OPTIONS {
            options = Some(value);
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns an image with queue data behind its entry.
    fn image(options: u8) -> Vec<u8> {
        let entry =
            [0x08, 2, 0x10, 0x96, 0x01, 0x18, 1, 0x20, 7, 0x28, options, 0x30, 7, 0x38, 9, 0x40, 7];
        let mut image = MAGIC.to_le_bytes().to_vec();
        image.extend([1, 2, 3, 4]);
        image.extend((entry.len() as u32).to_le_bytes());
        image.extend(entry);
        image.extend(b"queue");
        image
    }

    #[test]
    fn a_connection_without_scaling_gets_scales_of_zero() {
        let settled = with_scales(&image(0x13 & !4)).unwrap();
        assert!(settled.ends_with(b"queue"));
        let length = u32::from_le_bytes(settled[8..12].try_into().unwrap()) as usize;
        assert_eq!(settled.len(), HEAD + length + 5);
        let entry = &settled[HEAD..HEAD + length];
        assert_eq!(options(entry), Some(0x13 | 4));
        assert!(entry.ends_with(&[0x30, 0, 0x40, 0]));
        assert_eq!(with_scales(&settled), None, "once is enough");
    }

    #[test]
    fn other_images_stay_as_they_are() {
        assert_eq!(with_scales(&image(0x17)), None);
        let whole = image(0x13);
        for end in 0..HEAD + 17 {
            assert_eq!(with_scales(&whole[..end]), None, "cut at {end}");
        }
        let mut foreign = whole;
        foreign[0] ^= 1;
        assert_eq!(with_scales(&foreign), None);
    }

    #[test]
    fn only_the_images_of_connections_are_touched() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["tcp-stream-1a.img", "core-1.img"] {
            fs::write(directory.path().join(name), image(0x03)).unwrap();
        }
        assert_eq!(settle_scales(directory.path()).unwrap(), 1);
        assert_eq!(fs::read(directory.path().join("core-1.img")).unwrap(), image(0x03));
        assert_eq!(settle_scales(directory.path()).unwrap(), 0);
    }
}
