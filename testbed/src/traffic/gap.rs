//! Measures silence: the longest time between two successive replies, and when it was.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::client_report::Gap;

/// How many of the longest gaps are kept for the report.
const KEPT: usize = 8;
/// Gaps below this are scheduling noise and not kept in the list.
const NOTABLE: Duration = Duration::from_millis(5);

/// Watches a stream of events for the longest time between two of them.
#[derive(Debug, Default)]
pub struct GapMeter {
    last: Option<Instant>,
    longest: Duration,
    longest_at: u64,
    notable: Vec<Gap>,
}

impl GapMeter {
    /// Notes an event at `now`.
    pub fn event(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            self.note(now.saturating_duration_since(last), now);
        }
    }

    /// Notes that events were still awaited at `now` although none came.
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

    /// The longest gap, in milliseconds.
    pub fn longest_ms(&self) -> f64 {
        milliseconds(self.longest)
    }

    /// When the longest gap began, in nanoseconds since the Unix epoch; 0 if there was none.
    pub fn longest_at_unix_ns(&self) -> u64 {
        self.longest_at
    }

    /// The longest gaps, longest first.
    pub fn into_notable(mut self) -> Vec<Gap> {
        self.shorten();
        self.notable
    }
}

/// A duration as fractional milliseconds, rounded to a microsecond.
pub fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// The wall-clock time of `moment`, in nanoseconds since the Unix epoch.
pub fn unix_ns(moment: Instant) -> u64 {
    let ago = moment.elapsed();
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
