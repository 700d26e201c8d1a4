//! What podman's own files tell without running podman, of which every run takes a tenth of a second.
//!
//! These are answers that save time, not truths: where a file is not there, or not of the form that
//! is known, `None` is the answer, and podman is asked.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

use rusqlite::{Connection, OpenFlags};
use serde::Deserialize;

use super::inspect::raw::RawNetworkInspect;
use super::{Info, database as sqlite};
use crate::inspect::is_full_id;

/// Where netavark's networks are described (podman-network(1)).
const NETWORKS: &str = "/etc/containers/networks";
/// The network that exists without a file, and its bridge (containers.conf(5), `default_network`).
const DEFAULT_NETWORK: &str = "podman";
/// Largest file that is read, in bytes.
const MOST: u64 = 8 << 20;

#[derive(Deserialize)]
struct StoredImage {
    id: String,
    names: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Process {
    pid: i32,
}

/// Whether podman's database has a container of exactly that ID or name.
pub(super) fn has_container(info: &Info, id_or_name: &str) -> Option<bool> {
    let mut looked = false;
    for database in databases(info) {
        let query = "SELECT count(*) FROM ContainerConfig WHERE ID = ?1 OR Name = ?1";
        let count: i64 = database?.query_row(query, [id_or_name], |row| row.get(0)).ok()?;
        if count > 0 {
            return Some(true);
        }
        looked = true;
    }
    looked.then_some(false)
}

/// The ID of a container and its first process, by podman's database.
pub(super) fn process(info: &Info, id_or_name: &str) -> Option<(String, i32)> {
    let query = "SELECT c.ID, CAST(s.JSON AS BLOB) FROM ContainerConfig c \
                 JOIN ContainerState s ON s.ID = c.ID WHERE c.ID = ?1 OR c.Name = ?1";
    let find = |database: Option<Connection>| -> Option<(String, Vec<u8>)> {
        database?.query_row(query, [id_or_name], |row| Ok((row.get(0)?, row.get(1)?))).ok()
    };
    let (id, state) = databases(info).into_iter().find_map(find)?;
    let Process { pid } = serde_json::from_slice(&state).ok()?;
    (is_full_id(&id) && pid > 1).then_some((id, pid))
}

/// podman's databases, to be read; `None` for one that cannot be opened.
pub(super) fn databases(info: &Info) -> Vec<Option<Connection>> {
    let open = |path: &Path| {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let database = Connection::open_with_flags(path, flags).ok()?;
        database.busy_timeout(sqlite::BUSY).ok()?;
        Some(database)
    };
    if info.database != "sqlite" {
        return Vec::new();
    }
    sqlite::places(info).iter().filter(|path| path.is_file()).map(|path| open(path)).collect()
}

/// The list of images of the store (`containers/storage`, `images.go`).
fn images(info: &Info) -> Option<Vec<StoredImage>> {
    let path = info.graph_root.join(format!("{}-images", info.storage_driver)).join("images.json");
    serde_json::from_slice(&read(&path)?).ok()
}

/// Whether the store lists an image of that ID. One that it does not list may be in another store.
pub(super) fn has_image(info: &Info, id: &str) -> bool {
    images(info).into_iter().flatten().any(|image| image.id == id)
}

/// The ID of the image that has this very name in the list of the store.
pub(super) fn image_id(info: &Info, name: &str) -> Option<String> {
    let images = images(info)?;
    let named = |image: &StoredImage| image.names.iter().flatten().any(|n| n == name);
    let mut found = images.into_iter().filter(named);
    let id = found.next()?.id;
    (found.next().is_none() && is_full_id(&id)).then_some(id)
}

/// The description of a network of the host.
pub(super) fn network(name: &str) -> Option<RawNetworkInspect> {
    described(Path::new(NETWORKS), name)
}

fn described(directory: &Path, name: &str) -> Option<RawNetworkInspect> {
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || name.contains('/') {
        return None;
    }
    let path = directory.join(format!("{name}.json"));
    if name == DEFAULT_NETWORK && !path.exists() {
        return Some(RawNetworkInspect { name: name.to_owned(), driver: "bridge".to_owned() });
    }
    let network: RawNetworkInspect = serde_json::from_slice(&read(&path)?).ok()?;
    (network.name == name && !network.driver.is_empty()).then_some(network)
}

/// A whole file, unless it is too long.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MOST + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= MOST).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podman::database::tests::{database, info};

    #[test]
    fn containers_are_found_by_exact_id_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let info = info(dir.path());
        assert_eq!(has_container(&info, "echo"), None, "no database, no answer");
        let id = "a7".repeat(32);
        database(&dir.path().join("db.sql"), &id, "{}");
        assert_eq!(has_container(&info, "echo"), Some(true));
        assert_eq!(has_container(&info, &id), Some(true));
        for other in ["ech", "a7", "%", ""] {
            assert_eq!(has_container(&info, other), Some(false), "{other:?}");
        }
        let bolt = Info { database: "boltdb".into(), ..info.clone() };
        assert_eq!(has_container(&bolt, "echo"), None);
        std::fs::write(dir.path().join("db.sql"), [7; 5000]).unwrap();
        assert_eq!(has_container(&info, "echo"), None, "a damaged database is no answer");
    }

    #[test]
    fn the_process_of_a_container_that_runs_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let info = info(dir.path());
        assert_eq!(process(&info, "echo"), None);
        let id = "a7".repeat(32);
        database(&dir.path().join("db.sql"), &id, r#"{"state":3,"pid":88}"#);
        assert_eq!(process(&info, "echo"), Some((id.clone(), 88)));
        assert_eq!(process(&info, &id), Some((id.clone(), 88)));
        assert_eq!(process(&info, "a7"), None);
        std::fs::remove_file(dir.path().join("db.sql")).unwrap();
        database(&dir.path().join("db.sql"), &id, r#"{"state":4}"#);
        assert_eq!(process(&info, "echo"), None, "it has ended");
    }

    #[test]
    fn an_image_is_found_by_its_whole_name() {
        let dir = tempfile::tempdir().unwrap();
        let info = info(dir.path());
        assert_eq!(image_id(&info, "localhost/a:1"), None);
        let images = dir.path().join("overlay-images");
        std::fs::create_dir(&images).unwrap();
        let (one, two) = ("1".repeat(64), "2".repeat(64));
        let text = format!(
            r#"[{{"id":"{one}","names":["localhost/a:1","localhost/b:1"],"layer":"x"}},
                {{"id":"{two}"}},{{"id":"short","names":["localhost/c:1"]}}]"#
        );
        std::fs::write(images.join("images.json"), text).unwrap();
        assert_eq!(image_id(&info, "localhost/b:1").unwrap(), one);
        for other in ["a:1", "localhost/c:1", "localhost/d:1"] {
            assert_eq!(image_id(&info, other), None, "{other}");
        }
    }

    #[test]
    fn networks_are_described_by_their_own_file() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"name":"n6","driver":"macvlan","network_interface":"podman1","subnets":[]}"#;
        std::fs::write(dir.path().join("n6.json"), text).unwrap();
        std::fs::write(dir.path().join("other.json"), text).unwrap();
        let driver = |name| described(dir.path(), name).map(|network| network.driver);
        assert_eq!(driver("n6").as_deref(), Some("macvlan"));
        assert_eq!(driver("podman").as_deref(), Some("bridge"));
        for name in ["other", "absent", "../n6", "", "."] {
            assert_eq!(driver(name), None, "{name:?}");
        }
    }
}
