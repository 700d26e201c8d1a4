//! A paired source that requests path trials for paths that are not its container's, or wants to know of flows that are
//! not. Packets of the permitted trials reach no other host.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::closed_destination::counts;
use super::closed_paths::{END, load};
use crate::cases::flows::traces;
use crate::ensure;
use crate::error::{Error, Result};
use crate::faults::hostile_peer::{self, Answer, message};
use crate::faults::observation::journals;
use crate::host::Host;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("strange-paths-are-not-tried", &["fidelity", "trust"], strange).limit(300),
    Case::new("strange-paths-lead-to-nobody", &["fidelity", "trust"], harmless),
    Case::new("strange-flows-are-not-counted", &["fidelity", "trust"], counted).limit(300),
];

/// The container that is offered and never migrates.
const NAME: &str = "evil";
/// The number of trials, and of questions about one trial, that a destination permits.
const MOST_TRIALS: usize = 9;
const ROUNDS: usize = 3;
/// The number of attempts to set up a tunnel.
const ATTEMPTS: usize = 4;
/// Rules that count the packets from a container, or to an unused port, on a third host.
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

/// An answer, and its number of occurrences.
type Done = (&'static str, usize);
/// The messages, and the expected answers.
type Said = (Vec<Value>, Vec<Done>);

/// Rules that count and drop the packets at the host that has asked for them.
const CATCH: &str = "\
table inet catch {
    chain in {
        type filter hook prerouting priority -400; policy accept;
        iifname \"netmig*\" udp dport 9 counter name asked drop
        iifname \"netmig*\" tcp dport 9 counter name asked drop
    }
    counter asked { }
}
";

struct Fixture<'a> {
    d: &'a Host,
    b: &'a Host,
    own: String,
}

/// Builds a TCP or UDP flow that the container has opened, as the protocol describes it.
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

fn stage() -> Value {
    message("Stage", json!([]))
}

/// Builds a network state with one kernel parameter.
fn network(parameter: &str) -> Value {
    let parameter = json!({ "name": parameter, "value": "1", "is_changed": true });
    let body = json!({ "configuration": [], "parameters": [parameter] });
    json!({ "send": "NetworkState", "at_once": true, "body": body })
}

