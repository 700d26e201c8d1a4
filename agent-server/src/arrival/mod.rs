//! One migration, seen from the destination. Each file is one stretch of it.
//!
//! ```text
//! Offer ─▶ check ─▶ Arrival (tunnel, image, stage, receive) ─▶ Copy ─▶ the container
//!          │        │                                           │
//!          refused  undone                                      removed by Abort or lease
//! ```

mod addresses;
mod anchors;
mod calm;
mod check;
mod copy;
mod equality;
mod expected;
mod image;
mod incoming;
mod progress;
mod spool;
mod work;

pub use calm::settle_buffers;
pub use check::look;
pub use copy::Copy;
pub use expected::{Expected, abandon, sweep};
pub use progress::Arrival;
pub use spool::remove as remove_spool;
pub use work::{STAGE, tidy};
