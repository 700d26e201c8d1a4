//! The model: what it covers, by which rules, and who is at work on the container.

use std::collections::HashSet;
use std::sync::Mutex;

use ownership::container::Work;

use crate::rules::Rules;
use crate::state::{Budget, Host, Keeper, Migration, Mover, Remembered, State};

/// From where to where a migration goes.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub from: Host,
    pub to: Host,
}

/// What a model covers.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// One or two migrations of the container; any may begin as soon as it can.
    pub routes: &'static [Route],
    pub budget: Budget,
    /// C is the anchor of flows of the container.
    pub anchor: bool,
    /// Memory goes over after the decision.
    pub post_copy: bool,
    /// A person may say that a copy is lost.
    pub person: bool,
    /// A person may bring the container home by the engine's own means.
    pub carried_home: bool,
}

/// The model.
pub struct World {
    pub bounds: Bounds,
    pub rules: Rules,
    /// The one promise that is looked at, if not all are.
    pub only: Option<&'static str>,
    /// States from which everything has been seen to settle, by their hashes.
    pub settled: Mutex<HashSet<u64>>,
}

impl World {
    pub fn new(bounds: Bounds, rules: Rules, only: Option<&'static str>) -> Self {
        Self { bounds, rules, only, settled: Mutex::default() }
    }

    pub fn route(&self, m: Migration) -> Route {
        self.bounds.routes[m]
    }

    pub fn migrations(&self) -> impl Iterator<Item = Migration> + use<> {
        0..self.bounds.routes.len()
    }

    /// Returns whether no process has the lock of the container on a host.
    pub fn is_free(&self, state: &State, host: Host) -> bool {
        self.rules.may_begin(&[Work::Locked])
            || !self.migrations().any(|m| self.is_locked(state, m, host))
    }

    fn is_locked(&self, state: &State, m: Migration, host: Host) -> bool {
        let this = &state.moves[m];
        let at_source = !matches!(this.mover, Mover::Idle | Mover::InDoubt | Mover::Gone);
        let at_destination = this.keeper != Keeper::Nobody;
        self.route(m).from == host && at_source || self.route(m).to == host && at_destination
    }

    /// Returns what is at work on the container on a host, or was left there.
    pub fn works(&self, state: &State, host: Host) -> Vec<Work> {
        let mut works = Vec::new();
        for m in self.migrations() {
            let this = &state.moves[m];
            if self.is_locked(state, m, host) {
                works.push(Work::Locked);
            }
            if let Some(departed) = this.departure.filter(|_| self.route(m).from == host) {
                works.push(Work::Departing(departed.reached));
            }
            if let Some(arrived) = this.arrival.filter(|_| self.route(m).to == host) {
                works.push(if arrived.activated { Work::Activated } else { Work::Arriving });
            }
            if this.memory == Some(Remembered::Outstanding) && self.route(m).to == host {
                works.push(Work::Outstanding);
            }
        }
        works
    }
}
