//! What a move carries with a container, and what it says of the rest before it changes anything.

mod far_end;
mod flows_end;
mod pairs;

use crate::runner::Case;

/// All lab tests of this area.
pub(super) fn cases() -> Vec<Case> {
    [far_end::CASES, pairs::CASES, flows_end::CASES].concat()
}
