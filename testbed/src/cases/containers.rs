//! Containers with volumes: what is in these goes with them, and nothing of anybody else's is touched. And containers of
//! systemd units.

mod broken_off;
mod files;
mod hostile_volumes;
mod refused;
mod services;

use std::time::Duration;

use super::promise::{LIMIT, settled, until};
use super::subject::{Clients, numbered_lines, serve_by};
use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::runner::{Case, Context};
use files::{data, lay_odd_files, listing};

/// Returns all lab tests of this area.
pub(super) fn cases() -> Vec<Case> {
    [
        CASES,
        refused::CASES,
        broken_off::CASES,
        hostile_volumes::CASES,
        services::CASES,
        services::broken_off::CASES,
        services::units::CASES,
    ]
    .concat()
}

const CASES: &[Case] = &[
    Case::new("containers-volumes-go-and-come-back", &["containers"], go_and_come_back).limit(300),
    Case::new("containers-volumes-of-images", &["containers"], of_images).limit(300),
    Case::new("containers-volumes-whose-files-are-open", &["containers"], open_files).limit(240),
    Case::new("containers-volumes-changed-from-outside", &["containers"], changed_from_outside)
        .limit(240),
];

/// A server, and a program beside it that writes numbers: each into a log, into one of fifty small files, and into a block of
/// a large one. It ends when it finds something else than what it has written.
const WRITER: &str = r#"
dd if=/dev/zero of=/data/large bs=65536 count=256 2>/dev/null
number=0
while :; do
    echo $number >> /data/log
    echo $number > /data/small-$((number % 50))
    echo $number | dd of=/data/large bs=65536 seek=$((number % 256)) conv=notrunc 2>/dev/null
    echo $number > /anonymous/last
    if [ $number -ge 50 ]; then
        read before < /data/small-$(((number + 1) % 50))
        [ $before = $((number - 49)) ] || { echo WRONG $number $before; exit 1; }
    fi
    number=$((number + 1))
done &
exec netmig-probe serve
"#;
/// The options of its volumes.
const VOLUMES: [&str; 8] = [
    "--volume",
    "data:/data",
    "--volume",
    "odd:/odd:ro,nosuid",
    "--volume",
    "/anonymous",
    "--volume",
    "nested:/data/nested",
];
/// A program that has files of a volume open: one whose name is gone, one that is locked, one that it appends to, and a pipe. It
/// works in a directory of the volume.
const HOLDER: &str = r#"
import fcntl, os, time
os.makedirs("/data/d", exist_ok=True)
gone = os.open("/data/gone", os.O_RDWR | os.O_CREAT)
os.write(gone, b"kept" * 1000)
os.unlink("/data/gone")
lock = open("/data/lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
log = open("/data/log", "a")
os.mkfifo("/data/pipe")
pipe = os.open("/data/pipe", os.O_RDWR)
os.chdir("/data/d")
number = 0
while True:
    print(number, file=log, flush=True)
    open(f"file-{number}", "w").close()
    time.sleep(0.02)
    os.unlink(f"file-{number}")
    os.write(pipe, b"x")
    if os.read(pipe, 1) != b"x" or os.pread(gone, 5000, 0) != b"kept" * 1000:
        print("WRONG", flush=True)
    number += 1
"#;
/// How long the program runs on before it is looked at.
const SETTLES: Duration = Duration::from_secs(2);

/// Starts it, with a volume that is full of odd files, and waits until it writes.
fn start(host: &Host, client: &Host) -> Result<()> {
    host.podman(["volume", "create", "--label", "of=web", "--label", "kind=odd", "odd"])?;
    lay_odd_files(host, &data("odd"))?;
    serve_by(host, "web", 7000, &VOLUMES, &["probe:1", "sh", "-c", WRITER], client)?;
    until("it writes", LIMIT, || Ok(written(host)? > 100))
}

/// Returns how many numbers are in the log of a volume, none of which is missing.
fn written(host: &Host) -> Result<usize> {
    numbered_lines(&host.read(format!("{}/log", data("data"))).unwrap_or_default())
}

/// Returns the name of the container's volume without a name of its own.
fn anonymous(host: &Host) -> Result<String> {
    let names = host.podman([
        "inspect",
        "--format",
        "{{range .Mounts}}{{if eq .Destination \"/anonymous\"}}{{.Name}}{{end}}{{end}}",
        "web",
    ])?;
    Ok(names.trim().to_owned())
}

/// Returns what the engine says of the container's mounts and of the volumes.
fn described(host: &Host) -> Result<String> {
    let mounts = host.podman(["inspect", "--format", "{{json .Mounts}}", "web"])?;
    let names = anonymous(host)?;
    let volumes = host.podman([
        "volume",
        "inspect",
        "--format",
        "{{.Name}} {{.Driver}} {{.Mountpoint}} {{.Labels}} {{.Options}} {{.Anonymous}}",
        "data",
        "odd",
        "nested",
        &names,
    ])?;
    let mut mounts: Vec<serde_json::Value> =
        serde_json::from_str(&mounts).map_err(|e| Error::Check(format!("{e}: {mounts}")))?;
    mounts.sort_by_key(ToString::to_string);
    Ok(format!("{mounts:?} {volumes}"))
}

/// Checks that the container writes on where it is, and that what it has written is whole.
fn writes_on(host: &Host) -> Result<()> {
    let before = written(host)?;
    until("it writes on", LIMIT, || Ok(written(host)? > before + 50))?;
    std::thread::sleep(SETTLES);
    let log = host.podman(["logs", "web"])?;
    ensure!(!log.contains("WRONG"), "{log}");
    Ok(())
}

/// A program writes into volumes while it moves on, home, and on again. All that it has written is there, and all that it
/// has not written is as it was, to the last attribute.
fn go_and_come_back(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("a")?;
    lab.serve("b")?;
    start(a, c)?;
    let (odd, before, unnamed) = (listing(a, &data("odd"))?, described(a)?, anonymous(a)?);
    let clients = Clients::gentle(c, a.port(7000))?;
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "b")] {
        let moved = lab.attempt("web", from, to, &["--max-interruption", "60"])?.success()?;
        context.remark(format!("{:.0} ms", moved.interruption_ms));
        let kept =
            moved.warnings.iter().any(|w| w.contains("stay on this host") && w.contains("odd"));
        ensure!(kept, "no word of the volumes that stay: {:?}", moved.warnings);
        let (from, to) = (lab.host(from)?, lab.host(to)?);
        // The source has them as they were when it was frozen.
        let (then, now) = (written(from)?, written(to)?);
        ensure!(now >= then, "{now} numbers are there, and {then} were");
        ensure!(
            listing(to, &data("odd"))? == odd,
            "odd files differ: {}",
            listing(to, &data("odd"))?
        );
        ensure!(described(to)? == before, "{} was: {before}", described(to)?);
        writes_on(to)?;
        // The file is empty for a moment whenever it is written.
        until("the last number is there, too", LIMIT, || {
            let last = to.read(format!("{}/last", data(&unnamed)))?;
            Ok(last.trim().parse::<usize>().is_ok_and(|last| last >= then))
        })?;
        let left = to.path("/var/lib/containers/storage/volumes/.netmig");
        ensure!(!left.exists(), "files are left in {}", left.display());
    }
    context.remark(clients.stop()?.gaps());
    settled(&lab)?;
    // What the container is asked to do with its volumes later, it does there.
    b.podman(["rm", "--force", "--time", "0", "--volumes", "web"])?;
    let left = b.podman(["volume", "ls", "--quiet"])?;
    ensure!(!left.contains(&unnamed), "the volume without name stays: {left}");
    ensure!(left.contains("data") && left.contains("odd"), "volumes are gone: {left}");
    Ok(())
}

