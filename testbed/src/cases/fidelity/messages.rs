//! A refusal says what is the matter, with the right names.

use crate::ensure;
use crate::error::Result;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] =
    &[Case::new("fidelity-names-what-the-destination-lacks", &["fidelity"], lacks).in_company()];

fn refused(lab: &Lab, code: &str, words: &[&str]) -> Result<()> {
    let attempt = lab.attempt("web", "a", "b", &[])?;
    ensure!(attempt.code == Some(3), "exit code {:?}: {}", attempt.code, attempt.stderr);
    for word in words.iter().chain([&code]) {
        ensure!(attempt.stderr.contains(word), "no {word:?} in {}", attempt.stderr);
    }
    Ok(())
}

fn lacks(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    lab.serve("b")?;
    let create = ["network", "create", "--disable-dns", "--subnet", "10.77.0.0/24", "back"];
    a.podman(create)?;
    a.podman(["run", "--detach", "--name", "web", "--network", "back", "probe:1"])?;
    refused(&lab, "network-missing", &["b has no network back"])?;
    b.podman(create)?;
    lab.attempt("web", "a", "b", &[])?.success()?;
    b.podman(["rm", "--force", "--time", "0", "web"])?;

    let own = format!("{}:8082:7000", a.address());
    a.podman(["run", "--detach", "--name", "web", "--publish", &own, "probe:1"])?;
    refused(&lab, "address-missing", &["b has no address 192.0.2.1", "8082"])?;
    a.podman(["rm", "--force", "--time", "0", "web"])?;

    b.run(["rm", "/usr/bin/catatonit"])?;
    a.podman(["run", "--detach", "--name", "web", "--init", "probe:1"])?;
    refused(&lab, "init-missing", &["b has no catatonit"])
}
