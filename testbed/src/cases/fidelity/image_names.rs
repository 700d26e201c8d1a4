//! A migration does not change the image names of a destination.

use std::time::Duration;

use crate::ensure;
use crate::error::Result;
use crate::faults::breakpoint;
use crate::host::Host;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] =
    &[Case::new("fidelity-images-go-by-their-ids", &["fidelity"], by_ids).limit(240)];

/// The exit code of a move that was rolled back.
const ROLLED_BACK: i32 = 4;
const NAME: &str = "localhost/app:1";

/// Builds an image with this name that no other host has.
fn build(host: &Host, note: &str) -> Result<()> {
    host.podman(["rm", "--force", "--ignore", "draft"])?;
    host.podman(["create", "--name", "draft", "probe:1", "true"])?;
    let label = format!("LABEL note={note}");
    host.podman(["commit", "--quiet", "--change", &label, "draft", NAME])?;
    host.podman(["rm", "draft"]).map(drop)
}

fn id_of(host: &Host, name: &str) -> Result<String> {
    host.podman(["image", "inspect", "--format", "{{.Id}}", name])
}

fn used(lab: &Lab, host: &str) -> Result<String> {
    lab.host(host)?.podman(["inspect", "--format", "{{.Image}}", "app"])
}

fn by_ids(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b"])?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    breakpoint::install(b)?;
    ["a", "b"].iter().try_for_each(|host| lab.serve(host))?;
    build(a, "old")?;
    let image = id_of(a, NAME)?;
    a.podman(["run", "--detach", "--name", "app", NAME, "sleep", "100000"])?;
    build(a, "new")?;
    build(b, "other")?;
    let names = [id_of(a, NAME)?, id_of(b, NAME)?];
    let check = || -> Result<()> {
        let now = [id_of(a, NAME)?, id_of(b, NAME)?];
        ensure!(now == names, "the name led to {names:?}, leads to {now:?}");
        Ok(())
    };

    // The image arrives, and the migration fails.
    breakpoint::delay_step(b, "restore", Duration::from_secs(3))?;
    let attempt = lab.attempt("app", "a", "b", &["--max-interruption", "1"])?;
    ensure!(attempt.code == Some(ROLLED_BACK), "{attempt:?}");
    breakpoint::clear(b)?;
    check()?;

    for (from, to) in [("a", "b"), ("b", "a"), ("a", "b")] {
        lab.migrate("app", from, to)?;
        ensure!(used(&lab, to)? == image, "on {to} it has the image {}", used(&lab, to)?);
        check()?;
    }
    // An image without name.
    lab.host("a")?.podman(["untag", &names[0]])?;
    lab.migrate("app", "b", "a")?;
    ensure!(used(&lab, "a")? == image, "it has the image {}", used(&lab, "a")?);
    Ok(())
}
