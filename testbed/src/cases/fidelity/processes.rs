//! Every process of a moved container is in the container's control group, and can be moved again.

use crate::ensure;
use crate::error::Result;
use crate::faults::container;
use crate::lab::Runtime;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] = &[
    Case::new("fidelity-two-processes-crun", &["fidelity"], |context| {
        two_processes(context, Runtime::Crun)
    })
    .limit(240),
    Case::new("fidelity-two-processes-runc", &["fidelity"], |context| {
        two_processes(context, Runtime::Runc)
    })
    .limit(240),
];

const HOSTS: [&str; 3] = ["a", "b", "c"];
/// Its way, over and over the same hosts.
const HOPS: [(&str, &str); 5] = [("a", "b"), ("b", "c"), ("c", "a"), ("a", "b"), ("b", "a")];

/// With and without a directory of CRIU's options, where the runtimes ask CRIU for other things.
fn two_processes(context: &Context, runtime: Runtime) -> Result<()> {
    let lab = context.lab_with(&HOSTS, runtime)?;
    HOSTS.iter().try_for_each(|host| lab.serve(host))?;
    for has_options in [false, true] {
        if has_options {
            HOSTS.iter().try_for_each(|host| {
                lab.host(host)?.write("/etc/criu/default.conf", "# options of the host\n")
            })?;
        }
        let command = ["probe:1", "sh", "-c", "sleep 100001 & exec sleep 100000"];
        let run = [&["run", "--detach", "--name", "two"][..], &command].concat();
        let id = lab.host("a")?.podman(run)?;
        for (from, to) in HOPS {
            lab.migrate("two", from, to)?;
            let processes = container::processes(lab.host(to)?, &id).len();
            ensure!(processes == 2, "{to} has {processes} of two processes in the control group");
        }
        lab.host("a")?.podman(["rm", "--force", "--time", "0", "two"])?;
    }
    Ok(())
}
