//! Netlink attributes: type, length and value (`struct nlattr`, `include/uapi/linux/netlink.h`).

use std::net::IpAddr;

use super::Malformed;

/// Bits of an attribute's type that are flags (`NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`).
const FLAG_BITS: u16 = 0xc000;
const NESTED: u16 = 0x8000;
const HEADER: usize = 4;

/// One attribute: its type without flag bits, and its value without padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attribute<'a> {
    pub(crate) kind: u16,
    pub(crate) value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// Returns the attributes nested in this one.
    pub(crate) fn nested(&self) -> Attributes<'a> {
        Attributes::new(self.value)
    }

    /// Returns the value as exactly `N` bytes.
    pub(crate) fn bytes<const N: usize>(&self) -> Result<[u8; N], Malformed> {
        self.value.try_into().map_err(|_| Malformed("an attribute of the wrong length"))
    }

    /// Returns the value as one byte.
    pub(crate) fn u8(&self) -> Result<u8, Malformed> {
        self.bytes::<1>().map(|[byte]| byte)
    }

    /// Returns the value as a number in network byte order.
    pub(crate) fn be16(&self) -> Result<u16, Malformed> {
        self.bytes().map(u16::from_be_bytes)
    }

    /// Returns the value as a number in network byte order.
    pub(crate) fn be32(&self) -> Result<u32, Malformed> {
        self.bytes().map(u32::from_be_bytes)
    }

    /// Returns the value as a number in network byte order.
    pub(crate) fn be64(&self) -> Result<u64, Malformed> {
        self.bytes().map(u64::from_be_bytes)
    }

    /// Returns the value as text that ends with one NUL.
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

/// Returns the well-formed attributes at the beginning of `bytes`, each as type and value.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    Attributes::new(bytes).map_while(Result::ok).map(|attribute| (attribute.kind, attribute.value))
}

/// Returns the value of the first attribute of type `kind`.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// Returns the number in host byte order in the first four bytes of the first attribute of type `kind`.
pub(crate) fn find_u32(bytes: &[u8], kind: u16) -> Option<u32> {
    u32_at(find(bytes, kind)?, 0)
}

/// Returns the text of the first attribute of type `kind`, up to the first NUL.
pub(crate) fn find_text(bytes: &[u8], kind: u16) -> Option<String> {
    let value = find(bytes, kind)?;
    Some(String::from_utf8_lossy(value.split(|byte| *byte == 0).next()?).into_owned())
}

/// Returns the number in host byte order at `position`, for instance of a message's fixed part.
pub(crate) fn u32_at(bytes: &[u8], position: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(position..)?.first_chunk()?))
}

/// Returns the number in host byte order at `position`.
pub(crate) fn u16_at(bytes: &[u8], position: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(position..)?.first_chunk()?))
}

/// Returns the address that an attribute's value holds: four bytes are IPv4, sixteen are IPv6.
pub(crate) fn ip_address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Appends an attribute and its padding to a message; returns the position of the value.
pub(crate) fn put(message: &mut Vec<u8>, kind: u16, value: &[u8]) -> usize {
    put_raw(message, kind, |message| message.extend_from_slice(value))
}

/// Appends an attribute that holds text and its terminating NUL.
pub(crate) fn put_text(message: &mut Vec<u8>, kind: u16, text: &str) {
    put_raw(message, kind, |message| {
        message.extend_from_slice(text.as_bytes());
        message.push(0);
    });
}

/// Appends an attribute that holds an address.
pub(crate) fn put_address(message: &mut Vec<u8>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => put(message, kind, &address.octets()),
        IpAddr::V6(address) => put(message, kind, &address.octets()),
    };
}

/// Appends an attribute that holds the attributes which `fill` appends, and marks it as nested.
pub(crate) fn nest(message: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    put_raw(message, kind | NESTED, fill);
}

fn put_raw(message: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) -> usize {
    let start = message.len();
    message.extend_from_slice(&[0; HEADER]);
    fill(message);
    // All values written by this crate are far below the 64 KiB that the field can express.
    let length = u16::try_from(message.len() - start).unwrap_or(u16::MAX);
    message[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    message[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
    message.resize(message.len().next_multiple_of(4), 0);
    start + HEADER
}

/// Returns the number of an address's family (`AF_INET`, `AF_INET6`), as messages hold it.
pub(crate) fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    family.to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut bytes = Vec::new();
        assert_eq!(put(&mut bytes, 7, &[1, 2, 3, 4, 5]), HEADER);
        nest(&mut bytes, 9, |inner| {
            put(inner, 1, &443u16.to_be_bytes());
            put(inner, 2, &9_u32.to_ne_bytes());
        });
        put_text(&mut bytes, 3, "eth0");
        assert_eq!(bytes.len() % 4, 0);
        let read: Vec<_> = Attributes::new(&bytes).collect::<Result<_, _>>().unwrap();
        assert_eq!(read[0], Attribute { kind: 7, value: &[1, 2, 3, 4, 5] });
        assert_eq!(read[1].kind, 9, "flag bits are not part of the type");
        assert_eq!(read[1].nested().next().unwrap().unwrap().be16(), Ok(443));
        assert_eq!(read[2].text(), Ok("eth0"));
        assert_eq!(find_text(&bytes, 3).as_deref(), Some("eth0"));
        let nested = find(&bytes, 9).unwrap();
        assert_eq!(find_u32(nested, 2), Some(9));
        assert_eq!(find_u32(nested, 1), None, "two bytes are not a number of four");
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        for bytes in [&[3, 0, 1, 0][..], &[9, 0, 1, 0, 0, 0, 0, 0], &[4, 0, 1], &[0, 0, 0, 0]] {
            let read: Vec<_> = Attributes::new(bytes).collect();
            assert!(read.last().unwrap().is_err(), "{bytes:?}");
            assert_eq!(read.len(), 1, "nothing is read past a malformed attribute");
            assert_eq!(attributes(bytes).count(), 0);
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
