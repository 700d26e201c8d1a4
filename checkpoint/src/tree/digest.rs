//! One hash over everything that a pass carries.

use std::hash::{Hash, Hasher};

use twox_hash::XxHash3_128;

use super::Record;

/// XXH3 of 128 bits over the records of one pass, content of files included, in their order.
///
/// Both sides add what they send and what they apply; a copy is not restored unless they agree. It
/// guards against our own mistakes and broken memory, as that of the
/// [images](crate::images::FileSum) does, and only between hosts of one architecture.
#[derive(Clone, Default)]
pub struct Digest(Running);

#[derive(Clone)]
struct Running(XxHash3_128);

impl Default for Running {
    fn default() -> Self {
        Self(XxHash3_128::new())
    }
}

impl Hasher for Running {
    fn write(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// Returns the lower half, which is not used.
    fn finish(&self) -> u64 {
        self.0.clone().finish_128() as u64
    }
}

impl Digest {
    /// Adds the next record.
    pub fn add(&mut self, record: &Record) {
        record.hash(&mut self.0);
    }

    /// Returns the hash of all that was added.
    #[must_use]
    pub fn value(&self) -> [u8; 16] {
        self.0.0.clone().finish_128().to_be_bytes()
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Digest({:02x?})", self.value())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn every_byte_and_the_order_count() {
        let data = |offset, byte| Record::Data { offset, bytes: Bytes::from(vec![byte; 3]) };
        let digest = |records: &[Record]| {
            let mut digest = Digest::default();
            records.iter().for_each(|record| digest.add(record));
            digest.value()
        };
        let one = digest(&[data(0, 1), data(3, 2)]);
        assert_eq!(one, digest(&[data(0, 1), data(3, 2)]));
        for other in [
            digest(&[data(3, 2), data(0, 1)]),
            digest(&[data(0, 1), data(3, 3)]),
            digest(&[data(0, 1), data(4, 2)]),
            digest(&[data(0, 1)]),
            digest(&[]),
        ] {
            assert_ne!(one, other);
        }
    }
}
