//! Multicast memberships of sockets are restored.

use super::scenarios::says;
use crate::ensure;
use crate::error::Result;
use crate::lab::Runtime;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] =
    &[Case::new("fidelity-groups-are-joined-again", &["fidelity"], joined).limit(300)];

/// A program that joins a group by each socket option. On request it sends itself a datagram through each membership,
/// and reports how many have arrived.
const MEMBER: &str = r#"
import os, socket, struct, time
own = socket.inet_aton("10.77.0.99")
index = socket.if_nametoindex("eth0")
four = [
    ("239.255.77.77", lambda s, g: s.setsockopt(0, 35, struct.pack("4s4si", g, b"\0" * 4, index))),
    ("239.255.77.78", lambda s, g: s.setsockopt(0, 39, g + own + own)),
    ("239.255.77.79", lambda s, g: (s.setsockopt(0, 35, g + own),
                                    s.setsockopt(0, 38, g + own + socket.inet_aton("192.0.2.1")))),
]
members = []
for number, (group, join) in enumerate(four):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((group, 7100 + number))
    join(s, socket.inet_aton(group))
    s.setsockopt(0, 32, struct.pack("4s4si", b"\0" * 4, own, index))
    members.append((s, (group, 7100 + number)))
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(("ff15::77", 7200, 0, index))
s.setsockopt(41, 20, socket.inet_pton(socket.AF_INET6, "ff15::77") + struct.pack("@I", index))
members.append((s, ("ff15::77", 7200, 0, index)))
senders = [socket.socket(s.family, socket.SOCK_DGRAM) for s, _ in members]
for sender in senders:
    if sender.family == socket.AF_INET:
        sender.setsockopt(0, 32, struct.pack("4s4si", b"\0" * 4, own, index))
        sender.bind(("10.77.0.99", 0))
print("ready", flush=True)
number = 0
while True:
    time.sleep(0.05)
    if not os.path.exists("/run/ask-%d" % number):
        continue
    heard = 0
    for sender, (s, to) in zip(senders, members):
        s.settimeout(1)
        sender.sendto(b"x", to)
        try:
            heard += len(s.recv(10))
        except TimeoutError:
            pass
    print("%d: heard %d groups" % (number, heard), flush=True)
    number += 1
"#;

fn joined(context: &Context) -> Result<()> {
    for runtime in Runtime::ALL {
        let lab = context.lab_with(&["a", "b"], runtime)?;
        for host in [lab.host("a")?, lab.host("b")?] {
            let create = ["network", "create", "--disable-dns", "--ipv6"];
            let subnets = ["--subnet", "10.77.0.0/24", "--subnet", "fd77::/64", "dual"];
            host.podman([&create[..], &subnets].concat())?;
        }
        let a = lab.host("a")?;
        let run = ["run", "--detach", "--name", "web", "--network", "dual", "--ip", "10.77.0.99"];
        a.podman([&run[..], &["python:1", "python3", "-c", MEMBER]].concat())?;
        says(a, "web", "ready")?;
        for (number, (from, to)) in
            [("", "a"), ("a", "b"), ("b", "a"), ("a", "b")].into_iter().enumerate()
        {
            if !from.is_empty() {
                lab.migrate("web", from, to)?;
            }
            let host = lab.host(to)?;
            host.podman(["exec", "web", "touch", &format!("/run/ask-{number}")])?;
            says(host, "web", &format!("{number}: heard 4 groups"))?;
            let filters = host.podman(["exec", "web", "cat", "/proc/net/mcfilter"])?;
            for filter in ["0xefff4d4e 0x0a4d0063 ", "0xefff4d4f 0xc0000201 "] {
                ensure!(filters.contains(filter), "no {filter} on {to}: {filters}");
            }
        }
    }
    Ok(())
}
