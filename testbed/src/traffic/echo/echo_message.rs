//! A message of the echo clients: its sender, number, time and check value.
//!
//! Little-endian: connection `u32`, run `u32`, sequence `u64`, nanoseconds since the client's start
//! `u64`, check `u64`; then padding that the sequence number determines.

use super::super::pattern;

/// Smallest size of a message in bytes: its fixed fields.
pub const SIZE_MIN: usize = 32;

/// The fields of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Index of the connection or flow that carries it.
    pub connection: u32,
    /// Identifies one run of one client, so that replies to another are told apart.
    pub run: u32,
    /// Number of the message on its connection, from 0.
    pub sequence: u64,
    /// Time of sending, in nanoseconds since the client's start.
    pub sent_ns: u64,
}

impl Message {
    fn check_value(&self) -> u64 {
        let ids = (u64::from(self.run) << 32) | u64::from(self.connection);
        pattern::mix(pattern::mix(pattern::mix(ids) ^ self.sequence) ^ self.sent_ns)
    }

    /// Returns the position of the padding in the pattern, which differs widely between neighbouring messages.
    fn padding_position(&self) -> u64 {
        (self.check_value() >> 8) & !7
    }

    /// Writes the message over the whole of `buffer`, which has at least [`SIZE_MIN`] bytes.
    pub fn encode(&self, buffer: &mut [u8]) {
        buffer[0..4].copy_from_slice(&self.connection.to_le_bytes());
        buffer[4..8].copy_from_slice(&self.run.to_le_bytes());
        buffer[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        buffer[16..24].copy_from_slice(&self.sent_ns.to_le_bytes());
        buffer[24..32].copy_from_slice(&self.check_value().to_le_bytes());
        pattern::fill(self.padding_position(), &mut buffer[SIZE_MIN..]);
    }

    /// Reads a message. Returns `None` if any byte of it has changed.
    pub fn decode(buffer: &[u8]) -> Option<Self> {
        let message = Self {
            connection: u32::from_le_bytes(buffer.get(0..4)?.try_into().ok()?),
            run: u32::from_le_bytes(buffer.get(4..8)?.try_into().ok()?),
            sequence: u64::from_le_bytes(buffer.get(8..16)?.try_into().ok()?),
            sent_ns: u64::from_le_bytes(buffer.get(16..24)?.try_into().ok()?),
        };
        let check = u64::from_le_bytes(buffer.get(24..32)?.try_into().ok()?);
        let padding = pattern::check(message.padding_position(), &buffer[SIZE_MIN..]);
        (check == message.check_value() && padding.bad == 0).then_some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_bit_is_noticed() {
        let message = Message { connection: 3, run: 99, sequence: 12345, sent_ns: 678_900 };
        let mut buffer = [0; 45];
        message.encode(&mut buffer);
        assert_eq!(Message::decode(&buffer), Some(message));
        for bit in 0..buffer.len() * 8 {
            buffer[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Message::decode(&buffer), None, "bit {bit}");
            buffer[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_short_buffer_is_no_message() {
        assert_eq!(Message::decode(&[0; SIZE_MIN - 1]), None);
    }
}
