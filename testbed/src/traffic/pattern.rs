//! A byte sequence in which the position determines every byte. So a receiver detects a lost, duplicated, moved or
//! changed byte by its own offset alone.
//!
//! Eight bytes at a time are the SplitMix64 output (Steele, Lea, Flood 2014) of their index.

/// Returns the SplitMix64 output for `index`.
pub fn mix(index: u64) -> u64 {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Returns the byte at `position`.
pub fn byte_at(position: u64) -> u8 {
    mix(position >> 3).to_le_bytes()[(position & 7) as usize]
}

/// Fills `buffer` with the sequence from `position` on.
pub fn fill(position: u64, buffer: &mut [u8]) {
    let head = head_length(position, buffer.len());
    let (first, rest) = buffer.split_at_mut(head);
    for (offset, byte) in first.iter_mut().enumerate() {
        *byte = byte_at(position + offset as u64);
    }
    let mut index = (position + head as u64) >> 3;
    let mut words = rest.chunks_exact_mut(8);
    for word in &mut words {
        word.copy_from_slice(&mix(index).to_le_bytes());
        index += 1;
    }
    for (byte, expected) in words.into_remainder().iter_mut().zip(mix(index).to_le_bytes()) {
        *byte = expected;
    }
}

/// The result of a check of received bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// Number of bytes that differ from the sequence.
    pub bad: u64,
    /// Position of the first of them.
    pub first: Option<u64>,
}

impl Mismatch {
    /// Adds the result of a later part of the sequence.
    pub fn add(&mut self, later: Self) {
        self.bad += later.bad;
        self.first = self.first.or(later.first);
    }
}

/// Compares `bytes` with the sequence from `position` on.
pub fn check(position: u64, bytes: &[u8]) -> Mismatch {
    let head = head_length(position, bytes.len());
    let (first, rest) = bytes.split_at(head);
    let mut found = check_each(position, first);
    let mut at = position + head as u64;
    let mut words = rest.chunks_exact(8);
    for word in &mut words {
        if word != mix(at >> 3).to_le_bytes() {
            found.add(check_each(at, word));
        }
        at += 8;
    }
    found.add(check_each(at, words.remainder()));
    found
}

fn check_each(position: u64, bytes: &[u8]) -> Mismatch {
    let mut found = Mismatch::default();
    for (at, byte) in (position..).zip(bytes) {
        if *byte != byte_at(at) {
            found.bad += 1;
            found.first.get_or_insert(at);
        }
    }
    found
}

/// Returns the number of bytes before the next position that is a multiple of eight.
fn head_length(position: u64, length: usize) -> usize {
    (((8 - (position & 7)) & 7) as usize).min(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_alignment_fills_what_byte_at_says() {
        for position in [0, 1, 7, 8, 13, (1 << 40) + 3] {
            for length in [0, 1, 7, 8, 9, 64, 77] {
                let mut buffer = vec![0; length];
                fill(position, &mut buffer);
                for (offset, byte) in buffer.iter().enumerate() {
                    assert_eq!(*byte, byte_at(position + offset as u64));
                }
                assert_eq!(check(position, &buffer), Mismatch::default());
            }
        }
    }

    #[test]
    fn a_changed_byte_is_found_at_its_position() {
        let mut buffer = vec![0; 100];
        fill(5, &mut buffer);
        buffer[42] ^= 1;
        buffer[99] ^= 0x80;
        assert_eq!(check(5, &buffer), Mismatch { bad: 2, first: Some(47) });
    }

    #[test]
    fn a_lost_byte_shifts_nearly_everything_after_it() {
        let mut buffer = vec![0; 4096];
        fill(0, &mut buffer);
        buffer.remove(1000);
        let found = check(0, &buffer);
        assert!(found.bad > 2900 && found.first.is_some_and(|at| (1000..1010).contains(&at)));
    }
}
