//! A destination whose storage has too little space for podman to record that the container runs.

use crate::cases::subject::{Clients, serve};
use crate::ensure;
use crate::error::{Error, Result};
use crate::faults::container_state::{self, State};
use crate::host::Host;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] =
    &[Case::new("promise-room-is-checked-before-the-decision", &["promise"], no_room).limit(300)];

/// The exit code of a migration that was rolled back.
const ROLLED_BACK: i32 = 4;
/// The free bytes: enough for podman to stage and restore, and less than the 4 MiB that netmig demands before the commit.
const LEFT: u64 = 3 << 20;
/// The path of a host's storage. A file below it fills it.
const STORAGE: &str = "/var/lib/containers";
const FILLER: &str = "/var/lib/containers/filler";

fn no_room(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    bounded_storage(b)?;
    serve(a, "web", 7000, &[], c)?;
    let id = container_state::id(a, "web")?;
    let process = || a.podman(["inspect", "--format", "{{.State.Pid}}", "web"]);
    let before = process()?;
    lab.serve("b")?;
    // podman has made its files there.
    b.podman(["ps"])?;
    let clients = Clients::gentle(c, a.port(7000))?;
    let size = (free(b)? - LEFT).to_string();
    b.run(["fallocate", "--length", &size, FILLER])?;
    let attempt = lab.attempt("web", "a", "b", &[])?;
    ensure!(attempt.code == Some(ROLLED_BACK), "exit {:?}: {}", attempt.code, attempt.stderr);
    for words in ["has no room left", "could not take container web over", "runs here as before"] {
        ensure!(attempt.stderr.contains(words), "no {words:?} in {}", attempt.stderr);
    }
    // A full disk would have shown earlier, and otherwise.
    let free = free(b)?;
    ensure!(free > 0, "the storage is full");
    let (here, there) = (container_state::state(a, &id), container_state::state(b, &id));
    ensure!(here == State::Running && there == State::Absent, "{here:?} here, {there:?} there");
    ensure!(process()? == before, "another process runs");
    b.run(["rm", FILLER])?;
    lab.attempt("web", "a", "b", &[])?.success()?;
    let seen = clients.stop()?;
    context.remark(format!("{} KiB were free; {}", free >> 10, seen.gaps()));
    Ok(())
}

/// Moves a host's storage to a file system of its own.
fn bounded_storage(host: &Host) -> Result<()> {
    let copy = ["cp", "-a", STORAGE, "/tmp/storage"];
    let mount = ["mount", "-t", "tmpfs", "-o", "size=200m", "none", STORAGE];
    let back = ["cp", "-a", "/tmp/storage/.", STORAGE];
    [&copy[..], &mount, &back]
        .into_iter()
        .try_for_each(|line| host.run(line.iter().copied()).map(drop))
}

/// Returns the free bytes in a host's storage.
fn free(host: &Host) -> Result<u64> {
    let text = host.run(["df", "--output=avail", "--block-size=1", STORAGE])?;
    let bytes = text.lines().nth(1).and_then(|line| line.trim().parse().ok());
    bytes.ok_or_else(|| Error::Check(format!("df says {text}")))
}
