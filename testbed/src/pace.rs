//! How fast the machine is that the lab runs on: an emulated one gets more time and less to do.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How many times slower than usual it is.
static SLOWDOWN: AtomicU32 = AtomicU32::new(1);

/// From now on everything may take so many times longer.
pub fn slow_down(times: u32) {
    SLOWDOWN.store(times.max(1), Ordering::Relaxed);
}

/// Whether the machine is slower than usual.
pub fn is_slow() -> bool {
    SLOWDOWN.load(Ordering::Relaxed) > 1
}

/// How long to wait for what takes `limit` at most where it is fast.
pub fn patience(limit: Duration) -> Duration {
    limit.saturating_mul(SLOWDOWN.load(Ordering::Relaxed))
}

/// How many messages or bytes a second a client sends that sends `rate` where it is fast.
pub fn rate(rate: f64) -> f64 {
    rate / f64::from(SLOWDOWN.load(Ordering::Relaxed))
}