/// The volume that an image declares goes with what was in it and with what the image has put into it.
fn of_images(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("a")?;
    lab.serve("b")?;
    let make =
        "mkdir -p /anonymous/d && echo of the image > /anonymous/d/first && chmod 711 /anonymous";
    a.podman(["run", "--name", "made", "probe:1", "sh", "-c", make])?;
    a.podman(["commit", "--change", "VOLUME /anonymous", "made", "declares:1"])?;
    a.podman(["rm", "made"])?;
    let command =
        "echo removed; rm -r /anonymous/d; echo own > /anonymous/own; exec netmig-probe serve";
    serve_by(a, "web", 7000, &[], &["declares:1", "sh", "-c", command], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    let name = anonymous(a)?;
    let before = listing(a, &data(&name))?;
    ensure!(
        before.contains("own") && !before.contains("first"),
        "not as the program left it: {before}"
    );
    for (from, to) in [("a", "b"), ("b", "a")] {
        lab.attempt("web", from, to, &["--max-interruption", "60"])?.success()?;
        let now = listing(lab.host(to)?, &data(&name))?;
        ensure!(now == before, "{now} was: {before}");
    }
    context.remark(clients.stop()?.gaps());
    settled(&lab)?;
    let anonymous = b.podman(["volume", "inspect", "--format", "{{.Anonymous}}", &name])?;
    ensure!(anonymous.trim() == "true", "it is not anonymous on b: {anonymous}");
    Ok(())
}

/// Files of a volume that a program has open stay open, locked, and without a name, wherever it goes.
fn open_files(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let a = lab.host("a")?;
    lab.serve("a")?;
    lab.serve("b")?;
    let run = ["run", "--detach", "--name", "web", "--volume", "data:/data", "python:1"];
    a.podman(run.into_iter().chain(["python3", "-c", HOLDER]))?;
    until("it writes", LIMIT, || Ok(written(a)? > 20))?;
    for (from, to) in [("a", "b"), ("b", "a")] {
        lab.attempt("web", from, to, &["--max-interruption", "60"])?.success()?;
        let host = lab.host(to)?;
        writes_on(host)?;
        let lock = format!("{}/lock", data("data"));
        let taken = host.command("flock").args(["--nonblock", &lock, "true"]).output()?;
        ensure!(!taken.status.success(), "the lock is lost on {to}");
        let gone = host.path(format!("{}/gone", data("data")));
        ensure!(!gone.exists(), "{} has its name again", gone.display());
    }
    settled(&lab)
}

/// A file that somebody puts into a volume after it was read for the last time is told.
fn changed_from_outside(context: &Context) -> Result<()> {
    use crate::faults::breakpoint::{self, Breakpoint};
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    breakpoint::install(b)?;
    lab.serve("b")?;
    serve_by(a, "web", 7000, &["--volume", "data:/data"], &["probe:1"], c)?;
    Breakpoint::AfterRestore.set(b)?;
    let order = ["migrate", "web", "b", "--max-interruption", "60"];
    let order = a.command("agent-client").args(order).spawn()?;
    until("the copy is restored", LIMIT, || Ok(Breakpoint::AfterRestore.is_hit(b)))?;
    a.write(format!("{}/late", data("data")), "too late\n")?;
    Breakpoint::AfterRestore.release(b)?;
    let end = order.wait(LIMIT)?;
    let said = end.error_text() + &end.text();
    ensure!(end.status.code() == Some(7), "exit {:?}: {said}", end.status.code());
    ensure!(said.contains("/data/late"), "no word of the file: {said}");
    settled(&lab)
}
