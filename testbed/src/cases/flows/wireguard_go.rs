//! Tunnels of `wireguard-go`: handshakes that cross, and a device that is still being set up.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::cases::subject::serve;
use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("flows-greetings-that-cross-leave-no-dead-direction", &["flows"], crossing),
    Case::new("flows-a-tunnel-in-the-making-is-no-error", &["flows"], being_set_up),
];

/// The number of times that both ends start a handshake at once. With two handshake workers, `wireguard-go` ends one
/// round in forty with a tunnel that carries packets in one direction only.
const ROUNDS: u32 = 120;
/// The most batches of rounds until handshakes cross.
const BATCHES: u32 = 3;
/// The length of a round in the script.
const ROUND: Duration = Duration::from_millis(300);
/// The time limit for both hosts to be ready.
const START: Duration = Duration::from_secs(2);
/// The time limit for recovery: `wireguard-go` repeats a handshake after five seconds, and TCP retransmits as rarely.
const RECOVERY: Duration = Duration::from_secs(12);

/// The script of one end. Arguments: the start of the first round in seconds since the Unix epoch, the number of
/// rounds, and the largest delay in seconds. In each round it removes the peer, starts a new handshake, and prints
/// whether there is a session and how many packets have arrived.
const END: &str = r#"
import socket, sys, time
first, rounds, late = float(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])

def ask(*lines):
    control = socket.socket(socket.AF_UNIX)
    control.connect("/var/run/wireguard/netmig1.sock")
    control.sendall("\n".join(lines).encode() + b"\n\n")
    answer = b""
    while not answer.endswith(b"\n\n"):
        answer += control.recv(65536)
    return dict(line.split("=", 1) for line in answer.decode().split())

def received():
    return int(open("/sys/class/net/netmig1/statistics/rx_packets").read())

known = ask("get=1")
peer = "public_key=" + known["public_key"]
rest = ["endpoint=" + known["endpoint"], "allowed_ip=0.0.0.0/0", "allowed_ip=::/0"]
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"netmig1")

def wait(until):
    time.sleep(max(0, until - time.time() - 0.01))
    while time.time() < until:
        pass

for number in range(rounds):
    start = first + 0.3 * number
    wait(start)
    ask("set=1", peer, "remove=true")
    wait(start + 0.05)
    ask("set=1", peer, *rest)
    before = received()
    wait(start + 0.1 + late * (number % 16) / 16)
    while time.time() < start + 0.25:
        sender.sendto(b"x", ("224.0.0.1", 9))
        time.sleep(0.02)
    session = int(ask("get=1").get("last_handshake_time_sec", "0")) > 0
    print(int(session), received() - before, flush=True)
"#;

fn crossing(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("b")?;
    serve(a, "web", 7000, &[], c)?;
    // The client keeps the tunnel open.
    let client = c.probe().tcp_echo(a.port(7000)).rate(5.0).start()?;
    let report = lab.migrate("web", "a", "b")?;
    if report.tunnel != "wireguard-go" {
        return Err(Error::Skip(format!(
            "the tunnel is {}, which has no such workers",
            report.tunnel
        )));
    }
    let (mut crossed, mut rounds) = (0, 0);
    // A busy machine starts one end too late for any handshakes to cross.
    while crossed == 0 && rounds < ROUNDS * BATCHES {
        crossed += batch(a, b)?;
        rounds += ROUNDS;
    }
    context.remark(format!("{crossed} of {rounds} crossed"));
    let seen = client.stop_after(RECOVERY)?;
    ensure!(seen.lost == 0 && seen.errors == 0, "the connection is gone: {seen:?}");
    if crossed == 0 {
        return Err(Error::Skip(format!("none of {rounds} handshakes crossed on this machine")));
    }
    Ok(())
}

/// Starts handshakes at both ends at once, again and again. Returns how many crossed and left no session; it is an
/// error if one left a session that carries packets in one direction only.
fn batch(a: &Host, b: &Host) -> Result<u32> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (first, rounds) = ((now + START).as_secs_f64().to_string(), ROUNDS.to_string());
    let begin = |host: &Host, late: &str| {
        host.command("python3").args(["-c", END, &first, &rounds, late]).spawn()
    };
    let limit = START + ROUND * ROUNDS + RECOVERY;
    let (one, other) = (begin(a, "0")?, begin(b, "0.0015")?);
    let (one, other) = (one.wait(limit)?.success()?, other.wait(limit)?.success()?);
    let (mut crossed, mut dead) = (0, 0);
    for (one, other) in one.text().lines().zip(other.text().lines()) {
        let came = |end: &str| -> Result<bool> {
            let count = end.split(' ').nth(1).and_then(|count| count.parse::<u64>().ok());
            Ok(count.ok_or_else(|| Error::Check(format!("not a round: {end}")))? > 0)
        };
        match (came(one)?, came(other)?) {
            (true, true) => {}
            (false, false) => crossed += 1,
            _ => dead += 1,
        }
    }
    ensure!(dead == 0, "{dead} of {ROUNDS} rounds ended with a dead direction");
    Ok(crossed)
}

/// The time after which `wireguard-go` creates its control socket. An agent has to wait for it.
const SETUP_TIME: Duration = Duration::from_millis(400);
/// The longest time until `agent-client flows` ends.
const LIST_LIMIT: Duration = Duration::from_secs(20);

/// A tunnel that another agent is still setting up, or removing, is not an error.
fn being_set_up(context: &Context) -> Result<()> {
    let lab = context.lab(&["a"])?;
    let a = lab.host("a")?;
    let served = a.run(["ls", "/sys/module/wireguard"]).is_ok();
    if served {
        return Err(Error::Skip("this kernel has WireGuard, which needs no process".to_owned()));
    }
    for last in [&["wireguard-go", "netmig1"][..], &["ip", "link", "delete", "netmig1"]] {
        // The state between the creation of the interface and that of its control socket.
        a.run(["ip", "tuntap", "add", "dev", "netmig1", "mode", "tun"])?;
        let mut list = list_flows(a)?;
        std::thread::sleep(SETUP_TIME);
        ensure!(list.is_running(), "it did not wait for {last:?}: {}", list.stderr());
        a.run(last.iter().copied())?;
        let answer = list.wait(LIST_LIMIT)?.success()?.text();
        ensure!(answer.trim() == r#"{"flows":[]}"#, "after {last:?} it said {answer}");
        if last[0] == "wireguard-go" {
            a.run(["ip", "link", "delete", "netmig1"])?;
        }
    }
    Ok(())
}

fn list_flows(host: &Host) -> Result<HostProcess> {
    host.command("agent-client").args(["flows", "--json"]).spawn()
}
