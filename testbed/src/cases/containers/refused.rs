//! Containers whose volumes cannot go with them are refused by name, before anything changes.

use super::super::promise::settled;
use super::super::subject::serve_by;
use super::files::{data, listing};
use crate::ensure;
use crate::error::Result;
use crate::lab::Lab;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] =
    &[Case::new("containers-volumes-are-refused-by-name", &["containers"], by_name).limit(300)];

/// The exit code of a refusal before anything changed.
const REFUSED: i32 = 3;

/// Attempts to move a container, which is to be refused with these words.
fn refused(lab: &Lab, container: &str, arguments: &[&str], words: &[&str]) -> Result<()> {
    let attempt = lab.attempt(container, "a", "b", arguments)?;
    ensure!(attempt.code == Some(REFUSED), "exit {:?}: {}", attempt.code, attempt.stderr);
    for word in words {
        ensure!(attempt.stderr.contains(word), "no {word:?} in {}", attempt.stderr);
    }
    Ok(())
}

fn by_name(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    lab.serve("b")?;
    let volume = ["--volume", "data:/data"];
    serve_by(a, "web", 7000, &volume, &["probe:1"], c)?;
    refused(&lab, "web", &["--volumes", "refuse"], &["volume data", "/data", "--volumes"])?;
    refused(&lab, "web", &["--volumes", "data=refuse"], &["volume data"])?;
    refused(&lab, "web", &["--volumes", "date=copy"], &["no volume date"])?;

    // Another container has it.
    a.podman(["run", "--detach", "--name", "reader", "--volume", "data:/x", "probe:1"])?;
    refused(&lab, "web", &[], &["reader", "volume data"])?;
    a.podman(["rm", "--force", "--time", "0", "reader"])?;

    // Somebody else's volume at the destination stays as it is.
    b.podman(["volume", "create", "data"])?;
    b.write(format!("{}/precious", data("data")), "of others\n")?;
    let precious = listing(b, &data("data"))?;
    refused(&lab, "web", &[], &["volume named data", "volume rm data"])?;
    ensure!(listing(b, &data("data"))? == precious, "the other volume has changed");
    b.podman(["volume", "rm", "data"])?;

    // More than there is room for.
    let large = format!("{}/large", data("data"));
    b.run(["mkdir", "-p", "/var/lib/containers/storage/volumes"])?;
    let small = ["mount", "-t", "tmpfs", "-o", "size=64m", "none"];
    b.run(small.into_iter().chain(["/var/lib/containers/storage/volumes"]))?;
    a.run(["dd", "if=/dev/urandom", &format!("of={large}"), "bs=1M", "count=40", "status=none"])?;
    refused(&lab, "web", &[], &["volumes of web need", "MiB free"])?;
    b.run(["umount", "/var/lib/containers/storage/volumes"])?;
    a.run(["rm", &large])?;

    // Volumes that are no plain directories.
    a.podman(["volume", "create", "--opt", "type=tmpfs", "--opt", "device=tmpfs", "memory"])?;
    serve_by(a, "mem", 7100, &["--volume", "memory:/m"], &["probe:1"], c)?;
    refused(&lab, "mem", &[], &["volume memory", "type=tmpfs"])?;
    // And directories of the host, as before.
    serve_by(a, "bind", 7200, &["--volume", "/srv:/srv"], &["probe:1"], c)?;
    refused(&lab, "bind", &[], &["/srv", "do not move"])?;

    // A volume of a container that is stopped is no obstacle; it is told.
    a.podman(["create", "--name", "later", "--volume", "data:/x", "probe:1"])?;
    let moved = lab.attempt("web", "a", "b", &["--max-interruption", "60"])?.success()?;
    let told = moved.warnings.iter().any(|w| w.contains("later") && w.contains("volume data"));
    ensure!(told, "no word of the other container: {:?}", moved.warnings);
    settled(&lab)?;

    // The volume that stayed was changed since: it is not replaced.
    lab.serve("a")?;
    std::thread::sleep(std::time::Duration::from_millis(1100));
    a.write(format!("{}/since", data("data")), "of the other container\n")?;
    let attempt = lab.attempt("web", "b", "a", &[])?;
    ensure!(attempt.code == Some(REFUSED), "exit {:?}: {}", attempt.code, attempt.stderr);
    ensure!(attempt.stderr.contains("were changed since"), "{}", attempt.stderr);
    ensure!(a.read(format!("{}/since", data("data")))?.contains("other"), "the change is gone");
    Ok(())
}
