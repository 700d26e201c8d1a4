//! Decisions of the source: when its original may run again, and when it is removed.

/// How far a departure has come, by the last record in its journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Departure {
    /// The container was never interrupted.
    Preparing,
    /// The container may be held, frozen and cut off.
    Interrupted,
    /// The commit record is on disk.
    Committed,
    /// The destination's engine runs the container, whose memory has not arrived whole: the frozen original has
    /// the rest of it.
    Outstanding,
    /// The destination's engine runs the container with all of its memory.
    Acknowledged,
    /// A person has ordered that the original run again.
    Withdrawn,
}

/// What the source knows after it has given the destination an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answer {
    /// The destination has done as it was told.
    Done,
    /// The destination holds no copy, and none of this migration was ever heard there.
    NoCopy,
    /// The destination's copy was heard and has been lost since.
    Lost,
    /// The destination cannot tell now, or refuses for another reason.
    Undecided,
    /// Nothing was heard, or another host answers at that address.
    Silence,
}

/// What the source does after an answer to an order that follows the commit record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Next {
    /// Goes on with the next step.
    Proceed,
    /// Lets the original run again.
    GoBack,
    /// Asks again; when its time is over, the move is in doubt.
    AskAgain,
    /// Keeps the original as it is until a person decides.
    AskPerson,
}

/// Decides what follows an answer to an order that was given after the commit record.
///
/// Only the destination's own word that nobody ever heard its copy lets the original run again. A copy
/// that was heard has acknowledged data which the original does not know.
#[must_use]
pub fn after_order(answer: Answer) -> Next {
    match answer {
        Answer::Done => Next::Proceed,
        Answer::NoCopy => Next::GoBack,
        Answer::Lost => Next::AskPerson,
        Answer::Undecided | Answer::Silence => Next::AskAgain,
    }
}

/// What recovery does with a departure whose process has died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Recovery {
    /// Undoes the migration; the original runs on.
    Undo,
    /// Repeats the decision to the destination, and does what [`after_order`] says of its answer.
    Repeat,
    /// Sends the destination the pages of memory that it lacks, until it says that it has all.
    ServePages,
    /// Removes the original.
    RemoveOriginal,
}

/// Decides what recovery does with a departure.
#[must_use]
pub fn recovery(reached: Departure) -> Recovery {
    match reached {
        Departure::Preparing | Departure::Interrupted | Departure::Withdrawn => Recovery::Undo,
        Departure::Committed => Recovery::Repeat,
        Departure::Outstanding => Recovery::ServePages,
        Departure::Acknowledged => Recovery::RemoveOriginal,
    }
}

/// Decides how far a departure has come once the destination's engine runs the container. `post_copy`: memory goes over after
/// the decision, so the original is the only one that has the rest of it.
#[must_use]
pub fn handed_over(post_copy: bool) -> Departure {
    if post_copy { Departure::Outstanding } else { Departure::Acknowledged }
}

/// Decides what follows an answer of the destination to a source that offers it the pages it lacks.
///
/// The original is never thawed from here: its copy was heard. A destination without a copy has lost it.
#[must_use]
pub fn after_pages(answer: Answer) -> Next {
    match answer {
        Answer::Done => Next::Proceed,
        Answer::NoCopy | Answer::Lost => Next::AskPerson,
        Answer::Undecided | Answer::Silence => Next::AskAgain,
    }
}

/// Returns whether a person may order that the original run again.
#[must_use]
pub fn may_withdraw(reached: Departure) -> bool {
    matches!(reached, Departure::Committed | Departure::Outstanding)
}

/// Returns whether a departure may be given up, so that its journal ends.
///
/// A container that could not be set going again stays in the journal, or nobody would find it.
#[must_use]
pub fn may_end(undone: bool) -> bool {
    undone
}

/// What has the container's ID on the source when its original is to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Occupant {
    /// The processes that were interrupted.
    Original,
    /// A container that has stopped, and was not started since the decision: a reboot ends the original.
    Stopped,
    /// A container that was started after the decision: it has come home, or somebody started it.
    Later,
    /// Nothing.
    Nothing,
}

/// What is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Removal {
    /// The engine removes it.
    Remove,
    /// It is not the original and stays.
    Keep,
    /// There is nothing to remove.
    Done,
}

/// Decides whether what has the container's ID may be removed as the original.
#[must_use]
pub fn removal(occupant: Occupant) -> Removal {
    match occupant {
        Occupant::Original | Occupant::Stopped => Removal::Remove,
        Occupant::Later => Removal::Keep,
        Occupant::Nothing => Removal::Done,
    }
}
