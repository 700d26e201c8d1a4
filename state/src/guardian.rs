//! A process that outlives a killed agent and settles its migration at once.
//!
//! It is started before the journal is created, so that every journal has a guardian. It waits for the end of a
//! pipe and then for the journal's lock; the kernel takes both from a process that dies. After that either there
//! is no journal, because the migration has ended or never began, or there is something to settle. A service
//! manager must not kill the guardians together with the agent (systemd: `KillMode=process`).

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::dup2_stderr;
use tokio::process::{ChildStdin, Command};

use crate::directories::Directories;
use crate::journal;

/// The name of the guardians' log, in the volatile directory.
const LOG: &str = "recover.log";

/// A guardian. It waits until this is dropped, and then for the lock of its journal.
#[derive(Debug)]
#[must_use = "it stops waiting when this is dropped"]
pub struct Guardian {
    _life: Option<ChildStdin>,
}

/// Starts a guardian: the running program once more, even if its file was replaced meanwhile, with `command` and
/// the path of a journal that is about to begin as arguments. The tokio runtime in which this is called reaps the
/// guardian.
///
/// # Errors
/// The pipe or the log cannot be opened, or the program cannot be started.
pub fn start(directories: &Directories, command: &[&str], journal: &Path) -> io::Result<Guardian> {
    let mut child = Command::new("/proc/self/exe")
        .arg("--state-dir")
        .arg(&directories.state)
        .arg("--run-dir")
        .arg(&directories.run)
        .args(command)
        .arg(journal)
        .current_dir("/")
        // A process group of its own does not get the signals of the terminal (termios(3), credentials(7)).
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(Guardian { _life: child.stdin.take() })
}

/// Waits for the end of `life`, the guardian's standard input, and for the end of the journal's owner; returns
/// whether there is something to settle. Blocks: a guardian calls it first, since most have nothing else to do.
///
/// # Errors
/// `life` or the journal cannot be read, or the journal's lock cannot be taken.
pub fn wait(mut life: impl Read, directories: &Directories, journal: &Path) -> io::Result<bool> {
    // The agent never writes into the pipe.
    io::copy(&mut life, &mut io::sink())?;
    let file = match File::open(journal) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            journal::forget_unmade(journal)?;
            return Ok(false);
        }
        other => other?,
    };
    drop(Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?);
    if !journal.exists() {
        return Ok(false);
    }
    let log = directories.run.join(LOG);
    dup2_stderr(OpenOptions::new().append(true).create(true).mode(0o600).open(log)?)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::PipeWriter;
    use std::net::IpAddr;
    use std::path::PathBuf;
    use std::thread::{self, JoinHandle};
    use std::time::Duration;

    use super::*;
    use crate::id::HostId;
    use crate::id::MigrationId;
    use crate::journal::{Journal, Record};

    const MIGRATION: MigrationId = MigrationId([7; 16]);

    fn directories(dir: &Path) -> Directories {
        Directories { state: dir.to_owned(), run: dir.to_owned() }
    }

    fn begin(state: &Path) -> Journal {
        let record = Record::Arrival {
            migration: MIGRATION,
            container: "c".repeat(64),
            name: "web".to_owned(),
            addresses: vec![IpAddr::from([10, 88, 0, 2])],
            peer: HostId([3; 16]),
            source: "a".to_owned(),
            began: 0,
        };
        Journal::begin(state, MIGRATION, &record).unwrap()
    }

    /// Returns a guardian that waits already.
    fn guardian(dir: &Path) -> (PipeWriter, JoinHandle<bool>) {
        let (life, ours) = io::pipe().unwrap();
        let (directories, journal) = (directories(dir), journal::path(dir, MIGRATION));
        let waits = thread::spawn(move || wait(life, &directories, &journal).unwrap());
        thread::sleep(Duration::from_millis(20));
        assert!(!waits.is_finished());
        (ours, waits)
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        let journals = journal::path(dir, MIGRATION).parent().unwrap().to_owned();
        fs::read_dir(journals).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn it_waits_for_a_journal_that_begins_later() {
        let dir = tempfile::tempdir().unwrap();
        let (life, waits) = guardian(dir.path());
        let journal = begin(dir.path());
        drop((journal, life));
        assert!(waits.join().unwrap(), "the owner has died");
    }

    #[test]
    fn it_waits_for_whoever_has_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let journal = begin(dir.path());
        let (life, waits) = guardian(dir.path());
        drop(life);
        thread::sleep(Duration::from_millis(50));
        assert!(!waits.is_finished());
        journal.end().unwrap();
        assert!(!waits.join().unwrap(), "the migration has ended");
    }

    #[test]
    fn a_journal_that_was_being_made_goes() {
        let dir = tempfile::tempdir().unwrap();
        begin(dir.path()).end().unwrap();
        let unmade = journal::path(dir.path(), MIGRATION).with_file_name(format!(".{MIGRATION}"));
        fs::write(&unmade, "netmig jour").unwrap();
        let (life, waits) = guardian(dir.path());
        assert_eq!(files(dir.path()), [unmade]);
        drop(life);
        assert!(!waits.join().unwrap());
        assert!(files(dir.path()).is_empty());
    }
}
