//! The files from which podman makes the same container on another host.
//!
//! `ContainerConfig` and `ContainerState` are tables of podman's SQLite database
//! (`libpod/sqlite_state.go`), each with a JSON column.

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::{Error, Info, Podman, shortened};
use crate::container::{PublishedPort, is_full_id};

/// Largest of the three texts, in bytes.
const MOST: u64 = 8 << 20;

/// How long podman may hold the database.
pub(super) const BUSY: Duration = Duration::from_secs(5);

/// What podman knows of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// podman's configuration of it, JSON.
    pub config: Vec<u8>,
    /// The OCI configuration that it was started with, JSON.
    pub spec: Vec<u8>,
    /// Its addresses on each network, JSON.
    pub network_status: Vec<u8>,
}

/// The fields of podman's configuration that staging looks at.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Identity {
    /// The full ID.
    pub id: String,
    /// The name.
    pub name: String,
    /// The OCI runtime's name.
    pub runtime: String,
    /// The image's ID.
    #[serde(rename = "rootfsImageID", default)]
    pub image_id: String,
    /// The image's name.
    #[serde(rename = "rootfsImageName", default)]
    pub image_name: String,
}

/// A container's configuration and state.
type Records = (Vec<u8>, Vec<u8>);

#[derive(Deserialize)]
struct State<'a> {
    #[serde(rename = "networkStatus", borrow)]
    network_status: Option<&'a RawValue>,
}

impl Metadata {
    /// Who the container is.
    ///
    /// # Errors
    /// [`Error::Parse`] when the configuration is not podman's, [`Error::BadId`] for a wrong ID.
    pub fn identity(&self) -> Result<Identity, Error> {
        let identity: Identity = serde_json::from_slice(&self.config).map_err(|source| {
            Error::Parse { what: "the container's configuration".into(), source }
        })?;
        if !is_full_id(&identity.id) {
            return Err(Error::BadId { id: shortened(&identity.id) });
        }
        Ok(identity)
    }
}

impl Metadata {
    /// Has the container publish these ports, in place of those that it publishes.
    ///
    /// # Errors
    /// [`Error::Parse`] when the configuration is not podman's.
    pub fn publish(&mut self, ports: &[PublishedPort]) -> Result<(), Error> {
        let parse = |source| Error::Parse { what: "the container's configuration".into(), source };
        let mut config: Map<String, Value> = serde_json::from_slice(&self.config).map_err(parse)?;
        let mapping = |port: &PublishedPort| {
            json!({
                "host_ip": port.host_ip.map_or(String::new(), |ip| ip.to_string()),
                "container_port": port.container_port,
                "host_port": port.host_port,
                "range": 1,
                "protocol": port.protocol,
            })
        };
        // The names are podman's (`ContainerNetworkConfig`, `libpod/container_config.go`); the second
        // is that of its versions before 4.
        config.insert("newPortMappings".into(), ports.iter().map(mapping).collect());
        config.remove("portMappings");
        self.config = serde_json::to_vec(&config).map_err(parse)?;
        Ok(())
    }

    /// Tells every alias of a network and every mount once. podman adds its own to what it imports, though
    /// they are there, so that the lists of a container which moves often would grow without end.
    fn forget_repetitions(&mut self) -> Result<(), Error> {
        let parse = |source| Error::Parse { what: "the container's configuration".into(), source };
        let mut config: Map<String, Value> = serde_json::from_slice(&self.config).map_err(parse)?;
        let networks = config.get_mut("newNetworks").map(values).unwrap_or_default();
        let aliases = networks.into_iter().filter_map(|network| network.get_mut("aliases"));
        let mut are_repeated = aliases.map(unrepeat).fold(false, |any, one| any | one);
        are_repeated |= config.get_mut("mounts").is_some_and(unrepeat);
        if are_repeated {
            self.config = serde_json::to_vec(&config).map_err(parse)?;
        }
        Ok(())
    }

    /// Gives the container other addresses, each first one of a pair replaced by the second.
    ///
    /// # Errors
    /// [`Error::Parse`] when the network status is not podman's.
    pub fn readdress(&mut self, pairs: &[(IpAddr, IpAddr)]) -> Result<(), Error> {
        let parse = |source| Error::Parse { what: "the container's network status".into(), source };
        let mut status: Value = serde_json::from_slice(&self.network_status).map_err(parse)?;
        // As podman writes it (`StatusBlock`, `libnetwork/types/network.go`).
        for network in values(&mut status) {
            let Some(interfaces) = network.get_mut("interfaces") else { continue };
            for interface in values(interfaces) {
                let Some(subnets) = interface.get_mut("subnets") else { continue };
                for address in values(subnets).into_iter().filter_map(|s| s.get_mut("ipnet")) {
                    let Some((ip, prefix)) = address.as_str().and_then(|a| a.split_once('/'))
                    else {
                        continue;
                    };
                    let new = pairs.iter().find(|(old, _)| ip.parse() == Ok(*old));
                    if let Some((_, new)) = new {
                        *address = json!(format!("{new}/{prefix}"));
                    }
                }
            }
        }
        self.network_status = serde_json::to_vec(&status).map_err(parse)?;
        Ok(())
    }
}

