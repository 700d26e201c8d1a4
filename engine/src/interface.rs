//! What a migration asks of a container engine.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use checkpoint::cgroup::Cgroup;
use tokio::io::AsyncRead;

use crate::Error;
use crate::description::Description;
use crate::inspect::{Container, Summary};
use crate::stage::{self, PreparedStage, Stage, Staged};
use crate::volume::{Volume, VolumeUser};

/// A kind of container engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// podman.
    Podman,
}

impl Kind {
    /// Returns the engine's name, which is that of its program as well.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Podman => "podman",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A container's settings as its engine has recorded them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// The settings.
    pub description: Description,
    /// Settings that have no place in the description, by the engine's names for them.
    pub lost: BTreeSet<String>,
    /// Whether the container has secrets that the engine keeps. They are not among [`lost`](Self::lost).
    pub has_secrets: bool,
}

/// An address of a container on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The address.
    pub address: IpAddr,
    /// The network that it belongs to.
    pub network: String,
    /// The container's name.
    pub container: String,
}

/// A container engine on this host.
///
/// A container is given by its full ID, and by its name where a method says so. The destination's engine may
/// give a container another ID than it has at the source; [`Staged::container`] tells it.
#[async_trait]
pub trait Engine: fmt::Debug + Send + Sync {
    /// Returns which engine this is.
    fn kind(&self) -> Kind;

    /// Returns the engine's version, as it prints it.
    ///
    /// # Errors
    /// [`Error`] when the engine does not answer.
    async fn version(&self) -> Result<String, Error>;

    /// Reads the engine's configuration once; every later call uses what was read. Without it each call that
    /// needs the configuration reads it again, for which podman waits until no container is being staged.
    ///
    /// # Errors
    /// [`Error`] when the engine does not answer.
    async fn keep_configuration(&self) -> Result<(), Error>;

    /// Returns the running containers, by name. Containers that belong to the engine itself are left out.
    ///
    /// # Errors
    /// [`Error`] when the engine does not answer.
    async fn list_running(&self) -> Result<Vec<Summary>, Error>;

    /// Returns the full ID and the cgroup of a container, given by its ID or exact name, without running the
    /// engine: `None` where they cannot be told so.
    fn cgroup(&self, id_or_name: &str) -> Option<(String, Cgroup)>;

    /// Describes a running container, given by its exact ID or name, by the engine's records alone, in about a
    /// millisecond: `None` where they do not tell all of it, and for a container that does not run.
    fn recorded(&self, id_or_name: &str) -> Option<Container>;

    /// Describes a container, given by name, ID or the start of an ID. Reads the engine's records if they
    /// tell all of it, which saves most of the time.
    ///
    /// # Errors
    /// As [`inspect`](Self::inspect).
    async fn describe(&self, name_or_id: &str) -> Result<Container, Error>;

    /// Describes a container, given by name, ID or the start of an ID, by asking the engine.
    ///
    /// # Errors
    /// [`Error::BadName`] and [`Error::NoSuchContainer`]; otherwise [`Error`] when the engine does not answer or
    /// the container's bundle cannot be read.
    async fn inspect(&self, name_or_id: &str) -> Result<Container, Error>;

    /// Returns all settings of a container, from the engine's records.
    ///
    /// # Errors
    /// [`Error::BadId`] unless `id` is a full ID; otherwise [`Error`] when the records cannot be read or have no
    /// such container.
    async fn description(&self, id: &str) -> Result<Described, Error>;

    /// Returns the systemd unit that runs a container and would start it again on this host.
    fn service_unit(&self, container: &Container) -> Option<String>;

    /// Returns whether a container of that ID or name exists. Waits for no container's lock.
    ///
    /// # Errors
    /// [`Error`] when the engine does not answer.
    async fn exists(&self, name_or_id: &str) -> Result<bool, Error>;

    /// Returns whether a container exists whose restore the engine has finished, running or not.
    ///
    /// # Errors
    /// [`Error`] when the engine does not answer.
    async fn is_restored(&self, id: &str) -> Result<bool, Error>;

    /// Returns when a container was last started or restored, in seconds since 1970; 0 if never.
    ///
    /// # Errors
    /// [`Error`] when the engine does not answer.
    async fn started_at(&self, id: &str) -> Result<u64, Error>;

    /// Sets a container's restart policy, such as `no` or `on-failure:3`.
    ///
    /// # Errors
    /// [`Error`] when the engine refuses.
    async fn set_restart_policy(&self, id: &str, policy: &str) -> Result<(), Error>;

