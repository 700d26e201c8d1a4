//! Connections that clients open during a migration. Established ones are kept, and incomplete handshakes are reported.

use std::time::Duration;

use super::closed_paths::load;
use crate::bench::busy;
use crate::cases::subject::{Clients, serve};
use crate::ensure;
use crate::error::Result;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("fidelity-busy-web-server", &["fidelity"], web).exclusive(),
    Case::new("fidelity-incomplete-handshake-is-told", &["fidelity"], incomplete),
];

/// The exit code of a migration with losses.
const LOST: i32 = 7;
/// The client port of the handshake that is not completed.
const PORT: u16 = 45_999;
/// The time limit for a program to start.
const LIMIT: Duration = Duration::from_secs(20);
/// Rules that drop the answers to one handshake: the client repeats its SYN and never sends the ACK.
const DEAF: &str = "\
table inet deaf {
    chain in {
        type filter hook prerouting priority -400; policy accept;
        tcp dport 45999 drop
    }
}
";
/// A program that starts to connect from a port to an address and port, and waits.
const BEGIN: &str = r#"
import socket, sys, time
s = socket.socket(); s.setblocking(False)
s.bind(("", int(sys.argv[1])))
s.connect_ex((sys.argv[2], int(sys.argv[3])))
print("begun", flush=True)
time.sleep(1e6)
"#;

/// The number of migrations.
const MOVES: u32 = 6;

/// No request fails while a web server migrates whose clients open a connection for each request.
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

/// A handshake that the client does not complete cannot be moved. The migration reports it with its ends, and moves
/// everything else.
fn incomplete(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    serve(a, "web", 7000, &[], c)?;
    lab.serve("b")?;
    load(c, DEAF)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    let (port, address) = (PORT.to_string(), a.address().to_string());
    let mut begun = c.command("python3").args(["-c", BEGIN, &port, &address, "7000"]).spawn()?;
    begun.wait_for("begun", LIMIT)?;
    let attempt = lab.attempt("web", "a", "b", &[])?;
    ensure!(attempt.code == Some(LOST), "exit {:?}: {}", attempt.code, attempt.stderr);
    let lost = attempt.json()?["lost"].to_string();
    let ends = format!("{}:{PORT} > {address}:7000", c.address());
    ensure!(lost.contains("still being set up") && lost.contains(&ends), "{lost}");
    context.remark(clients.stop()?.gaps());
    Ok(())
}
