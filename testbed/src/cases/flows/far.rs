//! Far ends in a special position: not accepted yet, and behind a translating router.

use std::time::Duration;

use super::states::start_python;
use crate::cases::subject::{Clients, serve};
use crate::ensure;
use crate::error::Result;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("flows-tcp-not-accepted-yet", &["flows"], not_accepted),
    Case::new("flows-client-behind-nat", &["flows"], behind_nat),
];

const LIMIT: Duration = Duration::from_secs(30);

/// A server that accepts nothing until it is told to, with room for two more connections than the
/// one that it listens for.
const SERVER: &str = r#"
import os, socket, time
listener = socket.create_server(("", 7000), backlog=1)
print("ready", flush=True)
while not os.path.exists("/go"):
    time.sleep(0.05)
while True:
    c, _ = listener.accept()
    c.sendall(c.recv(100)); c.close()
"#;

/// Fills the server's backlog, and tries one connection more, which waits for its handshake.
const CLIENT: &str = r#"
import socket, sys, time
def connect(number):
    c = socket.socket(); c.setblocking(False)
    c.connect_ex((sys.argv[1], 7000))
    return c
all = [connect(number) for number in range(3)]
time.sleep(1)
for number, c in enumerate(all[:2]):
    c.settimeout(60); c.sendall(b"%d" % number)
print("ready", flush=True)
sys.stdin.read()
for number, c in enumerate(all):
    c.settimeout(60)
    if number == 2:
        while True:
            try:
                c.sendall(b"2"); break
            except BlockingIOError:
                time.sleep(0.1)
    assert c.recv(100) == b"%d" % number, number
print("all right", flush=True)
"#;

/// CRIU cannot dump a connection that its program has not accepted. The move is given up, all is as
/// before, and later it succeeds.
fn not_accepted(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    start_python(a, &["--publish", "7000:7000"], SERVER)?;
    let address = a.address().to_string();
    let mut client = c.command("python3").args(["-c", CLIENT, &address]).spawn()?;
    client.wait_for("ready", LIMIT)?;
    lab.serve("b")?;
    let attempt = lab.attempt("py", "a", "b", &[])?;
    let said = format!("{}{}", attempt.stdout, attempt.stderr);
    ensure!(attempt.code == Some(4), "exit code {:?}: {said}", attempt.code);
    ensure!(
        said.contains("wait for the container to accept them"),
        "the reason is not told: {said}"
    );
    a.podman(["exec", "py", "touch", "/go"])?;
    client.close_stdin();
    let said = client.wait(LIMIT)?.success()?.text();
    ensure!(said.ends_with("all right"), "the client said {said}");
    lab.migrate("py", "a", "b").map(drop)
}

fn behind_nat(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "router", "c"])?;
    let (a, router, c) = (lab.host("a")?, lab.host("router")?, lab.host("c")?);
    let rules = "add table ip nat\n\
                 add chain ip nat out { type nat hook postrouting priority 100; }\n\
                 add rule ip nat out ip saddr != 192.0.2.3 masquerade\n";
    router.command("nft").args(["-f", "-"]).input(rules).run()?;
    for interface in ["all", "eth0"] {
        // Router and client are on one segment, where a router would point to the shorter way.
        router.set_parameter(&format!("net/ipv4/conf/{interface}/send_redirects"), "0")?;
    }
    let (to, by) = (a.address().to_string(), router.address().to_string());
    c.run(["ip", "route", "add", &to, "via", &by])?;
    serve(a, "web", 7000, &[], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    let migration = lab.migrate("web", "a", "b")?;
    context.remark(clients.stop()?.gaps());
    ensure!((migration.flows.tcp, migration.flows.udp) >= (1, 1), "{:?}", migration.flows);
    let seen = a.run(["conntrack", "-L", "-p", "tcp", "--dport", "7000"])?;
    let by = format!("src={by} ");
    ensure!(seen.contains(&by), "the router has not translated: {seen}");
    Ok(())
}
