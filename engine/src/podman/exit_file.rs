//! The file by which conmon tells podman that a container has ended.
//!
//! conmon writes the exit status to `exits/ID` in podman's temporary directory (`--exit-dir`, conmon(8)). podman looks
//! there before it does anything about a container that runs or is paused by its records
//! (`libpod/container_internal.go`, `checkExitFile`).

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use checkpoint::cgroup::Cgroup;
use rusqlite::Connection;

use super::{Error, Info, state_files};

/// The exit status of a process that SIGKILL has ended, as conmon writes it.
const KILLED: &[u8] = b"137";

/// Writes the exit file in the place of a conmon that is dead, for a container whose processes are gone as well.
/// Returns whether there was such a container. Without the file podman never learns that a container which it has
/// recorded as paused has ended: it cannot send signals to it, and therefore refuses to remove it.
///
/// # Errors
/// [`Error::File`] when the file cannot be written.
pub(super) fn write_for_dead(info: &Info, id: &str) -> Result<bool, Error> {
    let Some((id, pid)) = state_files::process(info, id) else { return Ok(false) };
    if Cgroup::of_pid(pid, &id).is_ok() {
        return Ok(false);
    }
    let temporary = state_files::databases(info).into_iter().flatten().find_map(directory);
    let Some(temporary) = temporary else { return Ok(false) };
    let path = temporary.join("exits").join(&id);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&path)
        .and_then(|mut file| file.write_all(KILLED));
    match written {
        // conmon was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(true),
        Err(source) => Err(Error::File { path, source }),
        Ok(()) => Ok(true),
    }
}

/// Returns podman's temporary directory, as its database has it (`libpod/sqlite_state_internal.go`, `DBConfig`).
fn directory(database: Connection) -> Option<PathBuf> {
    let read = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
    let directory = database.query_row("SELECT TmpDir FROM DBConfig", [], read).ok()?;
    let directory = PathBuf::from(directory);
    directory.is_absolute().then_some(directory)
}

#[cfg(test)]
mod tests {
    use super::super::database::tests::{database, info};
    use super::*;

    #[test]
    fn the_file_is_written_only_for_a_container_without_processes() {
        let dir = tempfile::tempdir().unwrap();
        let (dead, id) = ("a7".repeat(32), "db.sql");
        let info = info(dir.path());
        let exits = dir.path().join("exits");
        std::fs::create_dir(&exits).unwrap();
        database(&dir.path().join(id), &dead, &format!(r#"{{"state":4,"pid":{}}}"#, i32::MAX));
        assert!(!write_for_dead(&info, &dead).unwrap(), "the directory is not known");
        let open = Connection::open(dir.path().join(id)).unwrap();
        open.execute_batch("CREATE TABLE DBConfig(TmpDir TEXT)").unwrap();
        let at = dir.path().to_str().unwrap();
        open.execute("INSERT INTO DBConfig VALUES (?1)", [at]).unwrap();
        assert!(!write_for_dead(&info, &"b8".repeat(32)).unwrap());
        for _ in 0..2 {
            assert!(write_for_dead(&info, &dead).unwrap());
        }
        assert_eq!(std::fs::read(exits.join(&dead)).unwrap(), KILLED);
    }
}
