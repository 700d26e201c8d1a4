//! What goes wrong: processes die, hosts start anew, words are lost, steps fail, a stranger speaks.

use ownership::source::Answer;

use crate::action::Action;
use crate::pages::Pages;
use crate::state::{Body, Host, Keeper, Key, Migration, Mover, Run, Staged, State};
use crate::world::World;

impl World {
    /// Has a fault strike, and takes it from the budget.
    pub fn strike(&self, state: &mut State, fault: Action) {
        match fault {
            Action::CrashSource(m) => {
                state.budget.crashes -= 1;
                self.end_source(state, m);
            }
            Action::CrashDestination(m) => {
                state.budget.crashes -= 1;
                end_destination(state, m);
            }
            Action::Break(m) => {
                state.budget.breaks -= 1;
                state.disconnect(m);
                self.hear(state, m, Answer::Silence);
            }
            Action::Lose(packet) => {
                state.budget.breaks -= 1;
                state.packets.remove(&packet);
            }
            Action::FailRollback(m) => {
                state.budget.failures -= 1;
                self.fail_rollback(state, m);
            }
            Action::FailRemoval(m) => {
                state.budget.failures -= 1;
                self.fail_removal(state, m);
            }
            Action::SettleUnclear(m) => {
                state.budget.failures -= 1;
                self.settle_arrival(state, m, false);
            }
            Action::CopyDies(m) => {
                state.budget.failures -= 1;
                state.moves[m].copy = Some(Staged::DEAD);
            }
            Action::ServerDies(m) => {
                state.budget.failures -= 1;
                self.end_without_pages(state, m);
            }
            Action::Reboot(host) => {
                state.budget.reboots -= 1;
                self.reboot(state, host);
            }
            stranger => self.stranger(state, stranger),
        }
    }

    fn end_source(&self, state: &mut State, m: Migration) {
        state.disconnect(m);
        if state.moves[m].mover != Mover::Idle {
            state.moves[m].mover = Mover::Gone;
        }
    }

    fn reboot(&self, state: &mut State, host: Host) {
        for m in self.migrations() {
            if self.route(m).from == host {
                self.end_source(state, m);
            }
            if self.route(m).to == host {
                end_destination(state, m);
                state.moves[m].copy = state.moves[m].copy.map(|_| Staged::DEAD);
                if state.moves[m].pages == Pages::Missing {
                    state.moves[m].pages = Pages::Never;
                }
            }
        }
        if let Some(container) = state.engine_mut(host) {
            container.run = Run::Stopped;
        }
    }

    /// Has the stranger say something, and notes whether anything follows from it.
    fn stranger(&self, state: &mut State, says: Action) {
        state.budget.hostile -= 1;
        let mut before = state.clone();
        match says {
            Action::StrangerOrders(m, order) => {
                self.hear_order(state, m, Host::Stranger, order, false);
            }
            Action::StrangerOffers(m) => self.hear_offer(state, m, false),
            Action::StrangerLeads(to) => {
                self.lead(state, Host::Stranger, to);
            }
            // Flows of a container of its own lead to it, so that it may have a tunnel made for them.
            Action::StrangerSetsKey if self.rules.may_set_key(state.anchor.key, Key::Forged) => {
                state.anchor.key = Some(Key::Forged);
                if before.anchor.key.is_none() {
                    before.anchor.key = state.anchor.key;
                }
            }
            _ => {}
        }
        state.broken.stranger_obeyed |= *state != before;
    }
}

/// The process at a destination ends, and with it every connection to it.
fn end_destination(state: &mut State, m: Migration) {
    state.moves[m].keeper = Keeper::Nobody;
    state.packets.retain(|p| p.migration != m || matches!(p.body, Body::Answer(_) | Body::Rehome));
}
