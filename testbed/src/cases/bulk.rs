//! Bulk data: its rate, and its compression.

use std::time::Duration;

use super::promise::until;
use crate::ensure;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("operator-bandwidth-is-limited", &["operator", "bulk"], limited),
    Case::new("operator-files-are-compressed", &["operator", "bulk"], compressed),
    Case::new("operator-bad-rates-are-refused", &["operator", "bulk"], bad_rates).parallel(),
];

/// The step whose bytes are those of the container's files.
const FILES: &str = "files, first pass";
/// The size of the container's file in MiB.
const SIZE: u64 = 8;

/// Starts a container that has written a file, once it is there.
fn start(lab: &Lab, host: &str, source: &str) -> Result<()> {
    let host = lab.host(host)?;
    let write = format!(
        "dd if={source} of=/file bs=1048576 count={SIZE} 2>/dev/null; echo there; exec sleep 1000"
    );
    host.podman(["run", "--detach", "--name", "web", "probe:1", "sh", "-c", &write])?;
    let is_there = || Ok(host.podman(["logs", "web"])? == "there");
    until("the file is there", Duration::from_secs(20), is_there)
}

fn sum(host: &Host) -> Result<String> {
    host.podman(["exec", "web", "sha256sum", "/file"])
}

/// Moves the container, and returns what the step of the files says.
fn files(lab: &Lab, from: &str, to: &str, arguments: &[&str]) -> Result<(f64, u64, u64)> {
    let before = sum(lab.host(from)?)?;
    lab.serve(to)?;
    let report = lab.attempt("web", from, to, arguments)?.success()?;
    ensure!(sum(lab.host(to)?)? == before, "the file has changed");
    let step = report.steps.iter().find(|step| step.name == FILES);
    let step = step.ok_or_else(|| Error::Refused(format!("there is no step {FILES:?}")))?;
    Ok((step.ms, step.bytes, step.sent))
}

fn limited(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    start(&lab, "a", "/dev/urandom")?;
    let (ms, bytes, sent) = files(&lab, "a", "b", &["--bandwidth", "4MiB"])?;
    ensure!(bytes >= SIZE << 20, "only {bytes} bytes");
    ensure!(sent >= bytes, "{sent} bytes were sent for {bytes} that cannot be compressed");
    // The last message is not waited for.
    let least = (SIZE as f64 - 0.5) / 4.0 * 1e3;
    ensure!(ms >= least, "{SIZE} MiB took {ms} ms at 4 MiB a second");
    let (free, ..) = files(&lab, "b", "a", &[])?;
    ensure!(free < ms, "{free} ms without a limit, {ms} ms with one");
    context.remark(format!("{ms:.0} ms at 4 MiB a second, {free:.0} ms without a limit"));
    Ok(())
}

fn compressed(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    start(&lab, "a", "/dev/zero")?;
    lab.host("a")?.podman(["exec", "web", "sh", "-c", "yes | head -c 4000000 >> /file"])?;
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
