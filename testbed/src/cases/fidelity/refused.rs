//! The preflight refuses scenarios that CRIU cannot restore, names them, and changes nothing. Each scenario is also
//! tried with CRIU itself, since the refusal of a working scenario would be a fault, too.

use super::scenarios::{remove, start};
use crate::ensure;
use crate::error::{Error, Result};
use crate::faults::container_state;
use crate::host::Host;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("fidelity-refuses-what-is-in-processes", &["fidelity"], in_processes).limit(400),
    Case::new("fidelity-refuses-files-that-are-gone", &["fidelity"], files_that_are_gone)
        .limit(300),
    Case::new("fidelity-refuses-sockets", &["fidelity"], sockets).limit(300),
    Case::new("fidelity-many-processes-are-looked-at-soon", &["fidelity"], many_processes)
        .exclusive()
        .limit(300),
    Case::new("fidelity-too-long-an-interruption", &["fidelity"], too_long).exclusive().limit(300),
    Case::new("fidelity-too-long-over-a-slow-link", &["fidelity"], too_slow).exclusive().limit(240),
    Case::new("fidelity-names-what-the-destination-lacks", &["fidelity"], lacks),
];

/// The exit code of a refusal before anything changed.
const REFUSED: i32 = 3;
/// The options for scenarios that podman's defaults do not allow.
const ADMIN: &[&str] = &["--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined"];

