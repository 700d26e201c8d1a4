//! What is promised about the rest of a host: nothing of others is disturbed, nothing is left.

mod kernel;

use crate::runner::Case;

/// All of them.
pub(super) fn cases() -> Vec<Case> {
    [kernel::CASES].concat()
}
