//! What follows from what happens by itself or by a person's will.

use ownership::anchor::Leading;
use ownership::source::Answer;

use crate::action::Action;
use crate::destination::end_copy;
use crate::state::{Body, Host, Keeper, Mover, Packet, Run, Staged, State};
use crate::world::World;

impl World {
    /// Does what happens.
    pub fn apply(&self, state: &mut State, action: Action) {
        match action {
            Action::Begin(m) => self.begin(state, m),
            Action::Source(m) => {
                self.source_step(state, m);
            }
            Action::Destination(m) => {
                self.destination_step(state, m);
            }
            Action::Deliver(packet) => self.deliver(state, packet),
            Action::Timeout(m) => self.hear(state, m, Answer::Silence),
            Action::GiveUp(m) => {
                state.disconnect(m);
                state.moves[m].mover = Mover::Undoing;
            }
            Action::Recover(m) => self.recover(state, m),
            Action::Settle(m) => self.settle_arrival(state, m, true),
            Action::SettlePages(m) => self.settle_pages(state, m),
            Action::Lease(m) => {
                state.moves[m].keeper = Keeper::Removing { order: None, answer: false };
            }
            Action::ShimExpires(m) => end_copy(state, m),
            Action::StartContainer(host) => state.start_container(host),
            Action::StartCopy(m) => {
                state.moves[m].copy = Some(Staged { run: Run::Audible, stays: true });
                state.moves[m].heard = true;
            }
            Action::Forget(m) => self.forget(state, m, false),
            Action::Withdraw(m) => self.withdraw(state, m),
            Action::CarryHome => {
                *state.engine_mut(Host::B) = None;
                state.start_container(Host::A);
            }
            fault => self.strike(state, fault),
        }
    }

    fn deliver(&self, state: &mut State, packet: Packet) {
        state.packets.remove(&packet);
        let (m, answer) = (packet.migration, !packet.stale);
        let source = self.route(m).from;
        match packet.body {
            Body::Offer => self.hear_offer(state, m, answer),
            Body::Order(order) => self.hear_order(state, m, source, order, answer),
            Body::Finish => self.hear_finish(state, m, answer),
            Body::MemoryGone => self.hear_memory_gone(state, m, answer),
            Body::Answer(said) => self.hear(state, m, said),
            Body::Rehome => {
                let said = self.lead(state, source, self.route(m).to);
                if answer {
                    state.send(m, Body::Answer(said), false);
                }
            }
        }
    }

    /// Has the anchor lead flows, if the order comes from where they lead.
    pub fn lead(&self, state: &mut State, by: Host, to: Host) -> Answer {
        let leads_to = state.anchor.leads_to;
        match self.rules.leading(leads_to == by, leads_to == to) {
            Leading::Lead => state.anchor.leads_to = to,
            Leading::Confirm => {}
            Leading::Refuse => return Answer::Undecided,
        }
        Answer::Done
    }
}
