//! A copy that differs from the original is not committed, and the message names the difference.

use std::fs;
use std::time::Duration;

use nix::sys::resource::Resource;

use crate::cases::subject::{Clients, serve};
use crate::ensure;
use crate::error::{Context as _, Error, Result};
use crate::faults::breakpoint::{self, Breakpoint};
use crate::faults::container_state;
use crate::host::Host;
use crate::runner::{Case, Context};
use crate::slowdown;

pub(super) const CASES: &[Case] =
    &[Case::new("fidelity-what-a-copy-lacks-is-named", &["fidelity"], lacking).limit(600)];

/// The time limit for the copy.
const LIMIT: Duration = Duration::from_secs(60);
/// The exit code of a move that was rolled back.
const ROLLED_BACK: i32 = 4;

/// Removes something from the copy with this first process.
type Loss = fn(&Host, i32) -> Result<()>;

/// The words of the message, and what is removed.
const LOSSES: &[(&str, Loss)] = &[
    ("Max open files", |_, copy| {
        let limit = libc::rlimit { rlim_cur: 100, rlim_max: 100 };
        // SAFETY: prlimit(2) reads a valid structure and writes none.
        let limited = unsafe {
            libc::prlimit(copy, Resource::RLIMIT_NOFILE as _, &limit, std::ptr::null_mut())
        };
        nix::errno::Errno::result(limited).map(drop).context(|| "limiting")
    }),
    ("oom_score_adj", |_, copy| {
        let path = format!("/proc/{copy}/oom_score_adj");
        fs::write(&path, "500").context(|| format!("writing {path}"))
    }),
    ("nice", |_, copy| {
        // SAFETY: setpriority(2) takes numbers alone.
        let set = unsafe { libc::setpriority(libc::PRIO_PROCESS, copy as u32, 5) };
        nix::errno::Errno::result(set).map(drop).context(|| "setting nice")
    }),
    ("/sys/firmware", |host, copy| {
        let inside = inside(copy)?;
        let words = ["--target", &inside, "--mount", "--pid", "busybox", "umount", "/sys/firmware"];
        host.command("nsenter").args(words).run().map(drop)
    }),
    ("/proc/acpi", |host, copy| {
        let inside = inside(copy)?;
        let mount = ["busybox", "mount", "-o", "remount,bind,rw", "/proc/acpi"];
        let words = ["--target", &inside, "--mount", "--pid"];
        host.command("nsenter").args([&words[..], &mount].concat()).run().map(drop)
    }),
];

/// Returns the process ID in the PID namespace of its host.
fn inside(process: i32) -> Result<String> {
    let path = format!("/proc/{process}/status");
    let text = fs::read_to_string(&path).context(|| format!("reading {path}"))?;
    let numbers = text.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let number = numbers.and_then(|numbers| numbers.split_whitespace().nth(1));
    number.map(str::to_owned).ok_or_else(|| Error::Check(format!("no number of {process}")))
}

fn lacking(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    breakpoint::install(b)?;
    lab.serve("b")?;
    serve(a, "web", 7000, &[], c)?;
    let id = container_state::id(a, "web")?;
    let clients = Clients::gentle(c, a.port(7000))?;
    for (word, lose) in LOSSES {
        Breakpoint::AfterRestore.set(b)?;
        let words = ["migrate", "web", "b", "--max-interruption", "60"];
        let mut order = a.command("agent-client").args(words).spawn()?;
        let end = std::time::Instant::now() + slowdown::limit(LIMIT);
        while !Breakpoint::AfterRestore.is_hit(b) {
            ensure!(order.is_running(), "{word}: the move ended: {}", order.stderr());
            ensure!(std::time::Instant::now() < end, "{word}: no copy");
            std::thread::sleep(Duration::from_millis(2));
        }
        let copy = container_state::processes(b, &id).first().copied();
        let copy = copy.ok_or_else(|| Error::Check("the copy has no process".to_owned()))?;
        let lost = lose(b, copy);
        Breakpoint::AfterRestore.release(b)?;
        breakpoint::clear(b)?;
        let end = order.wait(LIMIT)?;
        lost?;
        let said = end.error_text();
        ensure!(
            end.status.code() == Some(ROLLED_BACK) && said.contains(word),
            "{word}: exit {:?}: {said}",
            end.status.code()
        );
        ensure!(container_state::runs_on(&lab, &id) == ["a"], "{word}: not home alone");
    }
    // A copy without differences is committed.
    a.command("agent-client").args(["migrate", "web", "b"]).run()?;
    ensure!(container_state::runs_on(&lab, &id) == ["b"], "it has not moved");
    context.remark(clients.stop()?.gaps());
    Ok(())
}
