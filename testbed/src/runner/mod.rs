//! The test runner: unit tests by cargo, then lab tests. Lab tests run in parallel. Those that measure something, or need all
//! of the processors, run first and alone.

mod lanes;
mod test_context;
mod unit;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

pub use test_context::Context;

use crate::error::{Error, Result, chain};
use crate::{lab, slowdown};

/// The area word of the unit tests.
const UNIT: &str = "unit";
/// The time limit for a test to end after its labs have been removed.
const AFTERMATH: Duration = Duration::from_secs(10);

/// A test that needs a lab.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The name, in the form `what-is-seen`.
    pub name: &'static str,
    /// The words that select it.
    pub areas: &'static [&'static str],
    /// The time limit.
    pub limit: Duration,
    /// Whether it runs alone.
    pub exclusive: bool,
    /// The test.
    pub run: fn(&Context) -> Result<()>,
}

impl Case {
    /// Defines a test with a limit of three minutes that runs in parallel to others.
    pub const fn new(
        name: &'static str,
        areas: &'static [&'static str],
        run: fn(&Context) -> Result<()>,
    ) -> Self {
        Self { name, areas, limit: Duration::from_secs(180), exclusive: false, run }
    }

    /// Sets the time limit.
    #[must_use]
    pub const fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// Has the test run alone, since it depends on what a busy machine loses.
    #[must_use]
    pub const fn exclusive(mut self) -> Self {
        self.exclusive = true;
        self
    }

    /// Returns whether one of the words is an area of the test or a part of its name.
    fn is_selected(&self, words: &[String]) -> bool {
        words.is_empty()
            || words
                .iter()
                .any(|word| self.areas.contains(&word.as_str()) || self.name.contains(word))
    }
}

/// The numbers of tests by their results.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Passed.
    pub passed: u64,
    /// Failed.
    pub failed: u64,
    /// Skipped.
    pub skipped: u64,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Runs the tests that the words select (all without words). Prints a line for each and the count at the end. Returns
/// whether none failed. Leaves out the unit tests unless `with_unit`.
///
/// # Errors
/// No test is selected, or the inputs of labs could not be built.
pub fn run(cases: &[Case], words: &[String], with_unit: bool) -> Result<bool> {
    let with_unit = with_unit && (words.is_empty() || words.iter().any(|word| word == UNIT));
    let selected: Vec<&Case> = cases.iter().filter(|case| case.is_selected(words)).collect();
    if selected.is_empty() && !with_unit {
        return Err(Error::Refused(format!(
            "no test is called {:?} or in such an area; the areas are: {}",
            words.join(" "),
            areas(cases).join(", ")
        )));
    }
    let mut count = Count::default();
    let started = Instant::now();
    if with_unit {
        // Fetches packages while the compiler works. An error here occurs again below and is reported there.
        let early = (!selected.is_empty()).then(|| std::thread::spawn(crate::prepare::foundation));
        count.add(unit::run());
        let _ = early.map(std::thread::JoinHandle::join);
    }
    if !selected.is_empty() {
        crate::prepare::for_labs()?;
        lab::sweep()?;
    }
    count.add(lanes::run(&selected));
    println!("{} s", started.elapsed().as_secs());
    println!("{} passed, {} failed, {} skipped", count.passed, count.failed, count.skipped);
    Ok(count.failed == 0)
}

/// Returns the area words of the cases, in order.
fn areas(cases: &[Case]) -> Vec<&'static str> {
    let mut all: Vec<&str> = cases.iter().flat_map(|case| case.areas).copied().collect();
    all.push(UNIT);
    all.sort_unstable();
    all.dedup();
    all
}

fn run_case(case: &Case) -> Count {
    let started = Instant::now();
    let context = Arc::new(Context::default());
    let outcome = run_with_limit(case, &context);
    let diagnosis = match &outcome {
        Ok(()) | Err(Error::Skip(_)) => String::new(),
        Err(_) => context.diagnosis(),
    };
    let cleared = context.clear();
    let outcome = match (outcome, cleared) {
        (Ok(()), Err(error)) => Err(error),
        (outcome, _) => outcome,
    };
    let seconds = started.elapsed().as_secs_f64();
    let name = case.name;
    match outcome {
        Ok(()) => {
            println!("ok       {name} ({seconds:.1} s){}", context.remarks());
            Count { passed: 1, ..Count::default() }
        }
        Err(Error::Skip(why)) => {
            println!("SKIPPED  {name}: {why}");
            Count { skipped: 1, ..Count::default() }
        }
        Err(error) => {
            let mut text = format!("FAILED   {name} ({seconds:.1} s): {}", chain(&error));
            for line in diagnosis.lines() {
                text.push_str("\n         | ");
                text.push_str(line);
            }
            // In one call, since other tests print at the same time.
            println!("{text}");
            Count { failed: 1, ..Count::default() }
        }
    }
}

/// Runs a test in a thread. After the time limit it removes the test's labs, so that whatever the test waits for
/// fails.
fn run_with_limit(case: &Case, context: &Arc<Context>) -> Result<()> {
    let (sender, receiver) = channel();
    let test = case.run;
    let inner = Arc::clone(context);
    let thread = std::thread::Builder::new().name(case.name.to_owned()).spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| test(&inner)));
        drop(inner);
        let _ = sender.send(outcome.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))));
    });
    if let Err(source) = thread {
        return Err(Error::Io { action: "starting a test's thread".to_owned(), source });
    }
    match receiver.recv_timeout(slowdown::limit(case.limit)) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Disconnected) => Err(Error::Check("the test died".to_owned())),
        Err(RecvTimeoutError::Timeout) => {
            let seconds = slowdown::limit(case.limit).as_secs();
            let seen = context.diagnosis();
            let _ = context.clear();
            let _ = receiver.recv_timeout(AFTERMATH);
            Err(Error::Check(format!("not over after {seconds} s\n{seen}")))
        }
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    Error::Check(format!("panicked: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(all: &[&str]) -> Vec<String> {
        all.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn words_select_by_area_or_part_of_the_name() {
        let case = Case::new("bulk-up-survives", &["flows"], |_| Ok(()));
        assert!(case.is_selected(&[]));
        assert!(case.is_selected(&words(&["flows"])));
        assert!(case.is_selected(&words(&["trust", "bulk"])));
        assert!(!case.is_selected(&words(&["flow"])));
    }

    #[test]
    fn failures_skips_and_panics_are_counted_apart() {
        let fail = Case::new("f", &[], |_| Err(Error::Check("no".to_owned())));
        let skip = Case::new("s", &[], |_| Err(Error::Skip("no".to_owned())));
        let die = Case::new("p", &[], |_| panic!("no"));
        let pass = Case::new("o", &[], |_| Ok(()));
        let mut count = Count::default();
        for case in [fail, skip, die, pass] {
            count.add(run_case(&case));
        }
        assert_eq!(count, Count { passed: 1, failed: 2, skipped: 1 });
    }

    #[test]
    fn a_test_that_hangs_is_given_up() {
        let mut case = Case::new("h", &[], |_| {
            std::thread::sleep(Duration::from_millis(500));
            Ok(())
        });
        case.limit = Duration::from_millis(20);
        assert_eq!(run_case(&case).failed, 1);
    }
}
