//! Exit codes, and the one place where errors become them.

use std::process::ExitCode;

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
    /// The decision to move is made, but the destination has not acknowledged it. The original is
    /// kept frozen.
    InDoubt = 5,
    /// The container runs at the destination, but something could not be cleaned up here.
    MovedWithLeftovers = 6,
    /// The container runs at the destination, but something that is named did not survive the move.
    MovedWithLosses = 7,
    /// The move was given up, and the container could not be set going again on this host yet.
    Stuck = 8,
}

impl Exit {
    /// The word for it in JSON output.
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
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
