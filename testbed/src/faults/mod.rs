//! Migrations that something happens to: every step, on either host, with every fault that hosts and
//! networks have, and what came of it.
//!
//! ```text
//! Cell (moment, fault) ──▶ Arena::run ──▶ Outcome ──▶ Verdict
//! ```
//! Nothing in the product knows of this. A moment is recognised by what the product writes down anyway,
//! its journals and its progress, and made to last by a stand-in for the OCI runtime that waits, by a
//! server that is stopped, or by a host that does not hear.

pub(crate) mod arena;
mod beside;
mod cell;
pub(crate) mod container;
mod fault;
pub(crate) mod gate;
mod going_back;
pub(crate) mod hostile;
mod leftovers;
pub(crate) mod moment;
mod outcome;
mod reboot;
pub(crate) mod stale;
mod strike;

pub use arena::Arena;
pub use cell::{Cell, Moment, Side};
pub use fault::{Disk, Fault, Part};
pub use outcome::{Outcome, Problem, RunsOn};
pub use stale::Kind;

/// Name of the container that is moved.
const NAME: &str = "web";
