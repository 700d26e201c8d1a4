//! Calculates how many messages are due: a steady rate, with a bound on the burst after a delay.

use std::time::{Duration, Instant};

/// Shortest time between two rounds of sending. Higher rates send several messages a round.
const ROUND_MIN: Duration = Duration::from_micros(100);
/// Longest time between two rounds, which bounds the wait for the stop condition.
const ROUND_MAX: Duration = Duration::from_millis(100);
/// The largest multiple of the rate at which a delayed sender catches up. So a delay of a busy machine does not
/// become a burst that overflows a socket buffer.
const CATCH_UP: f64 = 4.0;

/// Spreads messages evenly over time.
#[derive(Debug)]
pub(super) struct Pacer {
    rate: f64,
    start: Instant,
    sent: u64,
    round: Duration,
    burst: u64,
}

impl Pacer {
    /// Returns a pacer for `rate` messages a second, from `start` on.
    pub(super) fn new(rate: f64, start: Instant) -> Self {
        let rate = rate.max(0.0);
        let interval = if rate > 0.0 {
            Duration::try_from_secs_f64(1.0 / rate).unwrap_or(ROUND_MAX)
        } else {
            ROUND_MAX
        };
        let round = interval.clamp(ROUND_MIN, ROUND_MAX);
        let burst = (rate * round.as_secs_f64() * CATCH_UP).ceil().max(1.0) as u64;
        Self { rate, start, sent: 0, round, burst }
    }

    /// Time between two rounds.
    pub(super) fn round(&self) -> Duration {
        self.round
    }

    /// Returns how many messages to send in the round at `now`, and counts them as sent.
    pub(super) fn due(&mut self, now: Instant) -> u64 {
        if self.rate <= 0.0 {
            return 0;
        }
        let elapsed = now.saturating_duration_since(self.start).as_secs_f64();
        let target = (elapsed * self.rate) as u64 + 1;
        let due = target.saturating_sub(self.sent).min(self.burst);
        self.sent += due;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_over_time() {
        let start = Instant::now();
        for rate in [10.0, 1000.0, 20_000.0] {
            let mut pacer = Pacer::new(rate, start);
            let rounds = (2.0 / pacer.round().as_secs_f64()) as u32;
            let sent: u64 = (0..rounds).map(|n| pacer.due(start + pacer.round() * n)).sum();
            assert!((sent as f64 - 2.0 * rate).abs() <= 3.0, "rate {rate}: {sent}");
        }
    }

    #[test]
    fn a_delay_is_made_up_gradually() {
        let start = Instant::now();
        let mut pacer = Pacer::new(20_000.0, start);
        let late = start + Duration::from_millis(50);
        assert!(pacer.due(late) <= 8);
        let caught_up: u64 = (0..400).map(|n| pacer.due(late + pacer.round() * n)).sum();
        assert!(caught_up >= 1700, "{caught_up}");
    }
}
