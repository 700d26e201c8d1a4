//! The product's decisions, with one of them replaced where a fault is put back.

use ownership::anchor::Leading;
use ownership::container::Work;
use ownership::destination::{self, Found, Holding, Order, Reply, Server};
use ownership::source::{self, Answer, Departure, Next, Occupant, Removal};
use ownership::{anchor, container};

use crate::state::{Host, Key};

/// A fault that the product had, or could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Work on a container begins whatever else is at work on it.
    NoExclusion,
    /// An anchor leads flows for anybody.
    AnchorObeysAnybody,
    /// An anchor refuses to confirm an order whose answer was lost.
    RepetitionRefused,
    /// An anchor changes the key of a tunnel for anybody.
    AnchorChangesKeys,
    /// Orders are taken from anybody who knows the migration.
    OrdersFromAnybody,
    /// The word that no flow passes the source is taken from anybody once the migration is forgotten.
    LedPastFromAnybody,
    /// A copy that was heard and lost is denied.
    LossDenied,
    /// A copy that could not be removed is denied.
    FailedRemovalDenied,
    /// A copy runs as soon as it is restored.
    RunsBeforeCommit,
    /// The journal of a rollback that failed ends.
    FailedRollbackEnds,
    /// Whatever has the container's ID is removed as the original.
    RemovesByName,
    /// Old arrivals are forgotten, whoever may ask.
    MemoryCut,
    /// A stopped original is started although its journal has not ended.
    OriginalStarted,
    /// What is left of a copy is started although its journal has not ended.
    CopyStarted,
    /// A source that hears nothing goes back.
    SilenceTakenForNo,
    /// Recovery takes the decision for the hand-over.
    DecisionTakenForHandOver,
    /// An engine that does not answer is taken for one that has nothing.
    UnclearTakenForGone,
    /// The hand-over is taken for the arrival of all memory.
    HandOverTakenForMemory,
    /// A copy that was ended for want of memory is denied, so that its source goes back.
    MissingPagesDenied,
    /// The end of the server of pages is taken for its work.
    ServersEndTakenForWhole,
    /// The shim of a copy learns that the copy is to stay after the copy was heard.
    ToldToStayLate,
}

/// The product's functions.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub faults: &'static [Fault],
}

impl Rules {
    fn has(self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    pub fn may_begin(self, works: &[Work]) -> bool {
        self.has(Fault::NoExclusion) || container::may_begin(works)
    }

    pub fn may_start(self, works: &[Work]) -> bool {
        let all_departures = works.iter().all(|work| matches!(work, Work::Departing(_)));
        self.has(Fault::OriginalStarted) && all_departures
            || self.has(Fault::CopyStarted) && works.contains(&Work::Arriving)
            || container::may_start(works)
    }

    pub fn may_lead(self, leads_to_peer: bool) -> bool {
        self.has(Fault::AnchorObeysAnybody) || anchor::may_lead(leads_to_peer)
    }

    pub fn leading(self, leads_to_peer: bool, leads_to_new: bool) -> Leading {
        if self.has(Fault::RepetitionRefused) {
            return if leads_to_peer { Leading::Lead } else { Leading::Refuse };
        }
        anchor::leading(leads_to_peer || self.has(Fault::AnchorObeysAnybody), leads_to_new)
    }

    pub fn may_set_key(self, present: Option<Key>, passed_on: Key) -> bool {
        self.has(Fault::AnchorChangesKeys) || anchor::may_set_key(present, passed_on)
    }

    pub fn reply(self, holding: Holding, owner: Option<Host>, from: Host, order: Order) -> Reply {
        if self.has(Fault::LossDenied) && holding == Holding::Lost {
            return destination::reply(Holding::Nothing, None, from, order);
        }
        if self.has(Fault::LedPastFromAnybody)
            && holding == Holding::Nothing
            && order == Order::LedPast
        {
            return Reply::Release;
        }
        let owner = if self.has(Fault::OrdersFromAnybody) { Some(from) } else { owner };
        destination::reply(holding, owner, from, order)
    }

    pub fn after_removal(self, removed: bool) -> Holding {
        destination::after_removal(removed || self.has(Fault::FailedRemovalDenied))
    }

    pub fn may_run(self, holding: Holding) -> bool {
        self.has(Fault::RunsBeforeCommit) || destination::may_run(holding)
    }

    /// Returns whether the shim is told that the copy is to stay before the copy runs.
    pub fn tells_to_stay_first(self) -> bool {
        !self.has(Fault::ToldToStayLate)
    }

    pub fn may_forget(self, source_is_done: bool) -> bool {
        self.has(Fault::MemoryCut) || destination::may_forget(source_is_done)
    }

    pub fn arrival_recovery(self, activated: bool, found: Found) -> destination::Recovery {
        let unclear = self.has(Fault::UnclearTakenForGone) && found == Found::Unclear;
        destination::recovery(activated, if unclear { Found::Gone } else { found })
    }

    pub fn after_order(self, answer: Answer) -> Next {
        if self.has(Fault::SilenceTakenForNo) && answer == Answer::Silence {
            return Next::GoBack;
        }
        source::after_order(answer)
    }

    pub fn departure_recovery(self, reached: Departure) -> source::Recovery {
        if self.has(Fault::DecisionTakenForHandOver) && reached == Departure::Committed {
            return source::Recovery::RemoveOriginal;
        }
        source::recovery(reached)
    }

    pub fn handed_over(self, post_copy: bool) -> Departure {
        source::handed_over(post_copy && !self.has(Fault::HandOverTakenForMemory))
    }

    pub fn after_pages(self, answer: Answer) -> Next {
        match source::after_pages(answer) {
            Next::AskPerson if self.has(Fault::MissingPagesDenied) => Next::GoBack,
            next => next,
        }
    }

    pub fn settle_pages(self, found: Server) -> Holding {
        let ended = self.has(Fault::ServersEndTakenForWhole) && found == Server::Gone;
        destination::settle_pages(if ended { Server::Whole } else { found })
    }

    pub fn may_end(self, undone: bool) -> bool {
        self.has(Fault::FailedRollbackEnds) || source::may_end(undone)
    }

    pub fn removal(self, occupant: Occupant) -> Removal {
        match source::removal(occupant) {
            Removal::Keep if self.has(Fault::RemovesByName) => Removal::Remove,
            removal => removal,
        }
    }
}
