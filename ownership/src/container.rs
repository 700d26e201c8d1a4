//! One owner for each container of a host.

/// What is at work on a container of this host, or was left there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// Another process has the container's lock.
    Locked,
    /// A departure has come so far.
    Departing(crate::source::Departure),
    /// An arrival whose copy is not the container yet.
    Arriving,
    /// An arrival whose copy is the container, and which the engine has yet to take over.
    Activated,
    /// An arrival whose container runs here, and pages of whose memory are still at its source.
    Outstanding,
    /// A journal that nobody can read might be one of this container.
    Unreadable,
}

/// Returns whether new work may begin on a container: only when nothing else is at work, and no journal
/// speaks of it. The caller holds the container's lock from before the question to the end of its work.
#[must_use]
pub fn may_begin(works: &[Work]) -> bool {
    works.is_empty()
}

/// Returns whether a stopped container of this host may be started by its restart policy, a service manager
/// or a person: not while a journal speaks of it. The original of a decided move would be a second container
/// beside the copy, and a copy whose removal has failed one beside the original.
#[must_use]
pub fn may_start(works: &[Work]) -> bool {
    works.is_empty()
}
