//! Locks that give each container of a host one owner.
//!
//! A process takes a container's lock before it does anything with the container: a migration before its first
//! look at the container, an arrival when it receives the offer, and so do recovery and commands that change the
//! forwarding of its connections. A lock ends with its process. The journal says what a dead process has left, so
//! new work begins only where no journal names the container either.
//!
//! The locks are bytes of one file, one for each container: nothing is left of them after a crash.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use ownership::container::{Work, may_begin};
use ownership::source::Departure;

use crate::blocker::Blocker;
use crate::byte_lock;
use crate::directories::Directories;
use crate::journal::{self, Record};
use crate::lock_holder::{self, Holder};

/// The name of the file of the locks, in the run directory.
const FILE: &str = "containers.lock";
/// Time between two attempts to take a lock.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A container's lock cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process is at work on the container, or a dead one has left something of it.
    #[error("{0}")]
    Busy(String),
    /// The file of the locks cannot be used.
    #[error("cannot lock {path}")]
    File {
        /// The file of the locks.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The journals cannot be listed.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// The text is not a container's full ID.
    #[error("{0:?} is not a full container ID")]
    BadId(String),
}

impl Error {
    /// Returns the reason as a blocker, if the container is busy.
    #[must_use]
    pub fn blocker(&self) -> Option<Blocker> {
        match self {
            Self::Busy(message) => Some(Blocker::new("busy", message.as_str())),
            _ => None,
        }
    }
}

/// The lock of one container on this host; released when dropped.
#[derive(Debug)]
#[must_use = "the lock is given back when this is dropped"]
pub struct ContainerLock {
    _file: File,
}

impl ContainerLock {
    /// Takes a container's lock for new work. `name` is shown to people.
    ///
    /// # Errors
    /// [`Error::Busy`], if another process has the lock or a journal names the container; otherwise [`Error`].
    pub fn begin(directories: &Directories, id: &str, name: &str) -> Result<Self, Error> {
        let lock = Self::try_take(&directories.run, id)?;
        let found = left(directories, id)?;
        let Some(lock) = lock else {
            let left = found.first();
            let holder = if left.is_none() { holder(&directories.run, id) } else { None };
            return Err(Error::Busy(describe(name, Work::Locked, left, holder)));
        };
        let works: Vec<Work> = found.iter().map(|left| left.work).collect();
        if may_begin(&works) {
            return Ok(lock);
        }
        let reasons: Vec<String> =
            found.iter().map(|left| describe(name, left.work, Some(left), None)).collect();
        Err(Error::Busy(reasons.join("; ")))
    }

