//! Bulk data: what is large and not urgent, such as an image or a first pass over files.
//!
//! It goes over the conversation's own connection, at most at the rate that the user allows, and compressed where
//! that helps. Whether it helps is seen from the kernel's send queue: as long as more waits there than the
//! compressor needs time for, the link is slower than the compressor, and compression costs no time. Otherwise the
//! message goes as it is. So the link never waits for the compressor, and no rate has to be measured beforehand.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::{Connection, Error, PIECE};
use crate::message::{Data, Message};

/// The capability to take compressed messages.
pub const ZSTD: &str = "zstd";

/// Number of bytes in the kernel's send queue from which on the next message is compressed. zstd needs about a
/// millisecond for a [`PIECE`], and a link of 10 Gbit/s somewhat longer for this many bytes.
const BACKLOG: u64 = 4 * PIECE as u64;
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

/// The state of sending bulk data over one connection.
#[derive(Default)]
pub(super) struct Bulk {
    options: BulkOptions,
    /// When the next bytes may go, if there is a maximum rate.
    free_at: Option<Instant>,
    compressor: Option<zstd::bulk::Compressor<'static>>,
    /// Number of messages that are still to be sent without an attempt to compress them.
    skip: u32,
}

impl std::fmt::Debug for Bulk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bulk").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Bulk {
    /// Returns for how long the sender has to wait until more bytes may go.
    fn wait(&self, now: Instant) -> Duration {
        self.free_at.map_or(Duration::ZERO, |free_at| free_at.saturating_duration_since(now))
    }

    /// Takes note of bytes that have gone.
    fn sent(&mut self, bytes: u64, now: Instant) {
        let Some(rate) = self.options.bandwidth else { return };
        let takes = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
        let idle_since = now.checked_sub(BURST).unwrap_or(now);
        self.free_at = Some(self.free_at.map_or(now, |free_at| free_at.max(idle_since)) + takes);
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
    pub fn set_bulk(&mut self, options: BulkOptions) {
        self.bulk = Bulk { options, ..Bulk::default() };
    }

    /// Returns the number of bytes of all frames sent so far, without what TLS adds.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends a message of bulk data: no faster than the maximum rate, and compressed if that is wanted, the other
    /// host's agent can take it, and it makes the message smaller.
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub async fn send_bulk(&mut self, message: &Message) -> Result<(), Error> {
        let wait = self.bulk.wait(Instant::now());
        let is_slow = !wait.is_zero() || self.backlog() >= BACKLOG;
        let before = self.sent;
        self.encode(message)?;
        let is_wanted = match self.bulk.options.compression {
            Compression::Auto => is_slow,
            Compression::Zstd => true,
            Compression::None => false,
        };
        if is_wanted && self.scratch.len() >= SMALL && self.has(ZSTD) {
            let peer = self.peer;
            let encoded = self.scratch.get(super::PREFIX..).unwrap_or_default();
            let compressed = self.bulk.compress(encoded);
            if let Some(bytes) = compressed.map_err(|source| Error::Io { peer, source })? {
                self.encode(&Message::Compressed(Data(bytes)))?;
            }
        }
        tokio::time::sleep(wait).await;
        self.write_frame().await?;
        self.bulk.sent(self.sent - before, Instant::now());
        Ok(())
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

    fn limited(rate: u64) -> Bulk {
        let options = BulkOptions { bandwidth: NonZeroU64::new(rate), ..BulkOptions::default() };
        Bulk { options, ..Bulk::default() }
    }

    #[test]
    fn a_sender_waits_for_what_it_has_sent() {
        let mut bulk = limited(1000);
        let now = Instant::now();
        assert_eq!(bulk.wait(now), Duration::ZERO);
        bulk.sent(500, now);
        bulk.sent(500, now);
        assert_eq!(bulk.wait(now), Duration::from_secs(1));
        assert_eq!(bulk.wait(now + Duration::from_secs(1)), Duration::ZERO);
    }

    #[test]
    fn a_sender_that_was_idle_does_not_catch_up() {
        let mut bulk = limited(1000);
        let now = Instant::now();
        bulk.sent(1000, now);
        let later = now + Duration::from_secs(60);
        bulk.sent(1000, later);
        assert_eq!(bulk.wait(later), Duration::from_secs(1) - BURST);
    }

    #[test]
    fn there_is_no_limit_unless_one_is_set() {
        let mut bulk = Bulk::default();
        bulk.sent(u64::MAX, Instant::now());
        assert_eq!(bulk.wait(Instant::now()), Duration::ZERO);
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
