//! Scenarios that CRIU or netmig restores are not refused.

use super::scenarios::{remove, says, start};
use crate::ensure;
use crate::error::Result;
use crate::lab::Runtime;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("fidelity-moves-what-looks-odd-and-is-carried", &["fidelity"], odd).limit(400),
    Case::new("fidelity-watches-go-on", &["fidelity"], watches).limit(240),
    Case::new("fidelity-socket-files-of-nobody-are-carried", &["fidelity"], socket_files),
];

/// No scenario loses anything in a migration there and back.
fn odd(context: &Context) -> Result<()> {
    const SCENARIOS: &[&str] = &[
        "memfd",
        "timerfd",
        "pidfd",
        "pidfd-dead",
        "epoll-closed",
        "epoll-nested",
        "inotify-shm",
        "inotify-empty",
        "fanotify-overlay",
        "deleted-directory",
        "deleted-file",
        "deleted-open-directory",
        "deleted-executable",
        "replaced-executable",
        "replaced-library",
        "zombie",
        "netlink-socket",
        "udplite-socket",
        "unix-deleted",
        "unix-replaced",
        "unix-relative",
        "unix-pending",
    ];
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.serve("b")?;
    let mut problems = Vec::new();
    for scenario in SCENARIOS {
        start(a, "web", scenario, &[])?;
        match lab.migrate("web", "a", "b") {
            Ok(_) => remove(b, "web")?,
            Err(error) => {
                problems.push(format!("{scenario}: {error}"));
                remove(a, "web")?;
            }
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    context.remark(format!("{} scenarios", SCENARIOS.len()));
    Ok(())
}

/// A watch of a directory of the image reports new files, also after a second migration and on the way back.
fn watches(context: &Context) -> Result<()> {
    for runtime in Runtime::ALL {
        let lab = context.lab_with(&["a", "b"], runtime)?;
        start(lab.host("a")?, "web", "inotify-overlay", &[])?;
        for (number, (from, to)) in [("a", "b"), ("b", "a"), ("a", "b")].into_iter().enumerate() {
            lab.migrate("web", from, to)?;
            let (host, name) = (lab.host(to)?, format!("file-{number}"));
            host.podman(["exec", "web", "touch", &format!("/srv/watched/{name}")])?;
            says(host, "web", &format!("made {name}"))?;
        }
    }
    Ok(())
}

fn socket_files(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    start(a, "web", "unix-abandoned", &[])?;
    a.podman(["exec", "web", "sh", "-c", "chown 7:8 /run/old.sock"])?;
    lab.migrate("web", "a", "b")?;
    let kind = b.podman(["exec", "web", "stat", "-c", "%F %u %g", "/run/old.sock"])?;
    ensure!(kind == "socket 7 8", "it is {kind:?}");
    Ok(())
}
