//! Orders that the user gives the container engine while a container is being migrated are not lost silently.

use std::time::Duration;

use super::{LIMIT, long, settled, until};
use crate::cases::subject::{Clients, serve};
use crate::ensure;
use crate::error::{Error, Result, chain};
use crate::faults::breakpoint::{self, Breakpoint};
use crate::faults::container_state::{self, State};
use crate::faults::forget::forget;
use crate::faults::observation::has_record;
use crate::host::Host;
use crate::lab::Lab;
use crate::runner::{Case, Context};
use crate::subprocess::Output;

pub(super) const CASES: &[Case] = &[
    Case::new("promise-orders-during-a-move", &["promise"], orders),
    Case::new("promise-stop-during-a-long-pass-ends-the-move", &["promise"], stopped).limit(240),
    Case::new("promise-an-exec-during-a-move-is-named", &["promise"], executed).limit(240),
    Case::new("promise-orders-during-the-preparation", &["promise"], ordered_before).limit(400),
    Case::new("promise-orders-during-the-interruption", &["promise"], |context| {
        ordered_at(context, Moment::Interrupted)
    })
    .limit(300),
    Case::new("promise-signal-during-the-interruption", &["promise"], signalled).limit(240),
    Case::new("promise-timers-are-no-orders", &["promise"], timers).limit(240),
    Case::new("promise-orders-after-the-decision", &["promise"], |context| {
        ordered_at(context, Moment::Decided)
    })
    .limit(300),
];

/// Orders about the original, and whether they end it.
const DRASTIC: [(&[&str], bool); 8] = [
    (&["pause", "web"], false),
    (&["stop", "--time", "0", "web"], true),
    (&["kill", "web"], true),
    (&["rm", "--force", "--time", "0", "web"], true),
    (&["network", "disconnect", "podman", "web"], false),
    (&["restart", "--time", "0", "web"], false),
    (&["rename", "web", "shop"], false),
    (&["cp", "/etc/hostname", "web:/tmp/late"], false),
];

/// How many of these orders are given during the preparation as well, and the steps after which they are.
const PREPARED: usize = 5;
const PREPARATION: [&str; 4] = ["preflight", "tunnel", "files, first pass", "stage"];

/// When an order is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// The original is frozen and dumped, and the copy is restored.
    Interrupted,
    /// The decision is on disk.
    Decided,
}

/// Arguments of podman, the part of the message that names the order, and arguments that undo it.
const ORDERS: [(&[&str], &str, &[&str]); 3] = [
    (&["rename", "web", "shop"], "renamed to shop", &["rename", "shop", "web"]),
    (
        &["update", "--restart=always", "web"],
        "restart policy always",
        &["update", "--restart=no", "web"],
    ),
    // Unpausing fails if the end of the move has thawed the container.
    (&["pause", "web"], "made paused", &["unpause", "web"]),
];

/// A new name, a new restart policy and a pause come when the destination has been told the old ones. The move ends, and the
/// container runs on at the source with what was ordered.
fn orders(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    serve(a, "web", 7000, &[], c)?;
    lab.serve("b")?;
    let clients = Clients::gentle(c, a.port(7000))?;
    for (order, told, undo) in ORDERS {
        let client = a.command("agent-client").args(["migrate", "web", "b"]).spawn()?;
        until("begun", LIMIT, || Ok(has_record(a, "departure")))?;
        a.podman(order.iter().copied())?;
        let ended = client.wait(LIMIT)?;
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        ensure!(ended.status.code() == Some(4) && said.contains(told), "{order:?}: {said}");
        let there = b.podman(["ps", "--all", "--quiet"])?;
        ensure!(there.trim().is_empty(), "{order:?}: a copy is left on b");
        a.podman(undo.iter().copied())?;
    }
    lab.migrate("web", "a", "b")?;
    context.remark(clients.stop()?.gaps());
    Ok(())
}

/// A container is stopped while its files go over a slow link. The move ends at once, and not with the pass, which would
/// take longer than the test waits.
fn stopped(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("b")?;
    for order in ["stop", "restart"] {
        serve(a, "web", 7000, &[], c)?;
        long::fill(a, "web", 60 << 20)?;
        long::slow_down(a, "4mbit")?;
        let client = a.command("agent-client").args(["migrate", "web", "b"]).spawn()?;
        until("the pass", LIMIT, || Ok(client.stderr().contains("tunnel")))?;
        std::thread::sleep(Duration::from_secs(2));
        a.podman([order, "--time", "0", "web"])?;
        let ended = client.wait(LIMIT)?;
        let said = ended.error_text();
        let told = said.contains("web was stopped or restarted on this host");
        ensure!(ended.status.code() == Some(4) && told, "{order}: {:?}: {said}", ended.status);
        long::speed_up(a)?;
        settled(&lab)?;
        let there = b.podman(["ps", "--all", "--quiet"])?;
        ensure!(there.trim().is_empty(), "{order}: a copy is left on b");
        a.podman(["rm", "--force", "--time", "0", "web"])?;
    }
    Ok(())
}

