//! Ports as `podman run --publish` writes them: `[[IP:]HOST:]CONTAINER[/PROTOCOL]`, ranges included.

use std::net::IpAddr;
use std::str::FromStr;

use engine::inspect::PublishedPort;

/// One `--publish`: a port, or a range of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Its ports.
    pub ports: Vec<PublishedPort>,
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (places, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        if !matches!(protocol, "tcp" | "udp") {
            return Err(format!("{protocol:?} is neither tcp nor udp"));
        }
        let (address, ports) = address(places)?;
        let (host, container) = match ports.split_once(':') {
            Some((host, container)) => (range(host)?, range(container)?),
            None => (range(ports)?, range(ports)?),
        };
        if host.len() != container.len() {
            return Err("the two ranges are not equally long".to_owned());
        }
        let port = |(host_port, container_port)| PublishedPort {
            protocol: protocol.to_owned(),
            host_ip: address,
            host_port,
            container_port,
        };
        Ok(Self { ports: host.zip(container).map(port).collect() })
    }
}

/// Checks that no port of the host is published twice.
///
/// # Errors
/// A sentence that names the first such port.
pub fn check_distinct(all: &[Publish]) -> Result<(), String> {
    let ports: Vec<&PublishedPort> = all.iter().flat_map(|publish| &publish.ports).collect();
    for (number, port) in ports.iter().enumerate() {
        let is_same = |other: &&&PublishedPort| {
            let (one, two) = (port.host_ip, other.host_ip);
            port.protocol == other.protocol
                && port.host_port == other.host_port
                && (one == two || one.is_none() || two.is_none())
        };
        if ports.iter().take(number).any(|other| is_same(&other)) {
            let PublishedPort { host_port, protocol, .. } = port;
            return Err(format!("--publish names port {host_port}/{protocol} of the host twice"));
        }
    }
    Ok(())
}

/// Takes the host's address off the front.
fn address(text: &str) -> Result<(Option<IpAddr>, &str), String> {
    let bad = |_| "that is not an address of the host".to_owned();
    let (address, rest) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once("]:").ok_or("']:' and the ports are missing")?;
            (IpAddr::V6(address.parse().map_err(bad)?), rest)
        }
        None if text.matches(':').count() == 2 => {
            let (address, rest) = text.split_once(':').unwrap_or_default();
            (IpAddr::V4(address.parse().map_err(bad)?), rest)
        }
        None => return Ok((None, text)),
    };
    Ok((Some(address).filter(|address| !address.is_unspecified()), rest))
}

fn range(text: &str) -> Result<std::ops::RangeInclusive<u16>, String> {
    let port = |text: &str| match text.parse() {
        Ok(port @ 1..=u16::MAX) => Ok(port),
        _ => Err(format!("{text:?} is not a port from 1 to 65535")),
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = port(first)?..=port(last)?;
    if range.is_empty() { Err(format!("{text} is not a range of ports")) } else { Ok(range) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<(Option<String>, u16, u16, String)> {
        let ports = text.parse::<Publish>().unwrap().ports.into_iter();
        ports
            .map(|p| {
                (p.host_ip.map(|ip| ip.to_string()), p.host_port, p.container_port, p.protocol)
            })
            .collect()
    }

    #[test]
    fn every_form_is_read() {
        let port = |ip: Option<&str>, host, container, protocol: &str| {
            (ip.map(str::to_owned), host, container, protocol.to_owned())
        };
        assert_eq!(told("80"), [port(None, 80, 80, "tcp")]);
        assert_eq!(told("8080:80/udp"), [port(None, 8080, 80, "udp")]);
        assert_eq!(told("127.0.0.1:8080:80"), [port(Some("127.0.0.1"), 8080, 80, "tcp")]);
        assert_eq!(told("[fd00::1]:8080:80"), [port(Some("fd00::1"), 8080, 80, "tcp")]);
        assert_eq!(told("0.0.0.0:1:2"), [port(None, 1, 2, "tcp")]);
        let range = [port(None, 8000, 80, "tcp"), port(None, 8001, 81, "tcp")];
        assert_eq!(told("8000-8001:80-81"), range);
    }

    #[test]
    fn a_port_of_the_host_is_published_once() {
        let check = |texts: &[&str]| {
            let all: Vec<Publish> = texts.iter().map(|text| text.parse().unwrap()).collect();
            check_distinct(&all)
        };
        check(&["1:1", "2:1", "1:1/udp"]).unwrap();
        check(&["10.0.0.1:1:1", "10.0.0.2:1:1"]).unwrap();
        for twice in [
            ["1:1", "1:1"],
            ["8081:7000", "8081:7001"],
            ["10.0.0.1:1:1", "1:1"],
            ["8000-8005:7000-7005", "8003:1"],
        ] {
            assert!(check(&twice).unwrap_err().contains("twice"), "{twice:?}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            ":",
            "0",
            "65536",
            "x",
            "80:",
            ":80",
            "80/sctp",
            "80/",
            "1:2:3",
            "1-2:3",
            "2-1",
            "[fd00::1]:",
            "[10.0.0.1]:1:2",
            "a:1:2",
            "1:2:3:4",
            "80 ",
        ] {
            assert!(text.parse::<Publish>().is_err(), "{text:?}");
        }
    }
}
