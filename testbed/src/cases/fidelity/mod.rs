//! A container is the same after a migration as before, or the migration is refused with the reason.

mod both_ends_move;
mod calls;
mod cgroup;
mod closed_destination;
mod closed_paths;
mod container_dns;
mod datagrams;
mod dead_flows;
mod engine_options;
mod equality;
mod far_end;
mod firewall;
mod flows_end;
mod groups;
mod image_names;
mod kernel_features;
mod landlock;
mod locks;
mod mounts;
mod network;
mod new_connections;
mod not_refused;
mod parameters;
mod program_state;
mod refused;
mod scenarios;
mod siblings;
mod socket_options;
mod strange_paths;
mod users;

use crate::runner::Case;

/// Returns all lab tests of this area.
pub(super) fn cases() -> Vec<Case> {
    [
        calls::CASES,
        landlock::CASES,
        locks::CASES,
        mounts::CASES,
        parameters::CASES,
        image_names::CASES,
        not_refused::CASES,
        equality::CASES,
        socket_options::CASES,
        refused::CASES,
        program_state::CASES,
        far_end::CASES,
        both_ends_move::CASES,
        flows_end::CASES,
        new_connections::CASES,
        datagrams::CASES,
        network::CASES,
        groups::CASES,
        cgroup::CASES,
        closed_paths::CASES,
        closed_destination::CASES,
        dead_flows::CASES,
        users::CASES,
        engine_options::CASES,
        container_dns::CASES,
        firewall::CASES,
        strange_paths::CASES,
        siblings::CASES,
    ]
    .concat()
}
