//! Connections in every state that they can have at the time of a migration.

use std::time::Duration;

use super::opener;
use crate::cases::subject::{Clients, numbered_lines, serve};
use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::runner::{Case, Context};
use crate::slowdown;

pub(super) const CASES: &[Case] = &[
    Case::new("flows-tcp-unread-half-closed-idle", &["flows"], states),
    Case::new("flows-tcp-without-scaling-or-timestamps", &["flows"], plain_tcp),
    Case::new("flows-udp-one-way", &["flows"], one_way),
    Case::new("flows-tcp-not-accepted-yet", &["flows"], not_accepted),
];

const LIMIT: Duration = Duration::from_secs(30);

/// The server in the container. The first line of each connection selects its treatment. The part after the migration
/// starts by a request on a separate connection.
const SERVER: &str = r#"
import socket, threading
go, done, result = threading.Event(), threading.Event(), []
def treat(c):
    f = c.makefile("rb")
    how = f.readline().strip()
    if how == b"control":
        f.readline(); go.set(); done.wait(20); c.sendall(b"%d\n" % result[0])
    elif how == b"unread":
        c.sendall(b"d" * 60000); go.wait(); c.sendall(b"%d\n" % f.read(60000).count(b"u"))
    elif how == b"client-closed":
        rest = f.read(); go.wait(); c.sendall(b"%d\n" % len(rest) + b"x" * 100000)
        c.shutdown(socket.SHUT_WR)
    elif how == b"server-closed":
        c.sendall(b"bye"); c.shutdown(socket.SHUT_WR); go.wait()
        result.append(len(f.read())); done.set()
    elif how == b"idle":
        c.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        c.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 7)
        go.wait()
        c.sendall(b"%d %d\n" % (c.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                                c.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)))
    elif how == b"closed":
        c.shutdown(socket.SHUT_WR); f.read()
    f.close(); c.close()
listener = socket.create_server(("", 7000))
print("ready", flush=True)
while True:
    threading.Thread(target=treat, args=(listener.accept()[0],), daemon=True).start()
"#;

/// The client: it opens all connections, prints `ready`, and goes on when its input is closed.
const CLIENT: &str = r#"
import socket, sys
def connect(how, more=b""):
    c = socket.create_connection((sys.argv[1], 7000), 10)
    c.settimeout(20); c.sendall(how + b"\n" + more)
    return c, c.makefile("rb")
control, of_control = connect(b"control")
unread, of_unread = connect(b"unread", b"u" * 60000)
closing, of_closing = connect(b"client-closed", b"c" * 5000)
closing.shutdown(socket.SHUT_WR)
other, of_other = connect(b"server-closed")
assert of_other.read() == b"bye"
idle, of_idle = connect(b"idle")
closed, of_closed = connect(b"closed")
assert of_closed.read() == b""
of_closed.close(); closed.close()
print("ready", flush=True)
sys.stdin.read()
control.sendall(b"go\n")
assert of_unread.read(60000) == b"d" * 60000, "unread by the client"
assert of_unread.readline() == b"60000\n", "unread by the server"
assert of_closing.readline() == b"5000\n", "closed by the client"
assert of_closing.read() == b"x" * 100000, "after the client closed"
other.sendall(b"h" * 30000); other.shutdown(socket.SHUT_WR)
assert of_control.readline() == b"30000\n", "closed by the server"
line = of_idle.readline()
assert line == b"1 7\n", line
print("all right", flush=True)
"#;

fn states(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    start_python(a, &["--publish", "7000:7000"], SERVER)?;
    let address = a.address().to_string();
    let mut client = c.command("python3").args(["-c", CLIENT, &address]).spawn()?;
    client.wait_for("ready", LIMIT)?;
    let migration = lab.migrate("py", "a", "b")?;
    std::thread::sleep(Duration::from_secs(1));
    client.close_stdin();
    let said = client.wait(LIMIT)?.success()?.text();
    ensure!(said.ends_with("all right"), "the client said {said}");
    let running = b.podman(["ps", "--format", "{{.Names}}"])?;
    ensure!(running == "py", "the destination runs {running}");
    context.remark(format!("interruption {:.0} ms", migration.interruption_ms));
    Ok(())
}

