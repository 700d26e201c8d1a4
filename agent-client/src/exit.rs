//! Exit codes, and the one place where errors become them.

use std::process::ExitCode;

use migration::recovery::source as recovery;
use migration::{Failure, Outcome};

/// How a run of `agent-client` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The container runs at the destination; nothing is left behind here.
    Moved = 0,
    /// Something outside of any migration failed, such as reading the state directory.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The migration was refused before anything changed.
    Refused = 3,
    /// A step failed or was cancelled; the container runs on this host as before.
    RolledBack = 4,
    /// The decision to move is made, but the destination has not acknowledged it, or pages of memory are outstanding. The
    /// original is kept frozen.
    InDoubt = 5,
    /// The container runs at the destination, but something could not be cleaned up here.
    MovedWithLeftovers = 6,
    /// The container runs at the destination, but something that is named did not survive the move.
    MovedWithLosses = 7,
    /// The move was given up, and the container could not be set going again on this host yet.
    Stuck = 8,
    /// The container runs at the destination, and of something that is named it is not known whether it has survived the move.
    MovedUnverified = 9,
}

impl Exit {
    /// Returns the word for it in JSON output.
    #[must_use]
    pub fn outcome(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::Refused => "refused",
            Self::RolledBack => "rolled-back",
            Self::InDoubt => "in-doubt",
            Self::MovedWithLeftovers => "moved-with-leftovers",
            Self::MovedWithLosses => "moved-with-losses",
            Self::Stuck => "stuck",
            Self::MovedUnverified => "moved-unverified",
        }
    }
}

impl From<Outcome> for Exit {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Moved => Self::Moved,
            Outcome::MovedWithLeftovers => Self::MovedWithLeftovers,
            Outcome::MovedWithLosses => Self::MovedWithLosses,
            Outcome::MovedUnverified => Self::MovedUnverified,
        }
    }
}

impl From<&Failure> for Exit {
    fn from(failure: &Failure) -> Self {
        match failure {
            Failure::Setup(_) => Self::Failed,
            Failure::Refused(_) | Failure::Blocked { .. } => Self::Refused,
            Failure::RolledBack { .. } => Self::RolledBack,
            Failure::Stuck { .. } => Self::Stuck,
            Failure::InDoubt { .. } | Failure::PagesOutstanding { .. } => Self::InDoubt,
        }
    }
}

impl From<recovery::Outcome> for Exit {
    fn from(outcome: recovery::Outcome) -> Self {
        match outcome {
            recovery::Outcome::Clean => Self::Moved,
            recovery::Outcome::Incomplete => Self::Failed,
            recovery::Outcome::SecondCopy => Self::MovedWithLeftovers,
            recovery::Outcome::Busy => Self::Refused,
            recovery::Outcome::InDoubt => Self::InDoubt,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
