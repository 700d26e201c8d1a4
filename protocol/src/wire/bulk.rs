//! Bulk data: what is large and not urgent, such as an image or a first pass over files.
//!
//! It goes over the conversation's own connection, at most at the rate that the user allows, and compressed where
//! that helps. Whether it helps is seen from the kernel's send queue: as long as more waits there than the
//! compressor needs time for, the link is slower than the compressor, and compression costs no time. Otherwise the
//! message goes as it is. So the link never waits for the compressor, and no rate has to be measured beforehand.

use std::fmt;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Connection, Error, PIECE};
use crate::message::{Data, Message};

/// The capability to take compressed messages.
pub const ZSTD: &str = "zstd";

/// Number of bytes in the kernel's send queue from which on the next message is compressed. zstd needs about a
/// millisecond for a [`PIECE`], and a link of 10 Gbit/s somewhat longer for this many bytes.
const BACKLOG: u64 = 4 * PIECE as u64;
/// Number of bytes that one processor compresses in a second, at least.
const COMPRESSOR: u64 = 250_000_000;
/// Messages below this size are never compressed.
const SMALL: usize = 4 * 1024;
/// A message that is not reduced to less than this part of its size is sent as it is.
const WORTHWHILE: f64 = 0.9;
/// Number of messages that are sent as they are after one that could not be compressed.
const INCOMPRESSIBLE: u32 = 15;
/// zstd's fastest regular level.
const LEVEL: i32 = 1;
/// A sender that was idle may send for this long at once.
const BURST: Duration = Duration::from_millis(20);

/// Whether bulk data is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// While the link is slower than the compressor.
    #[default]
    Auto,
    /// Always.
    Zstd,
    /// Never.
    None,
}

/// How bulk data is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BulkOptions {
    /// Maximum rate in bytes a second; `None` for as fast as the link is.
    pub bandwidth: Option<NonZeroU64>,
    /// Whether it is compressed.
    pub compression: Compression,
}

/// The maximum rate at which bulk data is sent, over all connections of a conversation.
#[derive(Debug, Default)]
pub(super) struct Pace {
    rate: Option<NonZeroU64>,
    /// When the next bytes may go.
    free_at: Option<Instant>,
}

impl Pace {
    /// Returns whether the maximum rate is lower than that of the compressor.
    fn is_slow(&self) -> bool {
        self.rate.is_some_and(|rate| rate.get() < COMPRESSOR)
    }

    /// Reserves the time in which so many bytes may be sent, and returns how long it is until it begins.
    fn reserve(&mut self, bytes: usize, now: Instant) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let takes = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
        let idle_since = now.checked_sub(BURST).unwrap_or(now);
        let begins = self.free_at.map_or(now, |free_at| free_at.max(idle_since));
        self.free_at = Some(begins + takes);
        begins.saturating_duration_since(now)
    }
}

/// The number of bytes that all connections of a conversation have sent.
pub(super) type Sent = AtomicU64;

/// The state of sending bulk data over one connection.
#[derive(Default)]
pub(super) struct Bulk {
    compression: Compression,
    pace: Arc<Mutex<Pace>>,
    sent: Arc<Sent>,
    compressor: Option<zstd::bulk::Compressor<'static>>,
    /// Number of messages that are still to be sent without an attempt to compress them.
    skip: u32,
}

impl fmt::Debug for Bulk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bulk").field("compression", &self.compression).finish_non_exhaustive()
    }
}

impl Bulk {
    /// Returns the state for a further connection of the same conversation.
    pub(super) fn for_stream(&self) -> Self {
        let (pace, sent) = (Arc::clone(&self.pace), Arc::clone(&self.sent));
        Self { compression: self.compression, pace, sent, ..Self::default() }
    }

    /// Counts bytes that were sent.
    pub(super) fn count(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns an encoded message in compressed form; `None` if it does not become much smaller.
    fn compress(&mut self, encoded: &[u8]) -> io::Result<Option<Vec<u8>>> {
        if let Some(left) = self.skip.checked_sub(1) {
            self.skip = left;
            return Ok(None);
        }
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            None => self.compressor.insert(zstd::bulk::Compressor::new(LEVEL)?),
        };
        let compressed = compressor.compress(encoded)?;
        if compressed.len() as f64 > encoded.len() as f64 * WORTHWHILE {
            self.skip = INCOMPRESSIBLE;
            return Ok(None);
        }
        Ok(Some(compressed))
    }
}

impl Connection {
    /// Sets how [`Connection::send_bulk`] sends.
    pub fn set_bulk(&mut self, BulkOptions { bandwidth, compression }: BulkOptions) {
        let pace = Arc::new(Mutex::new(Pace { rate: bandwidth, free_at: None }));
        let sent = Arc::clone(&self.bulk.sent);
        self.bulk = Bulk { compression, pace, sent, ..Bulk::default() };
    }

