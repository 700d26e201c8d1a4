//! Things that ordinary programs have, and that a move took for something else or could not carry.

use std::time::Duration;

use super::scenarios::{remove, says, start};
use crate::cases::promise::until;
use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::lab::Runtime;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("fidelity-connections-within-a-container", &["fidelity"], inner_connections)
        .limit(300),
    Case::new("fidelity-files-without-a-name-and-events-told-once", &["fidelity"], told_once)
        .limit(240),
    Case::new("fidelity-echo-sockets", &["fidelity"], echo_sockets).limit(240),
    Case::new("fidelity-events-that-it-has-not-read", &["fidelity"], unread_events).limit(240),
    Case::new("fidelity-urgent-data-that-it-has-not-read", &["fidelity"], urgent_data).limit(240),
    Case::new("fidelity-memory-behind-direct-io", &["fidelity"], direct_io).limit(240),
    Case::new("fidelity-clocks-go-on", &["fidelity"], clocks).limit(240),
    Case::new("fidelity-pipes-of-packets-are-refused", &["fidelity"], packet_pipes),
];

/// The exit code of a move that was refused, and of one that has lost something.
const REFUSED: i32 = 3;
const LOST: i32 = 7;

/// The seconds by which the destination seems to have been up for longer, and the arguments of unshare(1) for that.
const UP: u64 = 1_000_000;
const LONG_AGO: [&str; 5] = ["--time", "--monotonic", "1000000", "--boottime", "1000000"];
/// The time limits for a server to start, and for a program to print something.
const SERVER_LIMIT: Duration = Duration::from_secs(30);
const TELL_LIMIT: Duration = Duration::from_secs(20);

/// Fills both queues of a connection with itself, and reads all of it when it is told to.
const FULL: &str = r#"
import hashlib, os, signal, socket
listener = socket.create_server(("127.0.0.1", 0))
near = socket.create_connection(listener.getsockname())
far, _ = listener.accept()
near.setblocking(False)
sent, count = hashlib.sha256(), 0
try:
    while True:
        block = os.urandom(65536)
        number = near.send(block)
        sent.update(block[:number])
        count += number
except BlockingIOError:
    pass
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("ready", count, flush=True)
signal.sigwait([signal.SIGUSR1])
near.setblocking(True)
near.shutdown(socket.SHUT_WR)
got = hashlib.sha256()
while block := far.recv(1 << 20):
    got.update(block)
print("whole" if got.digest() == sent.digest() else "damaged", flush=True)
signal.pause()
"#;

/// Has a file that never had a name, and has been told once that a pipe can be read.
const ONCE: &str = r#"
import os, select, signal, tempfile
file = tempfile.TemporaryFile(dir="/tmp")
file.write(b"kept")
file.flush()
epoll = select.epoll()
reader, writer = os.pipe()
epoll.register(reader, select.EPOLLIN | select.EPOLLONESHOT)
os.write(writer, b"x")
told = len(epoll.poll(0))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("ready", told, flush=True)
signal.sigwait([signal.SIGUSR1])
again = len(epoll.poll(0))
epoll.modify(reader, select.EPOLLIN | select.EPOLLONESHOT)
print("file", os.pread(file.fileno(), 9, 0).decode(), "again", again, "armed", len(epoll.poll(0)), flush=True)
signal.pause()
"#;

/// Has two sockets for echo requests, of which one is connected.
const ECHO: &str = r#"
import signal, socket, struct
def echo():
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
request = struct.pack("!BBHHH", 8, 0, 0, 0, 1) + b"payload"
connected, bound = echo(), echo()
connected.connect(("127.0.0.1", 0))
bound.sendto(request, ("127.0.0.1", 0))
bound.recv(100)
def ends():
    far = [line.split()[2] for line in open("/proc/net/icmp") if line.split()[3] == "01"]
    return connected.getsockname(), far, bound.getsockname()
before = ends()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("ready", flush=True)
signal.sigwait([signal.SIGUSR1])
print("the same" if ends() == before else f"{before} has become {ends()}", flush=True)
connected.send(request)
connected.settimeout(5)
print("answered", len(connected.recv(100)), flush=True)
signal.pause()
"#;

/// Does not read what was sent to it out of band.
const URGENT: &str = r#"
import signal, socket
listener = socket.create_server(("127.0.0.1", 0))
near = socket.create_connection(listener.getsockname())
far, _ = listener.accept()
near.send(b"plain")
near.send(b"!", socket.MSG_OOB)
print("ready", flush=True)
signal.pause()
"#;

/// Tells its clocks whenever it gets a signal.
const CLOCKS: &str = r#"
import signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("ready", flush=True)
while signal.sigwait([signal.SIGUSR1]):
    for clock in time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME:
        print("clock", int(time.clock_gettime(clock)), flush=True)
    print("told", flush=True)
"#;

