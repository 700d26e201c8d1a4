//! The original does nothing after it was frozen, and nothing starts it again.

use std::fs::File;
use std::time::Duration;

use super::{LIMIT, home, settled, until};
use crate::cases::subject::numbered_lines;
use crate::ensure;
use crate::error::{Context as _, Error, Result};
use crate::faults::container_state::{self, State};
use crate::host::Host;
use crate::lab::{Lab, Runtime};
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("promise-original-writes-nothing-runc", &["promise"], |context| {
        writes_nothing(context, Runtime::Runc)
    })
    .limit(240),
    Case::new("promise-original-writes-nothing-crun", &["promise"], |context| {
        writes_nothing(context, Runtime::Crun)
    })
    .limit(240),
    Case::new("promise-original-is-not-restarted", &["promise"], not_restarted).limit(240),
];

/// The number of processes that write.
const WRITERS: usize = 8;
/// The number of migrations.
const ROUNDS: usize = 4;
/// The time during which nothing may start the original again.
const AFTERWARDS: Duration = Duration::from_secs(3);

/// A program whose processes append numbers to their files as fast as they can.
const SERVER: &str = r#"
import os, time
for name in "01234567":
    if os.fork() == 0:
        f = os.open("/w" + name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        n = 0
        while True:
            os.write(f, b"%d\n" % n)
            n += 1
            time.sleep(0.0002)
print("ready", flush=True)
os.wait()
"#;

fn start(host: &Host, options: &[&str]) -> Result<String> {
    let run = ["run", "--detach", "--name", "writer"];
    let id = host.podman([&run[..], options, &["python:1", "python3", "-c", SERVER]].concat())?;
    until("the container is ready", LIMIT, || {
        Ok(host.podman(["logs", "writer"])?.contains("ready"))
    })?;
    Ok(id)
}

/// Opens the container's files on its host, since podman removes their names.
fn open_files(host: &Host) -> Result<Vec<File>> {
    let upper = host.podman(["inspect", "--format", "{{.GraphDriver.Data.UpperDir}}", "writer"])?;
    (0..WRITERS)
        .map(|number| {
            let path = host.path(&upper).join(format!("w{number}"));
            File::open(&path).context(|| format!("opening {}", path.display()))
        })
        .collect()
}

fn sizes(files: &[File]) -> Result<Vec<u64>> {
    files
        .iter()
        .map(|file| file.metadata().map(|data| data.len()).context(|| "looking at a file"))
        .collect()
}

fn writes_nothing(context: &Context, runtime: Runtime) -> Result<()> {
    let lab = context.lab_with(&["a", "b"], runtime)?;
    lab.serve("b")?;
    let a = lab.host("a")?;
    let mut written = Vec::new();
    for round in 0..ROUNDS {
        let id = start(a, &[])?;
        let files = open_files(a)?;
        let order = a.command("agent-client").args(["migrate", "writer", "b"]).spawn()?;
        until("the original is frozen", LIMIT, || {
            Ok(container_state::state(a, &id) == State::Frozen)
        })?;
        let frozen = sizes(&files)?;
        let end = order.wait(LIMIT)?;
        ensure!(end.status.code() == Some(0), "round {round}: {}", end.error_text());
        settled(&lab)?;
        let removed = sizes(&files)?;
        let more: Vec<u64> = removed.iter().zip(&frozen).map(|(now, then)| now - then).collect();
        written.push(more.iter().sum::<u64>());
        ensure!(home(&lab, &id)? == "b", "round {round}: it is not on b");
        goes_on(&lab, &frozen)?;
        lab.host("b")?.podman(["rm", "--force", "--time", "0", "writer"])?;
    }
    context.remark(format!("written by the frozen originals: {written:?} bytes"));
    ensure!(
        written.iter().all(|bytes| *bytes == 0),
        "frozen originals have written {written:?} bytes"
    );
    Ok(())
}

/// Checks that the copy's files have every number and that the copy writes more.
fn goes_on(lab: &Lab, frozen: &[u64]) -> Result<()> {
    let b = lab.host("b")?;
    until("the copy writes", LIMIT, || {
        let now = sizes(&open_files(b)?)?;
        Ok(now.iter().zip(frozen).all(|(now, then)| now > then))
    })?;
    for number in 0..WRITERS {
        let text = b.podman(["exec", "writer", "cat", &format!("/w{number}")])?;
        // The last line may be incomplete.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        numbered_lines(whole)?;
    }
    Ok(())
}

fn not_restarted(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    lab.serve("b")?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    for policy in ["--restart=always", "--restart=unless-stopped", "--restart=on-failure:5"] {
        let id = start(a, &[policy])?;
        let files = open_files(a)?;
        lab.migrate("writer", "a", "b")?;
        settled(&lab)?;
        let then = sizes(&files)?;
        std::thread::sleep(AFTERWARDS);
        let left = a.podman(["ps", "--all", "--format", "{{.Names}} {{.Status}}"])?;
        ensure!(left.is_empty(), "{policy}: the source has {left}");
        ensure!(container_state::processes(a, &id).is_empty(), "{policy}: processes are left");
        ensure!(sizes(&files)? == then, "{policy}: the original writes on");
        ensure!(home(&lab, &id)? == "b", "{policy}: it is not on b");
        let known =
            b.podman(["inspect", "--format", "{{.HostConfig.RestartPolicy.Name}}", "writer"])?;
        let wanted = policy.trim_start_matches("--restart=").split(':').next().unwrap_or_default();
        if known != wanted {
            return Err(Error::Check(format!("{policy}: on b it has the policy {known}")));
        }
        b.podman(["rm", "--force", "--time", "0", "writer"])?;
    }
    Ok(())
}
