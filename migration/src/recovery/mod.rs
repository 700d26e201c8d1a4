//! What becomes of migrations whose process has died, from their journals.

pub mod destination;
pub mod source;
