//! Errors of the testbed. Each names the object that it is about.

use std::io;
use std::time::Duration;

/// A result with the testbed's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the testbed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation on a file, process or kernel object failed.
    #[error("{action}")]
    Io {
        /// What was attempted, with the object's name.
        action: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A program ended unsuccessfully.
    #[error("{program} failed ({status}){}", quoted(.stderr))]
    Program {
        /// The command line.
        program: String,
        /// How it ended.
        status: String,
        /// The end of what it wrote to its standard error.
        stderr: String,
    },
    /// A program did not end in time and was killed.
    #[error("{program} did not end within {} s and was killed{}", .limit.as_secs_f64(), quoted(.stderr))]
    Deadline {
        /// The command line.
        program: String,
        /// The time limit.
        limit: Duration,
        /// The end of what it wrote to its standard error.
        stderr: String,
    },
    /// Output that should be JSON of a known shape is not.
    #[error("unexpected output of {program}: {output}")]
    Json {
        /// The command line.
        program: String,
        /// The beginning of the output.
        output: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A test's condition does not hold.
    #[error("{0}")]
    Check(String),
    /// A test cannot be run here, and why.
    #[error("{0}")]
    Skip(String),
    /// Any other refusal, with the remedy.
    #[error("{0}")]
    Refused(String),
}

fn quoted(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}

/// Ends a test with an error unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::Error::Check(format!($($message)+)));
        }
    };
}

/// Adds the name of what was attempted to an error of the operating system.
pub trait Context<T> {
    /// Names the attempt; called on failure only.
    ///
    /// # Errors
    /// The same failure, with its context.
    fn context<S: Into<String>>(self, action: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context<S: Into<String>>(self, action: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| Error::Io { action: action().into(), source: error.into() })
    }
}

/// Returns an error and its sources on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
