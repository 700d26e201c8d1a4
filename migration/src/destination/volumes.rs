//! Volumes that come with a container.
//!
//! Their files arrive in a directory of this migration's own, on the file system of the engine's volumes. The engine makes the
//! volumes themselves when the container is staged. Right before the copy is restored, each volume's directory and that
//! with the files change places ([`rename(2)`], `RENAME_EXCHANGE`). So the engine may fill a new volume from the image and
//! change its owner, and a volume that an earlier move has left is whole until then, and again when the move
//! goes back.
//!
//! [`rename(2)`]: https://man7.org/linux/man-pages/man2/rename.2.html

mod exchange;
mod notes;
mod receiver;

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use engine::Engine;
use protocol::message::{VolumeChange, VolumeEnd};
use state::cause::Cause;
use state::directories::Directories;
use state::id::MigrationId;
use state::journal::{Journal, Record};

use crate::kept_volumes::{self, Standing};
use crate::offered_volume::OfferedVolume;
pub use exchange::exchange;
pub use notes::Notes;
use receiver::Receiver;
pub use receiver::Room;

/// Where files arrive, below the directory of the engine's volumes: no engine's volume has a name with a dot in front.
const ARRIVING: &str = ".netmig";

/// The engine has another volume than was asked for.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// A volume of that name is there.
    #[error("a volume named {0} has appeared on this host; remove or rename it, and try again")]
    Appeared(String),
    /// The volume that the container has left here is gone.
    #[error("the volume {0} on this host was removed meanwhile; try again")]
    Disappeared(String),
    /// A container uses it.
    #[error("container {user} on this host uses the volume {volume}; remove it, and try again")]
    Used { volume: String, user: String },
    /// The volume is not as it should be.
    #[error("{0} has not made the volume {1} as it should be")]
    Other(engine::Kind, String),
    /// It is on another file system than volumes are.
    #[error("the volume {0} is not on the file system of this host's volumes")]
    Elsewhere(String),
    /// Some of it is missing.
    #[error("the files of the volume {0} did not arrive whole; try again")]
    Incomplete(String),
    /// There is no such volume.
    #[error("the source sent files of a volume that it has not offered")]
    NotOffered,
    /// They take more than they may.
    #[error(
        "the volumes take more than the {0} bytes of disk that a container of that host may take here; \
         see `agent-server peers allow` (--disk)"
    )]
    TooLarge(u64),
    /// A file or directory could not be used.
    #[error("cannot {action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// The volumes of a container that is arriving.
#[derive(Debug)]
pub struct Volumes {
    offered: Vec<OfferedVolume>,
    /// The directory of the engine's volumes.
    root: PathBuf,
    receivers: Vec<Receiver>,
    room: Room,
    notes: Notes,
    /// Volumes that the engine has.
    ready: BTreeSet<String>,
}

impl Volumes {
    /// Makes the directory into which the files will come.
    pub async fn begin(
        engine: &dyn Engine,
        journal: &mut Journal,
        migration: MigrationId,
        offered: Vec<OfferedVolume>,
        room: Room,
    ) -> Result<Self, Cause> {
        let root = engine.volume_directory().await?;
        let directory = root.join(ARRIVING).join(migration.to_string());
        let mut notes = Notes::default();
        let made = tokio::task::block_in_place(|| {
            notes.add(journal, Record::VolumeFiles { directory: directory.clone() })?;
            fs::create_dir_all(&root).map_err(failed("create", &root))?;
            let arriving = root.join(ARRIVING);
            create(&arriving).or_else(there).map_err(failed("create", &arriving))?;
            make(&directory)?;
            try_exchange(&directory)?;
            let mut receivers = Vec::new();
            for (number, volume) in offered.iter().enumerate() {
                let place = directory.join(number.to_string());
                make(&place)?;
                receivers.push(Receiver::new(place, volume, room));
            }
            Ok::<_, Cause>(receivers)
        });
        match made {
            Ok(receivers) => {
                Ok(Self { offered, root, receivers, room, notes, ready: BTreeSet::new() })
            }
            Err(cause) => {
                notes.remove_files().await?;
                Err(cause)
            }
        }
    }

