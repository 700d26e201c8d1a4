//! A paired host that sends messages out of turn, or orders for a migration that is not its own.

use serde_json::{Value, json};

use super::{LIMIT, home, settled, until};
use crate::cases::subject::{Clients, serve};
use crate::ensure;
use crate::error::{Error, Result, chain};
use crate::faults::breakpoint::{self, Breakpoint};
use crate::faults::container_state;
use crate::faults::forget::forget;
use crate::faults::hostile_peer::{self, Answer, message, strange_end};
use crate::faults::injection_point::{accept_agent_packets, drop_agent_packets};
use crate::host::Host;
use crate::host::host_process::HostProcess;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("promise-a-peer-decides-for-nobody-else", &["promise", "trust"], decides).limit(400),
    Case::new("promise-a-peer-takes-no-tunnel-over", &["promise", "trust"], tunnels).limit(240),
    Case::new("promise-a-peer-leads-nobody-elses-flows", &["promise", "trust"], flows).limit(240),
    Case::new("promise-a-peer-out-of-turn", &["promise", "trust"], out_of_turn).limit(300),
];

/// The number of datagrams that may be lost while a container waits for its decision for seconds.
const WAITED: u64 = 200;

/// Returns the answers that show that a host obeyed without authority.
fn obeyed(answers: &[Vec<Answer>], harmless: &[&str]) -> Vec<String> {
    let all = answers.iter().flatten();
    let not = all.filter(|one| !one.is_refusal() && !harmless.contains(&one.answer.as_str()));
    not.map(|one| format!("{} is answered with {}", one.sent, one.text)).collect()
}

/// Returns the names of the messages.
fn names(conversation: &[Value]) -> String {
    let name = |line: &Value| {
        let name = line["send"].as_str().or(line["offer"].as_str());
        name.unwrap_or("nothing").to_owned()
    };
    conversation.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Starts a migration that stops when its copy waits for the decision. Returns its ID.
fn undecided(lab: &Lab) -> Result<(HostProcess, Value)> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    Breakpoint::AfterRestore.set(b)?;
    let words = ["migrate", "web", "b", "--max-interruption", "90"];
    let mut order = a.command("agent-client").args(words).spawn()?;
    until("the copy is restored", LIMIT, || {
        ensure!(order.is_running(), "the move ended: {}", order.stderr());
        Ok(Breakpoint::AfterRestore.is_hit(b))
    })?;
    let migration = hostile_peer::migration(b);
    let migration = migration.ok_or_else(|| Error::Check("b has no journal".to_owned()))?;
    // The source does not learn that the copy is prepared.
    drop_agent_packets(a, b, "sport")?;
    Breakpoint::AfterRestore.release(b)?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    Ok((order, migration))
}

