//! A moved container is what it was: carried, compared, or refused before anything changes.

mod equality;

use crate::runner::Case;

/// All lab tests of this area.
pub(super) fn cases() -> Vec<Case> {
    [equality::CASES].concat()
}
