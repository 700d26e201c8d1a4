//! One migration, seen from the source. Each file is one stretch of it, and each stretch is a type
//! that owns what it has changed; going on consumes it, and so does going back.
//!
//! ```text
//! connect ─▶ Plan ─▶ Preparation ─▶ Interruption ─▶ Committed ─▶ Report
//!            │        │            │         │
//!            refused  rolled back  rolled    in doubt: never back by itself
//! ```

pub(crate) mod anchors;
mod bridged_flows;
mod commit;
mod completion;
mod container_log;
mod dead_connections;
pub(crate) mod destination_rpc;
mod dns_names;
mod engine_orders;
mod exec_sessions;
mod expired_flows;
mod failure;
mod flow_passage;
mod forecast;
pub(crate) mod frozen_original;
mod interrupt_slot;
mod interruption;
mod landlock;
mod late_files;
mod link_rate;
pub(crate) mod local_far_ends;
mod lost_settings;
mod memory;
mod memory_rounds;
pub(crate) mod memory_service;
mod migration;
mod multicast;
mod network_namespace;
mod original_ports;
mod page_sorter;
mod past_moves;
mod path_trial;
mod plan;
mod ports;
mod preparation;
mod prepared_dump;
mod processor_share;
mod receive_buffers;
mod retry;
pub(crate) mod service;
mod siblings_left_behind;
mod trees;
mod verify_copy;
pub(crate) mod volumes;

use checkpoint::pidfd::PidFd;
use state::cause::chain;

use crate::cancel::Cancel;
use crate::connect;
use crate::context::Context;
use crate::event::Steps;
use crate::report::Report;
use crate::request::Request;

pub use self::failure::Failure;

use self::commit::Committed;
use self::interruption::Interruption;
use self::migration::Migration;
use self::preparation::Preparation;

/// Moves a container.
///
/// # Errors
/// The container was not moved, or nobody knows. What has become of it is said by the [`Failure`].
pub async fn run(context: &Context, request: &Request, cancel: &Cancel) -> Result<Report, Failure> {
    let mut moved = None;
    let outcome = attempt(context, request, cancel, &mut moved).await;
    // Nothing of the attempt has a file of the container open any more.
    if let (Err(Failure::RolledBack { ended: true, .. }), Some(id)) = (&outcome, moved) {
        clean_up(context, &id).await;
    }
    outcome
}

/// Has the engine clean up after a container that has ended while its files were open here.
pub(crate) async fn clean_up(context: &Context, id: &str) {
    if let Err(e) = context.engine.clean_up(id).await {
        tracing::debug!("{}", chain(&e));
    }
}

/// Moves a container. `id` gets the container's ID.
async fn attempt(
    context: &Context,
    request: &Request,
    cancel: &Cancel,
    id: &mut Option<String>,
) -> Result<Report, Failure> {
    let mut steps = Steps::start(context);

    steps.begin("connect");
    let mut introduced = cancel
        .guard(connect::connect(context, &request.destination))
        .await
        .map_err(Failure::Refused)?;
    introduced.connection.set_bulk(request.options.bulk);
    steps.begin("preflight");
    let plan = cancel.guard_failure(plan::agree(context, request, introduced)).await?;

    *id = Some(plan.container.id.clone());
    // From here on there is something to undo.
    let (name, first) = (plan.container.name.clone(), PidFd::open(plan.process.pid));
    let migration = Migration::begin(context, plan).map_err(Failure::Refused)?;
    let mut preparation = Preparation::of(migration);
    let preparing = preparation.prepare(&mut steps, &request.options);
    let prepared = cancel.guard(engine_orders::unless_ended(&name, first, preparing)).await;
    if let Err(cause) = prepared {
        return Err(preparation.go_back(cause).await);
    }
    let mut interruption = match preparation.finish() {
        Ok((migration, tools)) => Interruption::of(migration, tools),
        Err(undone) => {
            let (preparation, cause) = *undone;
            return Err(preparation.go_back(cause.into()).await);
        }
    };
    steps.interrupt();
    let limit = request.options.max_interruption;
    if let Err(cause) = cancel.guard(interruption.run(limit)).await {
        return Err(interruption.go_back(cause).await);
    }
    // The commit point. A cancellation from here on waits until the move is finished.
    let committed = match Committed::record(interruption) {
        Ok(committed) => committed,
        Err(undone) => {
            let (interruption, cause) = *undone;
            return Err(interruption.go_back(cause).await);
        }
    };
    cancel.decide();
    committed.complete(steps).await
}
