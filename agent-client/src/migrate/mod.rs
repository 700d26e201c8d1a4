//! One migration, seen from the source. Each file is one stretch of it, and each stretch is a type
//! that owns what it has changed; going on consumes it, and so does going back.
//!
//! ```text
//! connect ─▶ Plan ─▶ Departure ─▶ Pause ─▶ Committed ─▶ Summary
//!            │        │            │         │
//!            refused  rolled back  rolled    in doubt: never back by itself
//! ```

pub mod anchors;
mod beside;
mod cancel;
mod commit;
mod datagrams;
mod departure;
mod dump;
mod equality;
mod failure;
pub mod far_ends;
mod insist;
mod limits;
mod log;
mod lost;
mod multicast;
mod network;
pub mod order;
mod outbox;
mod paths;
mod pause;
mod plan;
mod ports;
mod remembered;
mod retire;
mod room;
mod siblings;
mod silent;
mod trees;
mod turn;

use crate::cli::Migrate;
use crate::connect;
use crate::context::Context;
use crate::report::Steps;
use crate::summary::Summary;

pub use self::failure::Failure;

use self::cancel::Cancel;
use self::commit::Committed;
use self::departure::Departure;
use self::pause::Pause;

/// Moves a container.
pub async fn run(context: &Context, request: &Migrate) -> Result<Summary, Failure> {
    let mut cancel = Cancel::listen().map_err(|e| Failure::Setup(e.into()))?;
    let mut steps = Steps::start(request.options.json);

    steps.begin("connect");
    let connection = cancel
        .guard(connect::connect(context, &request.destination))
        .await
        .map_err(Failure::Refused)?;
    steps.begin("preflight");
    let plan = cancel.guard_failure(plan::agree(context, request, connection)).await?;

    // From here on there is something to undo.
    let mut departure = Departure::begin(context, plan).map_err(Failure::Refused)?;
    let prepared = cancel.guard(departure.prepare(&mut steps)).await;
    if let Err(cause) = prepared {
        return Err(departure.go_back(cause).await);
    }
    let mut pause = match Pause::of(departure) {
        Ok(pause) => pause,
        Err(undone) => {
            let (departure, cause) = *undone;
            return Err(departure.go_back(cause).await);
        }
    };
    steps.pause();
    let limit = request.options.max_interruption;
    if let Err(cause) = cancel.guard(pause.run(limit)).await {
        return Err(pause.go_back(cause).await);
    }
    // The commit point. A cancellation from here on waits until the move is finished.
    let committed = match Committed::record(pause) {
        Ok(committed) => committed,
        Err(undone) => {
            let (pause, cause) = *undone;
            return Err(pause.go_back(cause).await);
        }
    };
    committed.complete(steps).await
}
