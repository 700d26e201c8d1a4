//! Servers whose clients open connection after connection: none of them is refused, reset or lost.

use crate::bench::busy;
use crate::error::Result;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[Case::new("fidelity-busy-web-server", &["fidelity"], web)];

const MOVES: u32 = 6;

fn web(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let seen = busy::moves(&lab, MOVES)?;
    let interruptions: Vec<_> = seen.interruptions.iter().map(|ms| format!("{ms:.0}")).collect();
    context.remark(format!(
        "{} requests, the longest {:.0} ms; interruptions {} ms",
        seen.requests.answered,
        seen.requests.longest_ms,
        interruptions.join(", ")
    ));
    Ok(())
}
