//! Measures silence: the longest time between two successive replies, and when it began.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::client_report::Gap;

/// The number of gaps in the report.
const KEPT: usize = 8;
/// The shortest gap in the report. Shorter ones are scheduling noise.
const NOTABLE: Duration = Duration::from_millis(5);

/// Finds the longest time between two events of a stream.
#[derive(Debug, Default)]
pub struct GapMeter {
    last: Option<Instant>,
    longest: Duration,
    longest_at: u64,
    notable: Vec<Gap>,
}

impl GapMeter {
    /// Records an event at `now`.
    pub fn event(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            self.note(now.saturating_duration_since(last), now);
        }
    }

    /// Records that events were still awaited at `now`.
    pub fn still_waiting(&mut self, now: Instant) {
        if let Some(last) = self.last {
            self.note(now.saturating_duration_since(last), now);
        }
    }

    fn note(&mut self, gap: Duration, ended: Instant) {
        if gap < NOTABLE && gap <= self.longest {
            return;
        }
        let began = unix_ns(ended).saturating_sub(gap.as_nanos() as u64);
        if gap > self.longest {
            self.longest = gap;
            self.longest_at = began;
        }
        if gap >= NOTABLE {
            self.notable.push(Gap { at_unix_ns: began, ms: milliseconds(gap) });
            if self.notable.len() > 4 * KEPT {
                self.shorten();
            }
        }
    }

    fn shorten(&mut self) {
        self.notable.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        self.notable.truncate(KEPT);
    }

    /// Returns the longest gap, in milliseconds.
    pub fn longest_ms(&self) -> f64 {
        milliseconds(self.longest)
    }

    /// When the longest gap began, in nanoseconds since the Unix epoch; 0 if there was none.
    pub fn longest_at_unix_ns(&self) -> u64 {
        self.longest_at
    }

    /// Returns the longest gaps, longest first.
    pub fn into_notable(mut self) -> Vec<Gap> {
        self.shorten();
        self.notable
    }
}

/// Returns a duration as fractional milliseconds, rounded to a microsecond.
pub fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Returns the wall-clock time of `instant`, in nanoseconds since the Unix epoch.
pub fn unix_ns(instant: Instant) -> u64 {
    let ago = instant.elapsed();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(ago).as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_reported_with_its_beginning() {
        // In the past, as events are: the clock of the wall is asked what time it was then.
        let start = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        let mut meter = GapMeter::default();
        for ms in [0, 1, 2, 52, 53, 73] {
            meter.event(start + Duration::from_millis(ms));
        }
        assert_eq!(meter.longest_ms(), 50.0);
        let expected = unix_ns(start + Duration::from_millis(2));
        assert!(meter.longest_at_unix_ns().abs_diff(expected) < 50_000_000);
        let kept = meter.into_notable();
        assert_eq!(kept.iter().map(|gap| gap.ms).collect::<Vec<_>>(), [50.0, 20.0]);
    }

    #[test]
    fn silence_at_the_end_counts() {
        let start = Instant::now();
        let mut meter = GapMeter::default();
        meter.event(start);
        meter.still_waiting(start + Duration::from_millis(900));
        assert_eq!(meter.longest_ms(), 900.0);
    }
}