    /// Waits for a container's lock, in order to settle what a dead process has left of the container.
    ///
    /// # Errors
    /// [`Error::Busy`], if another process keeps the lock for longer than `limit`; otherwise [`Error`].
    pub async fn settle(run: &Path, id: &str, name: &str, limit: Duration) -> Result<Self, Error> {
        let give_up = Instant::now() + limit;
        loop {
            if let Some(lock) = Self::try_take(run, id)? {
                return Ok(lock);
            }
            if Instant::now() >= give_up {
                return Err(Error::Busy(describe(name, Work::Locked, None, holder(run, id))));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn try_take(run: &Path, id: &str) -> Result<Option<Self>, Error> {
        let place = byte_lock::place(id).ok_or_else(|| Error::BadId(id.to_owned()))?;
        let path = run.join(FILE);
        let taken = byte_lock::try_take(&path, place);
        let file = taken.map_err(|source| Error::File { path, source })?;
        Ok(file.map(|file| Self { _file: file }))
    }
}

/// Returns the process that has a container's lock.
fn holder(run: &Path, id: &str) -> Option<Holder> {
    lock_holder::find(&run.join(FILE), byte_lock::place(id)?)
}

/// What a journal says about a container.
struct Left {
    work: Work,
    /// The other host, or the path of a journal that cannot be read.
    other: String,
    /// When the migration began, in seconds since 1970; 0 if the journal does not say.
    began: u64,
}

/// Finds all journals that name a container.
fn left(directories: &Directories, id: &str) -> Result<Vec<Left>, Error> {
    let mut all = Vec::new();
    for path in journal::unfinished(&directories.state)? {
        let records = match journal::read(&path) {
            Ok(records) => records,
            Err(journal::Error::File { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                continue;
            }
            Err(_) => {
                let other = path.display().to_string();
                all.push(Left { work: Work::Unreadable, other, began: 0 });
                continue;
            }
        };
        let (container, other, began, work) = match records.first() {
            Some(Record::Departure { container, destination, began, .. }) => {
                let work = Work::Departing(journal::reached(&records));
                (container, destination.clone(), *began, work)
            }
            Some(Record::Arrival { container, source, began, .. }) => {
                let activated = records.contains(&Record::Activated);
                let work = if activated { Work::Activated } else { Work::Arriving };
                (container, source.clone(), *began, work)
            }
            _ => continue,
        };
        if container == id {
            all.push(Left { work, other, began });
        }
    }
    for (_, records) in journal::outstanding(&directories.state)? {
        if let Some(Record::Arrival { container, source, began, .. }) = records.first()
            && container == id
        {
            all.push(Left { work: Work::Outstanding, other: source.clone(), began: *began });
        }
    }
    Ok(all)
}

/// Describes the work on a container, when it began, and what to do. `left` is what a journal says; the process
/// that wrote it is still at work if the container is [locked](Work::Locked). `holder` has the lock and has not written
/// a journal yet.
fn describe(name: &str, work: Work, left: Option<&Left>, holder: Option<Holder>) -> String {
    let Some(Left { work: noted, other, began }) = left else {
        let who = holder.map_or_else(|| "another netmig command".to_owned(), |h| h.to_string());
        return format!("{name} is busy: {who} is at work on it; try again when that has ended");
    };
    let since = match began {
        0 => String::new(),
        seconds => {
            let began = UNIX_EPOCH + Duration::from_secs(*seconds);
            format!(" (since {})", humantime::format_rfc3339_seconds(began))
        }
    };
    let what = match (work, noted) {
        (_, Work::Unreadable) => format!(
            "the journal {other} cannot be read, and may be about it; move it away if you are sure that it \
             is not"
        ),
        (Work::Locked, Work::Departing(Departure::Outstanding)) => format!(
            "it runs on {other}, which is sent the rest of its memory{since}: pages are outstanding, and its original stays frozen here"
        ),
        (Work::Locked, Work::Departing(_)) => format!("it is being moved to {other}{since}"),
        (Work::Locked, _) => format!("it is arriving from {other}{since}"),
        (_, Work::Departing(Departure::Acknowledged)) => format!(
            "it has been moved to {other}, and its original waits to be removed{since}; run agent-client \
             recover"
        ),
        (_, Work::Departing(Departure::Outstanding)) => format!(
            "it runs on {other}, and pages of its memory are outstanding, which only its frozen original here has{since}; run \
             agent-client recover once {other} can be reached"
        ),
        (_, Work::Departing(Departure::Committed)) => format!(
            "its move to {other} is in doubt{since}; run agent-client recover once {other} can be reached"
        ),
        (_, Work::Departing(_)) => format!(
            "its broken-off move to {other} is being rolled back{since}; run agent-client recover if that \
             does not end"
        ),
        (_, Work::Activated) => {
            format!("it has just arrived from {other}, and its engine is to take it over{since}")
        }
        (_, Work::Outstanding) => format!(
            "it runs here, and pages of its memory are outstanding, which {other} has{since}; try again when they have come"
        ),
        (_, Work::Arriving | Work::Locked) => format!(
            "its broken-off arrival from {other} is being undone{since}; agent-server tries again when it \
             starts"
        ),
    };
    format!("{name} is busy: {what}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::HostId;
    use crate::id::MigrationId;
    use crate::journal::Journal;

    const ID: &str = "c0ffee0123456789c0ffee0123456789c0ffee0123456789c0ffee0123456789";
    const OTHER: &str = "0ffee0123456789c0ffee0123456789c0ffee0123456789c0ffee0123456789c";

    fn directories(dir: &Path) -> Directories {
        Directories { state: dir.to_owned(), run: dir.to_owned() }
    }

    fn departure(id: &str) -> Record {
        Record::Departure {
            migration: MigrationId([7; 16]),
            container: id.to_owned(),
            name: "web".to_owned(),
            addresses: Vec::new(),
            destination: "b:7472".to_owned(),
            peer: HostId([3; 16]),
            began: 1_700_000_000,
        }
    }

    #[test]
    fn one_at_a_time_has_a_container() {
        let dir = tempfile::tempdir().unwrap();
        let directories = directories(dir.path());
        let lock = ContainerLock::begin(&directories, ID, "web").unwrap();
        let refused = ContainerLock::begin(&directories, ID, "web").unwrap_err();
        assert!(refused.blocker().is_some_and(|blocker| blocker.code == "busy"), "{refused}");
        let who = format!("(process {}, started ", std::process::id());
        assert!(refused.to_string().contains(&who), "who is at work, and since when: {refused}");
        ContainerLock::begin(&directories, OTHER, "db").map(drop).unwrap();
        drop(lock);
        ContainerLock::begin(&directories, ID, "web").map(drop).unwrap();
    }

    #[tokio::test]
    async fn a_journal_keeps_others_away_when_its_process_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let directories = directories(dir.path());
        let migration = MigrationId([7; 16]);
        let mut journal = Journal::begin(dir.path(), migration, &departure(ID)).unwrap();
        let busy = |words: &str| {
            let refused = ContainerLock::begin(&directories, ID, "web").unwrap_err().to_string();
            assert!(refused.contains(words), "{refused}");
        };
        busy("rolled back (since 2023-11-14T22:13:20Z)");
        let lock = ContainerLock::settle(dir.path(), ID, "web", Duration::ZERO).await.unwrap();
        busy("being moved to b:7472");
        drop(lock);
        journal.append(&Record::Committed { at: 0 }).unwrap();
        drop(journal);
        busy("in doubt");
        let (mut journal, _) =
            journal::claim(&journal::path(dir.path(), migration)).unwrap().unwrap();
        journal.append(&Record::Acknowledged).unwrap();
        busy("waits to be removed");
        ContainerLock::begin(&directories, OTHER, "db").map(drop).unwrap();
        journal.end().unwrap();
        ContainerLock::begin(&directories, ID, "web").map(drop).unwrap();
    }

    #[test]
    fn a_journal_that_cannot_be_read_might_be_anyones() {
        let dir = tempfile::tempdir().unwrap();
        let directories = directories(dir.path());
        std::fs::create_dir(dir.path().join("journal")).unwrap();
        std::fs::write(dir.path().join("journal/x"), b"rubbish").unwrap();
        let refused = ContainerLock::begin(&directories, ID, "web").unwrap_err().to_string();
        assert!(refused.contains("cannot be read") && refused.contains("journal/x"), "{refused}");
    }

    #[tokio::test]
    async fn who_settles_waits_for_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let directories = directories(dir.path());
        let lock = ContainerLock::begin(&directories, ID, "web").unwrap();
        let short = Duration::from_millis(30);
        let refused = ContainerLock::settle(dir.path(), ID, "web", short).await;
        assert!(matches!(refused, Err(Error::Busy(_))));
        let waits = ContainerLock::settle(dir.path(), ID, "web", Duration::from_secs(10));
        let gives = async { drop(lock) };
        tokio::join!(waits, gives).0.map(drop).unwrap();
    }
}
