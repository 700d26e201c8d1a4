//! The traffic between agents: floods, replays, and secrecy.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::subject::{Clients, serve};
use super::trust::{logged, refused};
use super::untouched::without_own_state;
use crate::ensure;
use crate::error::{Context as _, Error, Result};
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("trust-plain-text-and-tls-1.2-are-refused", &["trust"], other_languages),
    Case::new("trust-flood-of-half-open-handshakes", &["trust"], flood).exclusive(),
    Case::new("trust-replayed-session-is-refused", &["trust"], replay),
    Case::new("trust-nothing-of-the-memory-on-the-link", &["trust"], capture),
];

/// The time limit for each operation.
const LIMIT: Duration = Duration::from_secs(60);

/// A program that keeps a number of connections to an address (first argument) open, sends a part of a ClientHello on
/// every other one, and replaces those that are closed. One process may have 1,024 descriptors.
const FLOOD: &str = r#"
import os, select, socket, sys, time
for _ in range(3):
    if os.fork() == 0:
        break
def fresh(number):
    try:
        s = socket.create_connection((sys.argv[1], 7472), 5)
        if number % 2:
            s.sendall(bytes.fromhex("1603010200010001fc0303"))
        return s
    except OSError:
        return None
made = 250
all = [fresh(n) for n in range(made)]
print("open", flush=True)
while True:
    waiting = [s for s in all if s]
    for s in select.select(waiting, [], [], 0.2)[0]:
        s.close()
        all[all.index(s)] = fresh(made)
        made += 1
    all = [s or fresh(1) for s in all]
"#;

/// A program that forwards one connection to an address (second argument) and records the client's bytes in a file
/// (third argument).
const RECORDER: &str = r#"
import select, socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
client = server.accept()[0]
far = socket.create_connection((sys.argv[2], 7472))
with open(sys.argv[3], "wb") as record:
    while True:
        for end in select.select([client, far], [], [])[0]:
            data = end.recv(65536)
            if not data:
                sys.exit()
            (far if end is client else client).sendall(data)
            if end is client:
                record.write(data)
                record.flush()
"#;

/// A program that sends a file (second argument) to an address (first argument) and prints the answer.
const PLAYER: &str = r#"
import socket, sys
s = socket.create_connection((sys.argv[1], 7472), 5)
s.settimeout(10)
try:
    s.sendall(open(sys.argv[2], "rb").read())
    s.shutdown(socket.SHUT_WR)
    answer = b""
    while data := s.recv(65536):
        answer += data
    print("answered", len(answer))
except OSError as error:
    print("ended", error)
"#;

fn python(host: &Host, script: &str, arguments: &[&str], ready: &str) -> Result<HostProcess> {
    let mut process =
        host.command("python3").args([&["-c", script], arguments].concat()).spawn()?;
    process.wait_for(ready, LIMIT)?;
    Ok(process)
}

fn other_languages(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.serve(b.name())?;
    let before = b.snapshot()?;
    let refusals = |count| logged(&lab, "b", a, &["was refused: it does not speak TLS 1.3"], count);
    for (number, text) in (1..).zip(["GET / HTTP/1.1\r\nHost: b\r\n\r\n", "NETMIG\0\u{1}"]) {
        let client = a.command("nc").args(["-w", "5", "b", "7472"]).input(text);
        let output = client.output()?;
        // A TLS alert (RFC 8446, 5.1) and nothing else.
        let alert = output.stdout.first() == Some(&21) && output.stdout.len() == 7;
        ensure!(alert, "the answer to plain text is {:?}", output.stdout);
        refusals(number)?;
    }
    let old = a.command("openssl").args(["s_client", "-connect", "b:7472", "-tls1_2"]).output()?;
    let text = old.text() + &old.error_text();
    ensure!(text.contains("alert protocol version"), "openssl says {text}");
    refusals(3)?;
    before.await_return(b, LIMIT, without_own_state)
}

