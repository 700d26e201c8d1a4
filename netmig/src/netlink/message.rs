//! Netlink messages: header (RFC 3549), errors and acknowledgements, requests.

use nix::errno::Errno;

use super::attribute::{Attributes, u32_at};
use super::{Malformed, Refused};

/// Flags of requests (`include/uapi/linux/netlink.h`).
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const EXCLUSIVE: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;
const REQUEST: u16 = 0x001;
const ACK: u16 = 0x004;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const OVERRUN: u16 = 4;
const FIRST_DATA_TYPE: u16 = 16;
/// Bytes of `struct nlmsghdr`, and where its type, flags and sequence number are.
pub(crate) const HEADER: usize = 16;
const KIND: usize = 4;
const FLAGS: usize = 6;
const SEQUENCE: usize = 8;
/// In a dump: objects changed while it was read (`NLM_F_DUMP_INTR`).
pub(crate) const DUMP_INTERRUPTED: u16 = 0x010;
/// In an error: the refused message is reduced to its header (`NLM_F_CAPPED`).
const CAPPED: u16 = 0x100;
/// In an error: attributes follow (`NLM_F_ACK_TLVS`).
const ACK_TLVS: u16 = 0x200;
/// The text attribute of an extended acknowledgement.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// One received message.
#[derive(Debug)]
pub(crate) enum Message<'a> {
    /// A message of a subsystem: type, flags, sequence number, and what follows the header.
    Data { kind: u16, flags: u16, sequence: u32, payload: &'a [u8] },
    /// A request was carried out.
    Ack { sequence: u32 },
    /// A request was refused.
    Refused { sequence: u32, refused: Refused },
    /// The end of a dump; `interrupted` when objects changed in between.
    Done { sequence: u32, interrupted: bool, refused: Option<Errno> },
    /// Messages were lost.
    Overrun,
    /// A message without meaning here (`NLMSG_NOOP`).
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
        let length = u32_at(header, 0).unwrap_or_default() as usize;
        let Some(payload) = rest.get(HEADER..length) else {
            return Some(Err(Malformed("a message reaches beyond its datagram")));
        };
        self.rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([header[KIND], header[KIND + 1]]);
        let flags = u16::from_ne_bytes([header[FLAGS], header[FLAGS + 1]]);
        let sequence = u32_at(header, SEQUENCE).unwrap_or_default();
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
            let code = u32_at(payload, 0).ok_or(Malformed("an error without a code"))?;
            match code.cast_signed().checked_neg() {
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
            let code = u32_at(payload, 0).map_or(0, u32::cast_signed);
            let refused = code.checked_neg().filter(|errno| *errno > 0).map(Errno::from_raw);
            Message::Done { sequence, interrupted: flags & DUMP_INTERRUPTED != 0, refused }
        }
        OVERRUN => Message::Overrun,
        kind if kind >= FIRST_DATA_TYPE => Message::Data { kind, flags, sequence, payload },
        _ => Message::Other,
    })
}

/// Returns the text of an extended acknowledgement. It follows the refused message, or that
/// message's header where the kernel capped it.
fn reason(flags: u16, payload: &[u8]) -> Option<&str> {
    if flags & ACK_TLVS == 0 {
        return None;
    }
    let echoed = match flags & CAPPED {
        0 => (u32_at(payload, 4)? as usize).next_multiple_of(4),
        _ => HEADER,
    };
    Attributes::new(payload.get(4_usize.checked_add(echoed)?..)?)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind == NLMSGERR_ATTR_MSG)
        .and_then(|attribute| attribute.text().ok())
}

