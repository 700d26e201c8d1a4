//! The network of a container whose podman was killed before it had noted that network.
//!
//! podman allocates a container's addresses, makes its network namespace and has netavark connect it; then it notes the
//! namespace in its database (`libpod/container_internal_linux.go`, `prepare`). A podman that is killed before has noted
//! nothing, so that its removal of the container takes the network for none: the addresses stay allocated to an ID
//! that nobody knows, and the namespace, its interfaces and the rules for published ports stay as well.
//!
//! Only podman can give addresses back, in its own allocation database, and it does so when it removes a container
//! that has a namespace. So the namespace is noted in its place, in the row of the container that it was told to make.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Error;
use super::work_dir::WorkDir;
use crate::description::Network;
use crate::podman::database::{BUSY, places};
use crate::podman::{Error as PodmanError, Info};

/// Holds the [`Interfaces`] of the container that podman was told to make.
const FILE: &str = "interfaces";
/// Where podman makes network namespaces, and what their names begin with (`pkg/netns/netns_linux.go` in
/// `go.podman.io/common`).
pub(super) const NAMESPACES: &str = "/run/netns";
pub(super) const PREFIX: &str = "netns-";
/// Where podman notes which addresses are allocated (`libnetwork/netavark/ipam.go` there).
const ALLOCATIONS: &str = "/run/containers/networks/ipam.db";
/// Largest file that is read, in bytes.
const MOST: u64 = 16 << 20;

/// What tells a container's network namespace from others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Interfaces {
    hardware: Vec<String>,
    addresses: Vec<IpAddr>,
}

impl Interfaces {
    pub(super) fn of(networks: &[Network]) -> Self {
        Self {
            hardware: networks.iter().map(|network| network.mac.to_ascii_lowercase()).collect(),
            addresses: networks.iter().flat_map(|n| &n.addresses).map(|a| a.ip).collect(),
        }
    }

    /// Notes them before podman is told to make the container.
    pub(super) fn write(&self, work: &WorkDir) -> Result<(), Error> {
        let path = work.path(FILE);
        let written = serde_json::to_vec(self).map_err(io::Error::from);
        written.and_then(|text| fs::write(&path, text)).map_err(work.fail(&path))
    }

    /// Returns what was noted; nothing where an earlier version has not.
    pub(super) fn read(work: &WorkDir) -> Self {
        let text = read_bounded(&work.path(FILE)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Returns whether the namespace behind a file has an interface of the container's.
    fn are_in(&self, namespace: File) -> bool {
        let visit = || -> io::Result<Vec<(String, Option<IpAddr>)>> {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            let all = getifaddrs()?.filter_map(|interface| {
                let address = interface.address?;
                let mac = address.as_link_addr().and_then(|link| link.addr()).map(shown);
                let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
                let ip = v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())));
                Some((mac.unwrap_or_default(), ip))
            });
            Ok(all.collect())
        };
        // A thread that has visited a namespace ends: it is of no more use to this one.
        let visitor = std::thread::Builder::new().name("netns-visit".to_owned());
        let found = std::thread::scope(|scope| {
            visitor.spawn_scoped(scope, visit).ok().and_then(|visitor| visitor.join().ok())
        });
        found.and_then(Result::ok).into_iter().flatten().any(|(mac, ip)| {
            self.hardware.contains(&mac) && !mac.is_empty()
                || ip.is_some_and(|ip| self.addresses.contains(&ip))
        })
    }
}

