//! A paired source that has its destination try ways which are none of its container's. What it is let try
//! reaches nobody.

use std::time::Duration;

use serde_json::{Value, json};

use super::paths::{END, load};
use crate::cases::flows::traces;
use crate::ensure;
use crate::error::Result;
use crate::faults::hostile::{self, Answer, message};
use crate::host::Host;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("strange-paths-are-not-tried", &["fidelity", "trust"], strange).limit(300),
    Case::new("strange-paths-lead-to-nobody", &["fidelity", "trust"], harmless),
];

/// The container that is offered, which stays where it is.
const NAME: &str = "evil";
/// How often ways may be tried, and one trial asked about.
const MOST_TRIALS: usize = 9;
const ROUNDS: usize = 3;
/// Counts what comes to a third host from a container, or at all by a port that nobody uses.
const COUNT: &str = "\
table inet count {
    chain in {
        type filter hook prerouting priority -400; policy accept;
        ip saddr 10.88.0.0/16 counter name strange
        udp dport 9 counter name strange
        tcp dport 9 counter name strange
    }
    counter strange { }
}
";

struct Scene<'a> {
    d: &'a Host,
    b: &'a Host,
    own: String,
}

/// A flow of TCP or UDP that the container has opened to a far end, in the words of the protocol.
fn opened(protocol: &str, own: &str, far: &str, mark: u32) -> Value {
    let (tuple, inverse) = (
        json!({ "source": own, "destination": far, "source_port": 9, "destination_port": 9 }),
        json!({ "source": far, "destination": own, "source_port": 9, "destination_port": 9 }),
    );
    let tcp = json!({ "state": 3, "scales": [7, 7], "flags": [0, 0] });
    json!({
        "protocol": protocol, "original": tuple, "reply": inverse, "status": 14, "timeout": 4_000_000,
        "mark": mark, "zone": { "id": 7, "scope": "Both" },
        "tcp": if protocol == "Tcp" { tcp } else { Value::Null },
    })
}

impl Scene<'_> {
    fn udp(&self, far: &str, mark: u32) -> Value {
        opened("Udp", &self.own, far, mark)
    }

    /// A conversation up to the staged container, and what follows.
    fn say(&self, then: Vec<Value>) -> Result<Vec<Answer>> {
        let staged = vec![
            json!({ "offer": NAME, "migration": vec![7; 16] }),
            json!({ "tunnel": true }),
            json!({ "send": "NetworkState", "at_once": true,
                    "body": { "configuration": { "facts": [] }, "parameters": { "all": [] } } }),
            message("Stage", json!([])),
        ];
        let answers = hostile::say_patiently(self.d, self.b, &[[staged, then].concat()])?;
        Ok(answers.into_iter().flatten().skip(2).collect())
    }

    /// Checks that the last thing said is refused, and everything before it answered with `before`.
    fn refused(&self, what: &str, then: Vec<Value>, before: &str) -> Result<()> {
        let answers = self.say(then)?;
        let last = answers.last().map(|last| (last.is_refusal(), last.answer.as_str()));
        ensure!(last == Some((true, "Failure")), "{what}: {answers:?}");
        let earlier = answers.iter().rev().skip(1).map(|answer| answer.answer.as_str());
        let strange: Vec<&str> =
            earlier.filter(|answer| ![before, "Staged"].contains(answer)).collect();
        ensure!(strange.is_empty(), "{what}: {answers:?}");
        Ok(())
    }
}

