//! Medians and the like.

use std::fmt;

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
    /// The distribution of `values`; `None` of no values.
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

#[cfg(test)]
mod tests {
    use super::*;

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
