//! A first pass over the files that takes long because the link is slow.

use std::fs::File;
use std::io::Read as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{home, settled};
use crate::cases::subject::serve;
use crate::ensure;
use crate::error::{Context as _, Error, Result};
use crate::faults::container_state;
use crate::host::Host;
use crate::lab::{Lab, MigrationReport};
use crate::runner::{Case, Context};
use crate::slowdown;

pub(super) const CASES: &[Case] =
    &[Case::new("promise-podman-answers-during-a-long-pass", &["promise"], answers)
        .exclusive()
        .limit(240)];

/// The size of the container's file in bytes.
const FILE: usize = 40 << 20;
const RATE: &str = "40mbit";
/// The time limit for an answer of podman: a fraction of the pass, and enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);
/// The time limit for a migration with a long pass.
const MOVES: Duration = Duration::from_secs(500);

fn answers(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let moved = move_slowly(&lab, FILE, RATE)?;
    let (longest, pass) = (moved.longest_answer.as_secs_f64(), moved.pass.as_secs_f64());
    context.remark(format!("first pass {pass:.1} s, podman ps {longest:.2} s at most"));
    ensure!(moved.pass >= PATIENCE, "the pass took {pass:.1} s only");
    ensure!(
        moved.longest_answer < slowdown::limit(PATIENCE),
        "podman ps took {longest:.1} s while the first pass took {pass:.1} s"
    );
    Ok(())
}

/// The result of a migration over a slow link.
pub(crate) struct Slow {
    /// The longest time that podman on the destination took to answer.
    pub(crate) longest_answer: Duration,
    /// The length of the first pass.
    pub(crate) pass: Duration,
}

/// Migrates a container with a file of `bytes` over a link of this rate, in tc(8)'s notation.
pub(crate) fn move_slowly(lab: &Lab, bytes: usize, rate: &str) -> Result<Slow> {
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("b")?;
    serve(a, "web", 7000, &[], c)?;
    let id = container_state::id(a, "web")?;
    fill(a, "web", bytes)?;
    // The client's packets share the link and wait for the files, so the client uses TCP at a low rate.
    let client = c.probe().tcp_echo(a.port(7000)).rate(5.0).start()?;
    slow_down(a, rate)?;
    let over = AtomicBool::new(false);
    let (longest_answer, report) = thread::scope(|scope| -> Result<_> {
        let asker = scope.spawn(|| longest(b, &over));
        let words = ["migrate", "web", "b", "--json", "--max-interruption", "60"];
        let report = a.command("agent-client").args(words).limit(MOVES).output();
        over.store(true, Ordering::Relaxed);
        let longest = asker.join().unwrap_or_else(|_| Err(Error::Check("it died".to_owned())))?;
        let report: MigrationReport = report?.success()?.json()?;
        Ok((longest, report))
    })?;
    speed_up(a)?;
    settled(lab)?;
    ensure!(home(lab, &id)? == "b", "it is not on b");
    let seen = client.stop()?;
    ensure!(seen.fault().is_none(), "TCP: {:?}", seen.fault());
    let pass = report.steps.iter().find(|step| step.name.contains("first pass"));
    let ms = pass.map_or(0.0, |step| step.ms);
    Ok(Slow { longest_answer, pass: Duration::from_secs_f64(ms / 1e3) })
}

/// Limits what a host sends to this rate, in tc(8)'s notation.
pub(crate) fn slow_down(host: &Host, rate: &str) -> Result<()> {
    let shape = ["qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "64k"];
    host.command("tc").args(shape).args(["latency", "300ms"]).run().map(drop)
}

/// Ends what [`slow_down`] began.
pub(super) fn speed_up(host: &Host) -> Result<()> {
    host.run(["tc", "qdisc", "del", "dev", "eth0", "root"]).map(drop)
}

/// Writes a file of so many bytes into a running container.
pub(super) fn fill(host: &Host, container: &str, bytes: usize) -> Result<()> {
    let first = host.podman(["inspect", "--format", "{{.State.Pid}}", container])?;
    host.write(format!("/proc/{first}/root/file"), incompressible(bytes)?)
}

/// Returns `length` random bytes, which a slow link takes in full: netmig compresses what it sends over one.
fn incompressible(length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut random = File::open("/dev/urandom").context(|| "opening /dev/urandom".to_owned())?;
    random.read_exact(&mut bytes).context(|| "reading /dev/urandom".to_owned())?;
    Ok(bytes)
}

/// Runs `podman ps` again and again until `over`. Returns the longest time that it took.
fn longest(host: &Host, over: &AtomicBool) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    while !over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        host.command("podman").args(["ps", "--all"]).limit(MOVES).output()?;
        longest = longest.max(asked.elapsed());
        thread::sleep(Duration::from_millis(200));
    }
    Ok(longest)
}
