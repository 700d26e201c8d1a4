//! What a container is before a move, it is afterwards; or the move is refused and says why.

mod busy;
mod calls;
mod carried;
mod cgroup;
mod datagrams;
mod equality;
mod far_end;
mod firewall;
mod flows_end;
mod groups;
mod images;
mod initial;
mod limits;
mod locks;
mod messages;
mod mounts;
mod names;
mod network;
mod pairs;
mod parameters;
mod paths;
mod processes;
mod refused;
mod siblings;
mod situations;
mod socket_options;
mod stock;
mod strange_paths;
mod users;

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
        datagrams::CASES,
        network::CASES,
        groups::CASES,
        cgroup::CASES,
        paths::CASES,
        users::CASES,
        limits::CASES,
        initial::CASES,
        names::CASES,
        firewall::CASES,
        strange_paths::CASES,
        siblings::CASES,
    ]
    .concat()
}