/// Makes a container's lost network known to podman, which then removes it with the container. Does nothing about a
/// container whose network podman knows, or to which no address is allocated. Blocks the calling thread.
///
/// # Errors
/// [`PodmanError::Database`] when podman's database cannot be changed.
pub(super) fn note(info: &Info, id: &str, interfaces: &Interfaces) -> Result<bool, PodmanError> {
    if info.database != "sqlite" || !may_be_lost(id) {
        return Ok(false);
    }
    for path in places(info).iter().filter(|path| path.is_file()) {
        let fail = |source| PodmanError::Database { path: path.clone(), source };
        let mut database = open(path).map_err(fail)?;
        if note_in(&mut database, id, |known| namespace(interfaces, known, id)).map_err(fail)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns whether podman may have addresses allocated to a container. Reads one small file.
pub(super) fn may_be_lost(id: &str) -> bool {
    has_allocation(Path::new(ALLOCATIONS), id)
}

/// Returns whether podman may have addresses allocated to a container: its ID is in the file, perhaps in a page that is
/// not in use any more.
fn has_allocation(path: &Path, id: &str) -> bool {
    let Ok(bytes) = read_bounded(path) else { return false };
    !id.is_empty() && bytes.windows(id.len()).any(|window| window == id.as_bytes())
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(path, flags)?;
    database.busy_timeout(BUSY)?;
    Ok(database)
}

/// Notes a namespace in the state of a container that has none (`libpod/container.go`, `ContainerState`). `find` gets those
/// of all containers, and returns the lost one; `None` if the container is another podman's.
fn note_in(
    database: &mut Connection,
    id: &str,
    find: impl FnOnce(&[String]) -> Option<PathBuf>,
) -> rusqlite::Result<bool> {
    let change = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let query = "SELECT CAST(c.JSON AS BLOB), CAST(s.JSON AS BLOB) FROM ContainerConfig c \
                 JOIN ContainerState s ON s.ID = c.ID WHERE c.ID = ?1";
    let row: Option<(Vec<u8>, Vec<u8>)> =
        change.query_row(query, [id], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((config, state)) = row else { return Ok(false) };
    let makes = |config: Value| config.get("createNetNS").and_then(Value::as_bool);
    let is_made = serde_json::from_slice(&config).ok().and_then(makes).unwrap_or(false);
    let Ok(Value::Object(mut state)) = serde_json::from_slice(&state) else { return Ok(false) };
    if !is_made || state.get("netns").is_some_and(|path| path.as_str() != Some("")) {
        return Ok(false);
    }
    let known = {
        let mut all = change.prepare("SELECT CAST(JSON AS BLOB) FROM ContainerState")?;
        let rows = all.query_map([], |row| row.get::<_, Vec<u8>>(0))?;
        let states = rows.flatten().filter_map(|state| serde_json::from_slice(&state).ok());
        let path = |state: Value| Some(state.get("netns")?.as_str()?.to_owned());
        states.filter_map(path).collect::<Vec<_>>()
    };
    let Some(path) = find(&known) else { return Ok(false) };
    state.insert("netns".to_owned(), Value::String(path.to_string_lossy().into_owned()));
    let text = Value::Object(state).to_string();
    change.execute(
        "UPDATE ContainerState SET JSON = ?2 WHERE ID = ?1",
        params![id, text.into_bytes()],
    )?;
    change.commit()?;
    Ok(true)
}

/// Returns the namespace of podman's that no container has and that has these interfaces. Where netavark has not come so
/// far, a path at which nothing is: podman gives the addresses back all the same. `None` if processes live in the namespace:
/// then it is not lost, but that of a container of the same ID in another store.
fn namespace(interfaces: &Interfaces, known: &[String], id: &str) -> Option<PathBuf> {
    let directory = Path::new(NAMESPACES);
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let is_podmans = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PREFIX))
            && !known.iter().any(|other| Path::new(other) == path)
    };
    let mut unknown = entries.map(|entry| entry.path()).filter(is_podmans);
    let found = unknown.find(|path| File::open(path).is_ok_and(|file| interfaces.are_in(file)));
    match found {
        Some(path) if has_processes(&path) => {
            tracing::warn!(id, path = %path.display(), "the network namespace is in use, and stays");
            None
        }
        Some(path) => Some(path),
        None => Some(directory.join(format!("{PREFIX}{id}"))),
    }
}

/// Returns whether a process is in the namespace behind a file (namespaces(7)). So it counts if that cannot be read.
fn has_processes(path: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
    let (Some(wanted), Some(mut processes)) = (identity(path), processes()) else { return true };
    processes.any(|process| identity(&process.join("ns/net")) == Some(wanted))
}