impl Podman {
    /// Reads what podman on another host needs to make the same container.
    ///
    /// # Errors
    /// [`Error`] when the database cannot be read or has no such container.
    pub async fn metadata(&self, info: &Info, id: &str) -> Result<Metadata, Error> {
        if !is_full_id(id) {
            return Err(Error::BadId { id: shortened(id) });
        }
        if info.database != "sqlite" {
            return Err(Error::DatabaseKind { kind: info.database.clone() });
        }
        let places = places(info);
        let spec = info.userdata(id).join("config.json");
        let id = id.to_owned();
        let read = tokio::task::spawn_blocking(move || {
            let (config, state) = from_databases(&places, &id)?;
            let state: State = serde_json::from_slice(&state)
                .map_err(|source| Error::Parse { what: format!("the state of {id}"), source })?;
            let network_status = state.network_status.map_or("{}", RawValue::get).into();
            let mut metadata = Metadata { config, spec: bounded(&spec)?, network_status };
            metadata.forget_repetitions()?;
            Ok(metadata)
        });
        read.await
            .map_err(|e| Error::File { path: "db.sql".into(), source: io::Error::other(e) })?
    }
}

/// Leaves the first of equal elements of a list; whether there were others.
fn unrepeat(list: &mut Value) -> bool {
    let Some(list) = list.as_array_mut() else { return false };
    let length = list.len();
    let mut seen: Vec<Value> = Vec::new();
    list.retain(|value| {
        let is_new = !seen.contains(value);
        if is_new {
            seen.push(value.clone());
        }
        is_new
    });
    list.len() < length
}

/// What is in a JSON object or array.
fn values(value: &mut Value) -> Vec<&mut Value> {
    match value {
        Value::Object(map) => map.values_mut().collect(),
        Value::Array(list) => list.iter_mut().collect(),
        _ => Vec::new(),
    }
}

/// Where the database may be: that depends on how podman is set up (`libpod/sqlite_state.go`,
/// `NewSqliteState`).
pub(super) fn places(info: &Info) -> Vec<PathBuf> {
    [&info.graph_root, &info.static_dir, &info.run_root]
        .into_iter()
        .map(|dir| dir.join("db.sql"))
        .collect()
}

fn from_databases(places: &[PathBuf], id: &str) -> Result<Records, Error> {
    for path in places.iter().filter(|path| path.exists()) {
        if let Some(found) = from_database(path, id)? {
            return Ok(found);
        }
    }
    Err(Error::NotInDatabase { id: id.to_owned(), tried: places.to_vec() })
}

