//! A moved container lacks nothing that it had: what CRIU's images hold, and what they do not.

mod calls;
mod images;
mod locks;
mod mounts;
mod parameters;
mod processes;

use crate::runner::Case;

/// All lab tests of this area.
pub(super) fn cases() -> Vec<Case> {
    [calls::CASES, images::CASES, locks::CASES, mounts::CASES, parameters::CASES, processes::CASES]
        .concat()
}