/// Returns the directories of all processes in `/proc`; `None` if it cannot be read.
pub(super) fn processes() -> Option<impl Iterator<Item = PathBuf>> {
    let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let all = fs::read_dir("/proc").ok()?.flatten();
    let all = all.filter(move |entry| entry.file_name().to_str().is_some_and(is_process));
    Some(all.map(|entry| entry.path()))
}

fn shown(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

pub(super) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "a7";

    fn database(config: &str, state: &str) -> Connection {
        let database = Connection::open_in_memory().unwrap();
        let tables = "CREATE TABLE ContainerConfig (ID TEXT, JSON TEXT);\
                      CREATE TABLE ContainerState (ID TEXT, JSON TEXT);";
        database.execute_batch(tables).unwrap();
        let other = r#"{"netns":"/run/netns/netns-b8"}"#;
        for (id, config, state) in [(ID, config, state), ("b8", "{}", other)] {
            let insert = |table| format!("INSERT INTO {table} VALUES (?1, ?2)");
            database.execute(&insert("ContainerConfig"), [id, config]).unwrap();
            database.execute(&insert("ContainerState"), [id, state]).unwrap();
        }
        database
    }

    fn state(database: &Connection, id: &str) -> Value {
        let query = "SELECT CAST(JSON AS BLOB) FROM ContainerState WHERE ID = ?1";
        let text: Vec<u8> = database.query_row(query, [id], |row| row.get(0)).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn a_lost_namespace_is_noted_and_nothing_else_changes() {
        let mut database = database(r#"{"createNetNS":true}"#, r#"{"state":1,"pid":7}"#);
        let noted = note_in(&mut database, ID, |known| {
            assert_eq!(known, ["/run/netns/netns-b8"]);
            Some("/run/netns/netns-a7".into())
        });
        assert!(noted.unwrap());
        let expected = serde_json::json!({"state": 1, "pid": 7, "netns": "/run/netns/netns-a7"});
        assert_eq!(state(&database, ID), expected);
        assert_eq!(state(&database, "b8"), serde_json::json!({"netns": "/run/netns/netns-b8"}));
    }

    #[test]
    fn a_container_that_lacks_nothing_stays_as_it_is() {
        for (config, before, id) in [
            (r#"{"createNetNS":true}"#, r#"{"netns":"/run/netns/netns-c9"}"#, ID),
            (r#"{"createNetNS":false}"#, "{}", ID),
            ("{}", "{}", ID),
            (r#"{"createNetNS":true}"#, "[]", ID),
            (r#"{"createNetNS":true}"#, "{}", "d1"),
        ] {
            let mut database = database(config, before);
            let noted = note_in(&mut database, id, |_| panic!("nothing is to be looked for"));
            assert!(!noted.unwrap(), "{config} {before}");
            assert_eq!(state(&database, ID), serde_json::from_str::<Value>(before).unwrap());
        }
    }

    #[test]
    fn a_namespace_in_use_is_not_noted() {
        assert!(has_processes(Path::new("/proc/self/ns/net")));
        let mut database = database(r#"{"createNetNS":true}"#, "{}");
        assert!(!note_in(&mut database, ID, |_| None).unwrap());
        assert_eq!(state(&database, ID), serde_json::json!({}));
    }

    #[test]
    fn an_allocation_is_seen_by_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipam.db");
        assert!(!has_allocation(&path, ID), "there is no file");
        std::fs::write(&path, b"\0\x0a\x58a7\0").unwrap();
        assert!(has_allocation(&path, ID));
        assert!(!has_allocation(&path, "b8") && !has_allocation(&path, ""));
    }

    #[test]
    fn interfaces_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::create(&dir.path().join("m")).unwrap();
        assert_eq!(Interfaces::read(&work), Interfaces::default());
        let addresses = vec![crate::description::Address {
            ip: "10.88.0.2".parse().unwrap(),
            prefix: 16,
            gateway: None,
        }];
        let network = Network { mac: "0A:11:22:33:44:55".into(), addresses, ..Network::default() };
        let interfaces = Interfaces::of(&[network]);
        assert_eq!(interfaces.hardware, ["0a:11:22:33:44:55"]);
        interfaces.write(&work).unwrap();
        assert_eq!(Interfaces::read(&work), interfaces);
    }
}
