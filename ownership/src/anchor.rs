//! Decisions of an anchor: whose word leads flows and makes tunnels.

/// Returns whether a peer may have this host lead a container's flows elsewhere: only a host to which
/// flows or new connections of that container lead at this moment.
#[must_use]
pub fn may_lead(leads_to_peer: bool) -> bool {
    leads_to_peer
}

/// What an anchor does about the order to lead a container's flows to another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leading {
    /// Leads them there, then says so.
    Lead,
    /// Says so: they lead there since an earlier order whose answer was lost.
    Confirm,
    /// Refuses.
    Refuse,
}

/// Decides about an order to lead a container's flows to another host. `leads_to_peer`: they lead to the peer
/// that gives the order; `leads_to_new`: they lead to the other host.
///
/// Recovery repeats the order, and may not end before it was heard. Once it was carried out the peer has
/// no say any more, so that a repetition is confirmed to anybody: nothing follows from it.
#[must_use]
pub fn leading(leads_to_peer: bool, leads_to_new: bool) -> Leading {
    match (may_lead(leads_to_peer), leads_to_new) {
        (true, _) => Leading::Lead,
        (false, true) => Leading::Confirm,
        (false, false) => Leading::Refuse,
    }
}

/// Returns whether the end of a tunnel to a third host may be set to a key that a peer has passed on.
///
/// Only the third host itself may change the key of a tunnel that is there; what a peer passes on can
/// confirm it, or make a tunnel where none is.
#[must_use]
pub fn may_set_key<K: Eq>(present: Option<K>, passed_on: K) -> bool {
    present.is_none_or(|present| present == passed_on)
}
