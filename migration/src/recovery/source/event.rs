//! What a recovery tells of itself.

use std::fmt;

use engine::Kind;
use state::peer_address::Destination;

/// Something that a recovery has found or done.
#[derive(Clone, Debug)]
pub enum Event {
    /// No journal is that of a migration whose process has died.
    NothingToRecover,
    /// A journal is taken over.
    BrokenOff {
        /// The container's name.
        name: String,
        /// Where it was to go.
        destination: Destination,
    },
    /// The destination is asked whether it confirms the move.
    Asking {
        /// The container's name.
        name: String,
        /// Where it was to go.
        destination: Destination,
    },
    /// The destination does not confirm it.
    NotConfirmed {
        /// Where it was to go.
        destination: Destination,
        /// Why not.
        reason: String,
    },
    /// Something is as it was before the migration.
    Undone(&'static str),
    /// The destination runs the container.
    DestinationRuns,
    /// The destination is sent the pages of memory that it lacks.
    SendingPages {
        /// The container's name.
        name: String,
        /// Where it runs.
        destination: Destination,
    },
    /// The destination lacks pages of memory, and is not reached.
    NotReached {
        /// Where the container runs.
        destination: Destination,
        /// Why not.
        reason: String,
    },
    /// It is reached again.
    ReachedAgain {
        /// Where the container runs.
        destination: Destination,
    },
    /// The destination lacks no page of memory any more.
    PagesSent {
        /// Bytes that were sent.
        bytes: u64,
        /// All have arrived. Otherwise the container has ended before.
        is_whole: bool,
    },
    /// The destination lacks pages of memory, and the original that had them is gone.
    MemoryGone {
        /// The container's name.
        name: String,
        /// Where it runs.
        destination: Destination,
    },
    /// Another process sends the destination the pages of memory that it lacks.
    SendsPages {
        /// The container's name.
        name: String,
        /// Where it runs.
        destination: Destination,
    },
    /// The destination holds no copy.
    DestinationHoldsNone,
    /// The destination has no copy any more.
    CopyRemoved,
    /// The destination cannot be reached, and will remove its copy by itself.
    CopyExpires {
        /// Why it cannot be reached.
        reason: String,
    },
    /// The container has moved back here since, and stays.
    CameHome {
        /// The container's name.
        name: String,
    },
    /// A container was started here after the decision, so it is not the original, and stays.
    LaterContainer {
        /// The container's name.
        name: String,
        /// Where the original went; it does not run there any more.
        destination: Destination,
    },
    /// The copy is lost, and the original, whose move was in doubt, was removed.
    BothGone {
        /// The container's name.
        name: String,
    },
    /// The original, whose move is in doubt, was unpaused, or another container was started in its place.
    SecondCopy {
        /// The container's name.
        name: String,
        /// Where the original was to go.
        destination: Destination,
    },
    /// The engine could not be kept from starting the original.
    StillArmed {
        /// The container's name.
        name: String,
        /// Its engine.
        engine: Kind,
        /// Why.
        reason: String,
    },
    /// The original runs on this host.
    RunsHere {
        /// The container's name.
        name: String,
        /// A person has ordered it.
        again: bool,
    },
    /// The original has ended.
    Ended {
        /// The container's name.
        name: String,
    },
    /// The container runs at the destination.
    RunsThere {
        /// The container's name.
        name: String,
        /// Where.
        destination: Destination,
    },
    /// Another process waits for the destination's confirmation.
    InDoubtElsewhere {
        /// The container's name.
        name: String,
        /// Where it was to go.
        destination: Destination,
    },
    /// Another process is at work on the migration.
    Busy {
        /// The container's name.
        name: String,
        /// Where it was to go.
        destination: Destination,
    },
    /// A recovery could not be ended.
    Failed {
        /// The container's name, where it is known.
        name: Option<String>,
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingToRecover => f.write_str("nothing to recover"),
            Self::BrokenOff { name, destination } => {
                write!(f, "{name}: its migration to {destination} was broken off")
            }
            Self::Asking { name, destination } => {
                write!(f, "{name}: asking {destination} once more")
            }
            Self::NotConfirmed { destination, reason } => {
                write!(f, "  {destination} does not confirm the move: {reason}")
            }
            Self::Undone(what) => write!(f, "  {what}"),
            Self::DestinationRuns => f.write_str("  the destination runs the container"),
            Self::SendingPages { name, destination } => write!(
                f,
                "{name}: pages outstanding: {destination} is sent the memory that it lacks"
            ),
            Self::NotReached { destination, reason } => write!(
                f,
                "  pages of memory are outstanding, and {destination} is not reached; trying again ({reason})"
            ),
            Self::ReachedAgain { destination } => write!(f, "  {destination} is reached again"),
            Self::PagesSent { bytes, is_whole: true } => {
                write!(f, "  all memory has arrived ({} KiB were sent)", bytes >> 10)
            }
            Self::PagesSent { is_whole: false, .. } => {
                f.write_str("  the container has ended there before all memory had arrived")
            }
            Self::MemoryGone { name, destination } => write!(
                f,
                "{name}: {destination} lacks a part of its memory, which only the original had, and that does not stand still \
                 here any more; the copy is ended there"
            ),
            Self::SendsPages { name, destination } => write!(
                f,
                "{name}: pages outstanding: it runs on {destination}, and another process sends the memory that is lacking there"
            ),
            Self::DestinationHoldsNone => {
                f.write_str("  the destination holds no copy; going back")
            }
            Self::CopyRemoved => f.write_str("  the destination has no copy any more"),
            Self::CopyExpires { reason } => {
                write!(f, "  the destination will remove its part by itself ({reason})")
            }
            Self::CameHome { name } => write!(f, "  {name} has come back since; it stays"),
            Self::LaterContainer { name, destination } => write!(
                f,
                "  {name} was started here after that move, and {destination} does not run it any more; it stays"
            ),
            Self::BothGone { name } => write!(
                f,
                "{name}: its copy is gone, and so is its original: there is nothing to decide any more"
            ),
            Self::SecondCopy { name, destination } => write!(
                f,
                "{name} runs here although its move to {destination} is decided: somebody has unpaused it or started it \
                 again. There are two of it if {destination} runs it as well: look there, and stop one"
            ),
            Self::StillArmed { name, engine, reason } => write!(
                f,
                "  do not start {name} here; {engine} could not be kept from doing so ({reason})"
            ),
            Self::RunsHere { name, again: false } => {
                write!(f, "{name}: runs on this host as before")
            }
            Self::RunsHere { name, again: true } => write!(f, "{name}: runs on this host again"),
            Self::Ended { name } => write!(
                f,
                "{name}: does not run any more as it did then; nothing is left of that migration"
            ),
            Self::RunsThere { name, destination } => write!(f, "{name}: runs on {destination}"),
            Self::InDoubtElsewhere { name, destination } => write!(
                f,
                "{name}: in doubt: the move to {destination} is decided, and another process waits for the \
                 confirmation"
            ),
            Self::Busy { name, destination } => write!(
                f,
                "{name}: another process is at work on its migration to {destination} (busy)"
            ),
            Self::Failed { name: Some(name), reason } => write!(f, "{name}: {reason}"),
            Self::Failed { name: None, reason } => f.write_str(reason),
        }
    }
}