    /// Keeps the engine from acting when a container's processes end: they are about to be killed, and the
    /// container may not be started again by its restart policy. `monitor` is
    /// [`Container::monitor_pid`] as it was before.
    ///
    /// # Errors
    /// [`Error`] when the engine or the kernel refuses.
    async fn ignore_exit(&self, id: &str, monitor: i32) -> Result<(), Error>;

    /// Removes what the engine keeps in the kernel for a container that has ended, such as mounts: it may have met files
    /// there that an agent had open. A container that runs, or is gone, is left alone.
    ///
    /// # Errors
    /// [`Error`] when the engine refuses.
    async fn clean_up(&self, id: &str) -> Result<(), Error>;

    /// Records a container as paused: the engine neither starts nor restarts it until [`unpause`](Self::unpause). A
    /// container that is frozen already stays so.
    ///
    /// # Errors
    /// [`Error`] when the engine refuses.
    async fn pause(&self, id: &str) -> Result<(), Error>;

    /// Lets a container that is recorded as paused run. One that is not paused, or is gone, is left alone.
    ///
    /// # Errors
    /// [`Error`] when the engine refuses.
    async fn unpause(&self, id: &str) -> Result<(), Error>;

    /// Kills and removes a container, running, frozen, paused or half-made, without ever letting a frozen one run. Absent
    /// means done; calling again is safe.
    ///
    /// # Errors
    /// [`Error::BadId`] unless `id` is a full ID; otherwise [`Error`] when the engine fails.
    async fn remove(&self, id: &str) -> Result<(), Error>;

    /// Prepares for a removal as far as that is possible without knowing the container: `None` if the engine
    /// needs no preparation.
    ///
    /// # Errors
    /// [`Error`] when the engine cannot be started.
    fn prepare_removal(&self) -> Result<Option<Box<dyn PreparedRemoval>>, Error>;

    /// Returns the ID of the image of that name; `None` when the name is not known here.
    ///
    /// # Errors
    /// [`Error`] when the engine does not answer.
    async fn image_id(&self, name: &str) -> Result<Option<String>, Error>;

    /// Returns whether the image of that ID is here, under whichever name.
    ///
    /// # Errors
    /// [`Error::BadId`] unless `id` is a full ID; otherwise [`Error`] when the engine does not answer.
    async fn has_image(&self, id: &str) -> Result<bool, Error>;

    /// Starts to write an image, given by name or ID, to a stream.
    ///
    /// # Errors
    /// [`Error`] when the engine cannot be started.
    fn save_image(&self, name_or_id: &str) -> Result<Box<dyn ImageExport>, Error>;

    /// Reads an image from a stream. The caller checks with [`has_image`](Self::has_image) that it is the one
    /// that was meant.
    ///
    /// # Errors
    /// [`Error`] when the stream breaks or the engine refuses it.
    async fn load_image(&self, from: &mut (dyn AsyncRead + Send + Unpin)) -> Result<(), Error>;

    /// Returns all names of images here, each with the image's ID.
    ///
    /// # Errors
    /// [`Error`] when the engine does not answer.
    async fn image_names(&self) -> Result<BTreeMap<String, String>, Error>;

    /// Gives an image one more name.
    ///
    /// # Errors
    /// [`Error::BadId`] unless `id` is a full ID; otherwise [`Error`] when the engine refuses.
    async fn tag_image(&self, id: &str, name: &str) -> Result<(), Error>;

    /// Takes a name from an image. The image stays.
    ///
    /// # Errors
    /// As [`tag_image`](Self::tag_image).
    async fn untag_image(&self, id: &str, name: &str) -> Result<(), Error>;

    /// Returns the name of the network of containers that have asked for none.
    fn default_network(&self) -> &'static str;

    /// Returns whether there is a network of that name.
    ///
    /// # Errors
    /// [`Error`] when the engine does not answer.
    async fn has_network(&self, name: &str) -> Result<bool, Error>;

    /// Returns the containers, other than that with the ID `except`, that have one of these addresses. What
    /// cannot be read is left out: the engine refuses an address that is taken when the container is made.
    async fn holders(&self, addresses: &[IpAddr], except: &str) -> Vec<Holder>;

    /// Returns the containers, other than that with the ID `except`, that are in one of these networks. What
    /// cannot be read is left out.
    async fn members(&self, networks: &[&str], except: &str) -> Vec<Holder>;

    /// Returns the names by which the name servers of these networks know containers other than that with the
    /// ID `except`.
    fn resolvable_names(&self, networks: &[&str], except: &str) -> BTreeSet<String>;

    /// Returns those of the named volumes that exist.
    ///
    /// # Errors
    /// [`Error`] when the engine does not answer.
    async fn volumes(&self, names: &[&str]) -> Result<Vec<Volume>, Error>;

    /// Makes a volume that is a plain directory.
    ///
    /// # Errors
    /// [`Error`] when the engine refuses, or has a volume of that name.
    async fn create_volume(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), Error>;

