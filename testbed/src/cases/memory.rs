//! Memory that follows a container after its move.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use super::memory_programs::{
    FOLLOWS, MEMORY, SETTLES, check_memory, finds_no_fault, goes_on_checking, is_all_in_place,
    says, start_changing, start_writing,
};
use super::promise::{LIMIT, settled, until};
use super::subject::{Clients, serve};
use crate::ensure;
use crate::error::{Context as _, Error, Result};
use crate::faults::container_state::{self, State};
use crate::runner::{Case, Context};
use crate::slowdown;

pub(super) const CASES: &[Case] = &[
    Case::new("memory-follows-from-host-to-host", &["memory"], follows).limit(240),
    Case::new("memory-goes-in-rounds", &["memory"], rounds).exclusive().limit(240),
    Case::new("memory-goes-in-rounds-while-it-is-written", &["memory"], written)
        .exclusive()
        .limit(240),
    Case::new("memory-that-is-empty-is-not-sent", &["memory"], empty).limit(240),
    Case::new("memory-rounds-interrupt-no-call", &["memory"], calls).limit(240),
    Case::new("memory-rounds-end-with-their-agent", &["memory"], agent_killed).limit(240),
    Case::new("memory-that-does-not-converge", &["memory"], does_not_converge)
        .exclusive()
        .limit(240),
    Case::new("memory-that-is-shared-stays-shared", &["memory"], shared).limit(240),
    Case::new("memory-that-is-shared-goes-in-rounds", &["memory"], shared_rounds)
        .exclusive()
        .limit(240),
    Case::new("memory-is-right-for-a-program-that-changes-it", &["memory"], changes).limit(240),
];

/// Skips a test where this kernel cannot tell which pages are written.
pub(super) fn needs_rounds() -> Result<()> {
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context(|| "reading osrelease")?;
    let mut numbers = release.split(['.', '-']).map_while(|part| part.trim().parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= SINCE || has_soft_dirty_bits()? {
        return Ok(());
    }
    Err(Error::Skip(format!("Linux {} cannot tell which pages are written", release.trim())))
}

/// Returns whether a page that was just written is marked as such in `/proc/self/pagemap`.
fn has_soft_dirty_bits() -> Result<bool> {
    let mut pages = vec![0_u8; 2 * PAGE];
    pages.fill(1);
    let page = (std::hint::black_box(&pages).as_ptr() as usize).div_ceil(PAGE);
    let mut entry = [0; 8];
    let what = || "reading /proc/self/pagemap";
    let pagemap = File::open("/proc/self/pagemap").context(what)?;
    pagemap.read_exact_at(&mut entry, page as u64 * 8).context(what)?;
    Ok(u64::from_ne_bytes(entry) >> 55 & 1 == 1)
}

/// The version of Linux that notes writes for a userfaultfd.
const SINCE: (u32, u32) = (6, 7);
/// The size of a page of memory.
const PAGE: usize = 4096;
/// The memory of a server on an emulated machine, in mebibytes: more than what goes over in rounds by default.
const LESS_MEMORY: &str = "80";
/// The step in which memory goes over while the container runs.
const ROUNDS: &str = "memory, while it runs";

/// A server moves on at once, before all of its memory is in place; every byte is right on each host.
fn follows(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    lab.serve("a")?;
    lab.serve("b")?;
    serve(a, "web", 7000, &["--memory", MEMORY], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "b")] {
        let options = ["--max-interruption", "60", "--memory", "stop"];
        let moved = lab.attempt("web", from, to, &options)?.success()?;
        ensure!(lab.server_log(to).contains(FOLLOWS), "{to} restored all memory at once");
        let part = |name: &str| moved.parts_ms.get(name).copied().unwrap_or_default();
        context.remark(format!("dump {:.0} ms, restore {:.0} ms", part("dump"), part("restore")));
    }
    check_memory(&lab, "b")?;
    context.remark(clients.stop()?.gaps());
    settled(&lab)?;
    for host in ["a", "b"] {
        ensure!(is_all_in_place(lab.host(host)?)?, "a lock is left on {host}");
    }
    Ok(())
}

/// A server's memory goes over while it answers. The dump has next to nothing of it, and every byte is right after each move.
fn rounds(context: &Context) -> Result<()> {
    needs_rounds()?;
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, c) = (lab.host("a")?, lab.host("c")?);
    lab.serve("a")?;
    lab.serve("b")?;
    let memory = if slowdown::is_slow() { LESS_MEMORY } else { MEMORY };
    serve(a, "web", 7000, &["--memory", memory], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "b")] {
        // The same as pre-copy for so much memory, on a kernel of any kind.
        let moved = lab.attempt("web", from, to, &["--memory", "auto"])?.success()?;
        ensure!(moved.steps.iter().any(|step| step.name == ROUNDS), "no rounds: {:?}", moved.steps);
        let dumped = moved.checkpoint_bytes;
        ensure!(dumped > 0 && dumped < 8 << 20, "{dumped} bytes were dumped");
        context.remark(format!("{:.0} ms", moved.interruption_ms));
    }
    check_memory(&lab, "b")?;
    context.remark(clients.stop()?.gaps());
    settled(&lab)
}

