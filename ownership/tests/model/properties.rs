//! What is promised.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::PoisonError;

use ownership::source::may_withdraw;
use stateright::{Model, Property};

use crate::action::Action;
use crate::state::{Container, Host, Keeper, Key, Migration, Move, Mover, Remembered, Run, State};
use crate::world::World;

pub const ONE_AUDIBLE: &str = "at most one copy can be heard";
pub const NOTHING_EARLY: &str = "nothing of a copy runs before its commit record";
pub const NO_THAW: &str = "the original does not run again after its copy was heard";
pub const KEPT: &str =
    "the original stays until the destination's engine has the container and all its memory";
pub const HOME_STAYS: &str = "what is not the original is not removed";
pub const STRANGER: &str = "a stranger changes nothing";
pub const HEARD_STAYS: &str = "no host ends a copy that was heard";
pub const TRUE_DENIAL: &str = "a copy is denied only where there is none";
pub const SETTLES: &str = "without further faults one copy runs, or a person is told";
/// What has to be possible, or the rest would say little.
pub const MOVES: &str = "the container moves";
pub const GOES_BACK: &str = "the original runs again after the decision";
pub const DOUBT: &str = "a move stays in doubt";

/// More steps than it ever takes to settle.
const STEPS: usize = 500;

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let keys: &[_] = if self.bounds.anchor { &[None, Some(Key::True)] } else { &[None] };
        keys.iter().map(|key| State::start(self.bounds.budget, *key)).collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.progress(state, actions);
        self.events(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.apply(&mut state, action);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(ONE_AUDIBLE, |_, state: &State| state.audible() <= 1),
            Property::always(NOTHING_EARLY, |_, state: &State| {
                let runs = |run| matches!(run, Some(Run::Audible | Run::CutOff));
                state.moves.iter().all(|m| m.decided || !runs(m.copy.map(|copy| copy.run)))
            }),
            Property::always(NO_THAW, |_, state: &State| !state.broken.thawed_after_heard),
            Property::always(KEPT, |_, state: &State| !state.broken.removed_early),
            Property::always(HOME_STAYS, |_, state: &State| !state.broken.removed_other),
            Property::always(STRANGER, |_, state: &State| {
                let anchor = state.anchor;
                let forged = anchor.leads_to == Host::B && anchor.key == Some(Key::Forged);
                !state.broken.stranger_obeyed && !forged
            }),
            Property::always(HEARD_STAYS, |_, state: &State| !state.broken.ended_heard),
            Property::always(TRUE_DENIAL, |_, state: &State| !state.broken.denied_falsely),
            Property::always(SETTLES, Self::settles),
            Property::sometimes(MOVES, |model: &Self, state| {
                model.is_settled(state) && state.engine(Host::A).is_none()
            }),
            Property::sometimes(GOES_BACK, |model: &Self, state: &State| {
                let back = |m: &Move| m.decided && !m.heard && m.departure.is_none();
                model.is_settled(state) && state.moves.iter().any(back)
            }),
            Property::sometimes(DOUBT, |model: &Self, state: &State| {
                let doubt = state.moves.iter().any(|m| m.mover == Mover::InDoubt);
                doubt && model.is_settled(state)
            }),
        ];
        properties.retain(|property| self.only.is_none_or(|name| name == property.name));
        properties
    }
}

impl World {
    /// Returns whether nothing is at work any more and the container is where it should be: it runs on one
    /// host, or a person was told and the original is whole.
    pub fn is_settled(&self, state: &State) -> bool {
        let at_rest = |m: &Move| {
            m.keeper == Keeper::Nobody
                && m.arrival.is_none()
                && m.copy.is_none()
                && (m.departure.is_none() || m.mover == Mover::InDoubt)
                && matches!(m.mover, Mover::Idle | Mover::Gone | Mover::InDoubt)
        };
        if !state.packets.is_empty() || !state.moves.iter().all(at_rest) {
            return false;
        }
        // A destination keeps what is left of a container that was ended for want of memory.
        let ended = |m: Migration| {
            let this = &state.moves[m];
            let in_doubt = this.departure.is_some() && this.memory == Some(Remembered::Lost);
            self.bounds.post_copy && in_doubt && state.engine(self.route(m).to).is_some()
        };
        let with_it = 1 + self.migrations().filter(|m| ended(*m)).count();
        if state.engines_with_it() != with_it || state.audible() > 1 {
            return false;
        }
        let doubt = self.migrations().find_map(|m| Some((m, state.moves[m].departure?)));
        match doubt {
            None => state.audible() == 1 && self.migrations().all(|m| self.is_led(state, m)),
            Some((m, departed)) => {
                let original = state.engine(self.route(m).from);
                let whole = |c: Container| c.incarnation == departed.incarnation;
                may_withdraw(departed.reached) && original.is_some_and(whole)
            }
        }
    }

    /// Returns whether the anchor of the container's flows knows where it is. One that was not ready goes on by
    /// way of the source.
    fn is_led(&self, state: &State, m: Migration) -> bool {
        let this = &state.moves[m];
        let here = if this.handed_over { self.route(m).to } else { self.route(m).from };
        !this.anchored || state.anchor.leads_to == here
    }

    /// Returns whether everything settles if nothing else goes wrong from here. One fair order of events is
    /// tried from each state; the states after it have been or will be looked at themselves.
    fn settles(&self, state: &State) -> bool {
        let mut known = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = state.clone();
        let mut seen = Vec::new();
        for _ in 0..STEPS {
            let mut hasher = DefaultHasher::new();
            state.hash(&mut hasher);
            let hash = hasher.finish();
            if known.contains(&hash) || self.is_settled(&state) {
                known.extend(seen);
                known.insert(hash);
                return true;
            }
            seen.push(hash);
            let mut actions = Vec::new();
            self.progress(&state, &mut actions);
            let next = actions.into_iter().find_map(|action| self.next_state(&state, action));
            match next {
                Some(next) => state = next,
                None => return false,
            }
        }
        false
    }
}
