//! Decisions of an anchor: whose word leads flows and makes tunnels.

/// Returns whether a peer may have this host lead a container's flows elsewhere: only a host to which
/// flows or new connections of that container lead at this moment.
#[must_use]
pub fn may_lead(leads_to_peer: bool) -> bool {
    leads_to_peer
}

/// Returns whether the end of a tunnel to a third host may be set to a key that a peer has passed on.
///
/// Only the third host itself may change the key of a tunnel that is there; what a peer passes on can
/// confirm it, or make a tunnel where none is.
#[must_use]
pub fn may_set_key<K: Eq>(present: Option<K>, passed_on: K) -> bool {
    present.is_none_or(|present| present == passed_on)
}
