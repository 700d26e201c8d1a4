//! Finishing a migration whose commit record is on disk.

use agent_core::cause::{Cause, chain};
use agent_core::forward;
use agent_core::journal::{Journal, Record};
use agent_core::message::Rehome;

use super::back::{tidy, unhold};
use super::{Departed, Error, Outcome, say};
use crate::context::Context;
use crate::migrate::{anchors, order};

/// Gets the destination to run the container, and notes that it does. Changes nothing here while
/// the destination does not answer.
pub async fn finish(
    context: &Context,
    departed: &Departed,
    journal: &mut Journal,
) -> Result<Outcome, Error> {
    let told = async {
        let mut connection = departed.peer.resume(context).await?;
        order::commit(&mut connection, departed.migration()).await?;
        order::finish(&mut connection).await
    };
    match told.await {
        Ok(_) => {
            say("  the destination runs the container");
            journal.append(&Record::Acknowledged).map_err(|e| Error::Begin(e.into()))?;
            Ok(Outcome::Moved)
        }
        Err(e) if e.denies_copy() => {
            say("  the destination holds no copy; going back");
            Ok(Outcome::Back)
        }
        Err(source) => {
            Err(Error::InDoubt { destination: departed.peer.destination.clone(), source })
        }
    }
}

/// Removes the original, which is cut off still, and what the migration needed; gives what could not
/// be removed.
pub async fn remove_original(context: &Context, departed: &Departed) -> Vec<String> {
    let mut left = Vec::new();
    let mut note = |result: Result<(), Cause>| {
        left.extend(result.err().map(|e| chain(e.as_ref())));
    };
    let migration = departed.migration();
    let order = Rehome {
        migration,
        host: departed.peer.host,
        id: departed.container.clone(),
        container: departed.addresses.clone(),
    };
    let rehomed = match departed.number {
        Some(number) => anchors::rehome_anew(context, &order, number).await,
        None => Ok(false),
    };
    match rehomed {
        Ok(true) => {
            // A destination that does not hear it keeps its end of the tunnel until the flows end.
            if let Err(e) = tell_led_past(context, departed).await {
                tracing::warn!("{}", chain(&e));
            }
        }
        Ok(false) => {}
        Err(e) => note(Err(e)),
    }
    note(forward::begin(&context.directories, migration).await);
    let here = forward::here(&departed.container);
    note(forward::remove(&context.directories, here).await.map(drop));
    note(context.podman.remove(&departed.container).await.map_err(Into::into));
    note(unhold(departed).map(drop));
    note(tidy(context, departed).map(drop));
    left
}

async fn tell_led_past(context: &Context, departed: &Departed) -> Result<(), order::Error> {
    let mut connection = departed.peer.resume(context).await?;
    order::led_past(&mut connection, departed.migration()).await
}