/// Of pages that have nothing but zeros only the word goes over, and they are empty at the destination.
fn empty(context: &Context) -> Result<()> {
    needs_rounds()?;
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.serve("b")?;
    // One program has all zeros in its memory, and waits until the next one takes them.
    let program = "mkfifo /go; dd if=/dev/zero bs=192M count=1 | { echo ready; read word </go; md5sum >/seen; \
         dd if=/dev/zero bs=1M count=192 | md5sum >/wanted; \
         cmp /seen /wanted && echo all is right || echo WRONG; sleep 1000; }";
    a.podman(["run", "--detach", "--name", "web", "probe:1", "sh", "-c", program])?;
    says(a, "ready")?;
    std::thread::sleep(SETTLES);
    let moved = lab.attempt("web", "a", "b", &["--memory", "pre-copy"])?.success()?;
    let sent = moved.steps.iter().find(|step| step.name == ROUNDS).map(|step| step.bytes);
    let sent = sent.ok_or_else(|| Error::Check("no rounds".to_owned()))?;
    context.remark(format!("{sent} bytes"));
    ensure!(sent < 8 << 20, "{sent} bytes went over");
    ensure!(lab.server_log("b").contains(FOLLOWS), "all memory was restored at once");
    b.podman(["exec", "web", "sh", "-c", "echo go >/go"])?;
    says(b, "all is right")
}

/// A program that writes all of its memory again and again, with threads, children and new mappings, finds every page as it
/// has left it, on each host.
fn written(context: &Context) -> Result<()> {
    needs_rounds()?;
    let lab = context.lab(&["a", "b"])?;
    let a = lab.host("a")?;
    lab.serve("a")?;
    lab.serve("b")?;
    start_writing(a)?;
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "b")] {
        let options = ["--max-interruption", "60", "--memory", "pre-copy"];
        let moved = lab.attempt("web", from, to, &options)?.success()?;
        let sent = moved.steps.iter().find(|step| step.name == ROUNDS).map(|step| step.bytes >> 20);
        let sent = sent.ok_or_else(|| Error::Check("no rounds".to_owned()))?;
        context.remark(format!("{sent} MiB, {:.0} ms", moved.interruption_ms));
        goes_on_checking(lab.host(to)?)?;
        until("all memory is in place", LIMIT, || is_all_in_place(lab.host(to)?))?;
    }
    Ok(())
}

/// A first thread that sleeps while it is stopped for a moment sleeps on, for its whole time.
fn calls(context: &Context) -> Result<()> {
    needs_rounds()?;
    const SECONDS: u64 = 8;
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.serve("b")?;
    let sleep = format!(
        "echo ready; read from rest </proc/uptime; sleep {SECONDS}; code=$?; read to rest </proc/uptime; \
         echo slept $code $from $to; sleep 1000"
    );
    a.podman(["run", "--detach", "--name", "web", "probe:1", "sh", "-c", &sleep])?;
    says(a, "ready")?;
    let options = ["--memory", "pre-copy", "--max-interruption", "60"];
    let moved = lab.attempt("web", "a", "b", &options)?.success()?;
    ensure!(moved.steps.iter().any(|step| step.name == ROUNDS), "no rounds: {:?}", moved.steps);
    says(b, "slept")?;
    let log = b.podman(["logs", "web"])?;
    let slept = log.lines().find_map(|line| line.strip_prefix("slept "));
    let words: Vec<f64> =
        slept.unwrap_or_default().split(' ').filter_map(|word| word.parse().ok()).collect();
    let [code, from, to] = words[..] else { return Err(Error::Check(log)) };
    ensure!(code == 0.0 && to - from >= SECONDS as f64, "it slept for {:.1} s: {log}", to - from);
    Ok(())
}