/// A scenario, the code and a word of the refusal, its options of podman, and whether CRIU's own dump fails. Where it
/// does not, the loss shows only after the restore.
type Row = (&'static str, &'static str, &'static str, &'static [&'static str], bool);

fn check(context: &Context, rows: &[Row]) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let a = lab.host("a")?;
    lab.serve("b")?;
    let mut problems = Vec::new();
    for (scenario, code, word, options, fails) in rows {
        start(a, "web", scenario, options)?;
        let mut note = |outcome: Result<()>| {
            problems.extend(outcome.err().map(|error| format!("{scenario}: {error}")));
        };
        note(is_refused(&lab, code, word));
        if *fails {
            note(fails_to_dump(a));
        }
        remove(a, "web")?;
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    context.remark(format!("{} scenarios", rows.len()));
    Ok(())
}

fn is_refused(lab: &Lab, code: &str, word: &str) -> Result<()> {
    let a = lab.host("a")?;
    let id = || a.podman(["inspect", "--format", "{{.State.Pid}} {{.State.Status}}", "web"]);
    let before = id()?;
    let attempt = lab.attempt("web", "a", "b", &[])?;
    ensure!(attempt.code == Some(REFUSED), "exit code {:?}: {}", attempt.code, attempt.stderr);
    let json = attempt.json()?;
    let blockers = json["blockers"].as_array().cloned().unwrap_or_default();
    let codes: Vec<&str> = blockers.iter().filter_map(|one| one["code"].as_str()).collect();
    ensure!(codes == [code], "{codes:?} of {}", attempt.stderr);
    ensure!(attempt.stderr.contains(word), "no {word:?} in {}", attempt.stderr);
    ensure!(id()? == before, "the container has changed");
    Ok(())
}

/// Checks that CRIU cannot dump the container.
fn fails_to_dump(host: &Host) -> Result<()> {
    let line = ["container", "checkpoint", "--leave-running", "--tcp-established", "--file-locks"];
    let output = host
        .command("podman")
        .args(line.into_iter().chain(["--export", "/root/checkpoint.tar", "web"]))
        .output()?;
    if output.status.success() {
        return Err(Error::Check("CRIU can dump it, and it was refused".to_owned()));
    }
    Ok(())
}

fn in_processes(context: &Context) -> Result<()> {
    let rows: &[Row] = &[
        ("traced", "traced", "is traced by process", &[], true),
        ("user-namespace", "nested-namespace", "user namespace", &[], true),
        ("pid-namespace", "nested-namespace", "pid namespace", ADMIN, true),
        ("ipc-namespace", "nested-namespace", "ipc namespace", ADMIN, true),
        ("uts-namespace", "nested-namespace", "uts namespace", ADMIN, true),
        ("cgroup-namespace", "nested-namespace", "cgroup namespace", ADMIN, true),
        ("time-namespace", "nested-namespace", "time namespace", ADMIN, true),
        ("inotify-proc", "watch", "of kind proc", &[], true),
        ("message-queue", "message-queue", "/queue", &[], true),
        ("message-queue-closed", "message-queue", "/queue", &[], false),
        ("epoll-of-a-child", "epoll-closed", "by epoll for descriptor", &[], true),
        ("seccomp-notify", "seccomp-notify", "seccomp notify", &[], true),
        ("landlock-ruleset", "landlock", "landlock-ruleset", &[], true),
        ("secret-memory", "secret-memory", "/secretmem", &[], true),
        ("io-uring", "io-uring", "io_uring", ADMIN, true),
    ];
    check(context, rows)
}

fn files_that_are_gone(context: &Context) -> Result<()> {
    let rows: &[Row] = &[
        ("replaced-image-library", "replaced-file", "/etc/group", &[], true),
        ("linked-deleted-file", "replaced-file", "/root/first", &[], true),
        ("deleted-image-directory", "deleted-directory", "/tmp", &[], true),
        ("deleted-root", "deleted-root", "root directory", &[], true),
        ("memfd-executable", "memfd-executable", "/memfd:program", &[], false),
        (
            "unix-renamed",
            "unix-socket-name",
            "/run/web.sock, which was bound to /run/new.sock",
            &[],
            false,
        ),
        ("unix-renamed-datagram", "unix-socket-name", "/run/web.sock", &[], false),
        ("unix-linked", "unix-socket-name", "/run/one.sock", &[], false),
    ];
    check(context, rows)
}

fn sockets(context: &Context) -> Result<()> {
    let rows: &[Row] = &[
        ("mptcp-listener", "mptcp", "0.0.0.0:7100", &[], true),
        ("mptcp-connection", "mptcp", "Multipath TCP", &[], true),
        ("vsock", "socket-family", "AF_VSOCK", ADMIN, true),
    ];
    check(context, rows)
}

/// The preflight is one pass over the processes.
fn many_processes(context: &Context) -> Result<()> {
    const COUNT: &str = "600";
    let lab = context.lab(&["a", "b"])?;
    let a = lab.host("a")?;
    lab.serve("b")?;
    let fork = "for i in $(seq $0); do sleep 100000 & done; echo ready; wait";
    a.podman(["run", "--detach", "--name", "web", "probe:1", "sh", "-c", fork, COUNT])?;
    super::scenarios::says(a, "web", "ready")?;
    // A reason to refuse, since this test needs the preflight alone.
    a.podman(["exec", "--detach", "web", "netmig-probe", "scenario", "mptcp-listener"])?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    let attempt = lab.attempt("web", "a", "b", &[])?;
    ensure!(attempt.code == Some(REFUSED), "exit code {:?}: {}", attempt.code, attempt.stderr);
    ensure!(attempt.stderr.contains("(mptcp)"), "{}", attempt.stderr);
    context.remark(format!("refused after {} ms", attempt.elapsed.as_millis()));
    Ok(())
}

/// A migration that would exceed the limit is refused while the container runs, and works with a higher limit.
fn too_long(context: &Context) -> Result<()> {
    const COUNT: &str = "300";
    let lab = context.lab(&["a", "b"])?;
    let a = lab.host("a")?;
    lab.serve("b")?;
    let fork = "for i in $(seq $0); do sleep 100000 & done; echo ready; wait";
    let id = a.podman(["run", "--detach", "--name", "web", "probe:1", "sh", "-c", fork, COUNT])?;
    super::scenarios::says(a, "web", "ready")?;
    let attempt = lab.attempt("web", "a", "b", &["--max-interruption", "0.5"])?;
    ensure!(attempt.code == Some(REFUSED), "exit code {:?}: {}", attempt.code, attempt.stderr);
    for words in ["(too-long)", "301 processes", "0.5 s are allowed", "--max-interruption"] {
        ensure!(attempt.stderr.contains(words), "{words:?} is not in: {}", attempt.stderr);
    }
    let migration = lab.attempt("web", "a", "b", &["--max-interruption", "120"])?.success()?;
    let there = container_state::processes(lab.host("b")?, &id).len();
    ensure!(there == 301, "{there} of 301 processes came");
    context.remark(format!("with more time: {:.0} ms", migration.interruption_ms));
    Ok(())
}

/// The transfer of memory over a slow link exceeds the limit.
fn too_slow(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let a = lab.host("a")?;
    lab.serve("b")?;
    let fill = "import os\nmemory = os.urandom(48 << 20)\nprint('ready', flush=True)\nimport time\ntime.sleep(1e6)";
    a.podman(["run", "--detach", "--name", "web", "python:1", "python3", "-c", fill])?;
    super::scenarios::says(a, "web", "ready")?;
    // The first migration ships the image, so that the later ones send memory alone.
    lab.migrate("web", "a", "b")?;
    lab.serve("a")?;
    lab.migrate("web", "b", "a")?;
    let shape = ["qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "60mbit"];
    a.command("tc").args(shape.into_iter().chain(["burst", "64k", "latency", "50ms"])).run()?;
    let attempt = lab.attempt("web", "a", "b", &[])?;
    ensure!(attempt.code == Some(REFUSED), "exit code {:?}: {}", attempt.code, attempt.stderr);
    for words in ["(too-long)", "transfer ", "5.0 s are allowed"] {
        ensure!(attempt.stderr.contains(words), "{words:?} is not in: {}", attempt.stderr);
    }
    let migration = lab.attempt("web", "a", "b", &["--max-interruption", "60"])?.success()?;
    context.remark(format!("with more time: {:.0} ms", migration.interruption_ms));
    Ok(())
}

fn names_what_is_missing(lab: &Lab, code: &str, words: &[&str]) -> Result<()> {
    let attempt = lab.attempt("web", "a", "b", &[])?;
    ensure!(attempt.code == Some(REFUSED), "exit code {:?}: {}", attempt.code, attempt.stderr);
    for word in words.iter().chain([&code]) {
        ensure!(attempt.stderr.contains(word), "no {word:?} in {}", attempt.stderr);
    }
    Ok(())
}

/// The refusal names the network, the address or the program that the destination lacks.
fn lacks(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.serve("b")?;
    let create = ["network", "create", "--disable-dns", "--subnet", "10.77.0.0/24", "back"];
    a.podman(create)?;
    a.podman(["run", "--detach", "--name", "web", "--network", "back", "probe:1"])?;
    names_what_is_missing(&lab, "network-missing", &["b has no network back"])?;
    b.podman(create)?;
    lab.attempt("web", "a", "b", &[])?.success()?;
    b.podman(["rm", "--force", "--time", "0", "web"])?;

    let own = format!("{}:8082:7000", a.address());
    a.podman(["run", "--detach", "--name", "web", "--publish", &own, "probe:1"])?;
    names_what_is_missing(&lab, "address-missing", &["b has no address 192.0.2.1", "8082"])?;
    a.podman(["rm", "--force", "--time", "0", "web"])?;

    b.run(["rm", "/usr/bin/catatonit"])?;
    a.podman(["run", "--detach", "--name", "web", "--init", "probe:1"])?;
    names_what_is_missing(&lab, "init-missing", &["b has no catatonit"])
}