/// Sends each order for another host's migration. An order that is obeyed breaks the migration.
fn decides(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c", "d"])?;
    let (a, b, c, d) = (lab.host("a")?, lab.host("b")?, lab.host("c")?, lab.host("d")?);
    breakpoint::install(b)?;
    lab.serve("b")?;
    let mut problems = Vec::new();
    for number in 0..hostile_peer::orders(&Value::Null).len() {
        serve(a, "web", 7000, &[], c)?;
        let id = container_state::id(a, "web")?;
        let clients = Clients::gentle(c, a.port(7000))?;
        let (order, migration) = undecided(&lab)?;
        let said = hostile_peer::orders(&migration).swap_remove(number);
        let answers = hostile_peer::say(d, b, std::slice::from_ref(&said));
        accept_agent_packets(a)?;
        problems.extend(obeyed(&answers?, &[]));
        let end = order.wait(LIMIT)?;
        let mut note = |outcome: Result<()>| {
            problems
                .extend(outcome.err().map(|e| format!("after {}: {}", names(&said), chain(&e))));
        };
        let is_moved = end.status.code() == Some(0);
        if !is_moved {
            note(Err(Error::Check(format!("it was not moved: {}", end.error_text()))));
        }
        note(settled(&lab));
        note(home(&lab, &id).map(drop));
        note(clients.stop_losing(WAITED).map(drop));
        breakpoint::clear(b)?;
        for host in [a, b] {
            host.podman(["rm", "--all", "--force", "--time", "0"])?;
            forget(host)?;
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    context.remark("every order was refused");
    Ok(())
}

/// The state of the hosts that must not change: tunnels, steering and forwarding.
#[derive(Debug, PartialEq)]
struct Ways {
    tunnels: [std::collections::BTreeSet<String>; 2],
    claims: [String; 2],
    forwarded: [Value; 2],
}

impl Ways {
    fn look(a: &Host, b: &Host) -> Result<Self> {
        let listed = |host: &Host| -> Result<Value> {
            host.command("agent-client").args(["forward", "list", "--json"]).run()?.json()
        };
        let claims =
            |host: &Host| host.run(["sh", "-c", "cat /run/netmig/claims/* 2> /dev/null; true"]);
        Ok(Self {
            tunnels: [hostile_peer::tunnels(a)?, hostile_peer::tunnels(b)?],
            claims: [claims(a)?, claims(b)?],
            forwarded: [listed(a)?, listed(b)?],
        })
    }

    /// Describes the difference.
    fn difference(&self, now: &Self) -> String {
        let mut all = Vec::new();
        if self.tunnels != now.tunnels {
            all.push(format!("the tunnels were {:?} and are {:?}", self.tunnels, now.tunnels));
        }
        if self.claims != now.claims {
            all.push(format!("the claims were {:?} and are {:?}", self.claims, now.claims));
        }
        if self.forwarded != now.forwarded {
            all.push("what is forwarded has changed".to_owned());
        }
        all.join(", ")
    }
}

/// A container that has migrated from a to b, with clients whose packets take the tunnel.
struct Moved<'a> {
    lab: std::sync::Arc<Lab>,
    clients: Clients,
    id: String,
    addresses: Value,
    identities: [Value; 2],
    /// The ID of its migration, which b has archived.
    archived: Value,
    context: &'a Context,
}

impl<'a> Moved<'a> {
    fn start(context: &'a Context) -> Result<Self> {
        let lab = context.lab(&["a", "b", "c", "d"])?;
        let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
        lab.serve("a")?;
        lab.serve("b")?;
        serve(a, "web", 7000, &[], c)?;
        let id = container_state::id(a, "web")?;
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let address = a.podman(["inspect", "--format", format, "web"])?;
        let clients = Clients::gentle(c, a.port(7000))?;
        lab.attempt("web", "a", "b", &["--forward"])?.success()?;
        settled(&lab)?;
        let identities = [hostile_peer::identity(a)?, hostile_peer::identity(b)?];
        let name = b.run(["ls", "/var/lib/netmig/arrived/settled"])?;
        let archived = hostile_peer::number(&name);
        let archived = archived.ok_or_else(|| Error::Check(format!("b remembers {name:?}")))?;
        let addresses = json!([address]);
        Ok(Self { lab, clients, id, addresses, identities, archived, context })
    }

    /// Writes the notes that a destination has until all anchors know of a migration, and an anchor until the
    /// container has migrated on.
    fn plant_claims(&self) -> Result<()> {
        let name = self.lab.host("b")?.run(["ls", "/var/lib/netmig/arrived/settled"])?;
        let claim = json!({ "with": [1], "to": 1, "container": self.addresses });
        for host in ["a", "b"] {
            let path = format!("/run/netmig/claims/{name}.json");
            let host = self.lab.host(host)?;
            host.write(&path, claim.to_string())?;
            host.run(["chmod", "600", &path])?;
        }
        Ok(())
    }

    /// Sends messages from d and checks that a and b are as before and the clients have noticed nothing.
    fn unmoved_by(self, said: &[(&str, Vec<Value>)], harmless: &[&str]) -> Result<()> {
        let host = |name: &str| self.lab.host(name);
        let (a, b, c, d) = (host("a")?, host("b")?, host("c")?, host("d")?);
        let mut problems = Vec::new();
        for (to, conversation) in said {
            self.plant_claims()?;
            let before = Ways::look(a, b)?;
            let answers = hostile_peer::say(d, host(to)?, std::slice::from_ref(conversation))?;
            problems.extend(obeyed(&answers, harmless));
            for answer in answers.iter().flatten() {
                self.context.remark(format!("{} {}", answer.sent, answer.answer));
            }
            let now = Ways::look(a, b)?;
            if now != before {
                let said = names(conversation);
                problems.push(format!("after {said} to {to}: {}", before.difference(&now)));
            }
        }
        if home(&self.lab, &self.id).ok() != Some("b") {
            problems
                .push(format!("it runs on {:?}", container_state::runs_on(&self.lab, &self.id)));
        }
        let fresh = c.probe().wait_for_echo(a.port(7000), std::time::Duration::from_secs(5));
        problems.extend(fresh.err().map(|e| format!("new connections: {}", chain(&e))));
        problems.extend(self.clients.stop().err().map(|e| chain(&e)));
        ensure!(problems.is_empty(), "{}", problems.join("\n"));
        Ok(())
    }
}

/// Offers keys for a tunnel to another host.
fn tunnels(context: &Context) -> Result<()> {
    let moved = Moved::start(context)?;
    let d = moved.lab.host("d")?;
    d.podman(["run", "--detach", "--name", "evil", "probe:1", "sleep", "10000"])?;
    let [a, b] = &moved.identities;
    let here = d.address().to_string();
    let number = json!(hostile_peer::NO_MIGRATION);
    let offer = json!({ "offer": "evil", "migration": number, "anchors": [a] });
    let anchor = json!({ "host": a, "address": here, "end": strange_end() });
    let claim = json!({
        "migration": number, "host": b, "address": here, "id": moved.id,
        "container": moved.addresses,
    });
    let said = [
        // To the container's host, as if its anchor had new keys.
        (
            "b",
            vec![
                offer,
                message("TunnelOffer", strange_end()),
                message("Anchor", anchor),
                message("Abort", number),
            ],
        ),
        // To the anchor, as if the container's host had new keys.
        ("a", vec![message("AnchorOffer", claim), message("TunnelOffer", strange_end())]),
    ];
    // It may offer its own container with its own tunnel.
    moved.unmoved_by(&said, &["Verdict", "TunnelAnswer", "Aborted"])
}

/// Sends orders about flows that are not steered to the sender.
fn flows(context: &Context) -> Result<()> {
    let moved = Moved::start(context)?;
    let [a, b] = moved.identities.clone();
    let archived = moved.archived.clone();
    let rehome = |host: &Value| json!({ "migration": archived, "host": host, "id": moved.id, "container": moved.addresses });
    let resume = || message("Resume", archived.clone());
    let said = [
        ("a", vec![message("Rehome", rehome(&b))]),
        ("b", vec![message("Rehome", rehome(&a))]),
        ("a", vec![message("ForwardEnd", json!(moved.id))]),
        ("b", vec![message("ForwardEnd", json!(moved.id))]),
        ("b", vec![resume(), message("LedPast", archived.clone())]),
        ("b", vec![resume(), message("Commit", archived.clone()), message("Finish", Value::Null)]),
        ("b", vec![resume(), message("Abort", archived.clone())]),
    ];
    // It may end its own flows and forwardings, of which there are none.
    moved.unmoved_by(&said, &["Rehomed", "ForwardEnded"])
}

/// Sends every message as the first one, while another host's container waits for its decision.
fn out_of_turn(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c", "d"])?;
    let (a, b, c, d) = (lab.host("a")?, lab.host("b")?, lab.host("c")?, lab.host("d")?);
    breakpoint::install(b)?;
    lab.serve("b")?;
    serve(a, "web", 7000, &[], c)?;
    let id = container_state::id(a, "web")?;
    let clients = Clients::gentle(c, a.port(7000))?;
    let (order, migration) = undecided(&lab)?;
    let all = hostile_peer::first_messages(&migration);
    let plain = all.iter().map(|one| vec![one.clone()]);
    let unintroduced = all.iter().map(|one| vec![json!({ "greet": false }), one.clone()]);
    let said: Vec<Vec<Value>> = plain.chain(unintroduced).collect();
    let answers = hostile_peer::say(d, b, &said);
    accept_agent_packets(a)?;
    let mut problems = obeyed(&answers?, &[]);
    let end = order.wait(LIMIT)?;
    let mut note = |outcome: Result<()>| problems.extend(outcome.err().map(|e| chain(&e)));
    if end.status.code() != Some(0) {
        note(Err(Error::Check(format!("it was not moved: {}", end.error_text()))));
    }
    note(settled(&lab));
    note(home(&lab, &id).map(drop));
    note(clients.stop_losing(WAITED).map(drop));
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    context.remark(format!("{} conversations", said.len()));
    Ok(())
}
