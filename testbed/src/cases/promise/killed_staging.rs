//! Programs that make a copy are killed. Nothing that they have taken from the host stays, and the container can be moved
//! there afterwards.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;

use super::lost_copy::end_everything;
use super::{LIMIT, home, settled, until};
use crate::ensure;
use crate::error::{Context as _, Error, Result};
use crate::faults::breakpoint::{self, Breakpoint};
use crate::faults::observation::{has_record, importing_podman};
use crate::host::Host;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("promise-a-killed-staging-gives-its-network-back", &["promise"], |context| {
        killed(context, Forgotten::Nothing)
    })
    .limit(300),
    Case::new("promise-a-killed-staging-gives-its-namespace-back", &["promise"], |context| {
        killed(context, Forgotten::Connection)
    })
    .limit(300),
    Case::new("promise-a-lost-network-is-found-again", &["promise"], |context| {
        killed(context, Forgotten::Container)
    })
    .limit(300),
    Case::new("promise-killed-programs-of-a-restore-leave-nothing", &["promise"], programs)
        .limit(400),
    Case::new("promise-a-killed-restore-leaves-no-state-of-its-runtime", &["promise"], restored)
        .limit(300),
];

/// What else is lost when podman is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forgotten {
    Nothing,
    /// The network namespace is not connected yet.
    Connection,
    /// The user removes the container, and nobody knows any more that it was staged.
    Container,
}

/// The programs that take part in a restore, by the names of their processes.
const PROGRAMS: [&str; 3] = ["podman", "conmon", "crun"];

/// A namespace of somebody else's, named as podman names them.
const OTHER: &str = "netns-00000000-0000-0000-0000-000000000001";
/// Where the real netavark is.
const REAL: &str = "/usr/libexec/lab/netavark";
/// By what netavark is told to wait, and tells that it does.
const HOLDS: &str = "/run/netavark-holds";
const WAITS: &str = "/run/netavark-waits";

/// A netavark that has connected a container, and does not tell podman as long as a file exists; as long as another exists, it
/// does not begin.
const NETAVARK: &str = r#"#!/bin/sh
case " $* " in *" setup "*) ;; *) exec REAL "$@" ;; esac
if [ -e HOLDS-before ]; then
    : > WAITS
    while [ -e HOLDS-before ]; do sleep 0.02; done
    exit 1
fi
[ -e HOLDS ] || exec REAL "$@"
answer=$(REAL "$@")
status=$?
: > WAITS
while [ -e HOLDS ]; do sleep 0.02; done
printf '%s\n' "$answer"
exit $status
"#;

fn install_netavark(host: &Host) -> Result<()> {
    let called = "/usr/lib/podman/netavark";
    let program = fs::read(host.path(called)).context(|| format!("reading {called}"))?;
    let wrapper = NETAVARK.replace("REAL", REAL).replace("HOLDS", HOLDS).replace("WAITS", WAITS);
    for (path, contents) in [(REAL, program.as_slice()), (called, wrapper.as_bytes())] {
        let _ = fs::remove_file(host.path(path));
        host.write(path, contents)?;
        fs::set_permissions(host.path(path), fs::Permissions::from_mode(0o755))
            .context(|| format!("making {path} executable"))?;
    }
    Ok(())
}

/// podman is killed when the container's network is made and not noted: alone, and together with agent-server.
fn killed(context: &Context, forgotten: Forgotten) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    install_netavark(b)?;
    b.run(["ip", "netns", "add", OTHER])?;
    lab.serve("b")?;
    for with_server in [false, true] {
        if forgotten == Forgotten::Container && !with_server {
            continue;
        }
        let run = ["run", "--detach", "--name", "web", "--publish", "7000:7000"];
        let id = a.podman([&run[..], &["probe:1", "netmig-probe", "serve"]].concat())?;
        let holds = match forgotten {
            Forgotten::Connection => format!("{HOLDS}-before"),
            _ => HOLDS.to_owned(),
        };
        b.write(&holds, "")?;
        let order = a.command("agent-client").args(["migrate", "web", "b"]).spawn()?;
        until("netavark is asked to connect the copy", LIMIT, || Ok(b.path(WAITS).exists()))?;
        let podman = importing_podman(b).ok_or(Error::Check("no podman imports".to_owned()))?;
        if forgotten == Forgotten::Connection {
            // agent-server does that at once, where it gets a processor.
            let noted = ["-c", "test -s /run/netmig/*/stage/namespaces"];
            until("the namespace is noted", LIMIT, || {
                Ok(b.command("sh").args(noted).output()?.status.success())
            })?;
        }
        if with_server {
            lab.stop_server("b", Signal::SIGKILL)?;
        }
        b.run(["kill", "-9", &podman.to_string()])?;
        if forgotten == Forgotten::Container {
            // Before the guardian has come to it.
            let _ = b.command("podman").args(["rm", "--force", "--time", "0", &id]).output()?;
            let work = b.command("sh").args(["-c", "rm -rf /run/netmig/*/stage"]).output()?;
            ensure!(work.status.success(), "{}", work.error_text());
        }
        b.run(["rm", holds.as_str(), WAITS])?;
        let end = order.wait(LIMIT)?;
        lab.serve("b")?;
        settled(&lab)?;
        let what = format!("with its server {with_server}: exit {:?}", end.status.code());
        if home(&lab, &id)? == "a" {
            if forgotten != Forgotten::Container {
                has_no_network(b, &format!("{what}: {}", end.error_text()))?;
            }
            let again = lab.attempt("web", "a", "b", &[])?;
            ensure!(again.code == Some(0), "{what}; again: {:?}: {}", again.code, again.stderr);
        }
        ensure!(home(&lab, &id)? == "b", "{what}: it did not move");
        b.podman(["rm", "--force", "--time", "0", "web"])?;
        has_no_network(b, &what)?;
    }
    // It is a namespace still, and no mere name.
    b.run(["ip", "netns", "exec", OTHER, "true"]).map(drop)
}