fn from_database(path: &Path, id: &str) -> Result<Option<Records>, Error> {
    let fail = |source| Error::Database { path: path.to_path_buf(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(path, flags).map_err(fail)?;
    database.busy_timeout(BUSY).map_err(fail)?;
    // podman writes the columns as BLOB or TEXT; both are read as bytes after the cast.
    let query = "SELECT CAST(c.JSON AS BLOB), CAST(s.JSON AS BLOB) FROM ContainerConfig c \
                 JOIN ContainerState s ON s.ID = c.ID WHERE c.ID = ?1";
    let found: Option<Records> = database
        .query_row(query, [id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
        .map_err(fail)?;
    if let Some((config, state)) = &found
        && config.len().max(state.len()) as u64 > MOST
    {
        return Err(Error::TooLarge { what: format!("podman's record of {id}"), limit: MOST });
    }
    Ok(found)
}

fn bounded(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MOST + 1).read_to_end(&mut bytes))
        .map_err(|source| Error::File { path: path.to_path_buf(), source })?;
    if bytes.len() as u64 > MOST {
        return Err(Error::TooLarge { what: path.display().to_string(), limit: MOST });
    }
    Ok(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::podman::Version;

    pub(in crate::podman) fn info(dir: &Path) -> Info {
        Info {
            version: Version { text: "5.8.6".into(), number: (5, 8) },
            graph_root: dir.into(),
            run_root: dir.join("run"),
            static_dir: dir.join("libpod"),
            storage_driver: "overlay".into(),
            runtime: "crun".into(),
            runtime_path: "/usr/bin/crun".into(),
            conmon_path: "/usr/bin/conmon".into(),
            cgroup_manager: "cgroupfs".into(),
            cgroup_version: "v2".into(),
            network_backend: "netavark".into(),
            database: "sqlite".into(),
            rootless: false,
        }
    }

    pub(in crate::podman) fn database(path: &Path, id: &str, state: &str) {
        let db = Connection::open(path).unwrap();
        db.execute_batch(
            "CREATE TABLE ContainerConfig(ID TEXT PRIMARY KEY, Name TEXT UNIQUE, JSON TEXT);
             CREATE TABLE ContainerState(ID TEXT PRIMARY KEY, JSON TEXT);",
        )
        .unwrap();
        let config = format!(r#"{{"id":"{id}","name":"echo","runtime":"crun"}}"#).into_bytes();
        db.execute("INSERT INTO ContainerConfig VALUES (?1, 'echo', ?2)", (id, config)).unwrap();
        db.execute("INSERT INTO ContainerState VALUES (?1, ?2)", (id, state)).unwrap();
    }

    #[tokio::test]
    async fn the_three_texts_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let id = "a7".repeat(32);
        let userdata = dir.path().join(format!("overlay-containers/{id}/userdata"));
        std::fs::create_dir_all(&userdata).unwrap();
        std::fs::write(userdata.join("config.json"), "{\"root\":1}").unwrap();
        std::fs::create_dir(dir.path().join("libpod")).unwrap();
        let state = r#"{"state":3,"networkStatus":{"podman":{"interfaces":{}}},"pid":88}"#;
        database(&dir.path().join("libpod/db.sql"), &id, state);

        let podman = Podman::new("/nonexistent");
        let metadata = podman.metadata(&info(dir.path()), &id).await.unwrap();
        assert_eq!(metadata.network_status, br#"{"podman":{"interfaces":{}}}"#);
        assert_eq!(metadata.spec, b"{\"root\":1}");
        let identity = metadata.identity().unwrap();
        assert_eq!((identity.id.as_str(), identity.runtime.as_str()), (id.as_str(), "crun"));

        let other = podman.metadata(&info(dir.path()), &"b8".repeat(32)).await;
        assert!(matches!(other, Err(Error::NotInDatabase { .. })));
        let bolt = Info { database: "boltdb".into(), ..info(dir.path()) };
        assert!(matches!(podman.metadata(&bolt, &id).await, Err(Error::DatabaseKind { .. })));
        let short = podman.metadata(&info(dir.path()), "a7").await;
        assert!(matches!(short, Err(Error::BadId { .. })));
    }

    #[test]
    fn published_ports_are_replaced_and_nothing_else() {
        let config =
            br#"{"id":"a7","newPortMappings":[{"host_port":1}],"portMappings":[],"x":{"y":2}}"#;
        let mut metadata =
            Metadata { config: config.to_vec(), spec: vec![], network_status: vec![] };
        let port = PublishedPort {
            protocol: "udp".into(),
            host_ip: Some("192.0.2.1".parse().unwrap()),
            host_port: 5353,
            container_port: 53,
        };
        metadata.publish(&[port]).unwrap();
        let read: Value = serde_json::from_slice(&metadata.config).unwrap();
        let mapping = json!({"host_ip": "192.0.2.1", "container_port": 53, "host_port": 5353,
            "range": 1, "protocol": "udp"});
        assert_eq!(read, json!({"id": "a7", "newPortMappings": [mapping], "x": {"y": 2}}));
        metadata.config = b"[]".to_vec();
        assert!(metadata.publish(&[]).is_err());
    }

    #[test]
    fn repeated_aliases_and_mounts_are_told_once() {
        let config = br#"{"id": "a7", "mounts": ["/s", "/s"], "newNetworks": {
            "one": {"aliases": ["b", "a", "b", "a"]}, "two": {"aliases": null}}}"#;
        let mut metadata =
            Metadata { config: config.to_vec(), spec: vec![], network_status: vec![] };
        metadata.forget_repetitions().unwrap();
        let read: Value = serde_json::from_slice(&metadata.config).unwrap();
        let networks = json!({"one": {"aliases": ["b", "a"]}, "two": {"aliases": null}});
        assert_eq!(read, json!({"id": "a7", "mounts": ["/s"], "newNetworks": networks}));
        let told = metadata.clone();
        metadata.forget_repetitions().unwrap();
        assert_eq!(metadata, told, "not a byte of what has no repetitions is changed");
    }

    #[test]
    fn a_containers_addresses_are_replaced_and_nothing_else() {
        let status = r#"{"podman":{"interfaces":{"eth0":{"mac_address":"02:42:0a:58:00:02",
            "subnets":[{"ipnet":"10.88.0.2/16","gateway":"10.88.0.1"},{"ipnet":"fd77::2/64"}]}}}}"#;
        let mut metadata = Metadata { config: vec![], spec: vec![], network_status: status.into() };
        let pairs = [("10.88.0.2", "10.88.0.9"), ("10.88.0.1", "10.88.0.7")]
            .map(|(old, new)| (old.parse().unwrap(), new.parse().unwrap()));
        metadata.readdress(&pairs).unwrap();
        let wanted = status.replace("10.88.0.2/16", "10.88.0.9/16");
        let json = |text: &[u8]| serde_json::from_slice::<Value>(text).unwrap();
        assert_eq!(json(&metadata.network_status), json(wanted.as_bytes()));
        metadata.network_status = b"{".to_vec();
        assert!(metadata.readdress(&pairs).is_err());
    }

    #[tokio::test]
    async fn a_damaged_database_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("db.sql"), [7; 5000]).unwrap();
        let read = Podman::new("x").metadata(&info(dir.path()), &"a7".repeat(32)).await;
        assert!(matches!(read, Err(Error::Database { .. })));
    }

    #[test]
    fn large_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        File::create(&path).unwrap().set_len(MOST + 1).unwrap();
        assert!(matches!(bounded(&path), Err(Error::TooLarge { .. })));
    }
}
