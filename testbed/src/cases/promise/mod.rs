//! What the documents promise of a moved container.

mod description;

use crate::runner::Case;

/// All of these tests.
pub(super) fn cases() -> Vec<Case> {
    [description::CASES].concat()
}
