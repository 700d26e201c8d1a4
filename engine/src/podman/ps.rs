//! The list of running containers.

use std::net::IpAddr;

use serde::Deserialize;

use super::command::Overdue;
use super::{Error, Podman};
use crate::inspect::{PublishedPort, Summary};

/// Most ports of one range that are spelled out.
const MOST_RANGE: u16 = 1024;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Raw {
    id: String,
    image: Option<String>,
    names: Option<Vec<String>>,
    networks: Option<Vec<String>>,
    ports: Option<Vec<RawPort>>,
    status: Option<String>,
    is_infra: Option<bool>,
}

#[derive(Deserialize)]
struct RawPort {
    host_ip: Option<String>,
    container_port: u16,
    host_port: u16,
    range: Option<u16>,
    protocol: String,
}

impl Podman {
    /// The running containers, pods' infrastructure left out, by name.
    ///
    /// # Errors
    /// [`Error`] when podman cannot be run or prints something else.
    pub async fn list_running(&self) -> Result<Vec<Summary>, Error> {
        let args = ["ps", "--no-trunc", "--filter", "status=running", "--format", "json"];
        let text = self.run(&args, self.deadlines.query, Overdue::Kill).await?;
        parse(&text)
    }
}

pub(super) fn parse(text: &[u8]) -> Result<Vec<Summary>, Error> {
    let raw: Option<Vec<Raw>> = serde_json::from_slice(text)
        .map_err(|source| Error::Parse { what: "podman's list of containers".into(), source })?;
    let mut list: Vec<Summary> = raw
        .unwrap_or_default()
        .into_iter()
        .filter(|raw| raw.is_infra != Some(true))
        .map(|raw| Summary {
            name: raw.names.and_then(|n| n.into_iter().next()).unwrap_or_else(|| raw.id.clone()),
            id: raw.id,
            image: raw.image.unwrap_or_default(),
            ports: raw.ports.unwrap_or_default().iter().flat_map(RawPort::each).collect(),
            networks: raw.networks.unwrap_or_default(),
            status: raw.status.unwrap_or_default(),
        })
        .collect();
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}

impl RawPort {
    fn each(&self) -> impl Iterator<Item = PublishedPort> + '_ {
        let host_ip = self.host_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok());
        (0..self.range.unwrap_or(1).clamp(1, MOST_RANGE)).filter_map(move |i| {
            Some(PublishedPort {
                protocol: self.protocol.clone(),
                host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
                host_port: self.host_port.checked_add(i)?,
                container_port: self.container_port.checked_add(i)?,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_spelled_out_and_infrastructure_is_left_out() {
        let text = r#"[{"Id":"b1","Image":"localhost/probe:1","Names":["rich"],"IsInfra":false,
          "Networks":["n6"],"Status":"Up 1 second","Mounts":[],"Ports":[
          {"host_ip":"127.0.0.1","container_port":80,"host_port":8080,"range":3,"protocol":"tcp"},
          {"host_ip":"","container_port":53,"host_port":53,"range":1,"protocol":"udp"},
          {"container_port":65535,"host_port":65535,"range":65535,"protocol":"tcp"}]},
          {"Id":"a0","Names":null,"Ports":null},{"Id":"c2","Names":["infra"],"IsInfra":true}]"#;
        let list = parse(text.as_bytes()).unwrap();
        assert_eq!(list.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["a0", "rich"]);
        let ports = &list[1].ports;
        assert_eq!(ports.len(), 5);
        assert_eq!((ports[2].host_port, ports[2].container_port), (8082, 82));
        assert_eq!(ports[2].host_ip, Some("127.0.0.1".parse().unwrap()));
        assert_eq!(ports[3].host_ip, None);
        assert!(parse(b"null").unwrap().is_empty());
        assert!(parse(b"{}").is_err());
    }
}
