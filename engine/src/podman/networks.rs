//! podman's networks: which there are, which container has an address, and the names that their name servers know.
//!
//! podman allocates addresses in a file of its own, which names their holders by ID alone. The state of each
//! container with a network (`networkStatus` in `ContainerState`) tells the same by address.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;

use super::command::Overdue;
use super::state_files::databases;
use super::{Error, Info, Podman};
use crate::Holder;

/// The network that podman always has.
pub(super) const DEFAULT: &str = "podman";
/// podman's exit status when there is no such network (podman-network-exists(1)).
const ABSENT: i32 = 1;
/// Where netavark writes what the name servers are to answer: a file for each network (`dns/aardvark.rs` in
/// netavark's source).
const RECORDS: &str = "/run/containers/networks/aardvark-dns";
/// What ends the name of the file for a network without a way out.
const INTERNAL: &str = "%int";
/// Largest file that is read, in bytes.
const MOST: u64 = 4 << 20;

#[derive(Deserialize)]
struct State {
    #[serde(rename = "networkStatus")]
    networks: Option<BTreeMap<String, Network>>,
}

#[derive(Deserialize)]
struct Network {
    interfaces: Option<BTreeMap<String, Interface>>,
}

#[derive(Deserialize)]
struct Interface {
    subnets: Option<Vec<Subnet>>,
}

#[derive(Deserialize)]
struct Subnet {
    /// Address and length of the prefix.
    ipnet: String,
}

impl Podman {
    /// Whether there is a network of that name.
    ///
    /// # Errors
    /// [`Error`] when podman cannot tell.
    pub async fn has_network(&self, name: &str) -> Result<bool, Error> {
        if name == DEFAULT {
            return Ok(true);
        }
        let args = ["network", "exists", "--", name];
        let output = self.output(&args, self.deadlines.query, Overdue::Kill).await?;
        match output.status {
            0 => Ok(true),
            ABSENT => Ok(false),
            status => Err(self.failure(&args, status, &output.stderr)),
        }
    }

    /// The containers, other than that with the ID `except`, that have one of these addresses. What
    /// cannot be read is left out: podman itself refuses an address that is taken when the container is
    /// made.
    #[must_use]
    pub(super) fn holders(&self, info: &Info, addresses: &[IpAddr], except: &str) -> Vec<Holder> {
        self.others(info, except, |_, address| addresses.contains(&address))
    }

    /// The containers, other than that with the ID `except`, that are in one of these networks. What cannot be
    /// read is left out.
    #[must_use]
    pub(super) fn members(&self, info: &Info, networks: &[&str], except: &str) -> Vec<Holder> {
        self.others(info, except, |network, _| networks.contains(&network))
    }

    fn others(
        &self,
        info: &Info,
        except: &str,
        is_wanted: impl Fn(&str, IpAddr) -> bool,
    ) -> Vec<Holder> {
        let mut holders = Vec::new();
        for database in databases(info).into_iter().flatten() {
            let query = "SELECT c.ID, c.Name, CAST(s.JSON AS BLOB) FROM ContainerConfig c \
                         JOIN ContainerState s ON s.ID = c.ID";
            let Ok(mut statement) = database.prepare(query) else { continue };
            let read = statement.query_map([], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, Vec<u8>>(2)?))
            });
            let rows = read.into_iter().flatten().flatten();
            for (_, name, state) in rows.filter(|(id, ..)| id != except) {
                let of = held(&state).into_iter().filter(|(network, ip)| is_wanted(network, *ip));
                holders.extend(of.map(|(network, address)| Holder {
                    address,
                    network,
                    container: name.clone(),
                }));
            }
        }
        holders
    }
}

/// The addresses in a container's state.
fn held(state: &[u8]) -> Vec<(String, IpAddr)> {
    let networks = serde_json::from_slice::<State>(state).ok().and_then(|state| state.networks);
    let mut held = Vec::new();
    for (name, network) in networks.unwrap_or_default() {
        let interfaces = network.interfaces.unwrap_or_default().into_values();
        let subnets = interfaces.flat_map(|interface| interface.subnets.unwrap_or_default());
        let addresses = subnets.filter_map(|subnet| subnet.ipnet.split('/').next()?.parse().ok());
        held.extend(addresses.map(|address| (name.clone(), address)));
    }
    held
}

