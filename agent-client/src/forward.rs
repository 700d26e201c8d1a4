//! `agent-client forward list`: new connections to the old addresses of containers.

use std::collections::BTreeMap;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use netmig::table::ForwardedPort;
use state::cause::Cause;
use state::directories::Directories;
use steering::port_forward;

/// Returns the list of what is forwarded, as a table or as JSON. Makes nothing on this host.
pub async fn list(directories: &Directories, json: bool) -> Result<String, Cause> {
    let lines = port_forward::list(directories).await?;
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

/// Returns the host's ports, each once, whatever families they lead to.
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
