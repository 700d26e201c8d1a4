//! Every kind of flow that a container has: kept across a move, both directions checked.

mod life;
mod opener;
mod outbound;
mod returns;
mod traces;

use crate::runner::Case;

/// All tests of flows.
pub(super) fn cases() -> Vec<Case> {
    [outbound::CASES, returns::CASES, life::CASES].concat()
}
