//! Keeps the engine from starting an original whose move is decided and in doubt, beside a copy that may run at the
//! destination, until the doubt is over.
//!
//! After a reboot the original is stopped, and its engine would start it by its restart policy: the policy is taken
//! away. Before a reboot the original is frozen. Its engine does not know, and would restart it if told to: the
//! engine is made to record it as paused.

use state::cause::{Cause, chain};
use state::journal::{Journal, Record};

use super::{Departed, Event};
use crate::context::Context;

/// Keeps the engine from starting the original. What prevents this is told: nothing else may wait for it.
pub async fn disarm(context: &Context, departed: &Departed, journal: &mut Journal) {
    if departed.disarmed.is_some() {
        return;
    }
    if let Err(e) = try_to_disarm(context, departed, journal).await {
        let name = departed.name.clone();
        let engine = context.engine.kind();
        context.tell(Event::StillArmed { name, engine, reason: chain(e.as_ref()) });
    }
}

async fn try_to_disarm(
    context: &Context,
    departed: &Departed,
    journal: &mut Journal,
) -> Result<(), Cause> {
    let engine = &context.engine;
    if let Some(cgroup) = departed.original() {
        // While it is there, frozen, only an order starts it anew.
        if !departed.paused && cgroup.is_freeze_requested()? {
            journal.append(&Record::Paused)?;
            engine.pause(&departed.container).await?;
        }
        return Ok(());
    }
    if !engine.exists(&departed.container).await? {
        return Ok(());
    }
    let container = engine.inspect(&departed.container).await?;
    let policy = container.restart;
    if container.pid > 1 || matches!(policy.name.as_str(), "" | "no") {
        return Ok(());
    }
    let name = match policy.maximum_retries {
        0 => policy.name,
        retries => format!("{}:{retries}", policy.name),
    };
    journal.append(&Record::Disarmed { policy: name })?;
    Ok(engine.set_restart_policy(&departed.container, "no").await?)
}

/// Gives the original its restart policy back; what could not be done.
pub async fn arm(context: &Context, departed: &Departed) -> Option<String> {
    let policy = departed.disarmed.as_deref()?;
    let armed = context.engine.set_restart_policy(&departed.container, policy).await;
    armed.err().map(|e| format!("its restart policy is {policy} again: {}", chain(&e)))
}

/// Has the engine record that the original runs again; what could not be done.
pub async fn unpause(context: &Context, departed: &Departed) -> Option<String> {
    if !departed.paused {
        return None;
    }
    let unpaused = context.engine.unpause(&departed.container).await;
    unpaused.err().map(|e| format!("it is paused no more: {}", chain(&e)))
}
