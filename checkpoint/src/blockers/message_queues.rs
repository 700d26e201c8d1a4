//! POSIX message queues (mq_overview(7)): CRIU knows neither their descriptors nor their contents.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::statfs::{FsType, statfs};

use super::found::Found;
use super::processes::Processes;

/// MQUEUE_MAGIC (ipc/mqueue.c).
const MQUEUE: FsType = FsType(0x1980_0202);
/// Where engines show the queues of a container.
const SHOWN: &str = "root/dev/mqueue";
const ADVICE: &str =
    "CRIU cannot save it: end the programs that use it, and remove it (mq_unlink(3))";

pub(super) fn check(processes: &Processes, found: &mut Found<'_>) {
    let mut open = BTreeSet::new();
    for (process, descriptor) in processes.descriptors() {
        // A queue has a name and no directory, and so have few other files that are open.
        if !descriptor.target.starts_with('/') {
            continue;
        }
        let path = process.path(format!("fd/{}", descriptor.number));
        let is_queue = statfs(&path).is_ok_and(|system| system.filesystem_type() == MQUEUE);
        if is_queue {
            let what = format!("has the message queue {} open", descriptor.target);
            found.add(process, "message-queue", what, ADVICE);
            open.insert(descriptor.target.as_str());
        }
    }
    // A queue and its messages stay when nobody has it open.
    let Some(first) = processes.first() else { return };
    let shown = first.path(SHOWN);
    if !statfs(&shown).is_ok_and(|system| system.filesystem_type() == MQUEUE) {
        return;
    }
    for queue in fs::read_dir(shown).into_iter().flatten().flatten().take(16) {
        let name = format!("/{}", queue.file_name().to_string_lossy());
        if !open.contains(name.as_str()) {
            found.add_general("message-queue", format!("has the message queue {name}"), ADVICE);
        }
    }
}
