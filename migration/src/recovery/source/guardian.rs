//! What the guardian of a migration does once its agent-client has died.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Outcome;
use crate::context::Context;

/// Between two attempts at a migration that is in doubt.
const RETRY: Duration = Duration::from_secs(2);
/// How long it is tried; after that it is left to a person.
const PERSISTENCE: Duration = Duration::from_secs(3600);

/// Recovers the migration of the journal, until it is neither in doubt nor half undone.
pub async fn run(context: &Context, path: PathBuf) -> Outcome {
    let give_up = Instant::now() + PERSISTENCE;
    loop {
        match super::recover(context, &path).await {
            Some(Outcome::InDoubt | Outcome::Incomplete) if Instant::now() < give_up => {
                tokio::time::sleep(RETRY).await;
            }
            Some(outcome) => return outcome,
            None => return Outcome::Clean,
        }
    }
}
