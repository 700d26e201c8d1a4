//! Two containers of one network that talk to each other, and both move.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::cases::flows::container_to_container::{self, CLIENTS, NEIGHBOUR};
use crate::cases::flows::{opener, traces};
use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("pair-moves-to-one-host-and-home", &["fidelity", "flows"], together),
    Case::new("pair-moves-to-two-hosts-and-home", &["fidelity", "flows"], apart),
];

/// Their addresses.
const WEB: &str = "10.88.0.60";
const BESIDE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 61);
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
        container_to_container::untracked(host)?;
    }
    start(a)?;
    lab.serve("a")?;
    for (container, from, to) in moves {
        let moved = lab.migrate(container, from, to)?;
        // Of the other one, for as long as that is on the host that this one leaves.
        let others = moved.warnings.iter().filter(|warning| !warning.contains("stays behind"));
        ensure!(others.count() == 0, "{container}, {from} to {to}: {:?}", moved.warnings);
        std::thread::sleep(Duration::from_secs(1));
    }
    let left = container_to_container::detours(a)?;
    ensure!(left.is_empty(), "still there: {left:?}");
    let (gap, lost) = container_to_container::stop(a, LATE)?;
    let outbound = opener::stop_losing(a, "web", LATE)?;
    for host in lab.hosts() {
        traces::none_within(host, END)?;
    }
    context.remark(format!("gaps {gap:.0} and {outbound:.0} ms, {lost} datagrams lost"));
    Ok(())
}

/// Starts both, each with clients of the other one's server, and no process that podman has to remember.
fn start(host: &Host) -> Result<()> {
    let clients: String = CLIENTS
        .map(|(name, action)| {
            let client = format!("netmig-probe {action} {WEB}:7000 --rate 50");
            format!("{client} >/tmp/{name} 2>/tmp/{name}.err & echo $! >/tmp/{name}.pid; ")
        })
        .concat();
    let script = format!(
        "netmig-probe serve >/dev/null 2>&1 & until [ -e /go ]; do sleep 0.1; done; {clients} \
         while :; do sleep 1000; done"
    );
    let beside = BESIDE.to_string();
    let run = ["run", "--detach", "--name", NEIGHBOUR, "--ip", &beside];
    host.podman([&run[..], &["probe:1", "sh", "-c", &script]].concat())?;
    opener::start(host, "web", SocketAddr::from((BESIDE, 7000)), &["--ip", WEB])?;
    host.podman(["exec", NEIGHBOUR, "touch", "/go"])?;
    for (client, _) in CLIENTS {
        opener::wait_for(host, NEIGHBOUR, &format!("/tmp/{client}.err"), "ready")?;
    }
    Ok(())
}
