//! What the processes of a source do: the agent of a migration, its guardian, `recover`.

use ownership::destination::Order;
use ownership::source::{Answer, Departure, Next, Occupant, Recovery, Removal, may_withdraw};

use crate::destination::is_alive;
use crate::state::{Body, Departed, Host, Keeper, Key, Migration, Mover, Question, Run, State};
use crate::world::World;

impl World {
    /// Returns whether a migration may begin: the engine runs the container, and nothing else is at work on it.
    pub fn can_begin(&self, state: &State, m: Migration) -> bool {
        let from = self.route(m).from;
        state.moves[m].mover == Mover::Idle
            && state.engine(from).is_some_and(|container| container.run == Run::Audible)
            && self.rules.may_begin(&self.works(state, from))
    }

    pub fn begin(&self, state: &mut State, m: Migration) {
        let container = state.engine(self.route(m).from);
        let incarnation = container.map_or(0, |container| container.incarnation);
        state.moves[m].mover = Mover::Begun;
        state.moves[m].departure = Some(Departed { reached: Departure::Preparing, incarnation });
    }

    /// Takes the next step of the process at the source, if it waits for nothing.
    pub fn source_step(&self, state: &mut State, m: Migration) -> bool {
        match state.moves[m].mover {
            Mover::Begun => {
                self.agree_with_anchor(state, m);
                note(state, m, Departure::Interrupted);
                state.moves[m].mover = Mover::Interrupting;
            }
            Mover::Interrupting => {
                self.set_original(state, m, Run::Audible, Run::Frozen);
                state.moves[m].mover = Mover::ToAsk(Question::Offer);
            }
            Mover::ToAsk(question) => {
                let without = question == Question::Pages && !self.has_memory(state, m);
                let body = if without { Body::MemoryGone } else { body(question) };
                state.send(m, body, false);
                state.moves[m].mover = Mover::Asking(question);
            }
            Mover::Ready => {
                note(state, m, Departure::Committed);
                state.moves[m].decided = true;
                state.moves[m].mover = Mover::ToAsk(Question::Commit);
            }
            Mover::Finished => {
                let reached = self.rules.handed_over(self.bounds.post_copy);
                note(state, m, reached);
                state.moves[m].mover = match reached {
                    Departure::Outstanding => Mover::ToAsk(Question::Pages),
                    _ => acknowledged(state, m),
                };
            }
            Mover::PagesSent => {
                note(state, m, Departure::Acknowledged);
                state.moves[m].mover = acknowledged(state, m);
            }
            Mover::Removing => {
                self.remove_original(state, m);
                state.moves[m].mover = Mover::Removed;
            }
            Mover::Removed => {
                if self.bounds.anchor {
                    state.send(m, Body::Order(Order::LedPast), true);
                }
                state.send(m, Body::Order(Order::Done), true);
                state.moves[m].departure = None;
                state.moves[m].mover = Mover::Gone;
            }
            Mover::Undoing => {
                self.let_original_run(state, m);
                state.moves[m].mover = Mover::Undone;
            }
            Mover::Undone => {
                state.send(m, Body::Order(Order::Abort), true);
                if state.moves[m].withdrawn {
                    state.send(m, Body::Order(Order::Done), true);
                }
                self.end_rollback(state, m, true);
            }
            Mover::Idle | Mover::Asking(_) | Mover::InDoubt | Mover::Gone => return false,
        }
        true
    }

    /// The rollback is tried, and the original cannot be set going again.
    pub fn fail_rollback(&self, state: &mut State, m: Migration) {
        self.end_rollback(state, m, false);
    }

    fn end_rollback(&self, state: &mut State, m: Migration, undone: bool) {
        if self.rules.may_end(undone) {
            state.moves[m].departure = None;
        }
        state.moves[m].mover = Mover::Gone;
    }

    /// Takes the next step after an answer, or after silence.
    pub fn hear(&self, state: &mut State, m: Migration, answer: Answer) {
        let Mover::Asking(question) = state.moves[m].mover else { return };
        if question == Question::Offer {
            // Abort is presumed before the decision.
            let ready = answer == Answer::Done;
            if !ready {
                state.disconnect(m);
            }
            state.moves[m].mover = if ready { Mover::Ready } else { Mover::Undoing };
            return;
        }
        if question == Question::Pages {
            return self.hear_of_pages(state, m, answer);
        }
        if question == Question::Rehome {
            // Without that word it is not removed: recovery asks again.
            let led = answer == Answer::Done;
            if !led {
                state.disconnect(m);
            }
            state.moves[m].mover = if led { Mover::Removing } else { Mover::Gone };
            return;
        }
        state.moves[m].mover = match (self.rules.after_order(answer), question) {
            (Next::Proceed, Question::Resume) => Mover::ToAsk(Question::Commit),
            (Next::Proceed, Question::Commit) => Mover::ToAsk(Question::Finish),
            (Next::Proceed, _) => Mover::Finished,
            (Next::GoBack, _) => Mover::Undoing,
            (Next::AskAgain, _) => Mover::ToAsk(Question::Resume),
            (Next::AskPerson, _) => Mover::InDoubt,
        };
        if !matches!(state.moves[m].mover, Mover::ToAsk(Question::Commit | Question::Finish)) {
            state.disconnect(m);
        }
    }