/// Has much memory, and a file open for direct I/O.
const DIRECT: &str = r#"
import os, signal
memory = bytearray(os.urandom(1 << 20)) * 160
file = os.open("/tmp/direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
print("ready", flush=True)
signal.pause()
"#;

/// Has a pipe each of whose writes is a packet.
const PACKETS: &str = r#"
import os, signal
pipe = os.pipe2(os.O_DIRECT)
print("ready", flush=True)
signal.pause()
"#;

/// Starts a program of Python as `web`.
fn run(host: &Host, program: &str) -> Result<()> {
    host.podman(["run", "--detach", "--name", "web", "python:1", "python3", "-c", program])?;
    says(host, "web", "ready")
}

/// Has the program go on that waits for a signal.
fn go_on(host: &Host) -> Result<()> {
    host.podman(["kill", "--signal", "USR1", "web"]).map(drop)
}

/// A connection whose two ends are in the container keeps what nobody has read, and what was not sent yet.
fn inner_connections(context: &Context) -> Result<()> {
    for runtime in Runtime::ALL {
        let lab = context.lab_with(&["a", "b"], runtime)?;
        run(lab.host("a")?, FULL)?;
        lab.migrate("web", "a", "b")?;
        lab.migrate("web", "b", "a")?;
        let a = lab.host("a")?;
        go_on(a)?;
        says(a, "web", "whole")?;
    }
    Ok(())
}

fn told_once(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    run(lab.host("a")?, ONCE)?;
    lab.migrate("web", "a", "b")?;
    lab.migrate("web", "b", "a")?;
    go_on(lab.host("a")?)?;
    says(lab.host("a")?, "web", "file kept again 0 armed 1")
}

/// A socket for echo requests keeps its identifier and its far end.
fn echo_sockets(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    run(lab.host("a")?, ECHO)?;
    lab.migrate("web", "a", "b")?;
    lab.migrate("web", "b", "a")?;
    go_on(lab.host("a")?)?;
    says(lab.host("a")?, "web", "the same")?;
    says(lab.host("a")?, "web", "answered")
}

/// A stopped program has not read that a file was made.
fn unread_events(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.serve("b")?;
    start(a, "web", "inotify-overlay", &[])?;
    a.podman(["kill", "--signal", "STOP", "web"])?;
    a.podman(["exec", "web", "touch", "/srv/watched/new"])?;
    let moved = lab.attempt("web", "a", "b", &[])?;
    ensure!(moved.code == Some(LOST), "{:?} {}", moved.code, moved.stderr);
    let is_told = moved.stderr.contains("lost: ") && moved.stderr.contains("inotify");
    ensure!(is_told, "{}", moved.stderr);
    remove(b, "web")?;
    // Once it has read them nothing is lost.
    start(a, "web", "inotify-overlay", &[])?;
    a.podman(["exec", "web", "touch", "/srv/watched/new"])?;
    says(a, "web", "made new")?;
    lab.migrate("web", "a", "b").map(drop)
}

fn urgent_data(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    lab.serve("b")?;
    run(lab.host("a")?, URGENT)?;
    let moved = lab.attempt("web", "a", "b", &[])?;
    ensure!(moved.code == Some(LOST), "{:?} {}", moved.code, moved.stderr);
    let is_told = moved.stderr.contains("lost: ") && moved.stderr.contains("urgent");
    ensure!(is_told, "{}", moved.stderr);
    Ok(())
}

/// What a device writes into memory that has gone over would not be noticed. So all of it goes over while the container is frozen.
fn direct_io(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    lab.serve("b")?;
    run(lab.host("a")?, DIRECT)?;
    let refused = lab.attempt("web", "a", "b", &["--memory", "pre-copy"])?;
    ensure!(refused.code == Some(REFUSED), "{:?} {}", refused.code, refused.stderr);
    let is_named = refused.stderr.contains("direct I/O") && refused.stderr.contains("/tmp/direct");
    ensure!(is_named, "{}", refused.stderr);
    let moved = lab.migrate("web", "a", "b")?;
    ensure!(moved.memory.rounds.is_empty(), "{:?}", moved.memory);
    Ok(())
}

/// Clocks that count from the start of a host go on at a host that has been up for much longer, and back again. The host's
/// programs run in a time namespace, since the runtime knows a container by the time of its start.
fn clocks(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.serve("a")?;
    let mut server = b.command("unshare").args(LONG_AGO).args(["agent-server"]).spawn()?;
    server.wait_for("ready for other hosts", SERVER_LIMIT)?;
    lab.pair("a", "b")?;
    lab.pair("b", "a")?;
    run(a, CLOCKS)?;
    let before = told(a, 1)?;
    lab.attempt("web", "a", "b", &[])?.success()?;
    let there = told(b, 2)?;
    let home = ["agent-client", "migrate", "web", "a"];
    b.command("unshare").args(LONG_AGO).args(home).run()?;
    let after = told(a, 3)?;
    for (one, other) in [(&before, &there), (&there, &after)] {
        for (one, other) in one.iter().zip(other) {
            let went_on = other >= one && other - one < UP / 2;
            ensure!(went_on, "{one} s became {other} s");
        }
    }
    Ok(())
}

/// Has the program tell its clocks, and returns what it has told for the `count`th time.
fn told(host: &Host, count: usize) -> Result<Vec<u64>> {
    let first = host.podman(["inspect", "--format", "{{.State.Pid}}", "web"])?;
    host.run(["kill", "-USR1", &first])?;
    let read = || host.podman(["logs", "web"]);
    until("it tells", TELL_LIMIT, || Ok(read()?.matches("told").count() >= count))?;
    let log = read()?;
    let clocks = log.lines().filter_map(|line| line.strip_prefix("clock ")?.parse().ok());
    let clocks: Vec<u64> = clocks.collect();
    ensure!(clocks.len() == 2 * count, "{log}");
    Ok(clocks[2 * count - 2..].to_vec())
}

fn packet_pipes(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    lab.serve("b")?;
    run(lab.host("a")?, PACKETS)?;
    let moved = lab.attempt("web", "a", "b", &[])?;
    ensure!(moved.code == Some(REFUSED), "{:?} {}", moved.code, moved.stderr);
    ensure!(moved.stderr.contains("(packet-pipe)"), "{}", moved.stderr);
    Ok(())
}
