//! Flows without conntrack entry or without answer: connections that were idle for longer than the timeout, and a
//! pending DNS query. Also multicast, which a migration cannot keep.

use std::time::{Duration, Instant};

use super::opener;
use super::states::start_python;
use crate::ensure;
use crate::error::Result;
use crate::runner::{Case, Context};
use crate::slowdown;

pub(super) const CASES: &[Case] = &[
    Case::new("flows-idle-until-they-were-forgotten", &["flows"], forgotten),
    Case::new("flows-dns-lookup-in-flight", &["flows"], lookup),
    Case::new("flows-multicast-is-told", &["flows"], multicast),
];

const LIMIT: Duration = Duration::from_secs(40);

/// A server with two connections that it opened and two that it accepted. Of each two, the container sends first on
/// the one that begins with 1, after a file appears.
const SERVER: &str = r#"
import os, socket, threading, time
def talk(c, how):
    while not os.path.exists("/go"):
        time.sleep(0.02)
    if how == b"1":
        c.sendall(b"hello"); assert c.recv(9) == b"world"; c.sendall(b"!")
    else:
        assert c.recv(9) == b"hello"; c.sendall(b"world")
def begin(c, how):
    threading.Thread(target=talk, args=(c, how), daemon=True).start()
for how in b"1", b"2":
    c = socket.create_connection((far, 9000)); c.sendall(how); begin(c, how)
listener = socket.create_server(("", 7000))
print("ready", flush=True)
while True:
    c, _ = listener.accept(); begin(c, c.recv(1))
"#;

/// The far end of all four.
const CLIENT: &str = r#"
import socket, sys, time
listener = socket.create_server(("", 9000))
print("listening", flush=True)
all = []
for _ in range(2):
    c, _ = listener.accept(); all.append((c, c.recv(1)))
for how in b"1", b"2":
    while True:
        try:
            c = socket.create_connection((sys.argv[1], 7000)); break
        except ConnectionRefusedError:
            time.sleep(0.1)
    c.sendall(how); all.append((c, how))
print("ready", flush=True)
sys.stdin.read()
for c, how in all:
    c.settimeout(30)
    if how == b"1":
        assert c.recv(9) == b"hello"; c.sendall(b"world"); assert c.recv(9) == b"!"
    else:
        c.sendall(b"hello"); assert c.recv(9) == b"world"
print("all right", flush=True)
"#;

fn forgotten(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    a.run(["sysctl", "-q", "-w", "net.netfilter.nf_conntrack_tcp_timeout_established=3"])?;
    let address = a.address().to_string();
    let mut client = c.command("python3").args(["-c", CLIENT, &address]).spawn()?;
    client.wait_for("listening", LIMIT)?;
    let program = format!("far = \"{}\"\n{SERVER}", c.address());
    start_python(a, &["--publish", "7000:7000"], &program)?;
    client.wait_for("ready", LIMIT)?;
    lab.serve("b")?;
    let deadline = Instant::now() + slowdown::limit(LIMIT);
    loop {
        let entries = a.run(["conntrack", "-L", "-p", "tcp"])?;
        let known = |line: &&str| line.contains("port=7000 ") || line.contains("port=9000 ");
        let known: Vec<&str> = entries.lines().filter(known).collect();
        if known.is_empty() {
            break;
        }
        ensure!(Instant::now() < deadline, "still known: {known:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let migration = lab.migrate("py", "a", "b")?;
    ensure!(migration.flows.tcp == 4, "{:?}", migration.flows);
    b.podman(["exec", "py", "touch", "/go"])?;
    client.close_stdin();
    let said = client.wait(LIMIT)?.success()?.text();
    ensure!(said.ends_with("all right"), "the client said {said}");
    context.remark(format!("interruption {:.0} ms", migration.interruption_ms));
    Ok(())
}

/// A DNS server that answers its one query when its input is closed, and reports repeated queries.
const NAMES: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 53))
print("ready", flush=True)
query, peer = s.recvfrom(512)
print("asked", flush=True)
sys.stdin.read()
question = query[12:query.index(b"\0", 12) + 5]
head = query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0"
answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes([192, 0, 2, 77])
s.sendto(head + question + answer, peer)
s.settimeout(1)
try:
    s.recvfrom(512); print("asked again", flush=True)
except TimeoutError:
    print("asked once", flush=True)
"#;

/// A program that resolves a name by the C library.
const LOOKUP: &str = r#"
import socket
print("ready", flush=True)
found = socket.getaddrinfo("name.example.", 80, socket.AF_INET, socket.SOCK_STREAM)
open("/found", "w").write(found[0][4][0])
import time
time.sleep(1000)
"#;

fn lookup(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let mut names = c.command("python3").args(["-c", NAMES]).spawn()?;
    names.wait_for("ready", LIMIT)?;
    let server = c.address().to_string();
    let patient = ["--dns-option", "timeout:30", "--dns-option", "attempts:1"];
    lab.serve("b")?;
    start_python(a, &[&["--dns", &server][..], &patient].concat(), LOOKUP)?;
    names.wait_for("asked", LIMIT)?;
    let migration = lab.migrate("py", "a", "b")?;
    names.close_stdin();
    let said = names.wait(LIMIT)?.success()?.text();
    ensure!(said.ends_with("asked once"), "the server of names said {said}");
    opener::wait_for(b, "py", "/found", "192.0.2.77")?;
    context.remark(format!("interruption {:.0} ms", migration.interruption_ms));
    Ok(())
}

/// A program that sends to a multicast group.
const SENDER: &str = r#"
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(b"x", ("239.1.2.3", 9000))
print("ready", flush=True)
while True:
    s.sendto(b"x", ("239.1.2.3", 9000)); time.sleep(0.1)
"#;
/// A program that sends to a multicast group over IPv6.
const SENDER6: &str = r#"
import socket, time
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
def send():
    s.sendto(b"x", ("ff02::1234", 9000, 0, socket.if_nametoindex("eth0")))
for _ in range(100):
    send()
print("ready", flush=True)
while True:
    send(); time.sleep(0.1)
"#;
/// A program that joins a group over IPv6 and sends nothing.
const MEMBER6: &str = r#"
import socket, struct, time
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
group = socket.inet_pton(socket.AF_INET6, "ff02::1234")
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP,
             group + struct.pack("@I", socket.if_nametoindex("eth0")))
print("ready", flush=True)
while True:
    time.sleep(1000)
"#;
/// A program that uses no multicast.
const QUIET: &str = r#"
import time
print("ready", flush=True)
while True:
    time.sleep(1000)
"#;

fn multicast(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let a = lab.host("a")?;
    for host in [a, lab.host("b")?] {
        let create = ["network", "create", "--disable-dns", "--ipv6", "--subnet", "10.77.0.0/24"];
        host.podman([&create[..], &["--subnet", "fd77::/64", "dual"]].concat())?;
    }
    for (program, is_told) in [(SENDER, true), (SENDER6, true), (MEMBER6, true), (QUIET, false)] {
        start_python(a, &["--network", "dual"], program)?;
        let migration = lab.migrate("py", "a", "b")?;
        let told = migration.warnings.iter().any(|warning| warning.contains("multicast"));
        ensure!(told == is_told, "{:?} of {program}", migration.warnings);
        lab.host("b")?.podman(["rm", "--force", "--time", "0", "py"])?;
    }
    Ok(())
}
