//! The mounts of a container keep their flags.

use std::collections::BTreeSet;

use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::lab::Runtime;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("fidelity-mounts-are-the-same-crun", &["fidelity"], |context| {
        are_the_same(context, Runtime::Crun)
    })
    .limit(240),
    Case::new("fidelity-mounts-are-the-same-runc", &["fidelity"], |context| {
        are_the_same(context, Runtime::Runc)
    })
    .limit(240),
    Case::new("fidelity-accounts-of-the-engine", &["fidelity"], accounts).limit(240),
];

/// Returns the mounts: root, mount point, options, type and options of the file system, without directories of the
/// host's store.
fn mounts(host: &Host, name: &str) -> Result<BTreeSet<String>> {
    let table = host.podman(["exec", name, "cat", "/proc/self/mountinfo"])?;
    let one = |line: &str| {
        let (mount, filesystem) = line.split_once(" - ").unwrap_or((line, ""));
        let words: Vec<&str> = mount.split(' ').collect();
        let kind: Vec<&str> = filesystem.split(' ').collect();
        let root = words[3].rsplit('/').next().unwrap_or_default();
        // The options of an overlay are directories of the store. runc mounts the container's null device over a
        // masked file, and that of the host when it restores.
        let is_elsewhere = kind[0] == "overlay" || root == "null";
        let options = if is_elsewhere { "" } else { kind[2] };
        format!("{root} {} {} {} {options}", words[4], words[5], kind[0])
    };
    Ok(table.lines().map(one).collect())
}

fn are_the_same(context: &Context, runtime: Runtime) -> Result<()> {
    let lab = context.lab_with(&["a", "b"], runtime)?;
    ["a", "b"].iter().try_for_each(|host| lab.serve(host))?;
    for (name, options) in [
        ("plain", &[][..]),
        (
            "closed",
            &[
                "--read-only",
                "--tmpfs",
                "/scratch:size=1m,noexec",
                "--security-opt=mask=/proc/cpuinfo",
            ],
        ),
    ] {
        let run = ["run", "--detach", "--name", name];
        let command = ["probe:1", "sleep", "100000"];
        lab.host("a")?.podman([&run, options, &command].concat())?;
        let before = mounts(lab.host("a")?, name)?;
        for (from, to) in [("a", "b"), ("b", "a")] {
            lab.migrate(name, from, to)?;
            let host = lab.host(to)?;
            let after = mounts(host, name)?;
            let lost: Vec<&String> = before.difference(&after).collect();
            let new: Vec<&String> = after.difference(&before).collect();
            ensure!(
                lost.is_empty() && new.is_empty(),
                "{name} on {to}: was {lost:#?}, is {new:#?}"
            );
            let touch = "touch /sys/firmware/x || touch /proc/acpi/x";
            let written = host.podman(["exec", name, "sh", "-c", touch]);
            ensure!(written.is_err(), "{name} on {to}: a masked path can be written");
        }
    }
    Ok(())
}

/// A program that becomes root, since this machine may lack what CRIU needs to dump a process of another user.
const SERVER: &str = "import os, signal; os.setgroups([]); os.setresgid(0, 0, 0); os.setresuid(0, 0, 0); \
                      print('ready', flush=True); signal.pause()";

fn accounts(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    ["a", "b"].iter().try_for_each(|host| lab.serve(host))?;
    let options = ["--read-only", "--user", "1000:1234", "--cap-add", "SETUID,SETGID"];
    let run = ["run", "--detach", "--name", "user"];
    let command = ["python:1", "python3", "-c", SERVER];
    let read = |host: &str| {
        let files = ["exec", "user", "cat", "/etc/passwd", "/etc/group"];
        lab.host(host)?.podman(files)
    };
    lab.host("a")?.podman([&run[..], &options, &command].concat())?;
    let before = read("a")?;
    ensure!(before.contains("1000:1234:") && before.contains("1234:x:1234"), "{before}");
    for (from, to) in [("a", "b"), ("b", "a")] {
        lab.migrate("user", from, to)?;
        ensure!(read(to)? == before, "on {to}: {}, was {before}", read(to)?);
    }
    Ok(())
}
