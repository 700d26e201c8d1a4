//! Orders that the user gives the container engine while a container is being migrated are not lost silently.

use super::{LIMIT, until};
use crate::cases::subject::{Clients, serve};
use crate::ensure;
use crate::error::Result;
use crate::faults::observation::has_record;
use crate::runner::{Case, Context};

pub(super) const CASES: &[Case] =
    &[Case::new("promise-orders-during-a-move", &["promise"], orders)];

/// Arguments of podman, the part of the message that names the order, and arguments that undo it.
const ORDERS: [(&[&str], &str, &[&str]); 3] = [
    (&["rename", "web", "shop"], "renamed to shop", &["rename", "shop", "web"]),
    (
        &["update", "--restart=always", "web"],
        "restart policy always",
        &["update", "--restart=no", "web"],
    ),
    // Unpausing fails if the end of the move has thawed the container.
    (&["pause", "web"], "made paused", &["unpause", "web"]),
];

/// A new name, a new restart policy and a pause come when the destination has been told the old ones. The move ends, and the
/// container runs on at the source with what was ordered.
fn orders(context: &Context) -> Result<()> {
    let lab = context.lab(&["a", "b", "c"])?;
    let (a, b, c) = (lab.host("a")?, lab.host("b")?, lab.host("c")?);
    serve(a, "web", 7000, &[], c)?;
    lab.serve("b")?;
    let clients = Clients::gentle(c, a.port(7000))?;
    for (order, told, undo) in ORDERS {
        let client = a.command("agent-client").args(["migrate", "web", "b"]).spawn()?;
        until("begun", LIMIT, || Ok(has_record(a, "departure")))?;
        a.podman(order.iter().copied())?;
        let ended = client.wait(LIMIT)?;
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        ensure!(ended.status.code() == Some(4) && said.contains(told), "{order:?}: {said}");
        let there = b.podman(["ps", "--all", "--quiet"])?;
        ensure!(there.trim().is_empty(), "{order:?}: a copy is left on b");
        a.podman(undo.iter().copied())?;
    }
    lab.migrate("web", "a", "b")?;
    context.remark(clients.stop()?.gaps());
    Ok(())
}
