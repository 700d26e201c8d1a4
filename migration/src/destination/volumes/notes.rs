//! What a journal tells of volumes that came with a container, and what follows when the move has ended, either way.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use engine::Engine;
use state::cause::Cause;
use state::directories::Directories;
use state::id::MigrationId;
use state::journal::{self, Journal, Record};
use tokio::task::block_in_place;

use super::{Error, exchange, failed, sync};
use crate::kept_volumes;

/// A volume that the engine was told to make.
#[derive(Clone, Debug)]
struct New {
    name: String,
    is_anonymous: bool,
    data: PathBuf,
    /// When it was made, once that is known; empty if it is another one.
    created: Option<String>,
}

/// A volume that was there before.
#[derive(Clone, Debug)]
struct Left {
    name: String,
    data: PathBuf,
    inode: u64,
}

/// What is noted of volumes.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    directory: Option<PathBuf>,
    new: Vec<New>,
    left: Vec<Left>,
}

impl Notes {
    /// Reads what a journal tells.
    #[must_use]
    pub fn read(records: &[Record]) -> Self {
        let mut notes = Self::default();
        records.iter().for_each(|record| notes.take(record));
        notes
    }

    /// Returns whether a volume was to be made.
    pub(super) fn is_new(&self, name: &str) -> bool {
        self.new.iter().any(|new| new.name == name)
    }

    /// Writes a record, and keeps what it says.
    pub(super) fn add(
        &mut self,
        journal: &mut Journal,
        record: Record,
    ) -> Result<(), journal::Error> {
        journal.append(&record)?;
        self.take(&record);
        Ok(())
    }

    fn take(&mut self, record: &Record) {
        match record {
            Record::VolumeFiles { directory } => self.directory = Some(directory.clone()),
            Record::NewVolume { name, is_anonymous, data } => self.new.push(New {
                name: name.clone(),
                is_anonymous: *is_anonymous,
                data: data.clone(),
                created: None,
            }),
            Record::MadeVolume { name, created } => {
                let new = self.new.iter_mut().find(|new| new.name == *name);
                if let Some(new) = new {
                    new.created = Some(created.clone());
                }
            }
            Record::LeftVolume { name, data, inode } => {
                self.left.push(Left { name: name.clone(), data: data.clone(), inode: *inode });
            }
            _ => {}
        }
    }

    /// Writes the files of the volumes to the disk.
    ///
    /// # Errors
    /// The kernel reports an error of the disk.
    pub fn sync(&self) -> Result<(), Cause> {
        match self.directory.as_deref().and_then(Path::parent).filter(|path| path.exists()) {
            Some(directory) => sync(directory),
            None => Ok(()),
        }
    }

    /// Returns the names of the volumes that came.
    fn names(&self) -> impl Iterator<Item = &str> {
        let left = self.left.iter().map(|left| left.name.as_str());
        left.chain(self.new.iter().map(|new| new.name.as_str()))
    }

    /// Logs that the volumes stay, although the copy that has written to them is gone.
    pub fn tell_that_they_stay(&self, migration: MigrationId) {
        for volume in self.names() {
            tracing::error!(
                "{migration}: the volume {volume} stays here, with what the copy has written to it"
            );
        }
    }

    /// Forgets that volumes were left behind, and removes what is left of the arrival.
    ///
    /// # Errors
    /// A note or a file stays.
    pub async fn settle(&self, directories: &Directories) -> Result<(), Cause> {
        for name in self.names() {
            kept_volumes::forget(directories, name)?;
        }
        self.remove_files().await
    }

    /// Removes the volumes that were made, puts the files of others back, and removes what has arrived. The container that
    /// was staged must be gone.
    ///
    /// # Errors
    /// The engine or the kernel refuses. Calling again is safe.
    pub async fn undo(&self, engine: &dyn Engine) -> Result<(), Cause> {
        for left in &self.left {
            block_in_place(|| self.put_back(left))?;
        }
        for new in &self.new {
            let present = engine.volumes(&[&new.name]).await?.pop();
            let is_ours = present.is_some_and(|present| match &new.created {
                Some(created) => *created == present.created,
                // It was made in the moment in which the agent died, or by somebody else then. Nothing is in it, or it is one
                // of those that the engine fills and names itself.
                None => new.is_anonymous && present.is_anonymous || is_empty(&new.data),
            });
            if is_ours {
                engine.remove_volume(&new.name).await?;
            }
        }
        self.remove_files().await
    }

    /// Puts the files of a volume back that were replaced.
    fn put_back(&self, left: &Left) -> Result<(), Cause> {
        let Some(directory) = &self.directory else { return Ok(()) };
        if inode(&left.data)? == Some(left.inode) {
            return Ok(());
        }
        let places = match fs::read_dir(directory) {
            // Somebody has removed what was to be put back.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                tracing::warn!(
                    "{} is gone, and with it what was in the volume {}",
                    directory.display(),
                    left.name
                );
                return Ok(());
            }
            other => other.map_err(failed("read", directory))?,
        };
        for place in places {
            let place = place.map_err(failed("read", directory))?.path();
            if inode(&place)? == Some(left.inode) {
                return exchange(&place, &left.data);
            }
        }
        // Somebody has removed the volume, or replaced it: nothing is to be put back.
        Ok(())
    }

    /// Removes what has arrived, or was replaced.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn remove_files(&self) -> Result<(), Cause> {
        let Some(directory) = self.directory.clone() else { return Ok(()) };
        // There may be a lot of them.
        let removed = tokio::task::spawn_blocking(move || {
            match fs::remove_dir_all(&directory) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &directory)(e));
                }
                _ => {}
            }
            // Files of another move keep it.
            directory.parent().map(fs::remove_dir);
            Ok(())
        });
        Ok(removed.await??)
    }
}

/// Returns a directory's inode; `None` if there is none.
fn inode(path: &Path) -> Result<Option<u64>, Error> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("look at", path)(e)),
    }
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_replaced_is_put_back_whenever_the_agent_died() {
        let dir = tempfile::tempdir().unwrap();
        let (arriving, data) = (dir.path().join("arriving"), dir.path().join("data"));
        let engine = engine::detect(None);
        for was_exchanged in [false, true] {
            fs::create_dir_all(arriving.join("0")).unwrap();
            fs::write(arriving.join("0/new"), "x").unwrap();
            fs::create_dir_all(&data).unwrap();
            fs::write(data.join("old"), "x").unwrap();
            let inode = fs::metadata(&data).unwrap().ino();
            let records = [
                Record::VolumeFiles { directory: arriving.clone() },
                Record::LeftVolume { name: "data".to_owned(), data: data.clone(), inode },
            ];
            if was_exchanged {
                exchange(&arriving.join("0"), &data).unwrap();
                assert!(data.join("new").exists());
            }
            for _ in 0..2 {
                Notes::read(&records).undo(&*engine).await.unwrap();
                assert!(data.join("old").exists() && !data.join("new").exists());
                assert!(!arriving.exists());
            }
        }
    }
}
