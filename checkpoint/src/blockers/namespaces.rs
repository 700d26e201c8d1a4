//! Namespaces that were made inside of the container.
//!
//! CRIU dumps nested mount and network namespaces and no others (`dump_task_ns_ids`, criu/namespaces.c).

use super::found::Found;
use super::processes::{NAMESPACES, Processes};

pub(super) fn check(processes: &Processes, found: &mut Found<'_>) {
    let Some(first) = processes.first() else { return };
    for process in &processes.all {
        let pairs = NAMESPACES.iter().zip(process.namespaces.iter().zip(&first.namespaces));
        for (kind, (own, common)) in pairs {
            if own.is_empty() || common.is_empty() || own == common {
                continue;
            }
            // Of a process that has moved its children alone.
            let kind = kind.trim_end_matches("_for_children");
            found.add(
                process,
                "nested-namespace",
                format!("has a {kind} namespace of its own"),
                "CRIU cannot save nested ones: end it, or turn such sandboxes off in the program",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::processes::Process;
    use super::*;

    #[test]
    fn another_namespace_than_that_of_the_first_process_is_named() {
        let with = |pid, user: &str| {
            let mut process = Process { pid, ..Process::default() };
            process.namespaces[0] = user.to_owned();
            process
        };
        let all = vec![with(1, "user:[1]"), with(2, "user:[1]"), with(3, "user:[2]"), with(4, "")];
        let mut found = Found::new("web");
        check(&Processes { all }, &mut found);
        let messages = found.into_findings();
        assert_eq!(messages.len(), 1);
        assert!(messages[0].message.contains("process 3") && messages[0].message.contains("user"));
    }
}
