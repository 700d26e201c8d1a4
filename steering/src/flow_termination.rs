//! Ending flows that this host carries, for a person who does not want to wait until they end.

use std::net::SocketAddr;
use std::time::Duration;

use engine::Engine;
pub use netmig::flow::FlowEnds;
use netmig::flow::{Conntrack, Flow};
use netmig::netns::Namespace;
use netmig::sockets;

use crate::moved_containers::{self, MovedContainer};
use crate::tunnels;
use state::cause::Cause;
use state::directories::Directories;

/// How long a reset may be on its way to the far end: the entries lead it there.
const RESET: Duration = Duration::from_millis(300);

/// Returns the ends of a container's flow as the container has them; `None` if it is not that container's.
#[must_use]
pub fn ends(flow: &Flow, container: &MovedContainer) -> Option<FlowEnds> {
    flow.ends(&container.addresses)
}

/// Ends flows of a container on this host: its TCP connections are reset if it runs here, and the entries of
/// all are forgotten, with the tunnels that nothing needs any more.
///
/// # Errors
/// When connections cannot be reset, or entries not be removed.
pub async fn end(
    directories: &Directories,
    engine: &dyn Engine,
    container: &MovedContainer,
    flows: &[Flow],
) -> Result<(), Cause> {
    let addresses = &container.addresses;
    let here = flows.iter().filter(|f| f.tcp.is_some() && f.leads_to(addresses).is_none());
    let here: Vec<(SocketAddr, SocketAddr)> =
        here.filter_map(|flow| ends(flow, container)).map(|ends| (ends.own, ends.far)).collect();
    let mut outcome = Ok(());
    if !here.is_empty() {
        outcome = reset(engine, &container.id, &here).await;
        tokio::time::sleep(RESET).await;
    }
    forget(directories, flows).await?;
    outcome
}

/// Forgets the entries of flows, and what is here for them alone.
///
/// # Errors
/// When entries cannot be removed.
pub async fn forget(directories: &Directories, flows: &[Flow]) -> Result<(), Cause> {
    Conntrack::open()?.delete(flows)?;
    moved_containers::forget_ended(directories, None).await?;
    let mut led: Vec<_> = flows.iter().flat_map(Flow::peers).collect();
    led.sort_unstable();
    led.dedup();
    for peer in led {
        tunnels::release(directories, peer, None).await?;
    }
    Ok(())
}

/// Resets connections of a container that runs here.
async fn reset(
    engine: &dyn Engine,
    id: &str,
    connections: &[(SocketAddr, SocketAddr)],
) -> Result<(), Cause> {
    let container = match engine.inspect(id).await {
        // Its sockets have gone with it.
        Err(engine::Error::NoSuchContainer { .. }) => return Ok(()),
        inspected => inspected?,
    };
    let namespace = match &container.netns {
        Some(path) => Namespace::at_path(path)?,
        None => Namespace::of_pid(container.pid)?,
    };
    sockets::abort(&namespace, connections)?;
    Ok(())
}
