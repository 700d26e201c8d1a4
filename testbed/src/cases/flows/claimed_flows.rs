//! A paired source that requests conntrack entries which are not its container's.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::traces;
use crate::cases::subject::Clients;
use crate::ensure;
use crate::error::{Error, Result};
use crate::faults::hostile_peer::{self, message};
use crate::host::Host;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] =
    &[Case::new("flows-of-others-are-not-claimed", &["flows", "trust"], of_others).limit(300)];

/// The number of attempts to set up a tunnel.
const ATTEMPTS: usize = 4;
/// The container that is offered and never migrates, and its address on every host.
const NAME: &str = "evil";
const OWN: &str = "10.88.0.70";
/// Another container of the destination.
const OTHER: &str = "10.88.0.80";
/// The connmark of a flow to a container that has come to its source from another anchor.
const FROM_AN_ANCHOR: u32 = 9 << 24;
/// The connmark of a flow that such a container has opened.
const TO_AN_ANCHOR: u32 = 9 << 16;

/// A machine to which this host forwards, and what sends datagrams there.
const SERVER: &str = "198.51.100.9";
const SENDER: &str = "\
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('', 9009))
s.sendto(b'x', (sys.argv[1], 22))
print('ready', file=sys.stderr, flush=True)
while True:
    time.sleep(0.2)
    s.sendto(b'x', (sys.argv[1], 22))
";
const SENDS: Duration = Duration::from_secs(10);

type End<'a> = (&'a str, u16);

fn tuple(source: End<'_>, destination: End<'_>) -> Value {
    json!({ "source": source.0, "source_port": source.1,
            "destination": destination.0, "destination_port": destination.1 })
}

/// Builds a message with one entry, and a question that is answered by a failure in any case.
fn claim(original: Value, reply: Value, mark: u32) -> Vec<Value> {
    let tcp = json!({ "state": 3, "scales": [7, 7], "flags": [0, 0] });
    let flow = json!({ "protocol": "Tcp", "original": original, "reply": reply, "status": 14,
        "timeout": 400, "mark": mark, "zone": { "id": 0, "scope": "Both" }, "tcp": tcp });
    let body = json!({ "anchor": null, "flows": [flow], "aliases": [], "at_destination": [] });
    let flows = json!({ "send": "Flows", "at_once": true, "body": body });
    vec![flows, message("AskPaths", Value::Null)]
}

/// The same for UDP.
fn claim_udp(original: Value, reply: Value) -> Vec<Value> {
    let mut messages = claim(original, reply, FROM_AN_ANCHOR);
    let flow = &mut messages[0]["body"]["flows"][0];
    (flow["protocol"], flow["tcp"]) = (json!("Udp"), Value::Null);
    messages
}

/// Returns the destination's answer to entries of a staged container.
fn said(source: &Host, to: &Host, claim: Vec<Value>) -> Result<String> {
    let offer = json!({ "offer": NAME, "migration": vec![7; 16] });
    let begin = vec![offer, json!({ "tunnel": true }), message("Stage", json!([]))];
    let conversation = [[begin, claim].concat()];
    for _ in 0..ATTEMPTS {
        let answers = hostile_peer::say_patiently(source, to, &conversation)?.concat();
        // Two ends that greet each other at one moment are not what this is about.
        if !answers.iter().any(|answer| answer.text.contains("no answer through")) {
            return Ok(answers.last().map(|answer| answer.text.clone()).unwrap_or_default());
        }
    }
    Err(Error::Check(format!("{} does not hear {}", to.name(), source.name())))
}

fn of_others(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("b")?;
    a.podman(["run", "--detach", "--ip", OWN, "--name", NAME, "probe:1", "sleep", "10000"])?;
    let ports = ["--publish", "7100-7101:7000-7001/tcp", "--publish", "7100:7000/udp"];
    let run = ["run", "--detach", "--ip", OTHER, "--name", "other"];
    b.podman([&run[..], &ports, &["probe:1", "netmig-probe", "serve"]].concat())?;
    let client = Clients::gentle(c, b.port(7100))?;
    let (far, here) = (c.address().to_string(), b.address().to_string());
    let (far, here) = (far.as_str(), here.as_str());
    let inbound = |original, own, far| (original, tuple(own, far), FROM_AN_ANCHOR);
    let foreign = [
        ("a port of the host", inbound(tuple((far, 9), (here, 22)), (OWN, 22), (far, 9))),
        ("a connection of the host", inbound(tuple((here, 9), (far, 22)), (OWN, 22), (here, 9))),
        ("one of another container", inbound(tuple((OTHER, 9), (far, 22)), (OWN, 22), (OTHER, 9))),
        ("its clients", inbound(tuple((far, 9), (here, 7100)), (OWN, 7000), (far, 9))),
        ("answers", (tuple((OWN, 9), (far, 22)), tuple((far, 22), (here, 9)), TO_AN_ANCHOR)),
    ];
    for (what, (original, reply, mark)) in foreign {
        let text = said(a, b, claim(original, reply, mark))?;
        ensure!(text.contains("not one of the container's flows"), "{what}: {text}");
    }
    // One of its own is made, so that only the question is refused.
    let own = (tuple((far, 9), (OWN, 80)), tuple((OWN, 80), (far, 9)));
    let text = said(a, b, claim(own.0, own.1, FROM_AN_ANCHOR))?;
    ensure!(text.contains("asks to try ways"), "its own: {text}");
    // A connection between two other machines that this host forwards.
    let server = format!("{SERVER}/32");
    c.run(["ip", "route", "add", &server, "via", here])?;
    b.run(["ip", "route", "add", &server, "via", far])?;
    let mut sender = c.command("python3").args(["-c", SENDER, SERVER]).spawn()?;
    sender.wait_for("ready", SENDS)?;
    let forwarded = || b.run(["conntrack", "-L", "-p", "udp", "--orig-dst", SERVER]);
    let unchanged = |entries: &str| entries.contains(&format!("src={SERVER} dst={far}"));
    let entries = forwarded()?;
    ensure!(unchanged(&entries), "b forwards nothing: {entries}");
    let claimed = claim_udp(tuple((far, 9009), (SERVER, 22)), tuple((OWN, 22), (far, 9009)));
    let text = said(a, b, claimed)?;
    ensure!(text.contains("of these flows already"), "a forwarded connection: {text}");
    let entries = forwarded()?;
    ensure!(unchanged(&entries), "the connection was led elsewhere: {entries}");
    sender.signal(Signal::SIGTERM)?;
    let seen = client.stop()?;
    b.podman(["rm", "--force", "--time", "0", "other"])?;
    traces::none(b)?;
    context.remark(format!("the other container: {}", seen.gaps()));
    Ok(())
}
