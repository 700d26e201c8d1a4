//! podman's database, from which the settings of a container are read.
//!
//! `ContainerConfig` and `ContainerState` are tables of podman's SQLite database
//! (`libpod/sqlite_state.go`), each with a JSON column.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::records::{Place, Records};
use super::{Error, Info, Podman};
use crate::Described;
use crate::inspect::is_full_id;

/// Largest of its texts, in bytes.
const MOST: u64 = 8 << 20;

/// How long podman may hold the database.
pub(super) const BUSY: Duration = Duration::from_secs(5);

/// A container's configuration and state.
type Row = (Vec<u8>, Vec<u8>);

#[derive(Deserialize)]
struct State<'a> {
    #[serde(rename = "networkStatus", borrow)]
    network_status: Option<&'a RawValue>,
}

impl Podman {
    /// Describes a container by all that podman has written down of it.
    ///
    /// # Errors
    /// [`Error`] when the database cannot be read or has no such container.
    pub(super) async fn description(
        &self,
        info: &Info,
        id: &str,
    ) -> Result<Described, crate::Error> {
        if !is_full_id(id) {
            return Err(crate::Error::bad_id(id));
        }
        if info.database != "sqlite" {
            return Err(Error::DatabaseKind { kind: info.database.clone() }.into());
        }
        let places = places(info);
        let spec = info.userdata(id).join("config.json");
        let id = id.to_owned();
        let place = Place::of(info, &id, Vec::new());
        let read = tokio::task::spawn_blocking(move || {
            let (config, state) = from_databases(&places, &id)?;
            let state: State = serde_json::from_slice(&state)
                .map_err(|source| Error::Parse { what: format!("the state of {id}"), source })?;
            let networks = state.network_status.map_or("{}", RawValue::get);
            Records::parse(&config, &bounded(&spec)?, networks.as_bytes())?.describe(&place)
        });
        let read = read
            .await
            .map_err(|e| Error::File { path: "db.sql".into(), source: io::Error::other(e) })?;
        Ok(read?)
    }
}

/// Returns where the database may be: that depends on how podman is set up (`libpod/sqlite_state.go`,
/// `NewSqliteState`).
pub(super) fn places(info: &Info) -> Vec<PathBuf> {
    [&info.graph_root, &info.static_dir, &info.run_root]
        .into_iter()
        .map(|dir| dir.join("db.sql"))
        .collect()
}

/// Returns whether the configuration or the state of any container has a text, such as a path.
///
/// # Errors
/// [`Error::DatabaseKind`] and [`Error::Database`] when that cannot be told.
pub(super) fn knows_text(info: &Info, text: &str) -> Result<bool, Error> {
    if info.database != "sqlite" {
        return Err(Error::DatabaseKind { kind: info.database.clone() });
    }
    for path in places(info).iter().filter(|path| path.exists()) {
        let fail = |source| Error::Database { path: path.clone(), source };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let database = Connection::open_with_flags(path, flags).map_err(fail)?;
        database.busy_timeout(BUSY).map_err(fail)?;
        let query = "SELECT EXISTS (SELECT 1 FROM ContainerConfig WHERE instr(CAST(JSON AS BLOB), ?1)) \
                     OR EXISTS (SELECT 1 FROM ContainerState WHERE instr(CAST(JSON AS BLOB), ?1))";
        let is_known = database.query_row(query, [text.as_bytes()], |row| row.get(0));
        if is_known.map_err(fail)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn from_databases(places: &[PathBuf], id: &str) -> Result<Row, Error> {
    for path in places.iter().filter(|path| path.exists()) {
        if let Some(found) = from_database(path, id)? {
            return Ok(found);
        }
    }
    Err(Error::NotInDatabase { id: id.to_owned(), tried: places.to_vec() })
}

fn from_database(path: &Path, id: &str) -> Result<Option<Row>, Error> {
    let fail = |source| Error::Database { path: path.to_path_buf(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(path, flags).map_err(fail)?;
    database.busy_timeout(BUSY).map_err(fail)?;
    // podman writes the columns as BLOB or TEXT; both are read as bytes after the cast.
    let query = "SELECT CAST(c.JSON AS BLOB), CAST(s.JSON AS BLOB) FROM ContainerConfig c \
                 JOIN ContainerState s ON s.ID = c.ID WHERE c.ID = ?1";
    let found: Option<Row> = database
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
    use crate::podman::host_info::Version;

    pub(in crate::podman) fn info(dir: &Path) -> Info {
        Info {
            version: Version { text: "5.8.6".into(), number: (5, 8) },
            graph_root: dir.into(),
            run_root: dir.join("run"),
            static_dir: dir.join("libpod"),
            volume_root: dir.join("volumes"),
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
    async fn a_container_is_found_in_the_database() {
        let dir = tempfile::tempdir().unwrap();
        let id = "a7".repeat(32);
        let userdata = dir.path().join(format!("overlay-containers/{id}/userdata"));
        std::fs::create_dir_all(&userdata).unwrap();
        std::fs::write(userdata.join("config.json"), r#"{"process":{"cwd":"/x"}}"#).unwrap();
        std::fs::create_dir(dir.path().join("libpod")).unwrap();
        let state = r#"{"state":3,"networkStatus":{"podman":{"interfaces":{}}},"pid":88}"#;
        database(&dir.path().join("libpod/db.sql"), &id, state);

        let podman = Podman::new("/nonexistent");
        let Described { description, .. } =
            podman.description(&info(dir.path()), &id).await.unwrap();
        assert_eq!(
            (description.id.as_str(), description.process.cwd.as_str()),
            (id.as_str(), "/x")
        );

        let info = info(dir.path());
        assert!(knows_text(&info, "echo").unwrap(), "in the configuration");
        assert!(knows_text(&info, "networkStatus").unwrap(), "in the state");
        assert!(!knows_text(&info, "/run/netns/netns-a7").unwrap());
        let other = podman.description(&info, &"b8".repeat(32)).await;
        assert!(matches!(other, Err(crate::Error::Podman(Error::NotInDatabase { .. }))));
        let bolt = Info { database: "boltdb".into(), ..info.clone() };
        assert!(knows_text(&bolt, "echo").is_err());
        let other = podman.description(&bolt, &id).await;
        assert!(matches!(other, Err(crate::Error::Podman(Error::DatabaseKind { .. }))));
        let short = podman.description(&info, "a7").await;
        assert!(matches!(short, Err(crate::Error::BadId { .. })));
    }
}
