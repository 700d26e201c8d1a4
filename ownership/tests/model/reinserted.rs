//! Faults that were put back, each alone: the model finds every one.

use stateright::{Checker, Model};

use crate::properties;
use crate::rules::{Fault, Rules};
use crate::world::{Bounds, World};
use crate::{CARRIED, CRASHES, HOME, POST_COPY, REBOOTS, STRANGER, TWO_HOSTS};

fn finds(bounds: Bounds, faults: &'static [Fault], promise: &'static str) {
    let world = World::new(bounds, Rules { faults }, Some(promise));
    let checker = world.checker().spawn_bfs().join();
    let path = checker.assert_any_discovery(promise).into_actions();
    println!("{faults:?} breaks \"{promise}\" in {} steps:", path.len());
    for action in path {
        println!("  {action:?}");
    }
}

#[test]
fn work_that_begins_beside_other_work() {
    finds(TWO_HOSTS, &[Fault::NoExclusion], properties::ONE_AUDIBLE);
}

#[test]
fn an_anchor_that_leads_flows_for_anybody() {
    finds(STRANGER, &[Fault::AnchorObeysAnybody], properties::STRANGER);
}

#[test]
fn an_anchor_that_changes_keys_for_anybody() {
    finds(STRANGER, &[Fault::AnchorChangesKeys], properties::STRANGER);
}

#[test]
fn an_anchor_that_refuses_a_repetition() {
    finds(STRANGER, &[Fault::RepetitionRefused], properties::SETTLES);
}

#[test]
fn orders_from_anybody_run_a_copy() {
    finds(STRANGER, &[Fault::OrdersFromAnybody], properties::NOTHING_EARLY);
}

#[test]
fn orders_from_anybody_change_something() {
    finds(STRANGER, &[Fault::OrdersFromAnybody], properties::STRANGER);
}

#[test]
fn a_tunnel_that_anybody_may_end() {
    finds(STRANGER, &[Fault::LedPastFromAnybody], properties::STRANGER);
}

#[test]
fn a_lost_copy_that_is_denied() {
    finds(CRASHES, &[Fault::LossDenied], properties::NO_THAW);
}

#[test]
fn a_copy_that_could_not_be_removed_and_is_denied() {
    finds(CRASHES, &[Fault::FailedRemovalDenied], properties::TRUE_DENIAL);
    finds(REBOOTS, &[Fault::FailedRemovalDenied], properties::ONE_AUDIBLE);
}

#[test]
fn a_copy_that_runs_before_its_commit() {
    finds(CRASHES, &[Fault::RunsBeforeCommit], properties::NOTHING_EARLY);
}

#[test]
fn a_failed_rollback_that_ends_its_journal() {
    finds(CRASHES, &[Fault::FailedRollbackEnds], properties::SETTLES);
}

#[test]
fn a_stale_journal_that_removes_what_was_carried_home() {
    finds(CARRIED, &[Fault::RemovesByName], properties::HOME_STAYS);
}

#[test]
fn a_stale_journal_that_removes_what_was_moved_home() {
    finds(HOME, &[Fault::NoExclusion, Fault::RemovesByName], properties::HOME_STAYS);
}

#[test]
fn arrivals_that_are_forgotten() {
    finds(CRASHES, &[Fault::MemoryCut], properties::NO_THAW);
}

#[test]
fn an_original_that_is_started_while_its_move_is_decided() {
    finds(REBOOTS, &[Fault::OriginalStarted], properties::ONE_AUDIBLE);
}

#[test]
fn a_copy_that_is_started_while_its_removal_fails() {
    finds(REBOOTS, &[Fault::CopyStarted], properties::ONE_AUDIBLE);
}

#[test]
fn silence_that_is_taken_for_no() {
    finds(CRASHES, &[Fault::SilenceTakenForNo], properties::NO_THAW);
}

#[test]
fn a_decision_that_is_taken_for_the_hand_over() {
    finds(CRASHES, &[Fault::DecisionTakenForHandOver], properties::KEPT);
}

#[test]
fn an_engine_without_answer_that_is_taken_for_an_empty_one() {
    finds(CRASHES, &[Fault::UnclearTakenForGone], properties::HEARD_STAYS);
}

#[test]
fn a_hand_over_that_is_taken_for_all_memory() {
    finds(POST_COPY, &[Fault::HandOverTakenForMemory], properties::KEPT);
}

#[test]
fn a_copy_that_lacks_memory_and_is_denied() {
    finds(POST_COPY, &[Fault::MissingPagesDenied], properties::NO_THAW);
}

#[test]
fn a_killed_server_of_pages_that_is_taken_for_one_that_has_ended() {
    finds(POST_COPY, &[Fault::ServersEndTakenForWhole], properties::KEPT);
}

#[test]
fn a_copy_that_is_told_late_to_stay() {
    finds(CRASHES, &[Fault::ToldToStayLate], properties::HEARD_STAYS);
}