    /// Returns whether a guardian or `recover` may take a departure over.
    pub fn can_recover(&self, state: &State, m: Migration) -> bool {
        let at_rest = matches!(state.moves[m].mover, Mover::Gone | Mover::InDoubt);
        at_rest && state.moves[m].departure.is_some() && self.is_free(state, self.route(m).from)
    }

    pub fn recover(&self, state: &mut State, m: Migration) {
        let Some(departed) = state.moves[m].departure else { return };
        state.moves[m].mover = match self.rules.departure_recovery(departed.reached) {
            Recovery::Undo => Mover::Undoing,
            Recovery::Repeat => Mover::ToAsk(Question::Resume),
            Recovery::ServePages => Mover::ToAsk(Question::Pages),
            Recovery::RemoveOriginal => acknowledged(state, m),
        };
    }

    /// Returns whether a person may truthfully say that the copy of a move in doubt is lost: nothing of the
    /// container is left at the destination, nor where it may have moved on to.
    pub fn can_withdraw(&self, state: &State, m: Migration) -> bool {
        let this = &state.moves[m];
        let asked =
            matches!(this.mover, Mover::InDoubt | Mover::ToAsk(Question::Resume | Question::Pages));
        let decided = this.departure.is_some_and(|d| may_withdraw(d.reached));
        let home = self.route(m).from;
        let elsewhere = Host::ALL.into_iter().any(|h| h != home && state.engine(h).is_some());
        let staged = state.moves.iter().any(|other| is_alive(other.copy));
        asked && decided && this.keeper == Keeper::Nobody && !elsewhere && !staged
    }

    /// A person has the original run again.
    pub fn withdraw(&self, state: &mut State, m: Migration) {
        state.disconnect(m);
        note(state, m, Departure::Withdrawn);
        state.moves[m].withdrawn = true;
        state.moves[m].mover = Mover::Undoing;
    }

    fn let_original_run(&self, state: &mut State, m: Migration) {
        let interrupted = state.moves[m].departure.map(|departed| departed.reached);
        if interrupted == Some(Departure::Preparing) {
            return;
        }
        let thawed = self.set_original(state, m, Run::Frozen, Run::Audible);
        let this = &state.moves[m];
        state.broken.thawed_after_heard |= thawed && this.heard && !this.withdrawn;
    }

    /// Freezes or thaws the processes that the departure is about; returns whether they are there to be.
    fn set_original(&self, state: &mut State, m: Migration, from: Run, to: Run) -> bool {
        let departed = state.moves[m].departure;
        let Some(container) = state.engine_mut(self.route(m).from) else { return false };
        let ours = departed.is_some_and(|d| d.incarnation == container.incarnation);
        if !ours || container.run != from {
            return false;
        }
        container.run = to;
        true
    }

    fn occupant(&self, state: &State, m: Migration) -> Occupant {
        let incarnation = state.moves[m].departure.map(|departed| departed.incarnation);
        match state.engine(self.route(m).from) {
            None => Occupant::Nothing,
            Some(container) if Some(container.incarnation) != incarnation => Occupant::Later,
            Some(container) if container.run == Run::Stopped => Occupant::Stopped,
            Some(_) => Occupant::Original,
        }
    }

    fn remove_original(&self, state: &mut State, m: Migration) {
        let occupant = self.occupant(state, m);
        if self.rules.removal(occupant) == Removal::Remove {
            *state.engine_mut(self.route(m).from) = None;
            let this = &state.moves[m];
            let needed = self.bounds.post_copy && !this.all_pages;
            state.broken.removed_early |= !this.handed_over || needed;
            state.broken.removed_other |= occupant == Occupant::Later;
        }
    }

    /// Has the anchor of the container's flows make a tunnel to the destination. It is there or not before
    /// the container is interrupted, so that this is one step.
    fn agree_with_anchor(&self, state: &mut State, m: Migration) {
        if !self.bounds.anchor {
            return;
        }
        let leads = self.rules.may_lead(state.anchor.leads_to == self.route(m).from);
        if leads && self.rules.may_set_key(state.anchor.key, Key::True) {
            state.anchor.key = Some(Key::True);
            state.moves[m].anchored = true;
        }
    }
}

fn note(state: &mut State, m: Migration, reached: Departure) {
    if let Some(departed) = &mut state.moves[m].departure {
        departed.reached = reached;
    }
}

/// What follows the record that the destination's engine runs the container.
fn acknowledged(state: &State, m: Migration) -> Mover {
    if state.moves[m].anchored { Mover::ToAsk(Question::Rehome) } else { Mover::Removing }
}

fn body(question: Question) -> Body {
    match question {
        Question::Offer => Body::Offer,
        Question::Resume => Body::Order(Order::Resume),
        Question::Commit => Body::Order(Order::Commit),
        Question::Finish => Body::Finish,
        Question::Pages => Body::Order(Order::Serve),
        Question::Rehome => Body::Rehome,
    }
}