    /// Removes a volume that no container has mounted. Absent means done.
    ///
    /// # Errors
    /// [`Error`] when the engine refuses, or a container has it mounted.
    async fn remove_volume(&self, name: &str) -> Result<(), Error>;

    /// Returns the containers, other than that with the ID `except`, that have a volume mounted, running or not.
    ///
    /// # Errors
    /// [`Error`] when the engine does not answer.
    async fn volume_users(&self, name: &str, except: &str) -> Result<Vec<VolumeUser>, Error>;

    /// Returns the directory in which the engine keeps its plain volumes, each in a directory of its name.
    ///
    /// # Errors
    /// [`Error`] when the engine does not answer.
    async fn volume_directory(&self) -> Result<PathBuf, Error>;

    /// Returns the directory of the files of a plain volume, below [`volume_directory`](Self::volume_directory).
    fn volume_data(&self, directory: &Path, name: &str) -> PathBuf;

    /// Returns the name of the program that is process 1 of containers with an init, if this host lacks it.
    fn missing_init(&self) -> Option<&'static str>;

    /// Begins to stage a container that is not known yet, where the engine can: `None` otherwise. `work` is what
    /// [`Stage::work`] will be, `shim` what [`Stage::shim`] will be.
    ///
    /// # Errors
    /// [`stage::Error`]; nothing is left then.
    async fn prepare_stage(
        &self,
        work: &Path,
        shim: &Path,
    ) -> Result<Option<Box<dyn PreparedStage>>, stage::Error>;

    /// Returns whether a working directory is that of a [prepared stage](Self::prepare_stage) which has not
    /// been used.
    fn is_unused_stage(&self, work: &Path) -> bool;

    /// Waits until the processes of an unused stage have ended, whose maker is dead; `false` if they do not.
    async fn unused_stage_ended(&self, work: &Path) -> bool;

    /// Makes a container, and waits until only the restore of its processes is missing.
    ///
    /// Refuses an ID that exists before anything is made, so that an abort never hits another container. On
    /// any error what was made is removed again.
    ///
    /// # Errors
    /// [`stage::Error::Conflict`] when something on this host is in the way, otherwise [`stage::Error`].
    async fn stage(&self, stage: Stage) -> Result<Box<dyn Staged>, stage::Error>;

    /// Takes over a restored container from a process that has died, while its lease lasts. `id` and `name` are
    /// those of its description.
    ///
    /// # Errors
    /// [`stage::Error::Timeout`] when nothing answers: there is nothing to take over, and
    /// [`abort_stage`](Self::abort_stage) removes what is left.
    async fn resume_stage(
        &self,
        id: &str,
        name: &str,
        work: &Path,
        deadline: Duration,
    ) -> Result<Box<dyn Staged>, stage::Error>;

    /// Removes a container that was staged with this working directory, restored or not, and everything that
    /// was made for it. Absent means done; calling again is safe. `id` is that of its description.
    ///
    /// Only a container that the working directory names is removed, or, when the directory is gone (a reboot
    /// empties `/run`), one whose restore the engine has not finished and that was made after `since`, when the
    /// migration began in seconds since 1970. So a container of the same ID that lives here rightfully stays.
    ///
    /// # Errors
    /// [`stage::Error::Remove`] when the engine fails, [`stage::Error::Work`] when the directory stays.
    async fn abort_stage(
        &self,
        id: &str,
        work: &Path,
        since: Option<u64>,
    ) -> Result<(), stage::Error>;
}

/// A removal that waits to be told which container. Dropped, or when its maker dies, it removes none.
#[async_trait]
#[must_use = "nothing is removed until it is told what"]
pub trait PreparedRemoval: fmt::Debug + Send + Sync {
    /// Does the same as [`Engine::remove`], earlier.
    ///
    /// # Errors
    /// Those of [`Engine::remove`], which is called should the prepared one fail.
    async fn remove(self: Box<Self>, id: &str) -> Result<(), Error>;

    /// Ends it without any removal.
    async fn abandon(self: Box<Self>);
}

/// An image that the engine writes to a stream. Read [`stream`](Self::stream) to its end, then call
/// [`finish`](Self::finish). Dropped before that, the engine stops.
#[async_trait]
pub trait ImageExport: fmt::Debug + Send + Sync {
    /// Returns the image as a docker archive (a tar).
    fn stream(&mut self) -> &mut (dyn AsyncRead + Send + Unpin);

    /// Waits until the engine has ended, after the stream has.
    ///
    /// # Errors
    /// [`Error`] when the engine failed: what was read is not a whole image.
    async fn finish(self: Box<Self>) -> Result<(), Error>;
}