    /// Returns the number of bytes of all frames sent so far, without what TLS adds.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.bulk.sent.load(Ordering::Relaxed)
    }

    /// Sends a message of bulk data: no faster than the maximum rate, over a further connection if there are any,
    /// and compressed if that is wanted, the other host's agent can take it, and it makes the message smaller.
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub async fn send_bulk(&mut self, message: &Message) -> Result<(), Error> {
        if self.has_streams() {
            let encoded = self.encoded(message)?;
            return self.send_elsewhere(encoded).await;
        }
        let encoded = self.encoded(message)?;
        self.send_paced(encoded).await
    }

    /// Sends an encoded message over this connection, within the maximum rate.
    async fn send_paced(&mut self, encoded: Vec<u8>) -> Result<(), Error> {
        let encoded = self.compressed(encoded)?;
        self.put_frame(&encoded)?;
        self.write_paced().await
    }

    /// Sends the frame that was encoded last, within the maximum rate.
    pub(super) async fn write_paced(&mut self) -> Result<(), Error> {
        let wait = self.bulk.pace().reserve(self.scratch.len(), Instant::now());
        tokio::time::sleep(wait).await;
        self.write_frame().await
    }

    /// Returns an encoded message in the form in which it is sent: compressed or as it is.
    pub(super) fn compressed(&mut self, encoded: Vec<u8>) -> Result<Vec<u8>, Error> {
        let is_wanted = match self.bulk.compression {
            Compression::Auto => self.bulk.pace().is_slow() || self.backlog() >= BACKLOG,
            Compression::Zstd => true,
            Compression::None => false,
        };
        if !is_wanted || encoded.len() < SMALL || !self.has(ZSTD) {
            return Ok(encoded);
        }
        let peer = self.peer;
        let smaller = self.bulk.compress(&encoded).map_err(|source| Error::Io { peer, source })?;
        match smaller {
            Some(bytes) => self.encoded(&Message::Compressed(Data(bytes))),
            None => Ok(encoded),
        }
    }

    /// Returns the number of bytes that the kernel has not sent yet; 0 if it does not tell.
    fn backlog(&self) -> u64 {
        unsent(self.stream.get_ref().0.get_ref().as_fd()).unwrap_or(0)
    }
}

/// Returns the number of bytes in a TCP socket's send queue that were never sent (`SIOCOUTQNSD`,
/// include/uapi/linux/sockios.h; net/ipv4/tcp.c, `tcp_ioctl`).
fn unsent(socket: BorrowedFd<'_>) -> nix::Result<u64> {
    mod request {
        nix::ioctl_read_bad!(siocoutqnsd, 0x894b, nix::libc::c_int);
    }
    let mut bytes = 0;
    // SAFETY: the request writes one int to the address, which is that of a live int.
    unsafe { request::siocoutqnsd(socket.as_raw_fd(), &raw mut bytes) }?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(rate: u64) -> Pace {
        Pace { rate: NonZeroU64::new(rate), free_at: None }
    }

    #[test]
    fn a_sender_waits_for_what_was_sent_before() {
        let mut pace = limited(1000);
        let now = Instant::now();
        assert_eq!(pace.reserve(500, now), Duration::ZERO);
        assert_eq!(pace.reserve(500, now), Duration::from_millis(500));
        assert_eq!(pace.reserve(500, now), Duration::from_secs(1));
        assert_eq!(pace.reserve(500, now + Duration::from_millis(1500)), Duration::ZERO);
    }

    #[test]
    fn a_sender_that_was_idle_does_not_catch_up() {
        let mut pace = limited(1000);
        let now = Instant::now();
        pace.reserve(1000, now);
        let later = now + Duration::from_secs(60);
        assert_eq!(pace.reserve(1000, later), Duration::ZERO);
        assert_eq!(pace.reserve(1000, later), Duration::from_secs(1) - BURST);
    }

    #[test]
    fn there_is_no_limit_unless_one_is_set() {
        let mut pace = Pace::default();
        assert_eq!(pace.reserve(usize::MAX, Instant::now()), Duration::ZERO);
        assert!(!pace.is_slow());
        assert!(limited(1000).is_slow() && !limited(u64::MAX).is_slow());
    }

    #[test]
    fn what_does_not_shrink_is_not_tried_again_at_once() {
        let mut bulk = Bulk::default();
        let zeros = vec![0; 65536];
        assert!(bulk.compress(&zeros).unwrap().unwrap().len() < 1000);
        // The output of a generator without a period that zstd could find.
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
        .take(65536)
        .collect();
        assert!(bulk.compress(&noise).unwrap().is_none());
        assert!(bulk.compress(&zeros).unwrap().is_none(), "skipped");
        let tries = (0..INCOMPRESSIBLE).filter(|_| bulk.compress(&zeros).unwrap().is_some());
        assert_eq!(tries.count(), 1);
    }
}
