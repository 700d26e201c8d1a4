//! What the processes of a destination do: agent-server, the guardian of an arrival, a copy's shim.

use ownership::destination::{self, Found, Holding, Order, Recovery, Reply};
use ownership::source::Answer;

use crate::pages::Pages;
use crate::state::{Arrived, Body, Host, Keeper, Migration, Remembered, Run, Staged, State};
use crate::world::World;

impl World {
    /// Returns what a destination knows of a migration.
    pub fn holding(&self, state: &State, m: Migration) -> Holding {
        let this = &state.moves[m];
        match (this.keeper, this.arrival, this.memory) {
            (Keeper::Waiting, ..) => Holding::Waiting,
            (Keeper::Active | Keeper::HandedOver, ..) => Holding::Activated,
            (Keeper::Nobody, None, None) => Holding::Nothing,
            (Keeper::Nobody, None, Some(Remembered::Outstanding)) => Holding::Outstanding,
            (Keeper::Nobody, None, Some(Remembered::HandedOver)) => Holding::HandedOver,
            (Keeper::Nobody, None, Some(Remembered::Lost)) => Holding::Lost,
            _ => Holding::Unsettled,
        }
    }

    /// Returns whether a destination knows a migration's number, or its engine the container's ID.
    pub fn is_known(&self, state: &State, m: Migration) -> bool {
        let this = &state.moves[m];
        let to = self.route(m).to;
        let staged = |i: Migration| self.route(i).to == to && state.moves[i].copy.is_some();
        this.arrival.is_some()
            || this.memory.is_some()
            || state.engine(to).is_some()
            || self.migrations().any(staged)
    }

    /// Hears an offer with everything that a copy needs.
    pub fn hear_offer(&self, state: &mut State, m: Migration, answer: bool) {
        let works = self.works(state, self.route(m).to);
        if self.is_known(state, m) || !self.rules.may_begin(&works) {
            self.say(state, m, answer, Answer::Undecided);
            return;
        }
        state.moves[m].arrival = Some(Arrived { activated: false });
        state.moves[m].keeper = Keeper::Restoring { answer };
    }

    /// Hears an order from the migration's source, or from the stranger, who is not answered here.
    pub fn hear_order(
        &self,
        state: &mut State,
        m: Migration,
        from: Host,
        order: Order,
        answer: bool,
    ) {
        let owner = self.route(m).from;
        let holding = self.holding(state, m);
        let known = (holding != Holding::Nothing).then_some(owner);
        match self.rules.reply(holding, known, from, order) {
            Reply::Activate if is_alive(state.moves[m].copy) => {
                state.moves[m].arrival = Some(Arrived { activated: true });
                state.moves[m].keeper = Keeper::Activating { answer };
            }
            // The copy has died: what is left of it goes, and then the source hears that none is there.
            Reply::Activate | Reply::Remove => {
                state.moves[m].keeper = Keeper::Removing { order: Some(order), answer };
            }
            Reply::Release => state.moves[m].tunnel = false,
            reply if order == Order::Serve => {
                let said = self.hear_pages(state, m, true, reply);
                self.say(state, m, answer, said);
            }
            Reply::Forget => self.forget(state, m, true),
            reply => self.say(state, m, answer, meaning(reply)),
        }
        self.check_denial(state, m, self.rules.reply(holding, known, from, order));
    }

    /// Hears that the original's memory cannot be had any more.
    pub fn hear_memory_gone(&self, state: &mut State, m: Migration, answer: bool) {
        let owner = self.route(m).from;
        let holding = self.holding(state, m);
        let known = (holding != Holding::Nothing).then_some(owner);
        let reply = self.rules.reply(holding, known, owner, Order::Serve);
        let said = self.hear_pages(state, m, false, reply);
        self.check_denial(state, m, reply);
        self.say(state, m, answer, said);
    }