/// Appends a request of type `kind` to a batch: `fixed` is the part that follows the header, `fill`
/// appends the attributes. `NLM_F_REQUEST` is added to `flags`; the sequence number stays 0 until the
/// batch is sent.
pub(crate) fn append(
    batch: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    fixed: &[u8],
    fill: impl FnOnce(&mut Vec<u8>),
) {
    let start = batch.len();
    batch.extend_from_slice(&[0; 4]);
    batch.extend_from_slice(&kind.to_ne_bytes());
    batch.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
    batch.extend_from_slice(&[0; 8]);
    batch.extend_from_slice(fixed);
    batch.resize(batch.len().next_multiple_of(4), 0);
    fill(batch);
    let length = u32::try_from(batch.len() - start).unwrap_or(u32::MAX);
    batch[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Returns a single request (see [`append`]).
pub(crate) fn request(
    kind: u16,
    flags: u16,
    fixed: &[u8],
    fill: impl FnOnce(&mut Vec<u8>),
) -> Vec<u8> {
    let mut message = Vec::with_capacity(256);
    append(&mut message, kind, flags, fixed, fill);
    message
}

/// Sets the sequence number of the message at the beginning of `message`.
pub(crate) fn set_sequence(message: &mut [u8], sequence: u32) {
    if let Some(field) = message.get_mut(SEQUENCE..SEQUENCE + 4) {
        field.copy_from_slice(&sequence.to_ne_bytes());
    }
}

/// Changes the flags of those messages of a batch that have type `kind`.
pub(crate) fn change_flags(batch: &mut [u8], kind: u16, change: impl Fn(u16) -> u16) {
    for start in starts(batch).collect::<Vec<_>>() {
        let header = &mut batch[start..start + HEADER];
        if u16::from_ne_bytes([header[KIND], header[KIND + 1]]) == kind {
            let flags = change(u16::from_ne_bytes([header[FLAGS], header[FLAGS + 1]]));
            header[FLAGS..FLAGS + 2].copy_from_slice(&flags.to_ne_bytes());
        }
    }
}

/// Numbers the messages of a batch from `first` on and requests an acknowledgement of the last one
/// only: the kernel reports refusals in any case, and handles messages in their order. Returns how
/// many messages there are.
pub(crate) fn number(batch: &mut [u8], first: u32) -> u32 {
    let (mut count, mut last) = (0, None);
    for start in starts(batch).collect::<Vec<_>>() {
        set_sequence(&mut batch[start..], first.wrapping_add(count));
        count += 1;
        last = Some(start);
    }
    if let Some(start) = last {
        request_ack(&mut batch[start..]);
    }
    count
}

/// Requests an acknowledgement of the message at the beginning of `message`.
pub(crate) fn request_ack(message: &mut [u8]) {
    if let Some(flags) = message.get_mut(FLAGS..FLAGS + 2) {
        let with_ack = u16::from_ne_bytes([flags[0], flags[1]]) | ACK;
        flags.copy_from_slice(&with_ack.to_ne_bytes());
    }
}

/// Returns where the messages of a batch begin.
fn starts(batch: &[u8]) -> impl Iterator<Item = usize> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let start = next;
        let length = u32_at(batch, start)? as usize;
        if length < HEADER || start + length > batch.len() {
            return None;
        }
        next = start + length.next_multiple_of(4);
        Some(start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute::put;

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
        put(&mut tail, NLMSGERR_ATTR_MSG, b"No such thing\0");
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
    fn only_the_last_of_a_batch_is_acknowledged() {
        let mut batch = request(0x0302, CREATE, &[1, 2, 3], |body| {
            put(body, 5, &[9; 5]);
        });
        append(&mut batch, 0x0303, 0, &[], |_| ());
        assert_eq!(number(&mut batch, 7), 2);
        change_flags(&mut batch, 0x0302, |flags| flags | APPEND);
        let seen: Vec<_> = Messages::new(&batch)
            .map(|message| match message {
                Ok(Message::Data { kind, flags, sequence, payload }) => {
                    (kind, flags, sequence, payload.to_vec())
                }
                other => panic!("{other:?}"),
            })
            .collect();
        let body = vec![1, 2, 3, 0, 9, 0, 5, 0, 9, 9, 9, 9, 9, 0, 0, 0];
        assert_eq!(seen[0], (0x0302, REQUEST | CREATE | APPEND, 7, body));
        assert_eq!(seen[1], (0x0303, REQUEST | ACK, 8, vec![]));
    }

    #[test]
    fn truncated_datagrams_are_refused() {
        let bytes = error(-2, 0, &[0; HEADER]);
        for end in 1..bytes.len() {
            assert!(Messages::new(&bytes[..end]).next().unwrap().is_err(), "cut at {end}");
        }
    }
}
