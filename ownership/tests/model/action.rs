//! What may happen next: steps of processes, words on their way, faults, persons.

use ownership::destination::Order;
use ownership::source::Departure;

use crate::destination::is_alive;
use crate::pages::Pages;
use crate::state::{Host, Keeper, Migration, Mover, Packet, Question, Run, State};
use crate::world::World;

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Begin(Migration),
    /// The process at the source takes its next step.
    Source(Migration),
    /// The process at the destination takes its next step.
    Destination(Migration),
    Deliver(Packet),
    /// Nothing comes any more to a source that waits.
    Timeout(Migration),
    /// A source goes back before its decision: cancelled, or its time is over.
    GiveUp(Migration),
    /// A guardian, `recover` or a boot takes a departure over.
    Recover(Migration),
    /// A guardian or a boot takes an arrival over.
    Settle(Migration),
    /// A destination looks what has become of memory that had not arrived whole.
    SettlePages(Migration),
    /// The lease of a waiting copy runs out.
    Lease(Migration),
    /// The shim of a copy waits in vain and ends it.
    ShimExpires(Migration),
    /// The restart policy starts what an engine has.
    StartContainer(Host),
    /// The restart policy starts what is left of a copy.
    StartCopy(Migration),
    /// A destination forgets what nobody has released.
    Forget(Migration),

    CrashSource(Migration),
    CrashDestination(Migration),
    /// The source's connection breaks; what is on its way may come late.
    Break(Migration),
    Lose(Packet),
    FailRollback(Migration),
    FailRemoval(Migration),
    /// A guardian takes an arrival over while neither shim nor engine answers.
    SettleUnclear(Migration),
    /// A copy dies before the engine has it.
    CopyDies(Migration),
    /// The server of pages is killed while pages are missing.
    ServerDies(Migration),
    Reboot(Host),
    StrangerOrders(Migration, Order),
    /// The stranger offers a container of the same ID, under the migration's number, while the destination
    /// knows either. Otherwise it is a container of its own.
    StrangerOffers(Migration),
    StrangerLeads(Host),
    StrangerSetsKey,

    Withdraw(Migration),
    CarryHome,
}

impl World {
    /// Lists what happens by itself, what brings an end nearer first. A source that dials again comes last:
    /// what it asks for may need the rest.
    pub fn progress(&self, state: &State, actions: &mut Vec<Action>) {
        let each = |actions: &mut Vec<Action>,
                    when: &dyn Fn(Migration) -> bool,
                    of: fn(Migration) -> Action| {
            actions.extend(self.migrations().filter(|m| when(*m)).map(of));
        };
        let mover = |m: Migration| state.moves[m].mover;
        let keeper = |m: Migration| state.moves[m].keeper;
        let dials = |m| matches!(mover(m), Mover::ToAsk(Question::Resume | Question::Pages));
        let waits =
            |m| matches!(mover(m), Mover::Idle | Mover::Asking(_) | Mover::InDoubt | Mover::Gone);
        each(
            actions,
            &|m| !matches!(keeper(m), Keeper::Nobody | Keeper::Waiting),
            Action::Destination,
        );
        each(actions, &|m| !waits(m) && !dials(m), Action::Source);
        actions.extend(state.packets.iter().copied().map(Action::Deliver));
        each(actions, &|m| self.hears_nothing(state, m), Action::Timeout);
        each(actions, &|m| self.can_settle(state, m), Action::Settle);
        each(actions, &|m| self.can_settle_pages(state, m), Action::SettlePages);
        each(actions, &|m| mover(m) == Mover::Gone && self.can_recover(state, m), Action::Recover);
        each(actions, &|m| keeper(m) == Keeper::Waiting, Action::Lease);
        each(actions, &|m| self.can_shim_expire(state, m), Action::ShimExpires);
        let stopped = |host: &Host| {
            state.engine(*host).is_some_and(|container| container.run == Run::Stopped)
                && self.rules.may_start(&self.works(state, *host))
        };
        actions.extend(Host::ALL.into_iter().filter(stopped).map(Action::StartContainer));
        let left = |m: Migration| {
            state.moves[m].copy.is_some_and(|copy| !copy.is_alive())
                && self.rules.may_start(&self.works(state, self.route(m).to))
        };
        each(actions, &left, Action::StartCopy);
        each(actions, &dials, Action::Source);
    }

