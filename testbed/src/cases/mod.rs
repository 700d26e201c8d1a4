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
mod bulk;
mod cancel;
mod containers;
mod faults;
mod fidelity;
mod flows;
mod forecast;
mod kernel_release;
mod lab;
mod lab_resources;
mod memory;
mod memory_post_copy;
mod memory_post_copy_ends;
mod memory_programs;
mod memory_under_load;
mod migration;
mod operator;
mod outstanding_memory;
mod page_server;
mod peer_texts;
mod permissions;
mod processor_share;
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
        memory::CASES,
        page_server::CASES,
        processor_share::CASES,
        memory_post_copy::CASES,
        memory_post_copy_ends::CASES,
        memory_under_load::CASES,
        &flows::cases(),
        applications::CASES,
        &containers::cases(),
        refusal::CASES,
        cancel::CASES,
        operator::CASES,
        forecast::CASES,
        bulk::CASES,
        trust::CASES,
        trust_wire::CASES,
        permissions::CASES,
        peer_texts::CASES,
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

    /// What is between backticks.
    fn words(text: &str) -> impl Iterator<Item = &str> {
        text.split('`').skip(1).step_by(2)
    }

    #[test]
    fn the_page_on_fidelity_names_tests_that_exist_and_all_of_its_area() {
        let page = include_str!("../../../docs/fidelity.md");
        let all: BTreeSet<&str> = super::all().iter().map(|case| case.name).collect();
        let rows = page.lines().filter(|line| line.starts_with("| ") && line.ends_with(" |"));
        let cells = rows.skip(1).filter_map(|row| row.trim_end_matches(" |").rsplit(" | ").next());
        let mut named = BTreeSet::new();
        for cell in cells {
            let mut last = "";
            // A command has spaces in it.
            for word in words(cell).filter(|word| !word.contains(' ')) {
                // The rest of a name whose beginning is that of the one before.
                let ends = last.match_indices('-').map(|(end, _)| &last[..end]);
                let long = ends.map(|begin| format!("{begin}{word}"));
                let full = long.filter(|_| word.starts_with('-')).chain([word.to_owned()]);
                let mut known = full.filter_map(|name| all.get(name.as_str()).copied());
                last =
                    known.next_back().unwrap_or_else(|| panic!("there is no test {word}: {cell}"));
                named.insert(last);
            }
        }
        named.extend(words(page).filter_map(|word| all.get(word).copied()));
        let of_area = |name: &&&str| name.starts_with("fidelity-");
        let forgotten: Vec<_> =
            all.iter().filter(of_area).filter(|one| !named.contains(**one)).collect();
        assert_eq!(forgotten, [] as [&&str; 0]);
    }

    #[test]
    fn the_page_on_containers_names_tests_that_exist_and_all_of_its_area() {
        let page = include_str!("../../../docs/containers.md");
        let is_test = |name: &&str| name.starts_with("containers-");
        let named: BTreeSet<&str> = words(page).filter(is_test).collect();
        let all = super::all();
        let present: BTreeSet<&str> = all.iter().map(|case| case.name).filter(is_test).collect();
        assert_eq!(named, present);
    }
}
