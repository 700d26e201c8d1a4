//! Converts refusals and errors to the protocol's failures.

use engine::stage;
use netmig::tunnel;
use protocol::message::{Failure, FailureCode, Message, MigrationId};
use protocol::wire::{self, Connection};
use state::cause::{Cause, chain};
use state::host;

use crate::convert::Refused;

/// Tells the source why, and the log as well.
pub async fn give_up(connection: &mut Connection, cause: Cause) -> Result<(), Cause> {
    let (code, mut message) = (code(&cause), chain(cause.as_ref()));
    if code == FailureCode::PathBlocked {
        message = format!("on {}: {message}", host::name());
    }
    let failure = Failure { code, message: message.into() };
    // The source may be the reason; then there is nobody to tell.
    let _ = connection.send(&Message::Failure(failure)).await;
    Err(cause)
}

/// Returns the class of a failure.
fn code(cause: &Cause) -> FailureCode {
    if matches!(cause.downcast_ref(), Some(stage::Error::Conflict { .. })) {
        FailureCode::Conflict
    } else if let Some(error) = cause.downcast_ref::<wire::Error>() {
        match error {
            wire::Error::Deadline { .. } => FailureCode::Deadline,
            _ => FailureCode::Protocol,
        }
    } else if cause.downcast_ref().is_some_and(tunnel::Error::is_blocked) {
        FailureCode::PathBlocked
    } else if cause.is::<Refused>() {
        FailureCode::Protocol
    } else {
        FailureCode::Step
    }
}

/// Returns the answer that says that a copy was heard and is gone: the source stays in doubt, a person decides.
pub fn lost(migration: MigrationId) -> Failure {
    Failure {
        code: FailureCode::Lost,
        message: format!(
            "the copy of migration {migration} ran on this host, and is gone; what it has told others since \
             the move is lost"
        )
        .into(),
    }
}

/// Returns the answer to a peer that gives orders about a migration of another host.
pub fn not_allowed(migration: MigrationId) -> Failure {
    Failure {
        code: FailureCode::NotAllowed,
        message: format!("migration {migration} is not one of yours").into(),
    }
}

/// Returns the answer that allows a source to go back even after its commit record.
pub fn unknown(migration: MigrationId) -> Failure {
    Failure {
        code: FailureCode::Unknown,
        message: format!(
            "this host holds no copy of migration {migration}: it was undone or never came"
        )
        .into(),
    }
}
