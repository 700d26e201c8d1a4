//! The systemd unit of a container that arrives.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use engine::Engine;
use services::{Arrival, Guard, Manager, UnitName};
use state::cause::Cause;
use state::journal::{Journal, Record};
use tokio::task::block_in_place;

use crate::offered_service::OfferedService;
use crate::source::service::QUADLET;

/// The agent's program was replaced while it ran.
#[derive(Debug, thiserror::Error)]
#[error("the program of agent-server was replaced; restart agent-server")]
struct Replaced;

/// systemd makes another unit of the files.
#[derive(Debug, thiserror::Error)]
#[error("{0} starts with another command here than at the source")]
struct OtherCommand(UnitName);

/// What a journal tells of a unit that was started for a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceNote {
    unit: UnitName,
    was_guarded: bool,
    files: Vec<PathBuf>,
}

impl ServiceNote {
    /// Reads the records of a journal.
    #[must_use]
    pub fn read(records: &[Record]) -> Option<Self> {
        records.iter().find_map(|record| match record {
            Record::ArrivingUnit { unit, was_guarded, files } => Some(Self {
                unit: unit.parse().ok()?,
                was_guarded: *was_guarded,
                files: files.clone(),
            }),
            _ => None,
        })
    }

    /// Has systemd take the monitor of a container for the unit's main process. A unit that was stopped meanwhile, together with
    /// its container, is told of in the log.
    ///
    /// # Errors
    /// The engine or systemd does not answer. Calling again is safe.
    pub async fn hand_over(&self, engine: &dyn Engine, container: &str) -> Result<(), Cause> {
        let manager = Manager::connect().await?;
        let monitor = match engine.inspect(container).await {
            Ok(container) => container.monitor_pid,
            Err(engine::Error::NoSuchContainer { .. }) => 0,
            Err(e) => return Err(e.into()),
        };
        let arrival = Arrival::of(self.unit.clone());
        if monitor <= 1 {
            tracing::error!(
                "the container of {} ended before systemd could take it over; {} is stopped",
                self.unit,
                self.unit
            );
            return Ok(arrival.end(&manager, false).await?);
        }
        match arrival.hand_over(&manager, monitor).await {
            Err(e @ services::Error::Changed { .. }) => {
                tracing::error!("{e}, and its container ended with it");
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Stops the unit, once its container is gone, and leaves it as it was. `is_lost` says that the container may run elsewhere
    /// or nowhere: then the unit stays guarded.
    ///
    /// # Errors
    /// systemd does not answer, or a file stays. Calling again is safe.
    pub async fn undo(&self, is_lost: bool) -> Result<(), Cause> {
        let manager = Manager::connect().await?;
        Arrival::of(self.unit.clone()).end(&manager, self.was_guarded || is_lost).await?;
        if !is_lost && !self.files.is_empty() {
            block_in_place(|| self.files.iter().try_for_each(|path| remove(path)))?;
            manager.reload().await?;
        }
        Ok(())
    }
}

/// A unit that runs a container which arrives.
#[derive(Debug)]
pub struct ArrivingService {
    offered: OfferedService,
    note: ServiceNote,
    is_noted: bool,
}

impl ArrivingService {
    /// Takes an offered unit that admission has let pass.
    #[must_use]
    pub fn of(offered: OfferedService) -> Self {
        let unit = offered.unit.clone();
        let files = offered.files.iter().map(|file| Path::new(QUADLET).join(&file.path));
        let was_guarded = Guard::of(unit.clone()).is_up();
        Self {
            note: ServiceNote { unit, was_guarded, files: files.collect() },
            offered,
            is_noted: false,
        }
    }

    /// Starts the unit without its own command. `holder` is this program's option for a process that only waits, `from` the
    /// source, for people. Returns such a process.
    ///
    /// # Errors
    /// The journal or a file cannot be written, or systemd does not start the unit.
    pub async fn begin(
        &mut self,
        journal: &mut Journal,
        holder: &str,
        from: &str,
    ) -> Result<i32, Cause> {
        let manager = Manager::connect().await?;
        let program = std::env::current_exe()?;
        if !program.exists() {
            return Err(Replaced.into());
        }
        let ServiceNote { unit, was_guarded, .. } = self.note.clone();
        if manager.unit(&unit).await?.load != "not-found" && !self.is_noted {
            self.offered.files.clear();
            self.note.files.clear();
        }
        if !self.is_noted {
            let files = self.note.files.clone();
            let record = Record::ArrivingUnit { unit: unit.to_string(), was_guarded, files };
            block_in_place(|| journal.append(&record))?;
            self.is_noted = true;
            block_in_place(|| self.write_files())?;
        }
        let arrival = Arrival::of(unit.clone());
        // What an earlier attempt has left has other control groups.
        arrival.end(&manager, true).await?;
        if !self.offered.files.is_empty() {
            manager.reload().await?;
        }
        if manager.unit(&unit).await?.start != self.offered.start {
            return Err(OtherCommand(unit).into());
        }
        Ok(arrival.begin(&manager, from, &[program, holder.into()]).await?)
    }

    /// Writes the files that make the unit. None of them is there.
    fn write_files(&self) -> Result<(), Cause> {
        for (file, path) in self.offered.files.iter().zip(&self.note.files) {
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory)?;
            }
            let mut new = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
            new.write_all(file.content.as_bytes())?;
            new.sync_all()?;
        }
        if !self.note.files.is_empty() {
            File::open(QUADLET)?.sync_all()?;
        }
        Ok(())
    }

    /// Returns what the journal tells of it; `None` if nothing was changed yet.
    #[must_use]
    pub fn note(&self) -> Option<&ServiceNote> {
        self.is_noted.then_some(&self.note)
    }
}

/// Removes a file, and its directory if that was made for it. Absent means done.
fn remove(path: &Path) -> Result<(), Cause> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    if let Some(directory) = path.parent().filter(|directory| *directory != Path::new(QUADLET)) {
        let _ = fs::remove_dir(directory);
    }
    Ok(())
}
