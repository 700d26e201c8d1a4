//! A model of the hand-over protocol: one container, the hosts that move it, and everything that may go
//! wrong, in every order within bounds.
//!
//! The hosts of the model decide by the functions of this crate alone, as the agents do; [`rules`] is the one
//! place where they are called. Everything else is what the agents read and do: `state` is what hosts
//! have on disk, in memory and on the network, `source` and `destination` are the steps of their processes,
//! `action` lists what may happen at a moment, `event` and `fault` tell what follows. The tests here look for
//! a broken promise (`properties`) in all states that can be reached; `reinserted` puts faults back one by
//! one, and wants each to be found.
//!
//! A process may die between any two of its steps. A record on disk and the act that it announces are two.
//! `docs/reliability.md` says what the model leaves out.

mod action;
mod destination;
mod event;
mod fault;
mod pages;
mod properties;
mod reinserted;
mod rules;
mod source;
mod state;
mod world;

use stateright::{Checker, Model};

use crate::rules::Rules;
use crate::state::{Budget, Host};
use crate::world::{Bounds, Route, World};

const A_TO_B: Route = Route { from: Host::A, to: Host::B };
const A_TO_C: Route = Route { from: Host::A, to: Host::C };
const B_TO_A: Route = Route { from: Host::B, to: Host::A };
const B_TO_C: Route = Route { from: Host::B, to: Host::C };

const NO_FAULT: Budget = Budget { crashes: 0, breaks: 0, failures: 0, reboots: 0, hostile: 0 };
const ONE_MOVE: Bounds = Bounds {
    routes: &[A_TO_B],
    budget: NO_FAULT,
    anchor: false,
    post_copy: false,
    person: false,
    carried_home: false,
};

/// One move, under whatever does not take a host's memory.
pub const CRASHES: Bounds = Bounds {
    budget: Budget { crashes: 3, breaks: 3, failures: 3, ..NO_FAULT },
    person: true,
    ..ONE_MOVE
};
/// One move, and hosts that start anew.
pub const REBOOTS: Bounds = Bounds {
    budget: Budget { crashes: 2, breaks: 2, failures: 2, reboots: 2, ..NO_FAULT },
    person: true,
    ..ONE_MOVE
};
/// For two moves, whose states are many more: what strikes processes.
const PROCESSES: Budget = Budget { crashes: 1, breaks: 1, failures: 1, ..NO_FAULT };
/// The same for hosts.
const HOSTS: Budget = Budget { breaks: 1, reboots: 1, ..NO_FAULT };

const fn two(routes: &'static [Route], budget: Budget) -> Bounds {
    Bounds { routes, budget, person: true, ..ONE_MOVE }
}

/// Two moves to different hosts.
pub const TWO_HOSTS: Bounds = two(&[A_TO_B, A_TO_C], PROCESSES);
/// A move, and one that comes home.
pub const HOME: Bounds = two(&[A_TO_B, B_TO_A], Budget { crashes: 2, ..PROCESSES });
/// A person brings the container home by the engine's own means, whatever is left of its move.
pub const CARRIED: Bounds = Bounds {
    budget: Budget { crashes: 3, breaks: 2, failures: 2, reboots: 1, ..NO_FAULT },
    carried_home: true,
    ..ONE_MOVE
};
/// A stranger that is paired with all hosts, one of which is the anchor of the container's flows.
pub const STRANGER: Bounds = Bounds {
    budget: Budget { crashes: 2, breaks: 2, failures: 1, reboots: 0, hostile: 2 },
    anchor: true,
    ..ONE_MOVE
};

/// One move whose memory goes over after the decision.
pub const POST_COPY: Bounds = Bounds {
    budget: Budget { crashes: 2, breaks: 2, failures: 2, ..NO_FAULT },
    post_copy: true,
    ..CRASHES
};

fn hold(bounds: Bounds) {
    let world = World::new(bounds, Rules { faults: &[] }, None);
    let checker = world.checker().spawn_bfs().join();
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{states} states, at most {depth} steps from the first");
    checker.assert_properties();
}

#[test]
fn one_move_with_crashes() {
    hold(CRASHES);
}

#[test]
fn one_move_with_reboots() {
    hold(REBOOTS);
}

#[test]
fn two_moves_to_two_hosts() {
    hold(TWO_HOSTS);
}

#[test]
fn two_moves_to_two_hosts_with_reboots() {
    hold(two(&[A_TO_B, A_TO_C], HOSTS));
}

#[test]
fn two_moves_to_one_host() {
    hold(two(&[A_TO_B, A_TO_B], PROCESSES));
}

#[test]
fn two_moves_to_one_host_with_reboots() {
    hold(two(&[A_TO_B, A_TO_B], HOSTS));
}

#[test]
fn a_move_there_and_one_back() {
    hold(HOME);
}

#[test]
fn a_move_there_and_one_back_with_reboots() {
    hold(two(&[A_TO_B, B_TO_A], HOSTS));
}

#[test]
fn a_move_there_and_one_on() {
    hold(two(&[A_TO_B, B_TO_C], PROCESSES));
}

#[test]
fn a_move_there_and_one_on_with_reboots() {
    hold(two(&[A_TO_B, B_TO_C], HOSTS));
}

#[test]
fn one_move_by_post_copy() {
    hold(POST_COPY);
}

#[test]
fn one_move_by_post_copy_with_reboots() {
    hold(Bounds {
        budget: Budget { crashes: 1, breaks: 1, failures: 1, reboots: 2, ..NO_FAULT },
        ..POST_COPY
    });
}

#[test]
fn one_move_by_post_copy_and_a_stranger() {
    hold(Bounds {
        budget: Budget { crashes: 1, breaks: 1, failures: 1, hostile: 1, ..NO_FAULT },
        ..POST_COPY
    });
}

#[test]
fn a_move_by_post_copy_and_one_back() {
    hold(Bounds { post_copy: true, ..two(&[A_TO_B, B_TO_A], PROCESSES) });
}

#[test]
fn a_container_carried_home() {
    hold(CARRIED);
}

#[test]
fn a_stranger_and_an_anchor() {
    hold(STRANGER);
}
