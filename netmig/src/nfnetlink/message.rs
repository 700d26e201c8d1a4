//! Netlink messages: header (RFC 3549), nfnetlink header, errors and acknowledgements.

use nix::errno::Errno;

use super::attribute::{Attributes, Malformed};

pub(crate) const REQUEST: u16 = 0x001;
pub(crate) const ACK: u16 = 0x004;
pub(crate) const DUMP_INTERRUPTED: u16 = 0x010;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const EXCLUSIVE: u16 = 0x200;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const OVERRUN: u16 = 4;
const FIRST_DATA_TYPE: u16 = 16;
const HEADER: usize = 16;
/// Length of `struct nfgenmsg`: family, version, resource in network byte order.
pub(crate) const NFGENMSG: usize = 4;
/// On errors: the failed message is cut to its header. On errors: attributes follow.
const CAPPED: u16 = 0x100;
const ACK_TLVS: u16 = 0x200;
/// The text attribute of an extended acknowledgement.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// What the kernel said about one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) errno: Errno,
    /// The kernel's own words (extended acknowledgement), empty if it gave none.
    pub(crate) reason: String,
}

/// One message as received.
#[derive(Debug)]
pub(crate) enum Message<'a> {
    /// A subsystem's message: type, flags, sequence, payload from the nfnetlink header on.
    Data { kind: u16, flags: u16, sequence: u32, payload: &'a [u8] },
    /// A request was carried out.
    Ack { sequence: u32 },
    /// A request was refused.
    Refused { sequence: u32, refused: Refused },
    /// The end of a dump; `interrupted` when the table changed in between.
    Done { sequence: u32, interrupted: bool, refused: Option<Errno> },
    /// Messages were lost.
    Overrun,
    /// Nothing of interest.
    Other,
}

/// Iterates over the messages of one datagram; ends after the first malformed one.
pub(crate) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(crate) fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = std::mem::take(&mut self.rest);
        if rest.is_empty() {
            return None;
        }
        let Some((header, _)) = rest.split_first_chunk::<HEADER>() else {
            return Some(Err(Malformed("a message's header is cut off")));
        };
        let length = word(header, 0).unwrap_or_default() as usize;
        let Some(payload) = rest.get(HEADER..length) else {
            return Some(Err(Malformed("a message reaches beyond its datagram")));
        };
        self.rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let flags = u16::from_ne_bytes([header[6], header[7]]);
        let sequence = word(header, 8).unwrap_or_default();
        Some(classify(kind, flags, sequence, payload))
    }
}

fn classify(
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &[u8],
) -> Result<Message<'_>, Malformed> {
    Ok(match kind {
        ERROR => {
            let code = word(payload, 0).ok_or(Malformed("an error without a code"))? as i32;
            match code.checked_neg() {
                Some(0) => Message::Ack { sequence },
                Some(errno) if errno > 0 => {
                    let reason = reason(flags, payload).unwrap_or_default().to_owned();
                    let refused = Refused { errno: Errno::from_raw(errno), reason };
                    Message::Refused { sequence, refused }
                }
                _ => return Err(Malformed("an error with a positive code")),
            }
        }
        DONE => {
            let code = word(payload, 0).map_or(0, |code| code as i32);
            let refused = code.checked_neg().filter(|errno| *errno > 0).map(Errno::from_raw);
            Message::Done { sequence, interrupted: flags & DUMP_INTERRUPTED != 0, refused }
        }
        OVERRUN => Message::Overrun,
        kind if kind >= FIRST_DATA_TYPE => Message::Data { kind, flags, sequence, payload },
        _ => Message::Other,
    })
}

/// The text of an extended acknowledgement; it stands behind the refused message, or behind
/// that message's header where it was capped.
fn reason(flags: u16, payload: &[u8]) -> Option<&str> {
    if flags & ACK_TLVS == 0 {
        return None;
    }
    let echoed = match flags & CAPPED {
        0 => (word(payload, 4)? as usize).next_multiple_of(4),
        _ => HEADER,
    };
    Attributes::new(payload.get(4_usize.checked_add(echoed)?..)?)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind == NLMSGERR_ATTR_MSG)
        .and_then(|attribute| attribute.text().ok())
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// Type of an nfnetlink message.
pub(crate) fn kind(subsystem: u8, message: u8) -> u16 {
    u16::from_be_bytes([subsystem, message])
}

