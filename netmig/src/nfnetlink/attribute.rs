//! Netlink attributes (type, length, value), read and written.

/// Bits of an attribute's type that are flags (`NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`).
const FLAG_BITS: u16 = 0xc000;
const NESTED: u16 = 0x8000;
const HEADER: usize = 4;

/// Bytes that do not have the shape they claim to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed netlink data: {0}")]
pub struct Malformed(pub(crate) &'static str);

/// One attribute: its type without flag bits, and its value without padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attribute<'a> {
    pub(crate) kind: u16,
    pub(crate) value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The attributes nested in this one.
    pub(crate) fn nested(&self) -> Attributes<'a> {
        Attributes::new(self.value)
    }

    /// The value as exactly `N` bytes.
    pub(crate) fn bytes<const N: usize>(&self) -> Result<[u8; N], Malformed> {
        self.value.try_into().map_err(|_| Malformed("an attribute of the wrong length"))
    }

    /// The value as one byte.
    pub(crate) fn u8(&self) -> Result<u8, Malformed> {
        self.bytes::<1>().map(|[byte]| byte)
    }

    /// The value as a number in network byte order.
    pub(crate) fn be16(&self) -> Result<u16, Malformed> {
        self.bytes().map(u16::from_be_bytes)
    }

    /// The value as a number in network byte order.
    pub(crate) fn be32(&self) -> Result<u32, Malformed> {
        self.bytes().map(u32::from_be_bytes)
    }

    /// The value as a number in network byte order.
    pub(crate) fn be64(&self) -> Result<u64, Malformed> {
        self.bytes().map(u64::from_be_bytes)
    }

    /// The value as text that ends with one NUL.
    pub(crate) fn text(&self) -> Result<&'a str, Malformed> {
        std::ffi::CStr::from_bytes_with_nul(self.value)
            .ok()
            .and_then(|text| text.to_str().ok())
            .ok_or(Malformed("a name that is not NUL-terminated UTF-8"))
    }
}

/// Iterates over a sequence of attributes; ends after the first malformed one.
#[derive(Clone, Debug)]
pub(crate) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = std::mem::take(&mut self.rest);
        if rest.is_empty() {
            return None;
        }
        let Some((header, _)) = rest.split_first_chunk::<HEADER>() else {
            return Some(Err(Malformed("an attribute's header is cut off")));
        };
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & !FLAG_BITS;
        let Some(value) = rest.get(HEADER..length) else {
            return Some(Err(Malformed("an attribute reaches beyond its message")));
        };
        // The last attribute of a message may come without its padding.
        self.rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Attribute { kind, value }))
    }
}

/// Appends an attribute and its padding to a message.
pub(crate) fn put(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    nest_raw(message, kind, |message| message.extend_from_slice(value));
}

/// Appends an attribute whose value is what `fill` appends, marked as nested.
pub(crate) fn nest(message: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    nest_raw(message, kind | NESTED, fill);
}

fn nest_raw(message: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = message.len();
    message.extend_from_slice(&[0; HEADER]);
    fill(message);
    // All values written by this crate are far below the 64 KiB that the field can say.
    let length = u16::try_from(message.len() - start).unwrap_or(u16::MAX);
    message[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    message[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
    message.resize(message.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut bytes = Vec::new();
        put(&mut bytes, 7, &[1, 2, 3, 4, 5]);
        nest(&mut bytes, 9, |inner| put(inner, 1, &443u16.to_be_bytes()));
        assert_eq!(bytes.len() % 4, 0);
        let read: Vec<_> = Attributes::new(&bytes).collect::<Result<_, _>>().unwrap();
        assert_eq!(read[0], Attribute { kind: 7, value: &[1, 2, 3, 4, 5] });
        assert_eq!(read[1].kind, 9, "flag bits are not part of the type");
        assert_eq!(read[1].nested().next().unwrap().unwrap().be16(), Ok(443));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        for bytes in [&[3, 0, 1, 0][..], &[9, 0, 1, 0, 0, 0, 0, 0], &[4, 0, 1], &[0, 0, 0, 0]] {
            let read: Vec<_> = Attributes::new(bytes).collect();
            assert!(read.last().unwrap().is_err(), "{bytes:?}");
            assert_eq!(read.len(), 1, "nothing is read past a bad attribute");
        }
    }

    #[test]
    fn a_value_of_the_wrong_length_is_refused() {
        let attribute = Attribute { kind: 1, value: &[1, 2, 3] };
        assert!(attribute.be16().is_err() && attribute.be32().is_err() && attribute.u8().is_err());
        assert!(Attribute { kind: 1, value: b"name" }.text().is_err(), "no NUL");
        assert!(Attribute { kind: 1, value: b"na\0me\0" }.text().is_err(), "NUL inside");
    }
}
