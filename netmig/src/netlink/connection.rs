//! Requests and their answers: batches, single requests and dumps, matched by sequence numbers.

use std::fmt;

use nix::errno::Errno;

use super::message::{DUMP_INTERRUPTED, Message, number, set_sequence};
use super::{Malformed, Options, Protocol, Refused, Socket, SocketError};

/// How often a dump is repeated when objects changed while it was read.
const DUMP_ATTEMPTS: usize = 5;

/// An answer to one message of a batch.
pub(crate) enum Answer<'a> {
    /// The payload of a data message.
    Data(&'a [u8]),
    /// The kernel's refusal.
    Refused(Refused),
}

/// The kernel refused a message of a batch, or the batch could not be exchanged.
#[derive(Debug, thiserror::Error)]
#[error("message {index} of the batch was refused")]
pub(crate) struct RefusedAt {
    /// Index of the message, from 0.
    pub(crate) index: usize,
    /// The kernel's answer.
    #[source]
    pub(crate) source: SocketError,
}

impl RefusedAt {
    /// Returns the error number with which the kernel refused, if it did.
    pub(crate) fn refusal(&self) -> Option<Errno> {
        self.source.refusal()
    }
}

/// A netlink socket with a receive buffer and sequence numbers, for one request at a time.
pub(crate) struct Connection {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Connection {
    /// Opens a socket in the network namespace of the calling thread, in which it stays.
    pub(crate) fn open(protocol: Protocol) -> Result<Self, SocketError> {
        Self::with(protocol, Options::of(protocol))
    }

    /// Opens a socket with other options than those for requests.
    pub(crate) fn with(protocol: Protocol, options: Options) -> Result<Self, SocketError> {
        let socket = Socket::open(protocol, options)?;
        Ok(Self { socket, sequence: 0, buffer: Socket::buffer() })
    }

    /// Returns the socket alone, for its purpose to send and receive on.
    pub(crate) fn into_socket(self) -> Socket {
        self.socket
    }

    /// Returns socket and receive buffer, for answers that are not matched by sequence numbers.
    pub(crate) fn parts(&mut self) -> (&Socket, &mut [u8]) {
        (&self.socket, &mut self.buffer)
    }

