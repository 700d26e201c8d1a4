//! How much slower than a physical machine the lab's machine is. On an emulated machine every limit is longer and
//! every rate lower by this factor.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

static FACTOR: AtomicU32 = AtomicU32::new(1);

/// Sets the factor for this process. 0 counts as 1.
pub fn set(factor: u32) {
    FACTOR.store(factor.max(1), Ordering::Relaxed);
}

/// Returns whether the machine is slower than a physical one.
pub fn is_slow() -> bool {
    FACTOR.load(Ordering::Relaxed) > 1
}

/// Scales a limit that suits a physical machine.
pub fn limit(limit: Duration) -> Duration {
    limit.saturating_mul(FACTOR.load(Ordering::Relaxed))
}

/// Scales a rate in messages or bytes a second that suits a physical machine.
pub fn rate(rate: f64) -> f64 {
    rate / f64::from(FACTOR.load(Ordering::Relaxed))
}
