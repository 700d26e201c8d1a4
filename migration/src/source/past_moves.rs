//! How long the interruptions of this host's last moves have taken, in a file of the state directory. Forecasts of later ones are
//! corrected by it: the constants of [`checkpoint::estimate`] are those of another machine.
//!
//! The file is a help and nothing more. One that is missing, damaged or of a later version means that there were no moves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use checkpoint::estimate::Forecast;
use serde::{Deserialize, Serialize};
use state::id::HostId;
use state::json_files::{self, Error};

use crate::report::Parts;

/// The file's name, and the version of its form.
const NAME: &str = "past-moves.json";
const VERSION: u32 = 1;
/// Most moves that are kept, of all destinations and of one.
const MOST: usize = 64;
const MOST_OF_ONE: usize = 12;
/// So many of the last moves count: their median is right as long as most of them were usual ones.
const LAST: usize = 5;
/// Moves of which one would take at most so many times as long as the other are comparable: which part of the time is fixed, and
/// which goes with memory and processes, differs from machine to machine.
const COMPARABLE: f64 = 3.0;
/// A factor is not trusted beyond these.
const FACTOR: std::ops::RangeInclusive<f64> = 0.05..=20.0;
/// Milliseconds that no part of a move takes.
const ABSURD: f64 = 1e8;

/// The parts of an interruption that are forecast, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Milliseconds {
    dump: f64,
    transfer: f64,
    restore: f64,
}

/// What kind of move it was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kind {
    /// How long the reference machine would take, in milliseconds, with all memory.
    pub size: f64,
    /// Whether memory went over apart, while the container ran or after the decision.
    pub is_apart: bool,
}

/// A move that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct PastMove {
    destination: HostId,
    kind: Kind,
    /// What the reference machine would have taken.
    reference: Milliseconds,
    /// What it has taken.
    measured: Milliseconds,
}

/// The last moves of this host, the latest one last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PastMoves {
    moves: Vec<PastMove>,
}

/// How many times as long as on the reference machine the parts of an interruption take; `None` where no move tells.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Factors {
    /// The dump, on this host.
    pub dump: Option<f64>,
    /// The transfer, to that destination.
    pub transfer: Option<f64>,
    /// The restore, on that destination.
    pub restore: Option<f64>,
}

impl PastMoves {
    /// Reads them from the state directory.
    #[must_use]
    pub fn read(state: &Path) -> Self {
        Self::try_read(state).unwrap_or_else(|error| {
            tracing::debug!("earlier moves are not taken into account: {error}");
            Self::default()
        })
    }

    fn try_read(state: &Path) -> Result<Self, Error> {
        let mut all = json_files::read::<Self>(&path(state), VERSION)?.unwrap_or_default();
        all.moves.retain(PastMove::is_plausible);
        all.bound();
        Ok(all)
    }

    /// Adds a move to those in the state directory. Of two processes that do so at once, one may be forgotten.
    ///
    /// # Errors
    /// The kernel refuses, or a later version of netmig has written the file.
    pub fn note(
        state: &Path,
        destination: HostId,
        kind: Kind,
        reference: &Forecast,
        measured: &Parts,
    ) -> Result<(), Error> {
        let mut all = match Self::try_read(state) {
            Err(error @ Error::Later { .. }) => return Err(error),
            other => other.unwrap_or_default(),
        };
        let reference = Milliseconds::of(reference);
        let past = PastMove { destination, kind, reference, measured: measured.into() };
        if past.is_plausible() {
            all.moves.push(past);
            all.bound();
            json_files::write(&path(state), VERSION, &all)?;
        }
        Ok(())
    }

    /// Forgets the oldest.
    fn bound(&mut self) {
        let mut kept: Vec<PastMove> = Vec::new();
        for past in self.moves.drain(..).rev() {
            let of_one = kept.iter().filter(|one| one.destination == past.destination).count();
            if kept.len() < MOST && of_one < MOST_OF_ONE {
                kept.push(past);
            }
        }
        kept.reverse();
        self.moves = kept;
    }

    /// Returns by what the forecast of a move to a destination is to be multiplied.
    #[must_use]
    pub fn factors(&self, destination: HostId, kind: Kind) -> Factors {
        let comparable = || self.moves.iter().rev().filter(move |past| past.kind.is_like(kind));
        let there = || comparable().filter(|past| past.destination == destination);
        Factors {
            dump: median(comparable().map(|past| past.measured.dump / past.reference.dump)),
            transfer: median(there().map(|past| past.measured.transfer / past.reference.transfer)),
            restore: median(there().map(|past| past.measured.restore / past.reference.restore)),
        }
    }
}

impl Kind {
    fn is_like(self, other: Self) -> bool {
        let times = self.size / other.size;
        self.is_apart == other.is_apart && (1.0 / COMPARABLE..=COMPARABLE).contains(&times)
    }
}

impl PastMove {
    /// Returns whether the move may have been like this.
    fn is_plausible(&self) -> bool {
        let Self { kind, reference, measured, .. } = self;
        let of = |it: &Milliseconds| [it.dump, it.transfer, it.restore];
        let all = of(reference).into_iter().chain(of(measured)).chain([kind.size]);
        all.into_iter().all(|ms| ms > 0.0 && ms < ABSURD)
    }
}

impl Milliseconds {
    fn of(forecast: &Forecast) -> Self {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        let Forecast { dump, transfer, restore } = *forecast;
        Self { dump: ms(dump), transfer: ms(transfer), restore: ms(restore) }
    }
}

