//! The restart policy of an original whose move is decided and in doubt.
//!
//! After a reboot the original is stopped. Its engine would start it by its restart policy, beside a copy that
//! may run at the destination. So the policy is taken away until the doubt is over.

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
    if !engine.exists(&departed.container).await? {
        return Ok(());
    }
    let container = engine.inspect(&departed.container).await?;
    let policy = container.restart;
    // While it is there, frozen, nothing starts it.
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