fn plain_tcp(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    let _server = opener::server(c)?;
    serve(a, "web", 7000, &[], c)?;
    let mut clients = Vec::new();
    for (setting, value) in
        [("tcp_window_scaling", "0"), ("tcp_timestamps", "0"), ("tcp_window_scaling", "1")]
    {
        c.run(["sysctl", "-q", "-w", &format!("net.ipv4.{setting}={value}")])?;
        clients.push(Clients::gentle(c, a.port(7000))?);
    }
    for (from, to) in [("a", "b"), ("b", "a")] {
        lab.migrate("web", from, to)?;
    }
    for (clients, which) in clients.into_iter().zip(["no scaling", "neither", "no timestamps"]) {
        let seen = clients.stop()?;
        context.remark(format!("{which}: {}", seen.gaps()));
    }
    let stats = a.probe().stats(a.port(7001))?;
    ensure!(stats.accepted > 0, "{stats:?}");
    Ok(())
}

/// A program that receives numbered datagrams, sends others, and never answers.
const ONE_WAY: &str = r#"
import socket, sys, threading, time
def send():
    out, number = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0
    while True:
        out.sendto(b"%d" % number, (sys.argv[1], 9000)); number += 1; time.sleep(0.02)
def receive(log):
    inward = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    inward.bind(("", int(sys.argv[2])))
    while True:
        log.write(inward.recv(100).decode() + "\n"); log.flush()
threading.Thread(target=send, daemon=True).start()
print("ready", flush=True)
receive(open("/tmp/received", "w"))
"#;

fn one_way(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let publish = ["--publish", "9000:9000/udp"];
    let start = ["run", "--detach", "--name", "py"];
    let program = ["python:1", "python3", "-c", ONE_WAY, &c.address().to_string(), "9000"];
    a.podman([&start[..], &publish, &program].concat())?;
    // The client sends to the published port and receives at its own.
    let arguments = [&a.address().to_string(), "9000"];
    let far = c.command("python3").args(["-c", ONE_WAY]).args(arguments).spawn()?;
    std::thread::sleep(Duration::from_secs(3));
    lab.migrate("py", "a", "b")?;
    std::thread::sleep(Duration::from_secs(2));
    drop(far);
    std::thread::sleep(Duration::from_secs(1));
    let inward = b.podman(["exec", "py", "cat", "/tmp/received"])?;
    let outward = c.read("/tmp/received")?;
    for (direction, text) in [("in", inward), ("out", outward)] {
        // Datagrams before the start of the other end do not count. Later ones are complete.
        let numbers: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
        let first = numbers.first().copied().unwrap_or_default();
        let from_zero: String = numbers.iter().map(|n| format!("{}\n", n - first)).collect();
        let received = numbered_lines(&from_zero)?;
        ensure!(received > 150, "{direction}: only {received} datagrams");
        context.remark(format!("{received} {direction}"));
    }
    Ok(())
}

/// Starts a container with a Python program and options of `podman run`. Waits until the program prints `ready`.
pub(super) fn start_python(host: &Host, options: &[&str], program: &str) -> Result<()> {
    start_python_as(host, "py", options, program)
}

/// Like [`start_python`], with a name for the container.
pub(super) fn start_python_as(
    host: &Host,
    name: &str,
    options: &[&str],
    program: &str,
) -> Result<()> {
    let start = ["run", "--detach", "--name", name];
    host.podman([&start[..], options, &["python:1", "python3", "-c", program]].concat())?;
    let deadline = std::time::Instant::now() + slowdown::limit(LIMIT);
    while !host.podman(["logs", name])?.contains("ready") {
        ensure!(std::time::Instant::now() < deadline, "the program does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A server that accepts no connection until a file appears. Its backlog has room for two.
const LATE_SERVER: &str = r#"
import os, socket, time
listener = socket.create_server(("", 7000), backlog=1)
print("ready", flush=True)
while not os.path.exists("/go"):
    time.sleep(0.05)
while True:
    c, _ = listener.accept()
    c.sendall(c.recv(100)); c.close()
"#;

/// A client that fills the server's backlog, and opens one more connection, whose handshake waits.
const BACKLOG_CLIENT: &str = r#"
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

/// CRIU cannot dump a connection that its program has not accepted. The migration is rolled back, and a later one
/// succeeds.
fn not_accepted(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    start_python(a, &["--publish", "7000:7000"], LATE_SERVER)?;
    let address = a.address().to_string();
    let mut client = c.command("python3").args(["-c", BACKLOG_CLIENT, &address]).spawn()?;
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
