//! Connections between two containers of one network when both migrate.

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
/// The time limit for traces to go.
const END: Duration = Duration::from_secs(40);
/// The number of datagrams that may be lost when the containers return, at 50 a second.
const LOST_ON_RETURN: u64 = 100;

/// Both migrate to one host, and return in the order in which they left.
fn together(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    around(
        context,
        &lab,
        &[("web", "a", "b"), (NEIGHBOUR, "a", "b"), ("web", "b", "a"), (NEIGHBOUR, "b", "a")],
    )
}

/// Each migrates to its own host, one of them on to a third, and they return in the opposite order.
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
        // A warning names the other container as long as that is on the host that this one leaves.
        let others = moved.warnings.iter().filter(|warning| !warning.contains("stays behind"));
        ensure!(others.count() == 0, "{container}, {from} to {to}: {:?}", moved.warnings);
        std::thread::sleep(Duration::from_secs(1));
    }
    let left = container_to_container::detours(a)?;
    ensure!(left.is_empty(), "still there: {left:?}");
    let (gap, lost) = container_to_container::stop(a, LOST_ON_RETURN)?;
    let outbound = opener::stop_losing(a, "web", LOST_ON_RETURN)?;
    for host in lab.hosts() {
        traces::none_within(host, END)?;
    }
    context.remark(format!("gaps {gap:.0} and {outbound:.0} ms, {lost} datagrams lost"));
    Ok(())
}

/// Starts both containers, each with clients of the other's server.
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
