//! The ports that a container publishes of its own: those before `--publish` gave it others for one host.
//!
//! They are in a label of the container while it publishes others, so they go wherever it goes, and end with
//! it. The label names the container, since labels of an image, or of a container that was made an image, are
//! inherited.

use engine::description::Description;
use engine::inspect::{Container, PublishedPort};

use crate::request::Publish;

/// The label: the container's ID, and its ports as `--publish` has them.
const LABEL: &str = "netmig.own-ports";

/// Has a container publish what `ordered` says, or its own ports. Returns the ports, and a sentence for people if it
/// gets its own ones again.
pub fn publish(
    container: &Container,
    description: &mut Description,
    ordered: &[Publish],
) -> (Vec<PublishedPort>, Option<String>) {
    let own = description.labels.get(LABEL).and_then(|text| read(&container.id, text));
    description.labels.remove(LABEL);
    let ports: Vec<PublishedPort> = match (ordered, &own) {
        ([], None) => return (container.ports.clone(), None),
        ([], Some(own)) => own.clone(),
        (ordered, _) => ordered.iter().flat_map(|publish| publish.ports.clone()).collect(),
    };
    description.connectivity.publish(&ports);
    let is_ordered = !ordered.is_empty();
    let own = own.unwrap_or_else(|| container.ports.clone());
    if is_ordered && !are_same(&own, &ports) {
        description.labels.insert(LABEL.to_owned(), write(&container.id, &own));
    }
    let told = (!is_ordered && !are_same(&container.ports, &ports)).then(|| {
        format!(
            "{} publishes its own ports there again, {} in place of {}; --publish gives it others",
            container.name,
            list(&ports),
            list(&container.ports)
        )
    });
    (ports, told)
}

/// Returns whether two lists have the same ports, in whichever order.
fn are_same(one: &[PublishedPort], other: &[PublishedPort]) -> bool {
    one.len() == other.len() && one.iter().all(|port| other.contains(port))
}

fn write(id: &str, ports: &[PublishedPort]) -> String {
    let words = std::iter::once(id.to_owned()).chain(ports.iter().map(word));
    words.collect::<Vec<_>>().join(" ")
}

fn list(ports: &[PublishedPort]) -> String {
    match ports {
        [] => "none".to_owned(),
        ports => ports.iter().map(word).collect::<Vec<_>>().join(", "),
    }
}

fn word(port: &PublishedPort) -> String {
    let PublishedPort { protocol, host_ip, host_port, container_port } = port;
    let address = match host_ip {
        Some(ip) if ip.is_ipv4() => format!("{ip}:"),
        Some(ip) => format!("[{ip}]:"),
        None => String::new(),
    };
    format!("{address}{host_port}:{container_port}/{protocol}")
}

/// Reads the label of the container with this ID; `None` if it is another container's, or none of ours.
fn read(id: &str, text: &str) -> Option<Vec<PublishedPort>> {
    let ports = text.strip_prefix(id)?;
    let mut all = Vec::new();
    for word in ports.split_ascii_whitespace() {
        let (places, protocol) = word.split_once('/')?;
        if !matches!(protocol, "tcp" | "udp" | "sctp") {
            return None;
        }
        let publish: Publish = places.parse().ok()?;
        let of = |port| PublishedPort { protocol: protocol.to_owned(), ..port };
        all.extend(publish.ports.into_iter().map(of));
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(ip: Option<&str>, host_port: u16, protocol: &str) -> PublishedPort {
        PublishedPort {
            protocol: protocol.to_owned(),
            host_ip: ip.map(|ip| ip.parse().unwrap()),
            host_port,
            container_port: 7000,
        }
    }

    #[test]
    fn a_label_says_what_was_written() {
        let id = "c".repeat(64);
        let ports = [
            port(None, 8080, "tcp"),
            port(Some("192.0.2.1"), 8081, "udp"),
            port(Some("fd00::1"), 8082, "sctp"),
        ];
        for ports in [&ports[..], &[]] {
            assert_eq!(read(&id, &write(&id, ports)).as_deref(), Some(ports));
        }
    }

    #[test]
    fn labels_of_other_containers_and_other_texts_count_for_nothing() {
        let (id, other) = ("c".repeat(64), "d".repeat(64));
        let label = write(&other, &[port(None, 8080, "tcp")]);
        assert_eq!(read(&id, &label), None);
        for text in ["", "8080:7000/tcp", "x"] {
            assert_eq!(read(&id, text), None, "{text:?}");
        }
        for ports in ["0:1/tcp", "1:2", "1:2/x", "a:b/tcp", "1:2/tcp;3:4/tcp"] {
            assert_eq!(read(&id, &format!("{id} {ports}")), None, "{ports:?}");
        }
    }
}