    /// Sends the messages of `batch` with one system call and passes every answer to `each`, with the
    /// index of the message that it answers, until the kernel has handled the last message. All are
    /// handled even if some are refused.
    pub(crate) fn exchange(
        &mut self,
        batch: &mut [u8],
        mut each: impl FnMut(usize, Answer<'_>) -> Result<(), SocketError>,
    ) -> Result<(), SocketError> {
        let first = self.sequence.wrapping_add(1);
        let count = number(batch, first);
        if count == 0 {
            return Ok(());
        }
        self.sequence = self.sequence.wrapping_add(count);
        let last = count as usize - 1;
        let index = |sequence: u32| {
            // An answer to a request that was given up earlier is not one of this batch.
            let index = sequence.wrapping_sub(first);
            (index < count).then_some(index as usize)
        };
        self.socket.send(batch)?;
        loop {
            for message in self.socket.receive(&mut self.buffer)? {
                match message? {
                    Message::Data { sequence, payload, .. } => {
                        if let Some(index) = index(sequence) {
                            each(index, Answer::Data(payload))?;
                        }
                    }
                    Message::Refused { sequence, refused } => {
                        let Some(index) = index(sequence) else { continue };
                        each(index, Answer::Refused(refused))?;
                        if index == last {
                            return Ok(());
                        }
                    }
                    Message::Ack { sequence } if index(sequence) == Some(last) => return Ok(()),
                    Message::Overrun => return Err(SocketError::Overrun),
                    _ => {}
                }
            }
        }
    }

    /// Sends the messages of `batch` as [`Self::exchange`] does and passes the payload of every data
    /// message to `each`; returns the first refusal.
    pub(crate) fn answer(
        &mut self,
        batch: &mut [u8],
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), RefusedAt> {
        let mut first: Option<RefusedAt> = None;
        self.exchange(batch, |index, answer| {
            match answer {
                Answer::Data(payload) => each(payload),
                Answer::Refused(refused) => {
                    first.get_or_insert_with(|| RefusedAt { index, source: refused.into() });
                }
            }
            Ok(())
        })
        .map_err(|source| RefusedAt { index: 0, source })?;
        first.map_or(Ok(()), Err)
    }

    /// Sends the messages of `batch` as [`Self::exchange`] does; returns the first refusal.
    pub(crate) fn execute(&mut self, batch: &mut [u8]) -> Result<(), RefusedAt> {
        self.answer(batch, |_| ())
    }

    /// Sends a dump request and passes the payload of every message of the answer to `each`.
    ///
    /// Returns whether the objects stayed the same throughout; if not, some may be missing or
    /// reported twice, and the dump should be repeated ([`Self::dump_consistent`]).
    pub(crate) fn dump(
        &mut self,
        request: &mut [u8],
        mut each: impl FnMut(&[u8]) -> Result<(), Malformed>,
    ) -> Result<bool, SocketError> {
        self.sequence = self.sequence.wrapping_add(1);
        set_sequence(request, self.sequence);
        self.socket.send(request)?;
        let mut consistent = true;
        loop {
            for message in self.socket.receive(&mut self.buffer)? {
                match message? {
                    Message::Data { flags, sequence, payload, .. } if sequence == self.sequence => {
                        consistent &= flags & DUMP_INTERRUPTED == 0;
                        each(payload)?;
                    }
                    Message::Done { sequence, interrupted, refused }
                        if sequence == self.sequence =>
                    {
                        let Some(errno) = refused else { return Ok(consistent && !interrupted) };
                        return Err(Refused { errno, reason: String::new() }.into());
                    }
                    // Kernels without a dump for this request acknowledge it instead.
                    Message::Ack { sequence } if sequence == self.sequence => {
                        return Ok(consistent);
                    }
                    Message::Refused { sequence, refused } if sequence == self.sequence => {
                        return Err(refused.into());
                    }
                    Message::Overrun => return Err(SocketError::Overrun),
                    _ => {}
                }
            }
        }
    }

    /// Sends a dump request and returns what `make` makes of the messages of the answer, as the
    /// objects were at one moment. Repeats the dump if they changed meanwhile.
    pub(crate) fn dump_consistent<T>(
        &mut self,
        request: &mut [u8],
        mut make: impl FnMut(&[u8]) -> Result<Option<T>, Malformed>,
    ) -> Result<Vec<T>, SocketError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut made = Vec::new();
            let dumped = self.dump(request, |payload| {
                made.extend(make(payload)?);
                Ok(())
            });
            match dumped {
                Ok(true) => return Ok(made),
                Ok(false) => {}
                // How conntrack and nf_tables report the same.
                Err(error) if error.refusal() == Some(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        Err(SocketError::Unstable)
    }

    /// Sends a dump request and returns the payloads of the answer, as the objects were at one moment.
    pub(crate) fn dump_payloads(
        &mut self,
        request: &mut [u8],
    ) -> Result<Vec<Vec<u8>>, SocketError> {
        self.dump_consistent(request, |payload| Ok(Some(payload.to_vec())))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connection").field(&self.socket).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::attribute::find_text;
    use super::super::message::{DUMP, request};
    use super::*;

    #[test]
    fn the_loopback_interface_is_in_a_dump() {
        let mut connection = Connection::open(Protocol::Route).unwrap();
        let mut asked = request(libc::RTM_GETLINK, DUMP, &[0; 16], |_| ());
        let links = connection.dump_payloads(&mut asked).unwrap();
        let name = |link: &Vec<u8>| find_text(&link[16..], libc::IFLA_IFNAME);
        assert!(links.iter().any(|link| name(link).as_deref() == Some("lo")));
    }

    #[test]
    fn a_refusal_names_the_message_and_later_requests_are_not_confused() {
        let mut connection = Connection::open(Protocol::Route).unwrap();
        let lookup = |index: i32| {
            let mut fixed = [0; 16];
            fixed[4..8].copy_from_slice(&index.to_ne_bytes());
            request(libc::RTM_GETLINK, 0, &fixed, |_| ())
        };
        let mut batch = lookup(1);
        batch.extend(lookup(i32::MAX));
        batch.extend(lookup(1));
        let mut answers = 0;
        let refused = connection.answer(&mut batch, |_| answers += 1).unwrap_err();
        assert_eq!((refused.index, refused.refusal()), (1, Some(Errno::ENODEV)));
        assert_eq!(answers, 2);
        assert!(connection.execute(&mut lookup(1)).is_ok());
    }

    #[test]
    fn sequence_numbers_lead_back_to_messages_even_across_the_wrap() {
        let mut connection = Connection::open(Protocol::Route).unwrap();
        connection.sequence = u32::MAX - 1;
        let mut batch = Vec::new();
        for index in [1_i32, i32::MAX, 1, i32::MAX] {
            let mut fixed = [0; 16];
            fixed[4..8].copy_from_slice(&index.to_ne_bytes());
            batch.extend(request(libc::RTM_GETLINK, 0, &fixed, |_| ()));
        }
        let mut seen = Vec::new();
        let each = |index, answer: Answer<'_>| {
            seen.push((index, matches!(answer, Answer::Data(_))));
            Ok(())
        };
        connection.exchange(&mut batch, each).unwrap();
        assert_eq!(seen, [(0, true), (1, false), (2, true), (3, false)]);
    }
}
