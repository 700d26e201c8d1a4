//! The encoding of Protocol Buffers (<https://protobuf.dev/programming-guides/encoding/>), which CRIU uses for its requests
//! and its images. An image is two magic numbers, then entries, each preceded by its length. Numbers outside of entries
//! are little endian.

/// Start of every image (CRIU's `IMG_COMMON_MAGIC`); the magic of its kind follows.
pub(crate) const MAGIC: u32 = 0x5456_4319;

/// Takes a number off the front.
pub(crate) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Appends a number.
pub(crate) fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Takes a number of four bytes, as it stands outside of entries.
pub(crate) fn take_word(bytes: &mut &[u8]) -> Option<u32> {
    let (word, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*word))
}

/// Takes so many bytes.
pub(crate) fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    Some(taken)
}

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// A number.
    Varint(u64),
    /// A text, bytes, an entry within, or several numbers.
    Bytes(&'a [u8]),
    /// Four or eight bytes.
    Fixed(&'a [u8]),
}

/// Takes a field: its number and its value.
pub(crate) fn take_field<'a>(entry: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let tag = take_varint(entry)?;
    let value = match tag & 7 {
        0 => Value::Varint(take_varint(entry)?),
        1 => Value::Fixed(take(entry, 8)?),
        2 => {
            let length = take_varint(entry)?;
            Value::Bytes(take(entry, length)?)
        }
        5 => Value::Fixed(take(entry, 4)?),
        _ => return None,
    };
    Some((tag >> 3, value))
}

/// Appends a field.
pub(crate) fn put_field(entry: &mut Vec<u8>, number: u64, value: Value<'_>) {
    match value {
        Value::Varint(value) => {
            put_varint(entry, number << 3);
            put_varint(entry, value);
        }
        Value::Bytes(bytes) => {
            put_varint(entry, number << 3 | 2);
            put_varint(entry, bytes.len() as u64);
            entry.extend(bytes);
        }
        Value::Fixed(bytes) => {
            put_varint(entry, number << 3 | if bytes.len() == 8 { 1 } else { 5 });
            entry.extend(bytes);
        }
    }
}

/// Returns the fields of a message, up to its end or to what is none.
pub(crate) fn fields(mut rest: &[u8]) -> impl Iterator<Item = (u64, Value<'_>)> {
    std::iter::from_fn(move || take_field(&mut rest))
}
