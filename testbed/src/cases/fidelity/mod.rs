//! What a container is before a move, it is afterwards; or the move is refused and says why.

mod busy;
mod calls;
mod carried;
mod cgroup;
mod equality;
mod far_end;
mod firewall;
mod flows_end;
mod groups;
mod images;
mod locks;
mod messages;
mod mounts;
mod network;
mod pairs;
mod parameters;
mod paths;
mod processes;
mod refused;
mod siblings;
mod situations;
mod socket_options;
mod strange_paths;

use crate::runner::Case;

/// All lab tests of this area.
pub(super) fn cases() -> Vec<Case> {
    [
        calls::CASES,
        locks::CASES,
        mounts::CASES,
        parameters::CASES,
        processes::CASES,
        images::CASES,
        carried::CASES,
        equality::CASES,
        socket_options::CASES,
        refused::CASES,
        messages::CASES,
        far_end::CASES,
        pairs::CASES,
        flows_end::CASES,
        busy::CASES,
        network::CASES,
        groups::CASES,
        cgroup::CASES,
        paths::CASES,
        firewall::CASES,
        strange_paths::CASES,
        siblings::CASES,
    ]
    .concat()
}