/// An exec session that is opened while files go over ends the move, which names it. While it is open, the next one is
/// refused. Once it has ended, the container can be moved.
fn executed(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("b")?;
    serve(a, "web", 7000, &[], c)?;
    let id = container_state::id(a, "web")?;
    long::fill(a, "web", 4 << 20)?;
    long::slow_down(a, "8mbit")?;
    let client = a.command("agent-client").args(["migrate", "web", "b"]).spawn()?;
    until("the pass", LIMIT, || Ok(client.stderr().contains("tunnel")))?;
    let session = a.podman(["exec", "--detach", "web", "sleep", "4321"])?;
    let ended = client.wait(LIMIT)?;
    let said = ended.error_text();
    ensure!(ended.status.code() == Some(4), "exit {:?}: {said}", ended.status.code());
    for word in ["podman exec", &session, "sleep 4321"] {
        ensure!(said.contains(word), "no {word:?} in: {said}");
    }
    long::speed_up(a)?;
    settled(&lab)?;
    ensure!(container_state::state(a, &id) == State::Running, "the original does not run");
    let there = b.podman(["ps", "--all", "--quiet"])?;
    ensure!(there.trim().is_empty(), "a copy is left on b");
    let refused = lab.attempt("web", "a", "b", &[])?;
    let said = &refused.stderr;
    ensure!(refused.code == Some(3) && said.contains("exec-session"), "{:?}: {said}", refused.code);
    ensure!(said.contains(&session), "no session in: {said}");
    // podman goes on listing the session for some minutes.
    a.run(["pkill", "-x", "-f", "sleep 4321"])?;
    lab.migrate("web", "a", "b")?;
    Ok(())
}

/// Whatever is ordered about the frozen original: exactly one container runs, or none as was ordered; the move does
/// not succeed over an order that podman has carried out; and nothing is left that podman cannot remove.
fn ordered_at(context: &Context, moment: Moment) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    breakpoint::install(b)?;
    lab.serve("b")?;
    let mut problems = Vec::new();
    let mut seen = Vec::new();
    for (order, ends) in DRASTIC {
        serve(a, "web", 7000, &[], c)?;
        match one_order(&lab, order, ends, moment) {
            Ok(outcome) => seen.push(format!("{}: {outcome}", order[0])),
            Err(error) => problems.push(format!("{order:?}: {}", chain(&error))),
        }
        breakpoint::clear(b)?;
        for host in [a, b] {
            if let Err(error) = host.podman(["rm", "--all", "--force", "--time", "0"]) {
                problems.push(format!("{order:?}: on {}: {}", host.name(), chain(&error)));
            }
            forget(host)?;
        }
    }
    context.remark(seen.join("; "));
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

/// A signal that the frozen original gets is not lost without a word.
fn signalled(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    breakpoint::install(b)?;
    lab.serve("b")?;
    let program = "trap 'echo got it' USR1; echo ready; while :; do sleep 0.02; done";
    a.podman(["run", "--detach", "--name", "web", "probe:1", "sh", "-c", program])?;
    until("it is ready", LIMIT, || Ok(a.podman(["logs", "web"])?.contains("ready")))?;
    Breakpoint::AfterRestore.set(b)?;
    let words = ["migrate", "web", "b", "--max-interruption", "90"];
    let client = a.command("agent-client").args(words).spawn()?;
    until("the copy is restored", LIMIT, || Ok(Breakpoint::AfterRestore.is_hit(b)))?;
    // What the kernel tells of the original was read by now.
    std::thread::sleep(Duration::from_millis(500));
    a.podman(["kill", "--signal", "USR1", "web"])?;
    Breakpoint::AfterRestore.release(b)?;
    let ended = client.wait(LIMIT)?;
    let said = ended.error_text();
    match ended.status.code() {
        // It has got it: nothing was moved.
        Some(4) => until("it got it", LIMIT, || Ok(a.podman(["logs", "web"])?.contains("got it"))),
        Some(7) => {
            ensure!(said.contains("sent a signal"), "no word of it: {said}");
            Ok(())
        }
        code => Err(Error::Check(format!("exit {code:?}: {said}"))),
    }
}

/// A timer goes on while the original is frozen, and its signal waits there. Nobody has sent it.
fn timers(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    ["a", "b"].iter().try_for_each(|host| lab.serve(host))?;
    let program = "import signal, time\n\
                   signal.signal(signal.SIGALRM, lambda *_: None)\n\
                   signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)\n\
                   print('ready', flush=True)\n\
                   while True: time.sleep(0.1)\n";
    let a = lab.host("a")?;
    a.podman(["run", "--detach", "--name", "web", "python:1", "python3", "-c", program])?;
    until("it is ready", LIMIT, || Ok(a.podman(["logs", "web"])?.contains("ready")))?;
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "b"), ("b", "a")] {
        let attempt = lab.attempt("web", from, to, &[])?;
        ensure!(attempt.code == Some(0), "exit {:?}: {}", attempt.code, attempt.stderr);
    }
    Ok(())
}

