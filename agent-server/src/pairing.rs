//! Pairing: somebody who is not known yet presents the secret of an invitation.

use protocol::expect;
use protocol::message::{Failure, FailureCode, Joined, Message};
use protocol::trust::invitation;
use protocol::wire::Connection;
use state::cause::{Cause, chain};
use state::deadline;

use migration::destination::ServerContext;

/// Hears the secret and lets its owner in, or says why not.
pub async fn welcome(host: &ServerContext, mut connection: Connection) -> Result<(), Cause> {
    let join = expect!(connection, deadline::CONNECT, Join)?;
    let (state, fingerprint) = (&host.directories.state, connection.fingerprint());
    match invitation::redeem(state, &join.secret, fingerprint, &join.name) {
        Ok(peer) => {
            tracing::info!(
                "{} joined as {}: it may move containers here; its fingerprint is {fingerprint}",
                connection.peer(),
                peer.name
            );
            let joined =
                Joined { name: host.name.as_str().into(), called: peer.name.to_string().into() };
            Ok(connection.send(&Message::Joined(joined)).await?)
        }
        Err(error) => {
            let message = if error.is_about_the_token() {
                error.to_string()
            } else {
                "this host cannot pair at the moment; its log says why".to_owned()
            };
            let failure = Failure { code: FailureCode::Token, message: message.into() };
            connection.send(&Message::Failure(failure)).await?;
            let why = chain(&error);
            Err(format!("not paired, its fingerprint is {fingerprint}: {why}").into())
        }
    }
}
