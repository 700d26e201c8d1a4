//! Containers whose processes belong to another user than root.

use super::scenarios::{SERVER, there_and_home};
use super::{engine_options, kernel_features};
use crate::ensure;
use crate::error::{Context as _, Result};
use crate::faults::container_state;
use crate::host::Host;
use crate::lab::Runtime;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("fidelity-other-user-crun", AREAS, |context| by_option(context, Runtime::Crun))
        .limit(240),
    Case::new("fidelity-other-user-runc", AREAS, |context| by_option(context, Runtime::Runc))
        .limit(240),
    Case::new("fidelity-other-user-of-the-image", AREAS, of_the_image).limit(240),
    Case::new("fidelity-other-user-with-limits-crun", AREAS, |context| {
        with_limits(context, Runtime::Crun)
    })
    .limit(240),
    Case::new("fidelity-other-user-with-limits-runc", AREAS, |context| {
        with_limits(context, Runtime::Runc)
    })
    .limit(240),
    Case::new("refusal-of-other-users-without-the-capability", &["fidelity"], without_capability),
];

const AREAS: &[&str] = &["fidelity", kernel_features::KERNEL];
const HOSTS: [&str; 3] = ["a", "b", "c"];
/// A user and a group that no test image defines.
const USER: &str = "1000:1000";
/// The IDs in `/proc/PID/status` of that user's processes.
const IDS: [&str; 2] = ["Uid:\t1000\t1000\t1000\t1000", "Gid:\t1000\t1000\t1000\t1000"];
/// An image that only the source has.
const IMAGE: &str = "localhost/app:1";

/// Checks that every process of a container belongs to that user and has no capability.
fn is_of_the_user(host: &Host, id: &str) -> Result<()> {
    let processes = container_state::processes(host, id);
    ensure!(!processes.is_empty(), "no process on {}", host.name());
    for process in processes {
        let path = format!("/proc/{process}/status");
        let status = std::fs::read_to_string(&path).context(|| format!("reading {path}"))?;
        let is = |line: &&str| status.lines().any(|one| one == *line);
        let missing = IDS.iter().chain(&["CapEff:\t0000000000000000"]).find(|line| !is(line));
        ensure!(missing.is_none(), "{missing:?} is not so on {}: {status}", host.name());
    }
    Ok(())
}

fn by_option(context: &Context, runtime: Runtime) -> Result<()> {
    kernel_features::other_users()?;
    let lab = context.lab_with(&HOSTS, runtime)?;
    there_and_home(context, &lab, &["--user", USER], &SERVER, is_of_the_user)
}

/// The image defines the user, and the destination lacks the image.
fn of_the_image(context: &Context) -> Result<()> {
    kernel_features::other_users()?;
    let lab = context.lab(&HOSTS)?;
    let a = lab.host("a")?;
    a.podman(["create", "--name", "draft", "probe:1", "true"])?;
    let user = format!("USER {USER}");
    let command = r#"CMD ["netmig-probe","serve"]"#;
    a.podman(["commit", "--quiet", "--change", &user, "--change", command, "draft", IMAGE])?;
    a.podman(["rm", "draft"])?;
    there_and_home(context, &lab, &[], &[IMAGE], |host, id| {
        is_of_the_user(host, id)?;
        let user = host.podman(["inspect", "--format", "{{.Config.User}}", "web"])?;
        ensure!(user == USER, "its user is {user:?} on {}", host.name());
        Ok(())
    })
}

/// CRIU cannot read the limits of another user's processes without CAP_SYS_RESOURCE.
fn without_capability(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let a = lab.host("a")?;
    lab.serve("b")?;
    let run = ["run", "--detach", "--name", "web", "--user", USER, "probe:1"];
    a.podman(run.into_iter().chain(["netmig-probe", "serve"]))?;
    let words = ["--bounding-set", "-sys_resource", "agent-client", "migrate", "web", "b"];
    let refused = a.command("setpriv").args(words).output()?;
    let said = refused.error_text();
    ensure!(refused.status.code() == Some(3), "exit {:?}: {said}", refused.status.code());
    ensure!(said.contains("(other-user)") && said.contains("user 1000"), "{said}");
    Ok(())
}

fn with_limits(context: &Context, runtime: Runtime) -> Result<()> {
    kernel_features::other_users()?;
    let lab = context.lab_with(&HOSTS, runtime)?;
    kernel_features::limits(lab.host("a")?)?;
    let options = [&["--user", USER][..], &engine_options::OPTIONS].concat();
    there_and_home(context, &lab, &options, &SERVER, |host, id| {
        is_of_the_user(host, id)?;
        engine_options::hold(host, "web", id)
    })
}