/// Checks that there is neither a namespace of podman's, nor an interface or a rule of a container.
fn has_no_network(host: &Host, when: &str) -> Result<()> {
    let namespaces = host.run(["sh", "-c", &format!("ls /run/netns | grep -v {OTHER} || true")])?;
    ensure!(namespaces.trim().is_empty(), "{when}: namespaces are left: {namespaces}");
    let links = host.run(["ip", "-brief", "link", "show", "type", "veth"])?;
    let links: Vec<&str> = links.lines().filter(|line| line.starts_with("veth")).collect();
    ensure!(links.is_empty(), "{when}: interfaces are left: {links:?}");
    let rules = host.run(["nft", "list", "ruleset"])?;
    let rules: Vec<&str> = rules.lines().filter(|line| line.contains("dport 7000")).collect();
    ensure!(rules.is_empty(), "{when}: rules are left: {rules:?}");
    Ok(())
}

/// Each program that works on a restore is killed: before the runtime begins, and when it has ended.
fn programs(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    breakpoint::install(b)?;
    lab.serve("b")?;
    let mut problems = Vec::new();
    for at in [Breakpoint::BeforeRestore, Breakpoint::AfterRestore] {
        for program in PROGRAMS {
            let run = ["run", "--detach", "--name", "web", "--publish", "7000:7000"];
            let id = a.podman([&run[..], &["probe:1", "netmig-probe", "serve"]].concat())?;
            at.set(b)?;
            let words = ["migrate", "web", "b", "--max-interruption", "60"];
            let order = a.command("agent-client").args(words).spawn()?;
            until("the runtime waits", LIMIT, || Ok(at.is_hit(b)))?;
            b.run(["pkill", "-KILL", "-x", program])?;
            breakpoint::clear(b)?;
            b.run(["sh", "-c", "pkill -x crun || true"])?;
            let end = order.wait(LIMIT)?;
            settled(&lab)?;
            let what = format!("{program} at {at:?}: exit {:?}", end.status.code());
            let judged = || -> Result<()> {
                if home(&lab, &id)? == "a" {
                    ensure!(end.status.code() == Some(4), "{what}: {}", end.error_text());
                    has_no_network(b, &what)?;
                    let again = lab.attempt("web", "a", "b", &[])?;
                    ensure!(again.code == Some(0), "{what}, again: {}", again.stderr);
                }
                ensure!(home(&lab, &id)? == "b", "{what}: it did not move");
                b.podman(["rm", "--force", "--time", "0", "web"])?;
                has_no_network(b, &what)
            };
            problems.extend(judged().err().map(|error| error.to_string()));
            for host in [a, b] {
                host.podman(["rm", "--all", "--force", "--time", "0"])?;
            }
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

/// Everything that works on a restored copy is killed. The runtime has noted the copy, and podman does not know that.
fn restored(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    breakpoint::install(b)?;
    for is_forgotten in [false, true] {
        lab.serve("b")?;
        let run = ["run", "--detach", "--name", "web", "probe:1", "netmig-probe", "serve"];
        let id = a.podman(run)?;
        Breakpoint::AfterRestore.set(b)?;
        let words = ["migrate", "web", "b", "--max-interruption", "60"];
        let order = a.command("agent-client").args(words).spawn()?;
        until("the copy is restored", LIMIT, || Ok(Breakpoint::AfterRestore.is_hit(b)))?;
        lab.stop_server("b", Signal::SIGKILL)?;
        end_everything(b, &id)?;
        breakpoint::clear(b)?;
        if is_forgotten {
            let _ = b.command("podman").args(["rm", "--force", "--time", "0", &id]).output()?;
            b.run(["sh", "-c", "rm -rf /run/netmig/*/stage"])?;
        }
        lab.serve("b")?;
        let end = order.wait(LIMIT)?;
        ensure!(end.status.code() == Some(4), "{:?}: {}", end.status, end.error_text());
        settled(&lab)?;
        ensure!(!has_record(b, "arrival"), "the arrival is not settled");
        let again = lab.attempt("web", "a", "b", &[])?;
        ensure!(again.code == Some(0), "again, forgotten {is_forgotten}: {}", again.stderr);
        ensure!(home(&lab, &id)? == "b", "it did not move");
        b.podman(["rm", "--force", "--time", "0", "web"])?;
    }
    Ok(())
}