    /// Lists what may happen besides: new work, faults, persons.
    pub fn events(&self, state: &State, actions: &mut Vec<Action>) {
        let budget = state.budget;
        for m in self.migrations() {
            let this = &state.moves[m];
            let mut add = |when: bool, action: Action| actions.extend(when.then_some(action));
            let asks = matches!(this.mover, Mover::Asking(_));
            let active = !matches!(this.mover, Mover::Idle | Mover::InDoubt | Mover::Gone);
            add(self.can_begin(state, m), Action::Begin(m));
            let undecided = matches!(this.mover, Mover::Asking(Question::Offer) | Mover::Ready);
            add(undecided, Action::GiveUp(m));
            add(this.mover == Mover::InDoubt && self.can_recover(state, m), Action::Recover(m));
            add(this.memory.is_some() && self.rules.may_forget(false), Action::Forget(m));
            add(budget.crashes > 0 && active, Action::CrashSource(m));
            add(budget.crashes > 0 && this.keeper != Keeper::Nobody, Action::CrashDestination(m));
            add(budget.breaks > 0 && asks && !self.hears_nothing(state, m), Action::Break(m));
            add(budget.failures > 0 && self.may_fail_to_thaw(state, m), Action::FailRollback(m));
            let removes = matches!(this.keeper, Keeper::Removing { .. });
            add(budget.failures > 0 && removes, Action::FailRemoval(m));
            add(budget.failures > 0 && self.can_settle(state, m), Action::SettleUnclear(m));
            add(budget.failures > 0 && is_alive(this.copy), Action::CopyDies(m));
            let serves = this.pages == Pages::Missing;
            add(budget.failures > 0 && serves, Action::ServerDies(m));
            add(self.bounds.person && self.can_withdraw(state, m), Action::Withdraw(m));
            if budget.hostile > 0 {
                let all = [Order::Resume, Order::Commit, Order::Abort, Order::LedPast, Order::Done];
                for order in all.into_iter().chain(self.bounds.post_copy.then_some(Order::Serve)) {
                    add(true, Action::StrangerOrders(m, order));
                }
                add(self.is_known(state, m), Action::StrangerOffers(m));
            }
        }
        if budget.breaks > 0 {
            actions.extend(state.packets.iter().copied().map(Action::Lose));
        }
        if budget.reboots > 0 {
            let concerned = |host: &Host| {
                self.bounds.routes.iter().any(|route| route.from == *host || route.to == *host)
            };
            actions.extend(Host::ALL.into_iter().filter(concerned).map(Action::Reboot));
        }
        if budget.hostile > 0 && self.bounds.anchor {
            actions.extend([Host::A, Host::B, Host::Stranger].map(Action::StrangerLeads));
            actions.push(Action::StrangerSetsKey);
        }
        let here = |host| state.engine(host).is_some_and(|container| container.run == Run::Audible);
        let idle = self.migrations().all(|m| state.moves[m].keeper == Keeper::Nobody);
        if self.bounds.carried_home && here(Host::B) && state.engine(Host::A).is_none() && idle {
            actions.push(Action::CarryHome);
        }
    }

    fn may_fail_to_thaw(&self, state: &State, m: Migration) -> bool {
        let this = &state.moves[m];
        let frozen =
            |host| state.engine(host).is_some_and(|container| container.run == Run::Frozen);
        let interrupted = this.departure.is_some_and(|d| d.reached != Departure::Preparing);
        this.mover == Mover::Undoing && interrupted && frozen(self.route(m).from)
    }

    /// Returns whether a source waits for an answer that nobody will give.
    fn hears_nothing(&self, state: &State, m: Migration) -> bool {
        let this = &state.moves[m];
        let under_way = state.packets.iter().any(|p| p.migration == m && !p.stale);
        let at_work = matches!(
            this.keeper,
            Keeper::Restoring { answer: true }
                | Keeper::Activating { answer: true }
                | Keeper::Removing { answer: true, .. }
        );
        matches!(this.mover, Mover::Asking(_)) && !under_way && !at_work
    }
}
