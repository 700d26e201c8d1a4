//! Netlink messages as bytes: header, fixed part, attributes.
//!
//! Only what the time-critical paths and the exact replay of routes need. Everything else uses the
//! typed messages of the `rtnetlink` crate. Layout: netlink(7), rtnetlink(7),
//! `include/uapi/linux/netlink.h`; all numbers are in host byte order.

use rtnetlink::packet_core::{NLA_F_NESTED, NLA_TYPE_MASK, NLM_F_REQUEST};

/// Bytes of a message's header, `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// Bytes of an attribute's header, `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// A message under construction.
#[derive(Clone, Debug)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// Message of type `kind` that starts with the fixed part `payload`. `NLM_F_REQUEST` is added
    /// to `flags`; the sequence number is the sending socket's business.
    pub(crate) fn new(kind: u16, flags: u16, payload: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        let mut message = Self(bytes);
        message.append(payload);
        message
    }

    fn append(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.resize(aligned(self.0.len()), 0);
    }

    /// Adds an attribute, and returns the position of its value in the finished message. A value
    /// beyond 64 KiB, which no attribute can hold, is a mistake of the caller and is cut off.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) -> usize {
        let value = &value[..value.len().min(usize::from(u16::MAX) - ATTRIBUTE_HEADER)];
        let length = u16::try_from(value.len() + ATTRIBUTE_HEADER).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        let position = self.0.len();
        self.append(value);
        position
    }

    /// Adds an attribute that holds the attributes which `fill` adds.
    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.attribute(kind | NLA_F_NESTED, &[]);
        fill(self);
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// The message's bytes, with the length filled in.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// One message as received.
#[derive(Debug)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// Everything after the header.
    pub(crate) payload: &'a [u8],
}

/// The messages of one datagram. Ends silently at anything malformed.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
        let message = datagram.get(..length).filter(|message| message.len() >= HEADER)?;
        datagram = datagram.get(aligned(length)..).unwrap_or_default();
        Some(Received {
            kind: u16_at(message, 4)?,
            flags: u16_at(message, 6)?,
            sequence: u32_at(message, 8)?,
            payload: &message[HEADER..],
        })
    })
}

/// Attributes, each as type (without flag bits) and value. Ends silently at anything malformed.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Value of the first attribute of type `kind`.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// Number in the first four bytes of the first attribute of type `kind`.
pub(crate) fn u32_attribute(bytes: &[u8], kind: u16) -> Option<u32> {
    u32_at(attribute(bytes, kind)?, 0)
}

/// Text of the first attribute of type `kind`, without the terminating zero.
pub(crate) fn text_attribute(bytes: &[u8], kind: u16) -> Option<String> {
    let value = attribute(bytes, kind)?;
    Some(String::from_utf8_lossy(value.split(|byte| *byte == 0).next()?).into_owned())
}

/// The number at `position`.
pub(crate) fn u32_at(bytes: &[u8], position: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(position..)?.first_chunk()?))
}

/// The number at `position`.
pub(crate) fn u16_at(bytes: &[u8], position: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(position..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut message = Message::new(18, 0x300, &[1, 2, 3, 4]);
        message.attribute(3, b"eth0\0");
        message.nested(12, |inner| {
            inner.attribute(1, &[7]);
            inner.attribute(2, &9_u32.to_ne_bytes());
        });
        let bytes = message.finish();
        let received: Vec<_> = messages(&bytes).collect();
        assert_eq!(received.len(), 1);
        assert_eq!((received[0].kind, received[0].flags), (18, 0x301));
        let (fixed, rest) = received[0].payload.split_at(4);
        assert_eq!(fixed, [1, 2, 3, 4]);
        assert_eq!(text_attribute(rest, 3).as_deref(), Some("eth0"));
        let nest = attribute(rest, 12).unwrap();
        assert_eq!(attribute(nest, 1), Some(&[7][..]));
        assert_eq!(u32_attribute(nest, 2), Some(9));
        assert_eq!(u32_attribute(nest, 1), None, "one byte is no number of four");
    }

    #[test]
    fn two_messages_in_a_row() {
        let mut bytes = Message::new(1, 0, &[0; 3]).finish();
        bytes.extend(Message::new(2, 0, &[]).finish());
        assert_eq!(messages(&bytes).map(|message| message.kind).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn malformed_bytes_end_the_walk() {
        for bytes in [&[][..], &[1], &[0; 16], &[255, 255, 0, 0], &[3, 0, 0, 0], &[0, 0, 0, 0]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
            assert_eq!(messages(bytes).count(), 0, "{bytes:?}");
        }
    }
}