    /// Takes a change of a volume's files.
    pub fn change(&mut self, change: VolumeChange) -> Result<(), Cause> {
        self.receiver(change.volume)?.change(change.record)?;
        if self.taken() > self.room.disk {
            Err(Error::TooLarge(self.room.disk).into())
        } else {
            Ok(())
        }
    }

    /// Returns how many bytes of disk all of them take at most.
    pub fn taken(&self) -> u64 {
        self.receivers.iter().map(Receiver::taken).fold(0, u64::saturating_add)
    }

    /// Ends a pass over a volume.
    pub fn end_pass(&mut self, end: &VolumeEnd) -> Result<(), Cause> {
        let name = self.name(end.volume);
        match self.receiver(end.volume)?.end_pass(end.digest)? {
            true => Ok(()),
            false => Err(Error::Incomplete(name).into()),
        }
    }

    /// Makes sure that what has arrived of a volume is on the disk, and takes no more of it than it may.
    pub fn settle_pass(&mut self, volume: u16) -> Result<(), Cause> {
        self.receiver(volume)?.check_room()?;
        self.sync()
    }

    /// Writes everything that has arrived to the disk.
    pub fn sync(&self) -> Result<(), Cause> {
        sync(&self.root)
    }

    /// Has the engine make the volumes, before the container is staged. Those without name of their own it makes with
    /// the container.
    pub async fn prepare(
        &mut self,
        engine: &dyn Engine,
        directories: &Directories,
        journal: &mut Journal,
        container: &str,
    ) -> Result<(), Cause> {
        let names: Vec<&str> = self.offered.iter().map(|volume| volume.name.as_str()).collect();
        let there = engine.volumes(&names).await?;
        for volume in &self.offered {
            if self.notes.is_new(&volume.name) {
                continue;
            }
            let data = engine.volume_data(&self.root, &volume.name);
            if let Some(present) = there.iter().find(|present| present.name == volume.name) {
                let standing = tokio::task::block_in_place(|| {
                    kept_volumes::standing(directories, present, container)
                })?;
                // The engine may have changed it when the container was staged before.
                let is_noted = self.ready.contains(&volume.name);
                let is_its_own =
                    standing == Standing::Left || is_noted && standing == Standing::Changed;
                if !is_its_own || present.data != data {
                    return Err(Error::Appeared(volume.name.clone()).into());
                }
                if let Some(user) = engine.volume_users(&volume.name, container).await?.pop() {
                    let (volume, user) = (volume.name.clone(), user.name);
                    return Err(Error::Used { volume, user }.into());
                }
                if is_noted {
                    continue;
                }
                let inode = metadata(&data)?.ino();
                let name = volume.name.clone();
                let record = Record::LeftVolume { name, data, inode };
                tokio::task::block_in_place(|| self.notes.add(journal, record))?;
                self.ready.insert(volume.name.clone());
                continue;
            }
            if self.ready.contains(&volume.name) {
                return Err(Error::Disappeared(volume.name.clone()).into());
            }
            let (name, is_anonymous) = (volume.name.clone(), volume.is_anonymous);
            let record = Record::NewVolume { name, is_anonymous, data };
            tokio::task::block_in_place(|| self.notes.add(journal, record))?;
            if volume.is_anonymous {
                continue;
            }
            let made = engine.create_volume(&volume.name, &volume.labels).await;
            if let Err(e) = made {
                // Somebody was faster: it is not to be removed.
                let (name, created) = (volume.name.clone(), String::new());
                let record = Record::MadeVolume { name, created };
                tokio::task::block_in_place(|| self.notes.add(journal, record))?;
                return Err(e.into());
            }
            note_made(&mut self.notes, engine, journal, &self.root, volume).await?;
            self.ready.insert(volume.name.clone());
        }
        Ok(())
    }

    /// Looks at the volumes that the engine has made together with the container.
    pub async fn check(&mut self, engine: &dyn Engine, journal: &mut Journal) -> Result<(), Cause> {
        for volume in &self.offered {
            if !self.ready.contains(&volume.name) {
                note_made(&mut self.notes, engine, journal, &self.root, volume).await?;
                self.ready.insert(volume.name.clone());
            }
        }
        // Not only in the interruption.
        for (volume, receiver) in self.offered.iter().zip(&self.receivers) {
            let data = engine.volume_data(&self.root, &volume.name);
            if metadata(&data)?.dev() != metadata(receiver.place())?.dev() {
                return Err(Error::Elsewhere(volume.name.clone()).into());
            }
        }
        Ok(())
    }

