//! Containers whose address another container has at the destination.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::states::start_python_as;
use super::{opener, traces};
use crate::cases::subject::Clients;
use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lab::NewAddress;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("flows-with-another-address", &["flows"], another),
    Case::new("flows-with-another-address-onwards", &["flows", "hops"], onwards),
    Case::new("flows-with-another-address-of-both-families", &["flows"], both_families),
    Case::new("flows-of-two-containers-with-one-address", &["flows"], equal),
];

const PUBLISHED: [&str; 4] = ["--publish", "7000-7001:7000-7001/tcp", "--publish", "7000:7000/udp"];
const ANY: [&str; 2] = ["--address", "any"];
const LIMIT: Duration = Duration::from_secs(40);

/// Migrates to a host where another container has the address and connections of its own, and back.
fn another(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    for host in [a, b] {
        traces::forget_soon(host)?;
    }
    let _server = opener::server(c)?;
    opener::start(a, "web", c.port(7000), &PUBLISHED)?;
    let own = address(a, "web")?;
    let other = holder(b, own, c)?;
    let inbound = Clients::gentle(c, a.port(7000))?;
    lab.serve("a")?;
    lab.serve("b")?;
    let there = lab.attempt("web", "a", "b", &[&ANY[..], &["--forward"]].concat())?.success()?;
    ensure!(there.warnings.is_empty(), "{:?}", there.warnings);
    let new = address(b, "web")?;
    ensure!(there.readdressed == [NewAddress { from: own, to: new }], "{:?}", there.readdressed);
    ensure!(new != own && address(b, "other")? == own, "{new} in place of {own}");
    // New connections reach the same ports by the old and by the new address.
    Clients::gentle(c, a.port(7000))?.stop()?;
    Clients::gentle(c, b.port(7000))?.stop()?;
    // On the first host its connections need their original address.
    let back = lab.migrate("web", "b", "a")?;
    ensure!(back.readdressed == [NewAddress { from: new, to: own }], "{:?}", back.readdressed);
    ensure!(address(a, "web")? == own, "another address at home");
    Clients::gentle(c, a.port(7000))?.stop()?;
    let (seen, neighbour) = (inbound.stop()?, other.stop()?);
    let gap = opener::stop(a, "web")?;
    // The connections to the other host have ended meanwhile.
    traces::none_within(a, LIMIT)?;
    traces::none_within(b, LIMIT)?;
    context.remark(format!(
        "interruption {:.0} ms, {}, outbound {gap:.0} ms; the address's holder: {}",
        there.interruption_ms,
        seen.gaps(),
        neighbour.gaps()
    ));
    Ok(())
}

/// Migrates to a network of the same name with other subnets, so that neither address fits, and back.
fn both_families(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    for (host, four, six) in [(a, "10.77.0.0/24", "fd77::/64"), (b, "10.78.0.0/24", "fd78::/64")] {
        let create = ["network", "create", "--disable-dns", "--ipv6"];
        host.podman([&create[..], &["--subnet", four, "--subnet", six, "dual"]].concat())?;
    }
    let _server = opener::server(c)?;
    let options = [&["--network", "dual"][..], &PUBLISHED].concat();
    let port6 = |host: &Host| SocketAddr::from((host.address6(), 7000));
    opener::start(a, "web", port6(c), &options)?;
    c.probe().wait_for_echo(port6(a), LIMIT)?;
    let (six, four) = (Clients::gentle(c, port6(a))?, Clients::gentle(c, a.port(7000))?);
    lab.serve("a")?;
    lab.serve("b")?;
    let there = lab.attempt("web", "a", "b", &ANY)?.success()?;
    ensure!(there.readdressed.len() == 2, "{:?}", there.readdressed);
    let home = lab.migrate("web", "b", "a")?;
    let back: Vec<_> =
        home.readdressed.iter().map(|n| NewAddress { from: n.to, to: n.from }).collect();
    ensure!(back == there.readdressed, "{:?}", home.readdressed);
    let again = lab.attempt("web", "a", "b", &ANY)?.success()?;
    let (six, four) = (six.stop()?, four.stop()?);
    let gap = opener::stop(b, "web")?;
    context.remark(format!(
        "interruption {:.0} ms, IPv6 {}, IPv4 {}, outbound {gap:.0} ms",
        again.interruption_ms,
        six.gaps(),
        four.gaps()
    ));
    Ok(())
}

/// Migrates on to a third host, and the host that gave the new address is disconnected.
fn onwards(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c", "d"])?;
    let (a, b, c, d) = (lab.host("a")?, lab.host("b")?, lab.host("c")?, lab.host("d")?);
    let _server = opener::server(d)?;
    opener::start(a, "web", d.port(7000), &PUBLISHED)?;
    let other = holder(b, address(a, "web")?, d)?;
    let inbound = Clients::gentle(d, a.port(7000))?;
    for host in ["a", "b", "c"] {
        lab.serve(host)?;
    }
    for (from, to) in [("a", "b"), ("b", "c")] {
        let migration = lab.attempt("web", from, to, &ANY)?.success()?;
        ensure!(migration.warnings.is_empty(), "{from} to {to}: {:?}", migration.warnings);
        ensure!(migration.readdressed.len() == usize::from(to == "b"), "{migration:?}");
    }
    other.stop()?;
    traces::none(b)?;
    lab.set_cable("b", false)?;
    let seen = inbound.stop()?;
    let gap = opener::stop(c, "web")?;
    context.remark(format!("{}, outbound {gap:.0} ms", seen.gaps()));
    Ok(())
}

