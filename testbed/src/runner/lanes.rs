//! Schedules the lab tests.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::{Case, Count, run_case};
use crate::slowdown;

/// Runs the exclusive tests one after another, then the others in parallel.
pub(super) fn run(selected: &[&Case]) -> Count {
    let (alone, others): (Vec<&Case>, Vec<&Case>) =
        selected.iter().copied().partition(|case| case.exclusive);
    let mut count = Count::default();
    for case in alone {
        count.add(run_case(case));
    }
    count.add(side_by_side(others, lanes()));
    count
}

/// Returns the number of parallel tests: one for each processor and one more, since tests mostly wait. On a slow
/// machine they do not, and one runs at a time.
fn lanes() -> usize {
    if slowdown::is_slow() { 1 } else { thread::available_parallelism().map_or(1, usize::from) + 1 }
}

/// Runs the tests in `lanes` threads, those with the longest limit first.
fn side_by_side(mut cases: Vec<&Case>, lanes: usize) -> Count {
    cases.sort_by_key(|case| std::cmp::Reverse(case.limit));
    let next = AtomicUsize::new(0);
    let total = Mutex::new(Count::default());
    thread::scope(|scope| {
        for _ in 0..lanes.min(cases.len()) {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let count = run_case(case);
                    total.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).add(count);
                }
            });
        }
    });
    total.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::Error;

    #[test]
    fn every_test_runs_once_however_many_lanes_there_are() {
        let pass = Case::new("o", &[], |_| Ok(()));
        let fail = Case::new("f", &[], |_| Err(Error::Check("no".to_owned())));
        let slow = Case::new("s", &[], |_| {
            thread::sleep(Duration::from_millis(50));
            Ok(())
        });
        let all = [&pass, &fail, &slow, &pass, &pass];
        for lanes in [1, 3, 9] {
            assert_eq!(
                side_by_side(all.to_vec(), lanes),
                Count { passed: 4, failed: 1, skipped: 0 }
            );
        }
        assert_eq!(run(&all), Count { passed: 4, failed: 1, skipped: 0 });
    }
}
