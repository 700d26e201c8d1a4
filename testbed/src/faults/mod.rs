//! Migrations that something happens to: every step, on either host, with every fault that hosts and
//! networks have, and what came of it.
//!
//! ```text
//! Cell (moment, fault) ──▶ Arena::run ──▶ Outcome ──▶ Verdict
//! ```
//! Nothing in the product knows of this. A moment is recognised by what the product writes down anyway,
//! its journals and its progress, and made to last by a stand-in for the OCI runtime that waits, by a
//! server that is stopped, or by a host that does not hear.

mod arena;
mod cell;
pub(crate) mod gate;
mod leftovers;
mod moment;
mod outcome;
mod strike;

pub use arena::Arena;
pub use cell::{Cell, Disk, Fault, Moment, Side};
pub use outcome::{Outcome, Problem, RunsOn};

/// Name of the container that is moved.
const NAME: &str = "web";
