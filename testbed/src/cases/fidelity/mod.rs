//! What a container is before a move, it is afterwards; or the move is refused and says why.

mod carried;
mod messages;
mod refused;
mod situations;
mod socket_options;

use crate::runner::Case;

/// All lab tests of this area.
pub(super) fn cases() -> Vec<Case> {
    [refused::CASES, carried::CASES, socket_options::CASES, messages::CASES].concat()
}
