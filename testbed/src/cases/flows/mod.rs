//! Every kind of flow is kept across a migration, in both directions.

mod address_conflicts;
mod anchor_lifetime;
mod claimed_flows;
pub(super) mod container_to_container;
mod direct;
mod families;
mod forward;
mod idle;
mod network_path;
pub(super) mod opener;
mod outbound;
mod returns;
mod same_host;
mod states;
pub(super) mod traces;
mod wireguard_go;

use crate::runner::Case;

/// Returns all tests of flows.
pub(super) fn cases() -> Vec<Case> {
    [
        outbound::CASES,
        returns::CASES,
        anchor_lifetime::CASES,
        families::CASES,
        network_path::CASES,
        states::CASES,
        forward::CASES,
        same_host::CASES,
        address_conflicts::CASES,
        container_to_container::CASES,
        idle::CASES,
        claimed_flows::CASES,
        direct::CASES,
        wireguard_go::CASES,
    ]
    .concat()
}
