//! Files and directories in use whose names are gone.
//!
//! CRIU takes the contents of a file along that has no name left. One that has a name somewhere, as a file of
//! the image has that was replaced or removed, it would link to a new name in the source's file system
//! (`link-remap`, criu(8)), where it is not taken along.

use super::findings::Found;
use super::process_snapshot::{Process, Processes, gone_name};

/// How the kernel names memory that looks like a file (memfd_create(2)).
const IN_MEMORY: &str = "/memfd:";
const RESTART: &str = "restart the process, so that it uses the file that is there now";

pub(super) fn check(processes: &Processes, found: &mut Found<'_>) {
    for process in &processes.all {
        for (kind, target) in &process.links {
            link(process, kind, target, found);
        }
        let gone = |target| gone_name(target).filter(|name| is_file(name));
        for descriptor in &process.descriptors {
            if let Some(name) = gone(&descriptor.target)
                && process.has_names(&format!("fd/{}", descriptor.number)) == Some(true)
            {
                let what = format!("has {name} open, which was replaced or removed");
                found.add(process, "replaced-file", what, "close it, or restart the process");
            }
        }
        for (range, name) in &process.gone_mappings {
            if is_file(name) && process.has_names(&format!("map_files/{range}")) == Some(true) {
                let what = format!("uses {name}, which was replaced or removed since");
                found.add(process, "replaced-file", what, RESTART);
            }
        }
    }
}

/// Whether a name that is gone was a file's. Rings of asynchronous I/O (`/[aio]`) and secret memory look like
/// one, and what `/proc` shows of ended processes CRIU knows.
fn is_file(name: &str) -> bool {
    let others = ["/[", "/proc/", "/secretmem"];
    name.starts_with('/') && !others.iter().any(|other| name.starts_with(other))
}

/// Executable, working directory, root directory.
fn link(process: &Process, kind: &str, target: &str, found: &mut Found<'_>) {
    let Some(name) = gone_name(target) else { return };
    let has_names = process.has_names(kind) == Some(true);
    match kind {
        "exe" if name.starts_with(IN_MEMORY) => found.add(
            process,
            "memfd-executable",
            format!("runs a program that is in memory alone ({name})"),
            "CRIU cannot restore it: run the program from a file",
        ),
        "root" => found.add(
            process,
            "deleted-root",
            format!("has the root directory {name}, which was removed"),
            "end the process",
        ),
        "cwd" if has_names => found.add(
            process,
            "deleted-directory",
            format!("works in {name}, a directory of the image that was removed"),
            "restart the process in another directory",
        ),
        // An executable is mapped, too.
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_files_count() {
        assert!(is_file("/usr/lib/libc.so.6"));
        for name in ["/[aio]", "/proc/77/stat", "pipe:[7]"] {
            assert!(!is_file(name), "{name}");
        }
    }

    #[test]
    fn a_file_that_is_gone_for_good_is_no_obstacle_and_one_with_a_name_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let gone = std::fs::File::create(path("gone")).unwrap();
        std::fs::remove_file(path("gone")).unwrap();
        let renamed = std::fs::File::create(path("linked")).unwrap();
        std::fs::hard_link(path("linked"), path("other")).unwrap();
        std::fs::remove_file(path("linked")).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let mut found = Found::new("web");
        check(&Processes::look(&[own], own), &mut found);
        let found = found.into_findings();
        let has =
            |name: &str| found.iter().any(|f| f.message.contains(&*path(name).to_string_lossy()));
        assert!(has("linked") && !has("gone"), "{found:?}");
        drop((gone, renamed));
    }
}
