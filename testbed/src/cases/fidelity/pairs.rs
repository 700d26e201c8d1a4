//! Two containers of one network that talk to each other, and both move.

use std::time::Duration;

use crate::cases::flows::beside::{self, NEIGHBOUR, USUAL};
use crate::cases::flows::{opener, traces};
use crate::ensure;
use crate::error::Result;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("pair-moves-to-one-host-and-home", &["fidelity", "flows"], together),
    Case::new("pair-moves-to-two-hosts-and-home", &["fidelity", "flows"], apart),
];

/// How long traces may take to go.
const END: Duration = Duration::from_secs(40);
/// Datagrams of the moves home, at 50 a second.
const LATE: u64 = 100;

/// Both to one host, and home in the order in which they left.
fn together(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    around(
        context,
        &lab,
        &[("web", "a", "b"), (NEIGHBOUR, "a", "b"), ("web", "b", "a"), (NEIGHBOUR, "b", "a")],
    )
}

/// Each to a host of its own, one of them on to a third, and home in the other order.
fn apart(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    around(
        context,
        &lab,
        &[
            (NEIGHBOUR, "a", "b"),
            ("web", "a", "c"),
            (NEIGHBOUR, "b", "c"),
            ("web", "c", "a"),
            ("web", "a", "b"),
            (NEIGHBOUR, "c", "a"),
            ("web", "b", "a"),
        ],
    )
}

fn around(context: &Context, lab: &Lab, moves: &[(&str, &str, &str)]) -> Result<()> {
    let a = lab.host("a")?;
    for host in lab.hosts() {
        traces::forget_soon(host)?;
        beside::untracked(host)?;
    }
    beside::start(a, USUAL)?;
    lab.serve("a")?;
    for (container, from, to) in moves {
        let moved = lab.migrate(container, from, to)?;
        ensure!(moved.warnings.is_empty(), "{container}, {from} to {to}: {:?}", moved.warnings);
        std::thread::sleep(Duration::from_secs(1));
    }
    let left = beside::detours(a)?;
    ensure!(left.is_empty(), "still there: {left:?}");
    let (gap, lost) = beside::stop(a, LATE)?;
    let outbound = opener::stop_losing(a, "web", LATE)?;
    for host in lab.hosts() {
        traces::none_within(host, END)?;
    }
    context.remark(format!("gaps {gap:.0} and {outbound:.0} ms, {lost} datagrams lost"));
    Ok(())
}