fn with_scene(context: &Context, act: impl FnOnce(&Scene<'_>, &Host) -> Result<()>) -> Result<()> {
    let lab = context.lab(&["a", "b", "c", "d"])?;
    let (b, c, d) = (lab.host("b")?, lab.host("c")?, lab.host("d")?);
    lab.serve("b")?;
    d.podman(["run", "--detach", "--name", NAME, "probe:1", "sleep", "10000"])?;
    let format = "{{.NetworkSettings.Networks.podman.IPAddress}}";
    let own = d.podman(["inspect", "--format", format, NAME])?;
    load(c, COUNT)?;
    act(&Scene { d, b, own }, c)?;
    for host in [b, d] {
        // The one who does not keep to the protocol has left its end.
        if host.name() == "d" {
            host.run(["agent-client", "recover"])?;
        }
    }
    traces::none_within(b, END)?;
    let counted = c.run(["nft", "list", "counter", "inet", "count", "strange"])?;
    ensure!(counted.contains("packets 0 "), "a third host has got packets: {counted}");
    ensure!(lab.server_pid("b").is_some(), "agent-server has ended: {}", lab.server_log("b"));
    Ok(())
}

fn strange(context: &Context) -> Result<()> {
    with_scene(context, |scene, c| {
        let (far, here) = (c.address().to_string(), scene.b.address().to_string());
        let tried = |flows: Vec<Value>| vec![message("TryPaths", Value::Array(flows))];
        let one = |flow: Value| tried(vec![flow]);
        let fine = || message("TryPaths", json!([scene.udp(&far, 0)]));
        let nothing = |name: &str| message(name, Value::Null);
        let too_often = [vec![fine()], vec![nothing("AskPaths"); ROUNDS + 1]].concat();
        let said: Vec<(&str, Vec<Value>, &str)> = vec![
            ("of others", one(opened("Udp", &here, &far, 0)), ""),
            ("of nobody here", one(opened("Tcp", "203.0.113.1", &far, 0)), ""),
            ("to the host itself", one(scene.udp(&here, 0)), ""),
            ("to its bridge", one(scene.udp("10.88.0.1", 0)), ""),
            ("to its loopback", one(scene.udp("127.0.0.1", 0)), ""),
            ("to everybody", one(scene.udp("255.255.255.255", 0)), ""),
            ("to a group", one(scene.udp("224.0.0.1", 0)), ""),
            ("with the marks of another peer", one(scene.udp(&far, 0x00ff_0000)), ""),
            ("too many", tried(vec![scene.udp(&far, 0); 33]), ""),
            ("too often", vec![fine(); MOST_TRIALS + 1], "PathsReady"),
            ("asked too often", too_often, "PathsTried"),
            ("nothing to ask about", vec![nothing("AskPaths")], ""),
            ("an answer", vec![message("PathsTried", json!([]))], ""),
            ("another answer", vec![message("Silent", json!([]))], ""),
        ];
        for (what, then, before) in said {
            let first = if before == "PathsTried" { "PathsReady" } else { before };
            let answers = if first == before {
                scene.refused(what, then, before)
            } else {
                let answers = scene.say(then)?;
                let is = |name: &str| answers.iter().filter(|one| one.answer == name).count();
                ensure!((is("PathsTried"), is("Failure")) == (ROUNDS, 1), "{what}: {answers:?}");
                Ok(())
            };
            answers?;
        }
        context.remark("every one was refused");
        Ok(())
    })
}

/// What belongs to the role comes to the one who has asked for it, and to nobody else.
fn harmless(context: &Context) -> Result<()> {
    with_scene(context, |scene, c| {
        let far = c.address().to_string();
        let flows = ["Udp", "Tcp"].map(|protocol| opened(protocol, &scene.own, &far, 0));
        let then = vec![
            message("TryPaths", json!(flows)),
            message("AskPaths", Value::Null),
            json!({ "pause_ms": 300 }),
            message("AskPaths", Value::Null),
        ];
        let answers = scene.say(then)?;
        let said: Vec<&str> = answers.iter().map(|answer| answer.answer.as_str()).collect();
        ensure!(said == ["Staged", "PathsReady", "PathsTried", "PathsTried"], "{answers:?}");
        // They have left by the tunnel.
        let last = answers.last().map(|answer| answer.text.as_str()).unwrap_or_default();
        ensure!(last.matches("from: Forwarded").count() == flows.len(), "{last}");
        std::thread::sleep(Duration::from_millis(500));
        Ok(())
    })
}
