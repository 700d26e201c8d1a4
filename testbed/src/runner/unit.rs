//! Runs the unit tests of the workspace by cargo and counts the results that libtest prints.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::Count;
use crate::error::{Result, chain};
use crate::programs;
use crate::subprocess::{self, Output};

/// The time limit for building and running them.
const LIMIT: Duration = Duration::from_secs(1800);

/// Runs the unit tests and prints what failed.
pub(super) fn run() -> Count {
    let started = Instant::now();
    eprintln!("building and running the unit tests");
    let count = match cargo_test() {
        Ok(output) => judge(&output),
        Err(error) => {
            println!("FAILED   unit tests: {}", chain(&error));
            Count { failed: 1, ..Count::default() }
        }
    };
    println!(
        "unit tests: {} passed, {} failed, {} skipped ({:.1} s)",
        count.passed,
        count.failed,
        count.skipped,
        started.elapsed().as_secs_f64()
    );
    count
}

fn cargo_test() -> Result<Output> {
    let mut cargo = programs::cargo();
    cargo.args(["test", "--workspace", "--no-fail-fast"]).stdin(Stdio::null());
    cargo.args(["--features", &format!("testbed/{}", programs::HOSTILE_PEER_FEATURE)]);
    // The ignored tests use the kernel, each in a network namespace of its own.
    if nix::unistd::geteuid().is_root() {
        cargo.args(["--", "--include-ignored"]);
    }
    subprocess::capture(&mut cargo, LIMIT, std::process::Command::spawn)
}

fn judge(output: &Output) -> Count {
    let text = output.text();
    let mut count = count(&text);
    if !output.status.success() {
        let uninteresting = |line: &&str| !line.ends_with("... ok");
        let failures: Vec<&str> = text.lines().filter(uninteresting).collect();
        println!("{}\n{}", failures.join("\n"), output.error_text());
        // A crate that does not compile and a test program that died print no result.
        count.failed = count.failed.max(1);
    }
    for line in text.lines().filter(|line| line.contains(" ... ignored")) {
        println!("SKIPPED  {line}");
    }
    count
}

/// Adds up lines such as `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn count(text: &str) -> Count {
    let mut total = Count::default();
    for line in text.lines().filter(|line| line.starts_with("test result: ")) {
        for part in line.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (number, what) =
                (words.next().and_then(|word| word.parse::<u64>().ok()), words.next());
            match (number, what) {
                (Some(number), Some("passed")) => total.passed += number,
                (Some(number), Some("failed")) => total.failed += number,
                (Some(number), Some("ignored")) => total.skipped += number,
                _ => {}
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_added_up() {
        let text = "running 3 tests\n\
            test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; \
            finished in 0.00s\n\
            test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; \
            finished in 1.25s\n";
        assert_eq!(count(text), Count { passed: 6, failed: 2, skipped: 1 });
    }
}