    /// Is asked whether its engine runs the container.
    pub fn hear_finish(&self, state: &mut State, m: Migration, answer: bool) {
        let owner = self.route(m).from;
        let holding = self.holding(state, m);
        let known = (holding != Holding::Nothing).then_some(owner);
        let reply = self.rules.reply(holding, known, owner, Order::Commit);
        let said = match (reply, holding) {
            (Reply::Confirm, Holding::HandedOver | Holding::Outstanding) => Answer::Done,
            // It is to be taken over yet.
            (Reply::Confirm | Reply::Activate, _) => Answer::Undecided,
            (reply, _) => meaning(reply),
        };
        self.check_denial(state, m, reply);
        self.say(state, m, answer, said);
    }

    /// Takes the next step of the process at the destination, if it waits for nothing.
    pub fn destination_step(&self, state: &mut State, m: Migration) -> bool {
        let to = self.route(m).to;
        match state.moves[m].keeper {
            Keeper::Restoring { answer } => {
                let runs = self.rules.may_run(Holding::Waiting);
                let run = if runs { Run::CutOff } else { Run::Frozen };
                state.moves[m].copy = Some(Staged { run, stays: false });
                if self.bounds.post_copy {
                    state.moves[m].pages = Pages::Missing;
                }
                state.moves[m].keeper = Keeper::Waiting;
                self.say(state, m, answer, Answer::Done);
            }
            Keeper::Activating { answer } => {
                let Some(copy) = state.moves[m].copy.filter(|copy| copy.is_alive()) else {
                    state.moves[m].keeper = Keeper::Nobody;
                    return true;
                };
                if !copy.stays && self.rules.tells_to_stay_first() {
                    state.moves[m].copy = Some(Staged { stays: true, ..copy });
                    return true;
                }
                if self.rules.may_run(Holding::Activated) {
                    state.moves[m].copy = Some(Staged { run: Run::Audible, ..copy });
                    state.moves[m].heard = true;
                }
                state.moves[m].keeper = Keeper::Active;
                self.say(state, m, answer, Answer::Done);
            }
            Keeper::Active => {
                if !is_alive(state.moves[m].copy) {
                    state.moves[m].keeper = Keeper::Nobody;
                    return true;
                }
                state.moves[m].copy = None;
                state.start_container(to);
                state.moves[m].handed_over = true;
                state.moves[m].keeper = Keeper::HandedOver;
            }
            Keeper::HandedOver => {
                state.moves[m].tunnel = self.bounds.anchor;
                let post_copy = self.bounds.post_copy;
                let remembered = match destination::remembered(post_copy, false, false) {
                    Holding::Outstanding => Remembered::Outstanding,
                    _ => Remembered::HandedOver,
                };
                self.remember(state, m, remembered);
            }
            Keeper::Removing { order, answer } => {
                end_copy(state, m);
                self.removal_ended(state, m, true, order, answer);
            }
            Keeper::NotingLoss => {
                // What has the container's ID is taken for what is left of the copy.
                let container = state.engine_mut(to).take();
                let run = container.is_some_and(|container| container.run == Run::Audible);
                state.broken.ended_heard |= run;
                end_copy(state, m);
                self.remember(state, m, Remembered::Lost);
            }
            Keeper::Nobody | Keeper::Waiting => return false,
        }
        true
    }

    /// A removal fails: no process is left, but the engine still has what is needed to start the copy.
    pub fn fail_removal(&self, state: &mut State, m: Migration) {
        let Keeper::Removing { order, answer } = state.moves[m].keeper else { return };
        state.moves[m].copy = state.moves[m].copy.map(|_| Staged::DEAD);
        self.removal_ended(state, m, false, order, answer);
    }