    /// Looks again at the volumes that the engine makes together with the container: it is staged once more.
    pub fn expect_again(&mut self) {
        let anonymous = self.offered.iter().filter(|volume| volume.is_anonymous);
        for volume in anonymous.filter(|volume| self.notes.is_new(&volume.name)) {
            self.ready.remove(&volume.name);
        }
    }

    /// Puts the files into the volumes, each of which has to be whole.
    pub fn put_in_place(&mut self, engine: &dyn Engine) -> Result<(), Cause> {
        for (volume, receiver) in self.offered.iter().zip(&self.receivers) {
            if !receiver.is_whole() || !self.ready.contains(&volume.name) {
                return Err(Error::Incomplete(volume.name.clone()).into());
            }
        }
        for (volume, receiver) in self.offered.iter().zip(&self.receivers) {
            let data = engine.volume_data(&self.root, &volume.name);
            exchange(receiver.place(), &data)?;
        }
        Ok(())
    }

    /// Removes what is left of the arrival, once the volumes belong to the container, and forgets that any of them was
    /// left behind.
    pub async fn settle(&self, directories: &Directories) -> Result<(), Cause> {
        self.notes.settle(directories).await
    }

    /// Removes everything, and puts what was there before in its place again.
    pub async fn undo(&self, engine: &dyn Engine) -> Result<(), Cause> {
        self.notes.undo(engine).await
    }

    /// Removes what has arrived, and leaves the volumes as they are: somebody has heard of what is in them.
    pub async fn leave(&self) -> Result<(), Cause> {
        self.notes.remove_files().await
    }

    fn receiver(&mut self, volume: u16) -> Result<&mut Receiver, Error> {
        self.receivers.get_mut(usize::from(volume)).ok_or(Error::NotOffered)
    }

    fn name(&self, volume: u16) -> String {
        let offered = self.offered.get(usize::from(volume));
        offered.map(|offered| offered.name.clone()).unwrap_or_default()
    }
}

/// Notes by what a volume is known that the engine has just made.
async fn note_made(
    notes: &mut Notes,
    engine: &dyn Engine,
    journal: &mut Journal,
    root: &Path,
    volume: &OfferedVolume,
) -> Result<(), Cause> {
    let made = engine.volumes(&[&volume.name]).await?.pop();
    let other = || Error::Other(engine.kind(), volume.name.clone());
    let made = made.ok_or_else(other)?;
    let is_wanted = made.is_plain()
        && made.is_anonymous == volume.is_anonymous
        && made.labels == volume.labels
        && made.data == engine.volume_data(root, &volume.name);
    // Another one is somebody else's, and is not to be removed.
    let created = if is_wanted { made.created } else { String::new() };
    let record = Record::MadeVolume { name: made.name, created };
    tokio::task::block_in_place(|| notes.add(journal, record))?;
    if is_wanted { Ok(()) } else { Err(other().into()) }
}

/// Makes sure that directories of this file system can change places.
fn try_exchange(directory: &Path) -> Result<(), Cause> {
    let trials = ["one", "other"].map(|name| directory.join(name));
    trials.iter().try_for_each(|trial| make(trial))?;
    let [one, other] = &trials;
    exchange(one, other)?;
    let remove = |trial: &PathBuf| fs::remove_dir(trial).map_err(failed("remove", trial));
    Ok(trials.iter().try_for_each(remove)?)
}

/// Writes what is on the file system of a directory to the disk.
fn sync(directory: &Path) -> Result<(), Cause> {
    let file = File::open(directory).map_err(failed("open", directory))?;
    let written = nix::unistd::syncfs(file).map_err(std::io::Error::from);
    Ok(written.map_err(failed("write to the disk what is in", directory))?)
}

fn make(path: &Path) -> Result<(), Error> {
    create(path).map_err(failed("create", path))
}

fn create(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

fn metadata(path: &Path) -> Result<fs::Metadata, Error> {
    fs::symlink_metadata(path).map_err(failed("look at", path))
}

/// Returns an error that names what was tried on which path.
fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_path_buf();
    move |source| Error::File { action, path, source }
}

fn there(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}
