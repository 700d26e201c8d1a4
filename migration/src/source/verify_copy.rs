//! Sends the original's facts to the destination, and refuses to commit a copy that differs.

use checkpoint::cgroup::Cgroup;
use checkpoint::facts::{ContainerFacts, Difference};
use protocol::message::{Message, facts as wire};
use protocol::wire::Connection;
use state::cause::Cause;
use tokio::task::block_in_place;

use crate::convert;

/// Bytes of one message, of the four million that it may have.
const PART: usize = 1 << 20;
/// Most differences that an error names.
const NAMED: usize = 5;

/// The copy is not what the original is.
#[derive(Debug, thiserror::Error)]
#[error("the copy differs from the original: {}", named(.0))]
pub struct Differs(Vec<Difference>);

/// Reads the fingerprint of the frozen original and sends it.
pub async fn tell(connection: &mut Connection, cgroup: &Cgroup, first: i32) -> Result<(), Cause> {
    for part in convert::parts(block_in_place(|| ContainerFacts::read(cgroup, first))?, PART) {
        connection.send(&Message::Facts(part)).await?;
    }
    Ok(())
}

/// Refuses a copy that differs.
pub fn check(differences: &mut Vec<wire::Difference>) -> Result<(), Cause> {
    match convert::differences(std::mem::take(differences))? {
        none if none.is_empty() => Ok(()),
        differences => Err(Differs(differences).into()),
    }
}

fn named(differences: &[Difference]) -> String {
    let mut text: Vec<String> = differences.iter().take(NAMED).map(ToString::to_string).collect();
    if differences.len() > NAMED {
        text.push(format!("and {} more", differences.len() - NAMED));
    }
    text.join("; ")
}