/// The head of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// Address family, 0 for any.
    pub(crate) family: u8,
    /// Subsystem's own: the queue number of NFQUEUE.
    pub(crate) resource: u16,
}

/// Appends a request whose attributes are what `fill` appends.
pub(crate) fn append(buffer: &mut Vec<u8>, head: Head, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&head.kind.to_ne_bytes());
    buffer.extend_from_slice(&(head.flags | REQUEST).to_ne_bytes());
    buffer.extend_from_slice(&head.sequence.to_ne_bytes());
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&[head.family, 0]);
    buffer.extend_from_slice(&head.resource.to_be_bytes());
    fill(buffer);
    let length = u32::try_from(buffer.len() - start).unwrap_or(u32::MAX);
    buffer[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Asks for an acknowledgement of the request that starts at `start`.
pub(crate) fn request_ack(buffer: &mut [u8], start: usize) {
    if let Some(flags) = buffer.get_mut(start + 6..start + 8) {
        let with_ack = u16::from_ne_bytes([flags[0], flags[1]]) | ACK;
        flags.copy_from_slice(&with_ack.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: i32, flags: u16, tail: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&((20 + tail.len()) as u32).to_ne_bytes());
        bytes.extend_from_slice(&ERROR.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&77u32.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&code.to_ne_bytes());
        bytes.extend_from_slice(tail);
        bytes
    }

    #[test]
    fn an_error_carries_the_kernels_words() {
        let mut tail = vec![0; HEADER];
        super::super::attribute::put(&mut tail, NLMSGERR_ATTR_MSG, b"No such thing\0");
        let bytes = error(-2, CAPPED | ACK_TLVS, &tail);
        let Some(Ok(Message::Refused { sequence: 77, refused })) = Messages::new(&bytes).next()
        else {
            panic!("not an error")
        };
        assert_eq!(refused, Refused { errno: Errno::ENOENT, reason: "No such thing".into() });
    }

    #[test]
    fn an_echoed_length_that_lies_gives_no_reason_and_no_panic() {
        let mut tail = vec![0xff; HEADER];
        tail.extend_from_slice(&[0xff; 8]);
        let bytes = error(-22, ACK_TLVS, &tail);
        let message = Messages::new(&bytes).next();
        assert!(matches!(message, Some(Ok(Message::Refused { .. }))), "{message:?}");
    }

    #[test]
    fn zero_is_an_acknowledgement_and_positive_codes_are_refused() {
        let ack = error(0, 0, &[0; HEADER]);
        assert!(matches!(Messages::new(&ack).next(), Some(Ok(Message::Ack { sequence: 77 }))));
        for code in [1, i32::MIN] {
            assert!(Messages::new(&error(code, 0, &[])).next().unwrap().is_err());
        }
    }

    #[test]
    fn a_request_is_read_back_with_its_ack_flag() {
        let mut bytes = Vec::new();
        let head = Head { kind: kind(3, 2), flags: CREATE, sequence: 9, family: 2, resource: 258 };
        append(&mut bytes, head, |body| body.extend_from_slice(&[1, 2, 3, 4]));
        request_ack(&mut bytes, 0);
        let Some(Ok(Message::Data { kind, flags, sequence, payload })) =
            Messages::new(&bytes).next()
        else {
            panic!("not data")
        };
        assert_eq!((kind, flags, sequence), (0x0302, REQUEST | ACK | CREATE, 9));
        assert_eq!(payload, [2, 0, 1, 2, 1, 2, 3, 4]);
    }

    #[test]
    fn truncated_datagrams_are_refused() {
        let bytes = error(-2, 0, &[0; HEADER]);
        for end in 1..bytes.len() {
            assert!(Messages::new(&bytes[..end]).next().unwrap().is_err(), "cut at {end}");
        }
    }
}