    fn removal_ended(
        &self,
        state: &mut State,
        m: Migration,
        removed: bool,
        order: Option<Order>,
        answer: bool,
    ) {
        state.moves[m].keeper = Keeper::Nobody;
        let holding = self.rules.after_removal(removed);
        if holding == Holding::Nothing {
            state.moves[m].arrival = None;
        }
        let Some(order) = order else { return };
        let owner = self.route(m).from;
        let known = (holding != Holding::Nothing).then_some(owner);
        let reply = self.rules.reply(holding, known, owner, order);
        self.check_denial(state, m, reply);
        self.say(state, m, answer, meaning(reply));
    }

    /// Returns whether the guardian of an arrival may take it over.
    pub fn can_settle(&self, state: &State, m: Migration) -> bool {
        state.moves[m].keeper == Keeper::Nobody
            && state.moves[m].arrival.is_some()
            && self.is_free(state, self.route(m).to)
    }

    /// Settles an arrival whose process has died; `clear`: the shim and the engine answer.
    pub fn settle_arrival(&self, state: &mut State, m: Migration, clear: bool) {
        let Some(arrived) = state.moves[m].arrival else { return };
        let found = if !clear {
            Found::Unclear
        } else if is_alive(state.moves[m].copy) {
            Found::Staged
        } else if arrived.activated && state.engine(self.route(m).to).is_some() {
            Found::Engine
        } else {
            Found::Gone
        };
        state.moves[m].keeper = match self.rules.arrival_recovery(arrived.activated, found) {
            Recovery::Remove => Keeper::Removing { order: None, answer: false },
            Recovery::TakeOver => Keeper::Activating { answer: false },
            Recovery::HandOver => Keeper::HandedOver,
            Recovery::NoteLoss => Keeper::NotingLoss,
            Recovery::Wait => Keeper::Nobody,
        };
    }

    /// Returns whether the shim of a copy waits, and nobody is there to tell it that the copy is to stay.
    pub fn can_shim_expire(&self, state: &State, m: Migration) -> bool {
        let this = &state.moves[m];
        this.keeper == Keeper::Nobody
            && this.copy.is_some_and(|copy| copy.is_alive() && !copy.stays)
    }

    /// Forgets a migration, if that is allowed.
    pub fn forget(&self, state: &mut State, m: Migration, source_is_done: bool) {
        if self.rules.may_forget(source_is_done) {
            state.moves[m].memory = None;
        }
    }

    fn remember(&self, state: &mut State, m: Migration, what: Remembered) {
        state.moves[m].arrival = None;
        state.moves[m].memory = Some(what);
        state.moves[m].keeper = Keeper::Nobody;
    }

    fn say(&self, state: &mut State, m: Migration, answer: bool, said: Answer) {
        if answer {
            state.send(m, Body::Answer(said), false);
        }
    }

    /// Who says that there is no copy must have none, and none that was heard.
    fn check_denial(&self, state: &mut State, m: Migration, reply: Reply) {
        let this = &state.moves[m];
        let there =
            this.copy.is_some() || this.heard && !this.withdrawn && this.departure.is_some();
        state.broken.denied_falsely |= reply == Reply::NoCopy && there;
    }
}

/// Ends a copy, whether it runs or not.
pub fn end_copy(state: &mut State, m: Migration) {
    let copy = state.moves[m].copy.take();
    state.broken.ended_heard |= copy.is_some_and(|copy| copy.run == Run::Audible);
}

/// Returns whether a copy has processes.
pub fn is_alive(copy: Option<Staged>) -> bool {
    copy.is_some_and(Staged::is_alive)
}

/// Returns what a reply means to a source.
pub fn meaning(reply: Reply) -> Answer {
    match reply {
        Reply::NoCopy => Answer::NoCopy,
        Reply::Lost => Answer::Lost,
        Reply::Undecided | Reply::NotAllowed => Answer::Undecided,
        Reply::Known
        | Reply::Activate
        | Reply::Confirm
        | Reply::Remove
        | Reply::Removed
        | Reply::Release
        | Reply::Fetch
        | Reply::Whole
        | Reply::Forget => Answer::Done,
    }
}
