//! Bulk data: its rate, and its compression.

use std::fs::File;
use std::io::Read;

use std::time::Duration;

use nix::sys::signal::Signal;

use super::promise::{settled, until};
use crate::ensure;
use crate::error::{Context as _, Error, Result};
use crate::host::Host;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("operator-bandwidth-is-limited", &["operator", "bulk"], limited).exclusive(),
    Case::new("operator-files-are-compressed", &["operator", "bulk"], compressed).exclusive(),
    Case::new("operator-killed-with-several-streams", &["operator", "bulk"], killed),
    Case::new("operator-bad-rates-are-refused", &["operator", "bulk"], bad_rates),
];

/// The step whose bytes are those of the container's files.
const FILES: &str = "files, first pass";
/// The time limit for a transfer to begin, and for a program to end.
const LIMIT: Duration = Duration::from_secs(40);
/// The size of the container's file in MiB.
const SIZE: u64 = 8;

/// Starts a container and writes a file of [`SIZE`] MiB into it.
fn start(lab: &Lab, host: &str, content: &[u8]) -> Result<()> {
    let host = lab.host(host)?;
    host.podman(["run", "--detach", "--name", "web", "probe:1", "sleep", "1000"])?;
    host.write(file(host)?, content)
}

/// Returns the path of the container's file on its host.
fn file(host: &Host) -> Result<String> {
    let first = host.podman(["inspect", "--format", "{{.State.Pid}}", "web"])?;
    Ok(format!("/proc/{first}/root/file"))
}

/// Reads the container's file.
fn content(host: &Host) -> Result<Vec<u8>> {
    let path = host.path(file(host)?);
    std::fs::read(&path).context(|| format!("reading {}", path.display()))
}

/// Moves the container. Returns how many milliseconds the step of the files took, how many bytes it moved, and how
/// many were sent.
fn files(lab: &Lab, from: &str, to: &str, arguments: &[&str]) -> Result<(u64, u64, u64)> {
    let before = content(lab.host(from)?)?;
    lab.serve(to)?;
    let report = lab.attempt("web", from, to, arguments)?.success()?;
    ensure!(content(lab.host(to)?)? == before, "the file has changed");
    let step = report.steps.iter().find(|step| step.name == FILES);
    let step = step.ok_or_else(|| Error::Refused(format!("there is no step {FILES:?}")))?;
    Ok((step.ms as u64, step.bytes, step.sent))
}

fn limited(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let mut noise = vec![0; (SIZE << 20) as usize];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut noise));
    read.context(|| "reading /dev/urandom")?;
    start(&lab, "a", &noise)?;
    let (ms, bytes, sent) = files(&lab, "a", "b", &["--bandwidth", "4MiB"])?;
    ensure!(bytes >= SIZE << 20, "only {bytes} bytes");
    ensure!(sent >= bytes, "{sent} bytes were sent for {bytes} that cannot be compressed");
    // The last message is not waited for.
    let least = (SIZE * 1000 - 500) / 4;
    ensure!(ms >= least, "{SIZE} MiB took {ms} ms at 4 MiB a second");
    let (free, ..) = files(&lab, "b", "a", &[])?;
    ensure!(free < ms, "{free} ms without a limit, {ms} ms with one");
    context.remark(format!("{ms} ms at 4 MiB a second, {free} ms without a limit"));
    Ok(())
}

/// Either agent is killed while files come over several connections. Both hosts settle, and the next move works.
fn killed(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let text = b"not a hole".repeat((SIZE << 20) as usize / 10);
    start(&lab, "a", &text)?;
    for killed in ["agent-client", "agent-server"] {
        lab.serve("b")?;
        let slow = ["--bandwidth", "1MiB", "--compress", "none", "--streams", "4"];
        let line = [&["migrate", "web", "b"][..], &slow].concat();
        let mut client = a.command("agent-client").args(line).spawn()?;
        let spool = b.path("/var/lib/netmig/spool");
        let comes = || {
            let files = std::fs::read_dir(&spool).into_iter().flatten().flatten();
            Ok(files.filter_map(|file| file.metadata().ok()).any(|file| file.len() > 1 << 20))
        };
        until("the files come", LIMIT, comes)?;
        match killed {
            "agent-client" => client.signal(Signal::SIGKILL)?,
            _ => lab.stop_server("b", Signal::SIGKILL).map(drop)?,
        }
        client.wait(LIMIT)?;
        settled(&lab)?;
    }
    files(&lab, "a", "b", &["--streams", "4"])?;
    Ok(())
}

fn compressed(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let text = b"A line that zstd knows by now.\n".repeat((SIZE << 20) as usize / 31);
    start(&lab, "a", &text)?;
    let mut told = Vec::new();
    let hops = [
        ("a", "b", &["--compress", "none"][..], false),
        ("b", "a", &["--compress", "zstd"], true),
        // The limit makes the link slower than the compressor.
        ("a", "b", &["--bandwidth", "8MiB"], true),
        ("b", "a", &["--compress", "zstd", "--streams", "4"], true),
        ("a", "b", &["--compress", "none", "--streams", "16"], false),
    ];
    for (from, to, arguments, is_smaller) in hops {
        let (_, bytes, sent) = files(&lab, from, to, arguments)?;
        ensure!(
            (sent < bytes / 4) == is_smaller,
            "{arguments:?}: {sent} bytes were sent for {bytes}"
        );
        told.push(format!("{} {sent} of {bytes}", arguments.join(" ")));
    }
    context.remark(told.join(", "));
    Ok(())
}

fn bad_rates(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    for rate in ["0", "1000", "fast", "-1MB", "50Mbit"] {
        let refused = lab.attempt("web", "a", "b", &[&format!("--bandwidth={rate}")])?;
        ensure!(refused.code == Some(2), "{rate}: exit code {:?}", refused.code);
        ensure!(refused.stderr.contains("64KiB"), "{rate}: {}", refused.stderr);
    }
    for count in ["0", "17", "many"] {
        let refused = lab.attempt("web", "a", "b", &[&format!("--streams={count}")])?;
        ensure!(refused.code == Some(2), "{count} streams: exit code {:?}", refused.code);
    }
    Ok(())
}
