//! Fault injection: runs a migration up to an injection point, injects a fault there, and judges the outcome.
//!
//! ```text
//! Cell (injection point, fault) ──▶ Harness::run ──▶ Outcome ──▶ Outcome::problems
//! ```
//! The product has no code for this. The harness recognises an injection point by the product's journals and progress
//! output. It makes the migration wait there by a breakpoint in the OCI runtime's place, by a stopped server, or by
//! dropped packets.

pub(crate) mod breakpoint;
pub(crate) mod container_state;
mod doubt;
mod fault;
pub(crate) mod forget;
mod harness;
pub(crate) mod hostile_peer;
mod injection;
pub(crate) mod injection_point;
mod interference;
mod matrix;
pub(crate) mod observation;
mod outcome;
pub(crate) mod reboot;
mod residue;
mod rollback_failure;
pub(crate) mod stale_journal;

pub use fault::{Disk, Fault, RollbackStep};
pub use harness::Harness;
pub use injection_point::InjectionPoint;
pub use matrix::{Cell, Memory, Side};
pub use outcome::{Outcome, Problem, RunsOn};
pub use stale_journal::LastRecord;

/// The name of the container that the harness migrates.
const NAME: &str = "web";
