//! Distributions of measured values.

use std::fmt;
use std::ops::Deref;

use serde::Serialize;

/// The distribution of some measured values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Distribution {
    /// Median.
    pub p50: f64,
    /// 95th percentile (nearest rank).
    pub p95: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
}

impl Distribution {
    /// The headings of the columns of [`Samples::row`].
    pub const HEADINGS: &'static str = "    median       min       max       p95";

    /// Returns the distribution of `values`; `None` without values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        let rank = |share: f64| {
            sorted[((share * sorted.len() as f64).ceil() as usize).clamp(1, last + 1) - 1]
        };
        Some(Self {
            p50: (sorted[last / 2] + sorted[sorted.len() / 2]) / 2.0,
            p95: rank(0.95),
            min: sorted[0],
            max: sorted[last],
        })
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "median {:.1}, min {:.1}, max {:.1}, p95 {:.1}",
            self.p50, self.min, self.max, self.p95
        )
    }
}

/// Measured values, in the order in which they were measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds a value.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Returns the distribution, rounded to a thousandth; all zero without values.
    pub fn distribution(&self) -> Distribution {
        let zero = Distribution { p50: 0.0, p95: 0.0, min: 0.0, max: 0.0 };
        let exact = Distribution::of(&self.0).unwrap_or(zero);
        let round = |value: f64| (value * 1e3).round() / 1e3;
        Distribution {
            p50: round(exact.p50),
            p95: round(exact.p95),
            min: round(exact.min),
            max: round(exact.max),
        }
    }

    /// Returns the median, rounded to a thousandth; 0 without values.
    pub fn median(&self) -> f64 {
        self.distribution().p50
    }

    /// Formats a line of a table below [`Distribution::HEADINGS`].
    pub fn row(&self, name: &str) -> String {
        let all = self.distribution();
        let columns = [all.p50, all.min, all.max, all.p95];
        // Ratios need more digits than milliseconds do.
        let digits = if all.max < 30.0 { 2 } else { 1 };
        columns
            .iter()
            .fold(format!("{name:28}"), |line, value| format!("{line}{value:>10.digits$}"))
    }
}

impl Deref for Samples {
    type Target = [f64];

    fn deref(&self) -> &[f64] {
        &self.0
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_stands_below_its_headings() {
        let samples: Samples = [1.0, 2.5, 4.0].into_iter().collect();
        let row = samples.row("ratio");
        assert_eq!(row.len(), 28 + Distribution::HEADINGS.len());
        assert!(row.ends_with("      2.50      1.00      4.00      4.00"), "{row}");
        assert_eq!(Samples::default().median(), 0.0);
    }

    #[test]
    fn ranks_are_right() {
        assert_eq!(Distribution::of(&[]), None);
        let one = Distribution::of(&[3.0]).unwrap();
        assert_eq!((one.p50, one.p95, one.min, one.max), (3.0, 3.0, 3.0, 3.0));
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let all = Distribution::of(&values).unwrap();
        assert_eq!((all.p50, all.p95, all.min, all.max), (50.5, 95.0, 1.0, 100.0));
    }
}