impl Fixture<'_> {
    fn udp(&self, far: &str, mark: u32) -> Value {
        opened("Udp", &self.own, far, mark)
    }

    /// Holds a conversation up to the tunnel, then sends `then`. Returns the answers to that.
    fn say(&self, then: Vec<Value>) -> Result<Vec<Answer>> {
        let offered =
            vec![json!({ "offer": NAME, "migration": vec![7; 16] }), json!({ "tunnel": true })];
        let said = [[offered, then].concat()];
        for _ in 0..ATTEMPTS {
            // What the last conversation has left is removed.
            self.until_idle()?;
            let answers = hostile_peer::say_patiently(self.d, self.b, &said)?;
            let answers: Vec<Answer> = answers.into_iter().flatten().skip(1).collect();
            // Handshakes of both ends may cross, which this test does not examine.
            if !answers.iter().any(|answer| answer.text.contains("no answer through")) {
                return Ok(answers);
            }
        }
        Err(Error::Check("b does not hear d".to_owned()))
    }

    /// Waits until the destination is at work on nothing.
    fn until_idle(&self) -> Result<()> {
        let end = Instant::now() + END;
        while journals(self.b).next().is_some() {
            ensure!(Instant::now() < end, "b has a journal still");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Checks that the destination does exactly `done` of `then` and refuses the rest.
    fn refused(&self, what: &str, then: Vec<Value>, done: &[Done]) -> Result<()> {
        let answers = self.say([vec![stage()], then].concat())?;
        let names: Vec<&str> = answers.iter().map(|answer| answer.answer.as_str()).collect();
        let done = done.iter().flat_map(|(name, times)| vec![*name; *times]);
        let wanted: Vec<&str> = ["Staged"].into_iter().chain(done).chain(["Failure"]).collect();
        ensure!(names == wanted, "{what}: {answers:?}");
        Ok(())
    }
}

fn with_scene(
    context: &Context,
    act: impl FnOnce(&Fixture<'_>, &Host) -> Result<()>,
) -> Result<()> {
    let lab = context.lab(&["a", "b", "c", "d"])?;
    let (b, c, d) = (lab.host("b")?, lab.host("c")?, lab.host("d")?);
    lab.serve("b")?;
    d.podman(["run", "--detach", "--name", NAME, "probe:1", "sleep", "10000"])?;
    let format = "{{.NetworkSettings.Networks.podman.IPAddress}}";
    let own = d.podman(["inspect", "--format", format, NAME])?;
    load(c, COUNT)?;
    load(d, CATCH)?;
    act(&Fixture { d, b, own }, c)?;
    // The hostile peer leaves its own end of the tunnel.
    traces::none_within(b, END)?;
    let counted = c.run(["nft", "list", "counter", "inet", "count", "strange"])?;
    ensure!(counted.contains("packets 0 "), "a third host has got packets: {counted}");
    ensure!(lab.server_pid("b").is_some(), "agent-server has ended: {}", lab.server_log("b"));
    Ok(())
}

fn strange(context: &Context) -> Result<()> {
    with_scene(context, |fixture, c| {
        let (far, here) = (c.address().to_string(), fixture.b.address().to_string());
        let tried = |flows: Vec<Value>| vec![message("TryPaths", Value::Array(flows))];
        let one = |flow: Value| tried(vec![flow]);
        let fine = || message("TryPaths", json!([fixture.udp(&far, 0)]));
        let nothing = |name: &str| message(name, Value::Null);
        let too_often = [vec![fine()], vec![nothing("AskPaths"); ROUNDS + 1]].concat();
        let once = |then: Vec<Value>| (then, Vec::new());
        let said: Vec<(&str, Said)> = vec![
            ("of others", once(one(opened("Udp", &here, &far, 0)))),
            ("of nobody here", once(one(opened("Tcp", "203.0.113.1", &far, 0)))),
            ("to the host itself", once(one(fixture.udp(&here, 0)))),
            ("to its bridge", once(one(fixture.udp("10.88.0.1", 0)))),
            ("to its loopback", once(one(fixture.udp("127.0.0.1", 0)))),
            ("to everybody", once(one(fixture.udp("255.255.255.255", 0)))),
            ("to a group", once(one(fixture.udp("224.0.0.1", 0)))),
            ("with the marks of another peer", once(one(fixture.udp(&far, 0x00ff_0000)))),
            ("too many", once(tried(vec![fixture.udp(&far, 0); 33]))),
            ("too often", (vec![fine(); MOST_TRIALS + 1], vec![("PathsReady", MOST_TRIALS)])),
            ("asked too often", (too_often, vec![("PathsReady", 1), ("PathsTried", ROUNDS)])),
            ("nothing to ask about", once(vec![nothing("AskPaths")])),
            ("an answer", once(vec![message("PathsTried", json!([]))])),
            ("another answer", once(vec![message("Silent", json!([]))])),
        ];
        for (what, (then, done)) in said {
            fixture.refused(what, then, &done)?;
        }
        // A parameter must not reach another file, and must occur once.
        for strange in
            ["../../kernel/core_pattern", "/kernel/core_pattern", "ipv4/ip_no_such_thing", ""]
        {
            let answers = fixture.say(vec![network(strange), stage()])?;
            ensure!(answers.len() == 1 && answers[0].is_refusal(), "{strange}: {answers:?}");
        }
        let twice = vec![network("ipv4/ip_forward"), network("ipv4/ip_forward"), stage()];
        let answers = fixture.say(twice)?;
        ensure!(answers.len() == 1 && answers[0].is_refusal(), "twice: {answers:?}");
        context.remark("every one was refused");
        Ok(())
    })
}

/// Packets of a permitted trial reach the host that has asked for it, and no other.
fn harmless(context: &Context) -> Result<()> {
    with_scene(context, |fixture, c| {
        let far = c.address().to_string();
        let flows = ["Udp", "Tcp"].map(|protocol| opened(protocol, &fixture.own, &far, 0));
        let then = vec![
            stage(),
            message("TryPaths", json!(flows)),
            message("AskPaths", Value::Null),
            json!({ "pause_ms": 300 }),
            message("AskPaths", Value::Null),
        ];
        let answers = fixture.say(then)?;
        let said: Vec<&str> = answers.iter().map(|answer| answer.answer.as_str()).collect();
        ensure!(said == ["Staged", "PathsReady", "PathsTried", "PathsTried"], "{answers:?}");
        // The packets have left by the tunnel.
        let last = answers.last().map(|answer| answer.text.as_str()).unwrap_or_default();
        ensure!(last.matches("from: Forwarded").count() == flows.len(), "{last}");
        std::thread::sleep(Duration::from_millis(500));
        let asked = fixture.d.run(["nft", "list", "counter", "inet", "catch", "asked"])?;
        ensure!(!asked.contains("packets 0 "), "nothing came: {asked}");
        Ok(())
    })
}

/// Builds an order to count packets of UDP flows, which is not answered.
fn count(flows: Vec<Value>) -> Value {
    let flows: Vec<Value> = flows
        .into_iter()
        .map(|flow| json!({ "original": flow["original"], "reply": flow["reply"] }))
        .collect();
    json!({ "send": "CountFlows", "at_once": true, "body": flows })
}

/// Returns whether the destination counts anything while a container is staged there.
fn counts_meanwhile(fixture: &Fixture<'_>, flows: Vec<Value>) -> Result<bool> {
    let then = vec![stage(), count(flows), json!({ "pause_ms": 700 })];
    std::thread::scope(|scope| {
        let said = scope.spawn(|| fixture.say(then));
        let mut seen = false;
        while !said.is_finished() {
            seen |= counts(fixture.b)?;
            std::thread::sleep(Duration::from_millis(20));
        }
        let answers =
            said.join().map_err(|_| Error::Check("the peer has panicked".to_owned()))??;
        ensure!(answers.len() == 1 && answers[0].answer == "Staged", "{answers:?}");
        Ok(seen)
    })
}

/// Packets of flows that are not its container's, or have no end elsewhere, are not counted for a peer.
fn counted(context: &Context) -> Result<()> {
    with_scene(context, |fixture, c| {
        let (far, here) = (c.address().to_string(), fixture.b.address().to_string());
        let own = || fixture.udp(&far, 0);
        ensure!(counts_meanwhile(fixture, vec![own()])?, "its own are not counted");
        for (what, foreign) in [
            ("of others", opened("Udp", &here, &far, 0)),
            ("of nobody here", opened("Udp", "203.0.113.1", &far, 0)),
            ("to the host itself", fixture.udp(&here, 0)),
            ("to a group", fixture.udp("224.0.0.1", 0)),
        ] {
            ensure!(!counts_meanwhile(fixture, vec![own(), foreign])?, "{what}: it is counted");
        }
        let answered = |flows: Vec<Value>| {
            let mut order = count(flows);
            order["at_once"] = json!(false);
            order
        };
        fixture.refused("too many", vec![answered(vec![own(); 9])], &[])?;
        fixture.refused("twice", vec![count(vec![own()]), answered(vec![own()])], &[])?;
        let six = opened("Udp", &fixture.own, "2001:db8::3", 0);
        fixture.refused("of two families", vec![answered(vec![six])], &[])?;
        let packets = |of: &[&str]| json!({ "send": "CountPackets", "body": of });
        let own = fixture.own.as_str();
        for (what, of) in [
            ("packets of the host", vec![here.as_str()]),
            ("packets of the far end", vec![own, &far]),
            ("packets of nobody", vec!["203.0.113.1"]),
        ] {
            fixture.refused(what, vec![packets(&of)], &[])?;
        }
        Ok(())
    })
}
