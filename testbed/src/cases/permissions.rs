//! Paired hosts that lack the permission for a container.

use std::time::Duration;

use super::subject::{Clients, serve};
use super::untouched::Untouched;
use crate::ensure;
use crate::error::Result;
use crate::host::Host;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("trust-permissions-of-a-peer", &["trust"], of_a_peer),
    Case::new("trust-permissions-against-a-lying-source", &["trust"], against_a_lying_source),
    Case::new("trust-least-capabilities", &["trust"], least_capabilities),
];

/// The exit code of a refusal before anything changed.
const REFUSED: i32 = 3;

/// The unit of agent-server, from which the test reads the capabilities.
const UNIT: &str = include_str!("../../../packaging/systemd/agent-server.service");
/// The time limit for an agent until it listens.
const LISTENS: Duration = Duration::from_secs(60);

/// A wrapper of podman on a source that lies: its containers look ordinary to the agent there, so that it offers what
/// an honest source refuses by itself.
const LIAR: &str = r#"#!/usr/bin/python3
import json, os, subprocess, sys
real = "/usr/bin/podman"
if sys.argv[1:3] != ["container", "inspect"]:
    os.execv(real, [real] + sys.argv[1:])
told = subprocess.run([real] + sys.argv[1:], stdout=subprocess.PIPE)
if told.returncode == 0:
    containers = json.loads(told.stdout)
    for container in containers:
        container["Mounts"] = []
        host = container["HostConfig"]
        host["Privileged"], host["Devices"], host["PidMode"] = False, [], "private"
        (container["Config"].get("Annotations") or {}).pop("io.podman.annotations.privileged", None)
    told.stdout = json.dumps(containers).encode()
sys.stdout.buffer.write(told.stdout)
sys.exit(told.returncode)
"#;

/// Starts a container with further arguments.
fn start(host: &Host, name: &str, arguments: &[&str]) -> Result<()> {
    let run = ["run", "--detach", "--name", name];
    host.podman([&run, arguments, &["probe:1"]].concat()).map(drop)
}

/// Replaces the permissions of `a` on `b`.
fn allow(lab: &Lab, arguments: &[&str]) -> Result<String> {
    let line = ["agent-server", "peers", "allow", "a", "--reset"];
    lab.host("b")?.run([&line, arguments].concat())
}

/// Attempts a migration that `b` must refuse with these words, in the message and in its log.
fn refused(lab: &Lab, container: &str, words: &[&str]) -> Result<()> {
    let before = Untouched::look(lab, "a", "b", container)?;
    let logged = lab.server_log("b").len();
    let attempt = lab.attempt(container, "a", "b", &[])?;
    ensure!(attempt.code == Some(REFUSED), "{container}: {attempt:?}");
    let log = lab.server_log("b").split_off(logged);
    for word in words {
        ensure!(attempt.stderr.contains(word), "no {word:?} in {}", attempt.stderr);
        ensure!(log.contains(word), "no {word:?} in b's log: {log}");
    }
    before.check()
}

fn of_a_peer(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    lab.serve("b")?;
    let a = lab.host("a")?;
    start(a, "web", &[])?;
    start(a, "caps", &["--cap-add", "NET_ADMIN"])?;
    let kinds: [(&[&str], &str, &[&str]); 5] = [
        (&["--name", "db-*"], "web", &["not-allowed-name", "\"web\"", "peers allow"]),
        (&["--image", "docker.io/*"], "web", &["not-allowed-image", "localhost/probe:1"]),
        (&["--memory", "4096"], "web", &["not-allowed-memory", "4096"]),
        (&["--disk", "1MiB"], "large", &["not-allowed-disk", "1048576"]),
        (&[], "caps", &["not-allowed-capability", "NET_ADMIN"]),
    ];
    start(a, "large", &[])?;
    let merged = a.podman(["inspect", "--format", "{{.GraphDriver.Data.MergedDir}}", "large"])?;
    a.run(["dd", "if=/dev/zero", &format!("of={merged}/file"), "bs=1M", "count=2"])?;
    for (permissions, container, words) in kinds {
        allow(&lab, permissions)?;
        refused(&lab, container, words)?;
    }
    let told = allow(&lab, &["--capability", "NET_ADMIN", "--name", "ca*"])?;
    ensure!(told.contains("capabilities  NET_ADMIN"), "{told}");
    lab.migrate("caps", "a", "b")?;
    Ok(())
}

fn against_a_lying_source(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    lab.serve("b")?;
    let a = lab.host("a")?;
    a.write("/usr/local/bin/podman", LIAR)?;
    a.run(["chmod", "755", "/usr/local/bin/podman"])?;
    let kinds: [(&str, &[&str], &[&str]); 4] = [
        ("king", &["--privileged"], &["not-allowed-privileged", "it is privileged"]),
        ("tuner", &["--device", "/dev/fuse"], &["not-allowed-device", "/dev/fuse"]),
        ("reader", &["--volume", "/etc:/host"], &["not-allowed-mount", "it mounts /etc"]),
        ("watcher", &["--pid", "host"], &["never-allowed", "pid namespace"]),
    ];
    for (name, arguments, words) in kinds {
        start(a, name, arguments)?;
        refused(&lab, name, words)?;
        a.podman(["rm", "--force", "--time", "0", name])?;
    }
    Ok(())
}

/// The destination has only the capabilities of its unit.
fn least_capabilities(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    let lines = UNIT.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let kept: Vec<String> = lines
        .flat_map(str::split_whitespace)
        .filter_map(|name| name.strip_prefix("CAP_"))
        .map(str::to_ascii_lowercase)
        .collect();
    let known = b.run(["setpriv", "--list-caps"])?;
    let dropped = known.split_whitespace().filter(|name| !kept.iter().any(|kept| kept == name));
    let dropped: Vec<String> = dropped.map(|name| format!("-{name}")).collect();
    ensure!(dropped.len() > 10, "only {dropped:?} are taken away");
    let bounded = ["--bounding-set", &dropped.join(","), "agent-server"];
    let mut server = b.command("setpriv").args(bounded).spawn()?;
    server.wait_for("listening", LISTENS)?;
    lab.pair("a", "b")?;
    serve(a, "web", 7000, &[], c)?;
    let clients = Clients::gentle(c, a.port(7000))?;
    let attempt = lab.attempt("web", "a", "b", &[])?;
    ensure!(attempt.code == Some(0), "{attempt:?}");
    context.remark(format!("{} capabilities, {}", kept.len(), clients.stop()?.gaps()));
    Ok(())
}