/// Whatever is ordered while the move is prepared: exactly one container runs, or none as was ordered, and the move does not
/// succeed over an order that podman has carried out.
fn ordered_before(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("b")?;
    let mut problems = Vec::new();
    let mut seen = Vec::new();
    for step in PREPARATION {
        for (order, ends) in DRASTIC.into_iter().take(PREPARED) {
            serve(a, "web", 7000, &[], c)?;
            match prepared_order(&lab, order, ends, step) {
                Ok(outcome) => seen.push(format!("{} after {step}: {outcome}", order[0])),
                Err(error) => problems.push(format!("{order:?} after {step}: {}", chain(&error))),
            }
            for host in [a, b] {
                if let Err(error) = host.podman(["rm", "--all", "--force", "--time", "0"]) {
                    problems.push(format!("{order:?}: on {}: {}", host.name(), chain(&error)));
                }
                forget(host)?;
            }
        }
    }
    context.remark(seen.join("; "));
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

/// Gives one order after a step of the preparation, and judges what has become of the container.
fn prepared_order(lab: &Lab, order: &[&str], ends: bool, step: &str) -> Result<String> {
    let a = lab.host("a")?;
    let id = container_state::id(a, "web")?;
    let mut client = a.command("agent-client").args(["migrate", "web", "b"]).spawn()?;
    until(step, LIMIT, || {
        ensure!(client.is_running(), "the move ended: {}", client.stderr());
        Ok(client.stderr().contains(step))
    })?;
    let given = a.command("podman").args(order.iter().copied()).limit(LIMIT).output()?;
    let is_being_removed = client.stderr().contains("hand-over");
    let ended = client.wait(LIMIT)?;
    judge(lab, &id, (&ended, &given), ends, is_being_removed)
}

/// Gives one order at that moment, and judges what has become of the container. Returns the outcome in words.
fn one_order(lab: &Lab, order: &[&str], ends: bool, moment: Moment) -> Result<String> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let id = container_state::id(a, "web")?;
    Breakpoint::AfterRestore.set(b)?;
    let words = ["migrate", "web", "b", "--max-interruption", "90"];
    let mut client = a.command("agent-client").args(words).spawn()?;
    until("the copy is restored", LIMIT, || {
        ensure!(client.is_running(), "the move ended: {}", client.stderr());
        Ok(Breakpoint::AfterRestore.is_hit(b))
    })?;
    let give = || a.command("podman").args(order.iter().copied()).limit(LIMIT).output();
    let given = if moment == Moment::Interrupted {
        // The agent reads podman's records while the destination restores.
        std::thread::sleep(Duration::from_millis(300));
        let given = give()?;
        Breakpoint::AfterRestore.release(b)?;
        given
    } else {
        Breakpoint::AfterRestore.release(b)?;
        until("decided", LIMIT, || Ok(has_record(a, "committed") || !client.is_running()))?;
        give()?
    };
    // The step before has ended.
    let is_being_removed = client.stderr().contains("hand-over");
    let ended = client.wait(LIMIT)?;
    judge(lab, &id, (&ended, &given), ends, is_being_removed)
}

/// Judges what has become of a container about which an order was given, by what agent-client and podman have said. Returns
/// the outcome in words.
fn judge(
    lab: &Lab,
    id: &str,
    (ended, given): (&Output, &Output),
    ends: bool,
    is_being_removed: bool,
) -> Result<String> {
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    let code = ended.status.code();
    let done = given.status.success();
    let recovered = a.command("agent-client").args(["recover"]).limit(LIMIT).output()?;
    ensure!(recovered.status.success(), "recover: {}", recovered.error_text());
    settled(lab)?;
    let state = |host: &Host| container_state::state(host, id);
    let (here, there) = (state(a), state(b));
    let what = format!(
        "podman {:?}, the move {code:?}, {here:?} on a and {there:?} on b",
        given.status.code()
    );
    let problem = |text: &str| Err(Error::Check(format!("{text}: {what}: {said}")));
    if !matches!(code, Some(0 | 4 | 7)) {
        return problem("another exit code");
    }
    // What podman carries out while the original is being removed is lost with it, as an order that comes later.
    if code == Some(0) && done && !is_being_removed {
        return problem("an order was carried out and is lost without a word");
    }
    let runs = [here, there].iter().filter(|state| **state != State::Absent).count();
    let is_right = match code {
        Some(4) if ends && done => runs == 0,
        Some(4) => runs == 1 && there == State::Absent,
        _ => runs == 1 && there == State::Running,
    };
    if !is_right {
        return problem("not one container");
    }
    Ok(what)
}
