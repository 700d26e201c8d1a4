//! Every kind of flow that a container has: kept across a move, both directions checked.

mod addresses;
pub(super) mod beside;
mod claimed;
mod direct;
mod families;
mod far;
mod forward;
mod greetings;
mod idle;
mod life;
mod making;
mod mtu;
mod neighbours;
pub(super) mod opener;
mod outbound;
mod returns;
mod states;
pub(super) mod traces;

use crate::runner::Case;

/// All tests of flows.
pub(super) fn cases() -> Vec<Case> {
    [
        outbound::CASES,
        returns::CASES,
        life::CASES,
        families::CASES,
        mtu::CASES,
        states::CASES,
        forward::CASES,
        far::CASES,
        neighbours::CASES,
        addresses::CASES,
        beside::CASES,
        idle::CASES,
        claimed::CASES,
        direct::CASES,
        greetings::CASES,
        making::CASES,
    ]
    .concat()
}