impl From<&Parts> for Milliseconds {
    fn from(parts: &Parts) -> Self {
        let Parts { hold, drain, freeze, block, dump, .. } = parts;
        let Parts { transfer, entries, restore, compare, commit, release, .. } = parts;
        Self {
            dump: hold + drain + freeze + block + dump,
            transfer: transfer + entries,
            restore: restore + compare + commit + release,
        }
    }
}

fn path(state: &Path) -> PathBuf {
    state.join(NAME)
}

/// Returns the median of the first [`LAST`] ratios.
fn median(ratios: impl Iterator<Item = f64>) -> Option<f64> {
    let mut ratios: Vec<f64> = ratios.take(LAST).collect();
    ratios.sort_by(f64::total_cmp);
    let middle = ratios.len() / 2;
    let upper = *ratios.get(middle)?;
    let lower = if ratios.len().is_multiple_of(2) { ratios[middle - 1] } else { upper };
    Some((lower * upper).sqrt().clamp(*FACTOR.start(), *FACTOR.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: HostId = HostId([1; 16]);
    const ELSEWHERE: HostId = HostId([2; 16]);
    const SMALL: Kind = Kind { size: 100.0, is_apart: false };

    fn reference() -> Forecast {
        let ms = Duration::from_millis;
        Forecast { dump: ms(50), transfer: ms(10), restore: ms(40) }
    }

    /// Notes a move that took `times` as long as on the reference machine.
    fn note(state: &Path, destination: HostId, kind: Kind, times: f64) {
        let parts = Parts {
            freeze: 10.0 * times,
            dump: 40.0 * times,
            transfer: 10.0 * times,
            restore: 30.0 * times,
            commit: 10.0 * times,
            ..Parts::default()
        };
        PastMoves::note(state, destination, kind, &reference(), &parts).unwrap();
    }

    fn near(factor: Option<f64>, expected: f64) -> bool {
        factor.is_some_and(|factor| (factor / expected - 1.0).abs() < 1e-6)
    }

    #[test]
    fn a_single_outlier_does_not_count() {
        let state = tempfile::tempdir().unwrap();
        for times in [0.5, 0.5, 9.0, 0.5, 0.5] {
            note(state.path(), HERE, SMALL, times);
        }
        let factors = PastMoves::read(state.path()).factors(HERE, SMALL);
        for factor in [factors.dump, factors.transfer, factors.restore] {
            assert!(near(factor, 0.5), "{factors:?}");
        }
    }

    #[test]
    fn only_comparable_moves_count_and_the_link_is_that_of_the_destination() {
        let state = tempfile::tempdir().unwrap();
        note(state.path(), ELSEWHERE, SMALL, 2.0);
        let past = PastMoves::read(state.path());
        let factors = past.factors(HERE, SMALL);
        assert!(near(factors.dump, 2.0), "{factors:?}");
        assert_eq!((factors.transfer, factors.restore), (None, None));
        let large = Kind { size: 2000.0, is_apart: false };
        let apart = Kind { size: 100.0, is_apart: true };
        for kind in [large, apart] {
            assert_eq!(past.factors(ELSEWHERE, kind), Factors::default());
        }
        note(state.path(), HERE, SMALL, 0.25);
        let factors = PastMoves::read(state.path()).factors(HERE, SMALL);
        assert!(near(factors.restore, 0.25) && near(factors.transfer, 0.25), "{factors:?}");
    }

    #[test]
    fn a_file_that_is_damaged_means_that_there_were_no_moves() {
        let state = tempfile::tempdir().unwrap();
        let of = || PastMoves::read(state.path());
        assert_eq!(of(), PastMoves::default());
        let later = br#"{"version": 99, "note": {"moves": []}}"#;
        let wrong = br#"{"version": 1, "note": {"moves": [{"destination": 7}]}}"#;
        for text in [&b""[..], b"{", b"\xff\x00", wrong, later] {
            state::private_file::replace(&path(state.path()), text).unwrap();
            assert_eq!(of(), PastMoves::default(), "{text:?}");
        }
        let parts = Parts { dump: 1.0, transfer: 1.0, restore: 1.0, ..Parts::default() };
        let noted = PastMoves::note(state.path(), HERE, SMALL, &reference(), &parts);
        assert!(matches!(noted, Err(Error::Later { .. })), "it is a later version's: {noted:?}");
        state::private_file::replace(&path(state.path()), b"{").unwrap();
        note(state.path(), HERE, SMALL, 1.0);
        assert!(near(of().factors(HERE, SMALL).dump, 1.0), "a damaged one is replaced");
    }

    #[test]
    fn figures_that_cannot_be_are_left_out() {
        let state = tempfile::tempdir().unwrap();
        note(state.path(), HERE, SMALL, 0.0);
        note(state.path(), HERE, SMALL, f64::NAN);
        note(state.path(), HERE, SMALL, 1e9);
        assert_eq!(PastMoves::read(state.path()), PastMoves::default());
        note(state.path(), HERE, SMALL, 1e5);
        let factors = PastMoves::read(state.path()).factors(HERE, SMALL);
        assert!(near(factors.dump, *FACTOR.end()), "{factors:?}");
    }

    #[test]
    fn the_file_is_bounded_and_keeps_the_last_moves() {
        let state = tempfile::tempdir().unwrap();
        for number in 0..100_u8 {
            note(state.path(), HostId([number / 4; 16]), SMALL, 1.0);
        }
        for _ in 0..20 {
            note(state.path(), HERE, SMALL, 2.0);
        }
        let past = PastMoves::read(state.path());
        let of_one = past.moves.iter().filter(|one| one.destination == HERE).count();
        assert_eq!((past.moves.len(), of_one), (MOST, MOST_OF_ONE));
        assert!(near(past.factors(HERE, SMALL).restore, 2.0));
    }
}
