//! Compares the copy with what its source tells of the original.

use checkpoint::facts::{ContainerFacts, Difference};
use protocol::expect;
use protocol::wire::Connection;
use state::cause::Cause;
use state::deadline;

use crate::convert;

/// Receives the original's fingerprint and returns in what the copy differs. The source has read it while
/// the copy was made, so nothing is waited for.
pub async fn compare(
    connection: &mut Connection,
    copy: &ContainerFacts,
) -> Result<Vec<Difference>, Cause> {
    let mut original = ContainerFacts::default();
    loop {
        let facts = expect!(connection, deadline::NEXT_MESSAGE, Facts)?;
        let is_last = facts.is_last;
        convert::join(&mut original, facts)?;
        if is_last {
            return Ok(original.differences(copy));
        }
    }
}
