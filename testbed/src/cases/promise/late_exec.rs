//! Commands that somebody runs in the container after the last look for them: they are refused, or the move names them.

use std::time::Duration;

use super::{LIMIT, home, settled, until};
use crate::ensure;
use crate::error::{Error, Result};
use crate::faults::breakpoint::{self, Breakpoint};
use crate::faults::observation::{has_record, interrupted_cgroup};
use crate::host::Host;
use crate::lab::Runtime;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("promise-a-late-exec-is-refused-crun", &["promise"], |context| {
        refused(context, Runtime::Crun)
    })
    .limit(300),
    Case::new("promise-a-late-exec-is-refused-runc", &["promise"], |context| {
        refused(context, Runtime::Runc)
    })
    .limit(300),
    Case::new("promise-a-late-entry-is-named", &["promise"], named).limit(300),
];

/// The exit code of a move that has lost something.
const LOSSES: i32 = 7;
/// From the restore on, within which the agent has looked for sessions for the last time.
const LOOKED: Duration = Duration::from_millis(300);

/// When the command comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// The copy is restored.
    Restored,
    /// The decision is on disk.
    Decided,
}

/// Begins a move and calls `enter` at that moment. Returns agent-client's exit code and what it has said.
fn moved(
    context: (&Host, &Host),
    moment: Moment,
    enter: impl FnOnce() -> Result<()>,
) -> Result<(Option<i32>, String)> {
    let (a, b) = context;
    breakpoint::clear(b)?;
    Breakpoint::AfterRestore.set(b)?;
    let words = ["migrate", "web", "b", "--max-interruption", "90"];
    let mut client = a.command("agent-client").args(words).spawn()?;
    until("the copy is restored", LIMIT, || {
        ensure!(client.is_running(), "the move ended: {}", client.stderr());
        Ok(Breakpoint::AfterRestore.is_hit(b))
    })?;
    if moment == Moment::Restored {
        std::thread::sleep(LOOKED);
        enter()?;
        Breakpoint::AfterRestore.release(b)?;
    } else {
        Breakpoint::AfterRestore.release(b)?;
        until("decided", LIMIT, || Ok(has_record(a, "committed") || !client.is_running()))?;
        enter()?;
    }
    let ended = client.wait(LIMIT)?;
    Ok((ended.status.code(), ended.error_text()))
}

/// `podman exec` fails as soon as the container is frozen, and the move has lost nothing.
fn refused(context: &Context, runtime: Runtime) -> Result<()> {
    let lab = context.lab_with(&["a", "b"], runtime)?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    breakpoint::install_for(b, runtime)?;
    lab.serve("b")?;
    let mut seen = Vec::new();
    for moment in [Moment::Restored, Moment::Decided] {
        for options in [&["exec"][..], &["exec", "--detach"]] {
            let run = ["run", "--detach", "--name", "web", "probe:1", "netmig-probe", "serve"];
            let id = a.podman(run)?;
            let mut given = None;
            let (code, said) = moved((a, b), moment, || {
                let words = [options, &["web", "sleep", "4321"]].concat();
                given = Some(a.command("podman").args(words).limit(LIMIT).output()?);
                Ok(())
            })?;
            settled(&lab)?;
            let what = format!("{options:?} at {moment:?}: exit {code:?}: {said}");
            let answer = given.map(|output| (output.status.success(), output.error_text()));
            let Some((false, answer)) = answer else {
                return Err(Error::Check(format!("podman has run the command: {what}")));
            };
            ensure!(code == Some(0), "podman has refused the command: {answer}; {what}");
            ensure!(home(&lab, &id)? == "b", "it did not move: {what}");
            seen.push(format!("{moment:?}: {answer}"));
            b.podman(["rm", "--force", "--time", "0", "web"])?;
        }
    }
    context.remark(seen.join("; "));
    Ok(())
}

/// A process that a runtime has let pass before the container was frozen, and that enters later, is named.
fn named(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    breakpoint::install(b)?;
    lab.serve("b")?;
    for moment in [Moment::Restored, Moment::Decided] {
        let run = ["run", "--detach", "--name", "web", "probe:1", "netmig-probe", "serve"];
        let id = a.podman(run)?;
        // It is where crun's is once that has found the container running: outside, with one step to go.
        let script = "until [ -s /run/enter ]; do sleep 0.01; done; echo $$ > \"$(cat /run/enter)\"; exec sleep 4321";
        let waiting = a.command("sh").args(["-c", script]).spawn()?;
        let (code, said) = moved((a, b), moment, || {
            let procs = interrupted_cgroup(a)?.join("cgroup.procs");
            let inside = procs.strip_prefix(a.path("/")).unwrap_or(&procs);
            a.write("/run/enter.new", format!("/{}", inside.display()))?;
            a.run(["mv", "/run/enter.new", "/run/enter"])?;
            if moment == Moment::Restored {
                let entered = || {
                    let pids = std::fs::read_to_string(&procs).unwrap_or_default();
                    Ok(pids.lines().count() > 1)
                };
                until("it has entered", LIMIT, entered)?;
            }
            Ok(())
        })?;
        settled(&lab)?;
        let has_entered = waiting.wait(LIMIT)?.status.code().is_none();
        a.run(["rm", "/run/enter"])?;
        ensure!(has_entered || moment == Moment::Decided, "it has not entered: {said}");
        if has_entered {
            ensure!(code == Some(LOSSES), "{moment:?}: exit {code:?}: {said}");
            for word in ["podman exec or another program", "web", "was ended with the original"] {
                ensure!(said.contains(word), "{moment:?}: no {word:?} in: {said}");
            }
        }
        ensure!(home(&lab, &id)? == "b", "{moment:?}: it did not move: {said}");
        b.podman(["rm", "--force", "--time", "0", "web"])?;
    }
    Ok(())
}