/// A client whose connections differ in the destination host alone.
const CLIENT: &str = r#"
import select, socket, sys
hosts = sys.argv[1:]
def opened(kind, host):
    s = socket.socket(socket.AF_INET, kind)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("", 45000)); s.connect((host, 7000)); s.settimeout(20)
    return s
def talk(word):
    for kind, all in flows.items():
        for number, s in enumerate(all):
            text = b"%s %d" % (word, number)
            s.sendall(text)
            answer = s.recv(100)
            assert answer == b"%d " % number + text, (kind, number, answer)
flows = {kind: [opened(kind, host) for host in hosts]
         for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)}
talk(b"before"); print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.02)[0]:
    talk(b"meanwhile")
talk(b"after"); print("all right", flush=True)
"#;

/// A server that answers with its number and the request.
const SERVER: &str = r#"
import socket, threading
def stream(c):
    while text := c.recv(100):
        c.sendall(number + b" " + text)
def datagrams():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 7000))
    while True:
        text, peer = s.recvfrom(100); s.sendto(number + b" " + text, peer)
threading.Thread(target=datagrams, daemon=True).start()
listener = socket.create_server(("", 7000))
print("ready", flush=True)
while True:
    threading.Thread(target=stream, args=(listener.accept()[0],), daemon=True).start()
"#;

/// Two hosts migrate containers with the same address to a third host at the same time. Their flows differ in the
/// hosts alone.
fn equal(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c", "d"])?;
    let (a, b, c, d) = (lab.host("a")?, lab.host("b")?, lab.host("c")?, lab.host("d")?);
    for (number, host) in [a, b].into_iter().enumerate() {
        let name = format!("number-{number}");
        let options =
            ["--ip", "10.88.0.50", "--publish", "7000:7000", "--publish", "7000:7000/udp"];
        start_python_as(host, &name, &options, &format!("number = b\"{number}\"\n{SERVER}"))?;
    }
    let hosts = [a.address().to_string(), b.address().to_string()];
    let mut client = d.command("python3").args(["-c", CLIENT, &hosts[0], &hosts[1]]).spawn()?;
    client.wait_for("ready", LIMIT)?;
    lab.serve("c")?;
    let publish = |port: &str| ["tcp", "udp"].map(|of| format!("{port}:7000/{of}"));
    let attempt = |name: &str, from: &str, port: &str| {
        let [tcp, udp] = publish(port);
        let ports = ["--publish", &tcp, "--publish", &udp];
        lab.attempt(name, from, "c", &[&ANY[..], &ports].concat())?.success()
    };
    let both = std::thread::scope(|scope| {
        let first = scope.spawn(|| attempt("number-0", "a", "7100"));
        let second = attempt("number-1", "b", "7200");
        let died = |_| Err(Error::Check("the thread of a migration died".to_owned()));
        Ok::<_, Error>([first.join().unwrap_or_else(died)?, second?])
    })?;
    let readdressed: usize = both.iter().map(|migration| migration.readdressed.len()).sum();
    ensure!(readdressed == 1, "{readdressed} of two have another address");
    client.close_stdin();
    let said = client.wait(LIMIT)?.success()?.text();
    ensure!(said.ends_with("all right"), "the client said {said}");
    let running = c.podman(["ps", "--format", "{{.Names}}", "--sort", "names"])?;
    ensure!(running == "number-0\nnumber-1", "the destination runs {running}");
    context.remark(format!("interruptions {:.0?} ms", both.map(|one| one.interruption_ms)));
    Ok(())
}

/// Starts a container with this address, and its clients.
fn holder(host: &Host, address: IpAddr, client: &Host) -> Result<Clients> {
    let ip = address.to_string();
    let start = ["run", "--detach", "--ip", &ip, "--name", "other"];
    let ports = ["--publish", "7100-7101:7000-7001/tcp", "--publish", "7100:7000/udp"];
    host.podman([&start[..], &ports, &["probe:1", "netmig-probe", "serve"]].concat())?;
    client.probe().wait_for_echo(host.port(7100), LIMIT)?;
    Clients::gentle(client, host.port(7100))
}

fn address(host: &Host, name: &str) -> Result<IpAddr> {
    let format = "{{.NetworkSettings.Networks.podman.IPAddress}}";
    let text = host.podman(["inspect", "--format", format, name])?;
    text.parse().map_err(|e| Error::Check(format!("{text}: {e}")))
}
