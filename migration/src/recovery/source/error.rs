//! How the recovery of a departure can fail.

use state::cause::Cause;

/// Why one recovery did not end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The destination has the decision and does not answer.
    #[error(
        "in doubt, nothing was changed: the move is decided, and {destination} does not confirm it; run recover again when it can be reached"
    )]
    InDoubt {
        destination: state::peer_address::Destination,
        #[source]
        source: crate::source::destination_rpc::Error,
    },
    /// The destination lacks pages of memory.
    #[error(
        "pages outstanding: it runs at {destination}, and a part of its memory is here alone, in the original, which is kept \
         frozen; run recover again when {destination} can be reached"
    )]
    PagesOutstanding {
        destination: state::peer_address::Destination,
        #[source]
        source: crate::source::destination_rpc::Error,
    },
    /// The destination has ended the container for want of memory.
    #[error(
        "in doubt: {destination} has ended it before all of its memory had arrived; the original is kept as it is until a person \
         decides (agent-client recover --rollback-anyway)"
    )]
    CopyLost {
        destination: state::peer_address::Destination,
        #[source]
        source: crate::source::destination_rpc::Error,
    },
    /// Two copies run, of which a person has to stop one; the journal stays.
    #[error(
        "it runs here although {0} runs it: somebody has unpaused it or started it again. There are two of it: stop one, and \
         run recover again"
    )]
    SecondCopy(state::peer_address::Destination),
    /// Some of it could not be done; the journal stays.
    #[error("left to be done: {}", .0.join("; "))]
    Incomplete(Vec<String>),
    /// Nothing could be done.
    #[error("cannot begin")]
    Begin(#[source] Cause),
}
