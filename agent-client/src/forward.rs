//! `agent-client forward`: new connections to the old addresses of containers.

use std::collections::BTreeMap;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use netmig::table::ForwardedPort;
use netmig::tunnel;
use protocol::expect;
use protocol::message::Message;
use serde::Serialize;
use state::cause::{Cause, chain};
use state::container_lock::ContainerLock;
use state::deadline;
use state::directories::Directories;
use state::peer_address::DEFAULT_PORT;
use state::peer_address::Destination;
use steering::peer_numbers::{self, HostId};
use steering::port_forward::{self, Note, Role};
use steering::tunnels;

use crate::done::Done;
use migration::Context;
use migration::connect::dial_host;

/// Nothing is forwarded for that container.
#[derive(Debug, thiserror::Error)]
#[error("nothing is forwarded for a container {0} here; agent-client forward list shows what is")]
struct NotForwarded(String);

/// A line of the list.
#[derive(Debug, Serialize)]
struct Line {
    container: String,
    id: String,
    /// `away`: this host's ports lead to the peer. `here`: the peer's lead to the container, which is
    /// here.
    role: &'static str,
    /// The peer's number on this host.
    peer: u8,
    /// Where its end of the tunnel is.
    peer_address: Option<std::net::IpAddr>,
    /// What leads where; of the peer's ports nothing is known.
    ports: Vec<ForwardedPort>,
}

/// Lists what is forwarded. Makes nothing on this host.
pub async fn list(directories: &Directories, json: bool) -> Result<String, Cause> {
    let mut lines = Vec::new();
    for note in port_forward::all(directories)? {
        let peer = peer_numbers::number(&directories.state, note.host)?;
        let known = tunnel::status(peer).await?.and_then(|status| status.address);
        let ports = match note.role {
            // The move is not decided yet.
            Role::Away(away) if !away.in_force => continue,
            Role::Away(away) => Some(away.ports),
            Role::Here => None,
        };
        lines.push(Line {
            container: note.name,
            id: note.id,
            role: if ports.is_some() { "away" } else { "here" },
            peer: peer.get(),
            peer_address: known,
            ports: ports.unwrap_or_default(),
        });
    }
    if json {
        return Ok(serde_json::json!({ "forwarded": lines }).to_string());
    }
    if lines.is_empty() {
        return Ok("Nothing is forwarded.".to_owned());
    }
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["container", "", "peer", "ports"]);
    for line in lines {
        let peer = line.peer_address.map_or(line.peer.to_string(), |address| address.to_string());
        let way = if line.role == "away" { "from here to" } else { "to here from" };
        table.add_row([line.container, way.to_owned(), peer, described(&line.ports)]);
    }
    Ok(table.to_string())
}

/// The host's ports, each once, whatever families they lead to.
fn described(ports: &[ForwardedPort]) -> String {
    let mut seen = BTreeMap::new();
    for port in ports {
        let place = port.address.map_or(String::new(), |address| format!("{address} "));
        seen.insert((port.protocol, port.port, port.address), format!("{place}{}", port.port));
    }
    let text: Vec<String> =
        seen.into_iter().map(|((protocol, ..), port)| format!("{port}/{protocol}")).collect();
    text.join(" ")
}

/// Ends the forwarding to a container here, and tells the other host.
pub async fn remove(context: &Context, container: &str) -> Result<Done, Cause> {
    let directories = &context.directories;
    let chosen = |note: &Note| {
        let decided = note.away().is_none_or(|away| away.in_force);
        decided && (note.name == container || note.id == container)
    };
    // Nothing else may work on the container meanwhile.
    let mut locks = Vec::new();
    let mut ids: Vec<_> = port_forward::all(directories)?.into_iter().filter(chosen).collect();
    ids.dedup_by(|a, b| a.id == b.id);
    for note in ids {
        locks.push(ContainerLock::begin(directories, &note.id, &note.name)?);
    }
    let removed = port_forward::remove(directories, chosen).await?;
    if removed.is_empty() {
        return Err(NotForwarded(container.to_owned()).into());
    }
    let told = format!("new connections for {container} are not forwarded any more");
    let mut left = Vec::new();
    for note in removed {
        if let Some(away) = note.away()
            && let Err(e) = tell(context, &away.destination, note.host, &note.id).await
        {
            let name = context.host_name(note.host);
            let name = name.unwrap_or_else(|| away.destination.to_string());
            left.push(format!(
                "{name} could not be told ({}), and keeps its end of the tunnel: run agent-client forward remove \
                 {container} on {name}, too",
                chain(e.as_ref())
            ));
        }
        if let Some(peer) = peer_numbers::find_number(&directories.state, note.host)? {
            tunnels::release(directories, peer, None).await?;
        }
    }
    Ok(Done { told, left })
}

/// Tells the container's host that no new connections come from here.
async fn tell(
    context: &Context,
    destination: &Destination,
    host: HostId,
    id: &str,
) -> Result<(), Cause> {
    // A name may have been that of a peer; its address is known to the tunnel as well.
    let peer = peer_numbers::number(&context.directories.state, host)?;
    let known = tunnel::status(peer).await?.and_then(|status| status.address);
    let address = match known {
        Some(address) => Destination {
            host: address.to_string(),
            port: if destination.port == 0 { DEFAULT_PORT } else { destination.port },
        },
        None => destination.clone(),
    };
    let mut connection = dial_host(context, &address, host).await?;
    connection.send(&Message::ForwardEnd(id.to_owned())).await?;
    Ok(expect!(connection, deadline::ANSWER, ForwardEnded)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netmig::flow::Protocol;

    #[test]
    fn a_port_of_both_families_is_told_once() {
        let port = |protocol, port: u16, to: &str, address: Option<&str>| ForwardedPort {
            protocol,
            address: address.map(|address| address.parse().unwrap()),
            to: to.parse().unwrap(),
            port,
        };
        let ports = [
            port(Protocol::Tcp, 8080, "10.88.0.2:80", None),
            port(Protocol::Tcp, 8080, "[fd00::2]:80", None),
            port(Protocol::Udp, 53, "10.88.0.2:53", Some("192.0.2.1")),
        ];
        assert_eq!(described(&ports), "8080/tcp 192.0.2.1 53/udp");
    }
}