fn flood(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c", "d"])?;
    let (a, b, c, d) = (lab.host("a")?, lab.host("b")?, lab.host("c")?, lab.host("d")?);
    lab.serve("b")?;
    serve(a, "web", 7000, &["--memory", "4"], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    let before = resident(&lab)?;
    let mut flood = python(d, FLOOD, &["b"], "open\nopen\nopen\nopen")?;
    let migration = lab.migrate("web", "a", "b")?;
    ensure!(flood.is_running(), "the flood ended early");
    let after = resident(&lab)?;
    // Each waiting connection may take 32 KiB of the server's memory, besides the migration.
    ensure!(after < before + (48 << 10), "the server has grown from {before} to {after} KiB");
    flood.signal(Signal::SIGKILL)?;
    d.run(["sh", "-c", "pkill -KILL python3 || true"])?;
    flood.wait(LIMIT)?;
    let seen = clients.stop()?;
    let stats = b.probe().stats(b.port(7001))?;
    ensure!(stats.memory_bad == 0, "{stats:?}");
    ensure!(lab.server_log("b").contains("do not show who they are"), "no word of it");
    let sources = b.run(["agent-server", "peers"])?;
    ensure!(sources.lines().count() == 3, "peers are {sources}");
    context.remark(format!(
        "interruption {:.0} ms, {}, server {} to {} MiB",
        migration.interruption_ms,
        seen.gaps(),
        before >> 10,
        after >> 10
    ));
    Ok(())
}

/// Returns the memory of the server on `b` in KiB.
fn resident(lab: &Lab) -> Result<u64> {
    let pid = lab.server_pid("b").unwrap_or_default();
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).context(|| format!("reading {path}"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok())
        .ok_or_else(|| Error::Check(format!("no VmRSS in {path}")))
}

fn replay(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("b")?;
    serve(a, "web", 7000, &[], c)?;
    // A migration that changes nothing, since the name is taken.
    b.podman(["create", "--name", "web", "probe:1"])?;
    let recorder = python(a, RECORDER, &["7999", "b", "/lab/session"], "listening")?;
    let attempt = lab.attempt("web", "a", "127.0.0.1:7999", &[])?;
    ensure!(attempt.stderr.contains("container named web"), "{}", attempt.stderr);
    recorder.wait(LIMIT)?;
    let offers = || lab.server_log("b").matches("offers container web").count();
    ensure!(offers() == 1, "the session was not recorded: {}", lab.server_log("b"));

    let before = b.snapshot()?;
    let played = c.command("python3").args(["-c", PLAYER, "b", "/lab/session"]).output()?;
    context.remark(played.text().trim().to_owned());
    ensure!(offers() == 1, "a replayed offer was heard: {}", lab.server_log("b"));
    logged(&lab, "b", c, &["was refused"], 1)?;
    before.await_return(b, LIMIT, without_own_state)?;
    // The original client sends the same.
    refused(&lab, &["container named web"])
}

fn capture(context: &Context) -> Result<()> {
    const PATTERN: &str = "netmig-lab-pattern:2b7e151628aed2a6abf7158809cf4f3c762e7160f38b4da5";
    let pattern = &PATTERN[..64];
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.serve("b")?;
    // 512 KiB of it in the memory of a shell, and some in a file.
    let fill = format!(
        "x={pattern}; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13; do x=$x$x; done; \
         echo $x > /dev/shm/x; echo $x > /x; while :; do sleep 0.2; done"
    );
    a.podman(["run", "--detach", "--name", "web", "probe:1", "sh", "-c", &fill])?;
    let filled = "test $(stat -c %s /x) -gt 500000 && grep -q pattern /dev/shm/x";
    let started = std::time::Instant::now();
    while a.podman(["exec", "web", "sh", "-c", filled]).is_err() {
        ensure!(started.elapsed() < LIMIT, "the container does not fill its memory");
        std::thread::sleep(Duration::from_millis(100));
    }
    let during = tapped(&lab, b, || lab.migrate("web", "a", "b").map(drop))?;
    // The control experiment: the capture sees plain text on the same link.
    let control = tapped(&lab, b, || {
        let sink = b.command("nc").args(["-l", "-p", "9000"]).spawn()?;
        std::thread::sleep(Duration::from_millis(500));
        let plain = pattern.repeat(100);
        a.command("nc").args(["-N", "-w", "5", "192.0.2.2", "9000"]).input(plain).run()?;
        let heard = sink.wait(LIMIT)?.stdout.len();
        ensure!(heard == 6400, "{heard} bytes arrived");
        Ok(())
    })?;
    let hits = |bytes: &[u8]| {
        bytes.windows(pattern.len()).filter(|window| *window == pattern.as_bytes()).count()
    };
    ensure!(during.len() > 500_000, "the migration was not captured: {} bytes", during.len());
    ensure!(hits(&control) > 10, "the control was not seen in {} bytes", control.len());
    ensure!(hits(&during) == 0, "{} times the pattern", hits(&during));
    let alive = b.podman(["exec", "web", "grep", "-c", "pattern", "/x"])?;
    ensure!(alive == "1", "the container's file has {alive}");
    context.remark(format!(
        "{} KiB captured, none; control {} times",
        during.len() >> 10,
        hits(&control)
    ));
    Ok(())
}

/// Captures the traffic on a host's link while `work` runs.
fn tapped(lab: &Lab, host: &Host, work: impl FnOnce() -> Result<()>) -> Result<Vec<u8>> {
    let tap = ["-i", "eth0", "-s", "0", "-B", "65536", "-U", "-w", "/lab/link.pcap"];
    let mut tap = host.command("tcpdump").args(tap).spawn()?;
    tap.wait_for("listening on eth0", LIMIT)?;
    work()?;
    // The kernel hands packets over once a second.
    std::thread::sleep(Duration::from_secs(2));
    tap.signal(Signal::SIGINT)?;
    let told = tap.wait(LIMIT)?.error_text();
    ensure!(told.contains("0 packets dropped by kernel"), "the tap missed something: {told}");
    let path = lab.share().join("link.pcap");
    std::fs::read(&path).context(|| format!("reading {}", path.display()))
}