/// Returns the first names of all containers of these networks but that with the ID `except`.
pub(super) fn resolvable_names(networks: &[&str], except: &str) -> BTreeSet<String> {
    let files =
        networks.iter().flat_map(|network| [(*network).to_owned(), format!("{network}{INTERNAL}")]);
    let texts = files.filter_map(|file| read(&Path::new(RECORDS).join(file)).ok());
    texts.flat_map(|text| others(&text, except)).collect()
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MOST).read_to_string(&mut text)?;
    Ok(text)
}

/// The first name of every container but one. The first line has the addresses of the name server, each other
/// one a container's ID, its IPv4 addresses, its IPv6 addresses and its names.
fn others(text: &str, id: &str) -> Vec<String> {
    let rows = text.lines().skip(1).map(|line| line.split(' ').collect::<Vec<_>>());
    rows.filter(|row| row[0] != id)
        .filter_map(|row| row.get(3)?.split(',').next().map(str::to_owned))
        .filter(|name| !name.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podman::database::tests::{database, info};

    const STATE: &str = r#"{"state":3,"networkStatus":{
        "dual":{"interfaces":{"eth1":{"mac_address":"02:42:0a:00:00:02","subnets":[
            {"ipnet":"10.77.0.2/24","gateway":"10.77.0.1"},{"ipnet":"fd77::2/64"}]}}},
        "podman":{"interfaces":{"eth0":{"subnets":[{"ipnet":"10.88.0.2/16"}]}}}}}"#;

    #[test]
    fn holders_are_named_with_the_network() {
        let dir = tempfile::tempdir().unwrap();
        let info = info(dir.path());
        let podman = Podman::new("/nonexistent");
        let wanted = ["fd77::2", "10.88.0.2", "10.88.0.3"].map(|ip| ip.parse().unwrap());
        assert_eq!(podman.holders(&info, &wanted, ""), [], "no database");
        let id = "a7".repeat(32);
        database(&dir.path().join("db.sql"), &id, STATE);
        let found = podman.holders(&info, &wanted, "");
        let told: Vec<_> = found.iter().map(|h| (h.network.as_str(), h.address)).collect();
        assert_eq!(told, [("dual", wanted[0]), ("podman", wanted[1])]);
        assert!(found.iter().all(|holder| holder.container == "echo"));
        assert_eq!(podman.holders(&info, &wanted, &id), [], "its own addresses");
        let found = podman.members(&info, &["dual", "other"], "");
        let told: Vec<_> = found.iter().map(|h| (h.network.as_str(), h.address)).collect();
        assert_eq!(told, [("dual", "10.77.0.2".parse().unwrap()), ("dual", wanted[0])]);
        assert_eq!(podman.members(&info, &["dual"], &id), [], "itself");
        std::fs::write(dir.path().join("db.sql"), [7; 5000]).unwrap();
        assert_eq!(podman.holders(&info, &wanted, ""), [], "a damaged database");
    }

    #[test]
    fn states_without_a_network_hold_nothing() {
        for state in ["{}", "", r#"{"networkStatus":null}"#, r#"{"networkStatus":{"n":{}}}"#] {
            assert_eq!(held(state.as_bytes()), [], "{state}");
        }
    }

    #[test]
    fn others_are_told_by_their_first_names() {
        let text = "10.89.7.1,fd00::1\n\
                    aa 10.89.7.2  web,aa0123456789\n\
                    bb 10.89.7.3 fd00::3 db,store,bb0123456789 192.0.2.53\n\
                    cc 10.89.7.4\n";
        assert_eq!(others(text, "aa"), ["db"]);
        assert_eq!(others(text, "zz"), ["web", "db"]);
        assert!(others("10.89.7.1\n", "aa").is_empty() && others("", "aa").is_empty());
    }
}
