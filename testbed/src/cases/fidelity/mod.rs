//! A moved container lacks nothing that it had: what CRIU's images hold, and what they do not.

mod calls;

use crate::runner::Case;

/// All lab tests of this area.
pub(super) fn cases() -> Vec<Case> {
    [calls::CASES].concat()
}
