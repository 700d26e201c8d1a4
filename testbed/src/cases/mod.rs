//! The lab tests, one file for each area.
//!
//! ```no_run
//! # use testbed::{Result, ensure, runner::Context};
//! fn one_connection_lives_on(context: &Context) -> Result<()> {
//!     let lab = context.lab(&["a", "b", "c"])?;
//!     let (a, c) = (lab.host("a")?, lab.host("c")?);
//!     a.podman(["run", "--detach", "--name", "web", "--publish", "7000:7000", "probe:1"])?;
//!     c.probe().wait_for_echo(a.port(7000), std::time::Duration::from_secs(5))?;
//!     let tcp = c.probe().tcp_echo(a.port(7000)).rate(1000.0).start()?;
//!     let migration = lab.migrate("web", "a", "b")?;
//!     let seen = tcp.stop()?;
//!     ensure!(seen.fault().is_none(), "{seen:?}");
//!     context.remark(format!("gap {:.0} ms of {:.0}", seen.max_gap_ms, migration.total_ms));
//!     Ok(())
//! }
//! ```

mod applications;
mod cancel;
mod faults;
mod fidelity;
mod flows;
mod lab;
mod lab_resources;
mod migration;
mod operator;
mod permissions;
pub(crate) mod promise;
mod refusal;
mod subject;
pub(crate) mod terminal;
mod traffic;
mod trust;
mod trust_wire;
mod untouched;
mod vm;

use crate::runner::Case;

pub use lab::{VICTIM_ARGUMENT, be_victim};
pub(crate) use untouched::without_own_state;
pub use vm::VM;

/// Returns all lab tests, in the order in which they run.
pub fn all() -> Vec<Case> {
    [
        lab::CASES,
        traffic::CASES,
        migration::CASES,
        &flows::cases(),
        applications::CASES,
        refusal::CASES,
        cancel::CASES,
        operator::CASES,
        trust::CASES,
        trust_wire::CASES,
        permissions::CASES,
        faults::CASES,
        &promise::cases(),
        &fidelity::cases(),
        vm::CASES,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_every_test_has_an_area() {
        let all = super::all();
        let names: BTreeSet<&str> = all.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.iter().all(|case| !case.areas.is_empty()));
    }
}