/// The agent and its guardian are killed while rounds go over. The container runs on as before, and can be moved.
fn agent_killed(context: &Context) -> Result<()> {
    needs_rounds()?;
    let lab = context.lab(&["a", "b"])?;
    let a = lab.host("a")?;
    lab.serve("b")?;
    start_writing(a)?;
    // So that the rounds last.
    let options = ["migrate", "web", "b", "--memory", "pre-copy", "--bandwidth", "4MB"];
    let order = a.command("agent-client").args(options).spawn()?;
    until("the rounds", LIMIT, || Ok(order.stderr().contains("files, first pass")))?;
    std::thread::sleep(SETTLES);
    a.run(["pkill", "-KILL", "-f", "agent-client migrate"])?;
    order.wait(LIMIT)?;
    until("it is settled", LIMIT, || {
        let recovery = a.command("agent-client").args(["recover"]).limit(LIMIT).output()?;
        Ok(recovery.error_text().contains("nothing to recover"))
    })?;
    settled(&lab)?;
    let id = container_state::id(a, "web")?;
    for pid in container_state::processes(a, &id) {
        let descriptors = a.run(["ls", "-l", &format!("/proc/{pid}/fd")]).unwrap_or_default();
        ensure!(!descriptors.contains("userfaultfd"), "process {pid} has a descriptor of ours");
    }
    lab.attempt("web", "a", "b", &["--max-interruption", "60"])?.success()?;
    finds_no_fault(lab.host("b")?)
}

/// A container that writes its memory faster than the link carries it is not interrupted if the user wants that, and moves
/// otherwise.
fn does_not_converge(context: &Context) -> Result<()> {
    needs_rounds()?;
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.serve("b")?;
    start_writing(a)?;
    let id = container_state::id(a, "web")?;
    let slowly = ["--memory", "pre-copy", "--bandwidth", "30MB", "--max-interruption", "60"];
    let go_back =
        [&slowly[..], &["--non-converging", "go-back", "--downtime-limit", "0.1"]].concat();
    let attempt = lab.attempt("web", "a", "b", &go_back)?;
    ensure!(attempt.code == Some(4), "exit {:?}: {}", attempt.code, attempt.stderr);
    for words in ["writes its memory so fast", "--downtime-limit", "--non-converging"] {
        ensure!(attempt.stderr.contains(words), "{words:?} is not in: {}", attempt.stderr);
    }
    ensure!(container_state::state(a, &id) == State::Running, "the original does not run");
    settled(&lab)?;
    lab.attempt("web", "a", "b", &slowly)?.success()?;
    finds_no_fault(b)
}

/// Memory that processes share goes over while they run. They share it afterwards as before.
fn shared(context: &Context) -> Result<()> {
    needs_rounds()?;
    let lab = context.lab(&["a", "b"])?;
    let a = lab.host("a")?;
    lab.serve("a")?;
    lab.serve("b")?;
    let program = ["probe:1", "netmig-probe", "scenario", "shared-memory"];
    a.podman(["run", "--detach", "--name", "web"].into_iter().chain(program))?;
    says(a, "checked")?;
    for (from, to) in [("a", "b"), ("b", "a")] {
        let options = ["--memory", "pre-copy", "--max-interruption", "60"];
        let moved = lab.attempt("web", from, to, &options)?.success()?;
        ensure!(moved.checkpoint_bytes < 8 << 20, "{} bytes were dumped", moved.checkpoint_bytes);
        finds_no_fault(lab.host(to)?)?;
    }
    Ok(())
}

/// Processes write segments of all kinds while these go over: each of them, children that end at once, write(2), and in segments that
/// are new. Every byte of every page is checked all the time.
fn shared_rounds(context: &Context) -> Result<()> {
    needs_rounds()?;
    let lab = context.lab(&["a", "b"])?;
    let a = lab.host("a")?;
    lab.serve("a")?;
    lab.serve("b")?;
    let program = ["probe:1", "netmig-probe", "scenario", "shared-segments"];
    a.podman(["run", "--detach", "--name", "web"].into_iter().chain(program))?;
    says(a, "checked")?;
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "b")] {
        let options = ["--memory", "pre-copy", "--max-interruption", "60"];
        let moved = lab.attempt("web", from, to, &options)?.success()?;
        // There are some 20 MiB in all. What nobody has mapped is dumped, and what is new.
        let dumped = moved.checkpoint_bytes;
        ensure!(dumped < 12 << 20, "{dumped} bytes were dumped");
        context.remark(format!("{:.0} ms, {} KiB", moved.interruption_ms, dumped >> 10));
        let checks = |log: &str| log.lines().filter(|line| line.contains("checked")).count();
        let host = lab.host(to)?;
        let before = checks(&host.podman(["logs", "web"])?);
        // Each check is one of all pages by one process.
        until("it has checked all of it", LIMIT, || {
            let log = host.podman(["logs", "web"])?;
            ensure!(!log.contains("WRONG"), "{log}");
            Ok(checks(&log) >= before + 4)
        })?;
    }
    settled(&lab)
}

/// A program empties, moves, unmaps and shares its memory as soon as it notices that it stood still.
fn changes(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.serve("b")?;
    start_changing(a)?;
    // All of it goes over in the interruption, which the program is to notice.
    let options = ["--max-interruption", "60", "--memory", "stop"];
    lab.attempt("web", "a", "b", &options)?.success()?;
    ensure!(lab.server_log("b").contains(FOLLOWS), "all memory was restored at once");
    says(b, "all is right")
}
