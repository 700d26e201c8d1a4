//! Decisions of the destination: what a copy may do, and what its source is told.

/// What a destination knows of one migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holding {
    /// No copy, no journal, and no memory of one.
    Nothing,
    /// A journal without a decision: a copy is made or removed at this moment, or nobody could tell.
    Unsettled,
    /// A prepared copy, frozen and cut off, that waits for its source's decision.
    Waiting,
    /// The copy has been activated: it is the container.
    Activated,
    /// The engine runs the container, whose memory has not arrived whole: its source has the rest.
    Outstanding,
    /// The engine runs the container.
    HandedOver,
    /// The copy was activated, and is gone.
    Lost,
}

/// What a peer wants done about a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Order {
    /// Pick it up over a new connection.
    Resume,
    /// Make the copy the container.
    Commit,
    /// Remove the copy.
    Abort,
    /// No flow passes the source any more.
    LedPast,
    /// The source needs no answer about this migration any more: its journal says where the container is.
    Done,
    /// Take the pages of memory that are missing.
    Serve,
}

/// What the destination does about an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// Says that it knows the migration.
    Known,
    /// Activates the copy, then says so.
    Activate,
    /// Says again that the copy was activated.
    Confirm,
    /// Removes the copy, then says so.
    Remove,
    /// Says that it has removed everything.
    Removed,
    /// Gives up the tunnel to the source unless something else needs it.
    Release,
    /// Forgets the migration.
    Forget,
    /// Asks for pages of memory, and says when it lacks none.
    Fetch,
    /// Says that it lacks no page.
    Whole,
    /// Says that it holds no copy and that none was heard.
    NoCopy,
    /// Says that the copy was heard and is lost.
    Lost,
    /// Says that it cannot tell now.
    Undecided,
    /// Says that the peer has no say in this migration.
    NotAllowed,
}

/// Decides what an order does. `owner` is the source from which the migration came, as the journal or the
/// waiting copy tells; `from` is the peer that gives the order.
#[must_use]
pub fn reply<H: Eq>(holding: Holding, owner: Option<H>, from: H, order: Order) -> Reply {
    if holding != Holding::Nothing && owner != Some(from) {
        return Reply::NotAllowed;
    }
    match (holding, order) {
        // Nobody is known who might say this, so nothing may follow from it.
        (Holding::Nothing, Order::LedPast | Order::Abort | Order::Done) => Reply::Removed,
        (Holding::Nothing, Order::Resume | Order::Commit | Order::Serve) => Reply::NoCopy,
        (Holding::HandedOver | Holding::Lost, Order::Done) => Reply::Forget,
        (Holding::Lost, _) => Reply::Lost,
        (_, Order::Resume) => Reply::Known,
        (Holding::HandedOver, Order::Serve) => Reply::Whole,
        (_, Order::Serve) => Reply::Fetch,
        // While pages are missing the source is needed, whatever it says.
        (
            Holding::Unsettled | Holding::Waiting | Holding::Activated | Holding::Outstanding,
            Order::Done,
        ) => Reply::Undecided,
        (Holding::Activated | Holding::Outstanding | Holding::HandedOver, Order::LedPast) => {
            Reply::Release
        }
        (Holding::Unsettled | Holding::Waiting, Order::LedPast) => Reply::Undecided,
        (Holding::Unsettled, Order::Commit | Order::Abort) => Reply::Undecided,
        (Holding::Waiting, Order::Commit) => Reply::Activate,
        (Holding::Waiting, Order::Abort) => Reply::Remove,
        (Holding::Activated | Holding::Outstanding | Holding::HandedOver, Order::Commit) => {
            Reply::Confirm
        }
        (Holding::Activated | Holding::Outstanding | Holding::HandedOver, Order::Abort) => {
            Reply::Undecided
        }
    }
}

/// Returns what a destination knows after it has tried to remove a copy that nobody has heard.
#[must_use]
pub fn after_removal(removed: bool) -> Holding {
    if removed { Holding::Nothing } else { Holding::Unsettled }
}

/// Decides what a destination remembers of an arrival that its engine has taken over. `post_copy`: memory goes over after the
/// decision; `is_whole`: all of it has arrived, or the container has ended by itself; `is_lost`: it was ended for want of it.
#[must_use]
pub fn remembered(post_copy: bool, is_whole: bool, is_lost: bool) -> Holding {
    match (is_lost, post_copy && !is_whole) {
        (true, _) => Holding::Lost,
        (false, true) => Holding::Outstanding,
        (false, false) => Holding::HandedOver,
    }
}

/// What a destination finds of an arrival whose memory has not arrived whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Server {
    /// The server of pages is at work, and the container waits for pages.
    Working,
    /// The server of pages says that none is missing, or that the container has ended by itself.
    Whole,
    /// There is none: the container was ended when it was, or by the end of the host.
    Gone,
}

/// Decides what a destination remembers of an arrival whose memory has not arrived whole, once it has looked.
#[must_use]
pub fn settle_pages(found: Server) -> Holding {
    match found {
        Server::Working => Holding::Outstanding,
        Server::Whole => Holding::HandedOver,
        Server::Gone => Holding::Lost,
    }
}

/// Returns whether the processes of a copy may run: from its activation on, never before.
#[must_use]
pub fn may_run(holding: Holding) -> bool {
    matches!(holding, Holding::Activated | Holding::Outstanding | Holding::HandedOver)
}

/// Returns whether the memory of a migration may be forgotten. A source in doubt may ask after any time, so
/// only one that has said that it needs no answer any more is forgotten.
#[must_use]
pub fn may_forget(source_is_done: bool) -> bool {
    source_is_done
}

/// What became of the copy of an arrival whose process has died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Found {
    /// Its shim waits to be told.
    Staged,
    /// The engine runs it.
    Engine,
    /// It does not run, and nothing waits.
    Gone,
    /// The engine does not say.
    Unclear,
}

/// What recovery does with an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Recovery {
    /// Removes the copy and everything made for it.
    Remove,
    /// Takes the copy over from its shim, activates it and hands it to the engine.
    TakeOver,
    /// Notes that the engine runs the container.
    HandOver,
    /// Removes what is left and remembers that the copy was lost.
    NoteLoss,
    /// Tries again later.
    Wait,
}

/// Decides what recovery does with an arrival. `activated`: the journal says so.
#[must_use]
pub fn recovery(activated: bool, found: Found) -> Recovery {
    match (activated, found) {
        (false, _) => Recovery::Remove,
        (true, Found::Staged) => Recovery::TakeOver,
        (true, Found::Engine) => Recovery::HandOver,
        (true, Found::Gone) => Recovery::NoteLoss,
        (true, Found::Unclear) => Recovery::Wait,
    }
}
