//! Staging: making a container on the destination, up to the point where its processes are restored.
//!
//! The engine builds the container's root file system, network namespace, addresses, published ports and
//! mounts while the container still runs on the source, which shows every conflict in time. Then it waits.
//!
//! ```text
//! Engine::stage ──► Staged ── restore ──► Staged (restored) ── commit ──► the engine's container
//!                      └────── abort ◄──────────┘
//! ```
//! [`Staged::commit`] means: the engine takes over. It says nothing about the network: the container can stay
//! cut off after that, and be removed by [`Engine::remove`](crate::Engine::remove).
//!
//! After a crash [`Engine::abort_stage`](crate::Engine::abort_stage) undoes, from any process, and
//! [`Engine::resume_stage`](crate::Engine::resume_stage) takes over a restored container while its lease lasts.

mod error;

pub use error::{Conflict, Error};

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use checkpoint::cgroup::Cgroup;

use crate::description::Description;

/// How long restored tasks may take to be frozen: the freeze is requested before CRIU resumes them.
const FREEZE: Duration = Duration::from_secs(1);

/// What to stage, and with what.
#[derive(Clone, Debug)]
#[must_use = "nothing is staged until the engine gets it"]
pub struct Stage {
    /// The container.
    pub description: Description,
    /// Whether the engine chooses addresses for it, in place of those that it had.
    pub fresh_addresses: bool,
    /// The source's log of the container so far; may be empty.
    pub log: Vec<u8>,
    /// A directory for this migration alone, such as `/run/netmig/ID`: absent, or empty with
    /// mode 0700. On a tmpfs.
    pub work: PathBuf,
    /// The program `netmig-shim`.
    pub shim: PathBuf,
    /// How long a restored container waits for a verdict when this process has died; at most until
    /// [`StagedContainer::expires`].
    pub lease: Duration,
    /// How long staging may take.
    pub deadline: Duration,
    /// A process of the service that runs the container: the container's cgroup is made below that process' own, as by
    /// `--cgroups=split`. Otherwise the engine's own cgroups have it.
    pub beside: Option<i32>,
}

/// What the engine has built around the processes of a staged container.
#[derive(Clone, Debug)]
pub struct StagedContainer {
    /// The full ID on this host.
    pub id: String,
    /// The name.
    pub name: String,
    /// The mounted root file system.
    pub root: PathBuf,
    /// The writable layer of the root file system.
    pub upper: Option<PathBuf>,
    /// What is mounted on `/dev/shm`, when it comes from the host.
    pub shm: Option<PathBuf>,
    /// The path of its network namespace.
    pub netns: Option<PathBuf>,
    /// The container's log. The engine has it open for appending.
    pub log: PathBuf,
    /// The OCI runtime that will restore it.
    pub runtime: PathBuf,
    /// When the engine will give up.
    pub expires: Instant,
}

/// A container whose processes run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Its first process, as seen from the host.
    pub pid: i32,
    /// From the runtime's start to its exit.
    pub elapsed: Duration,
}

/// An engine that has begun to stage a container which it does not know yet. [Stage](Self::stage) with it, or
/// [abandon](Self::abandon) it. Dropped, it ends by itself and
/// leaves its directory.
#[async_trait]
#[must_use = "it must be used or abandoned"]
pub trait PreparedStage: fmt::Debug + Send + Sync {
    /// Stages a container as [`Engine::stage`](crate::Engine::stage) does, and with less to do.
    ///
    /// # Errors
    /// Those of [`Engine::stage`](crate::Engine::stage).
    async fn stage(self: Box<Self>, stage: Stage) -> Result<Box<dyn Staged>, Error>;

    /// Ends the engine's process, which has made nothing, and removes its directory.
    async fn abandon(self: Box<Self>);
}

/// A container that is ready to be restored, or restored and not yet handed over to the engine.
///
/// End it with [`commit`](Self::commit) or [`abort`](Self::abort). Dropped before the restore, the engine gives
/// up and removes most of it; [`Engine::abort_stage`](crate::Engine::abort_stage) does the rest.
#[async_trait]
#[must_use = "a staged container must be committed or aborted"]
pub trait Staged: fmt::Debug + Send + Sync {
    /// Returns what the engine has built.
    fn container(&self) -> &StagedContainer;

    /// Returns the restored container; `None` before the restore.
    fn restored(&self) -> Option<Restored>;

    /// Returns whether the engine still waits to take the container over. Without it a restored container
    /// belongs to no engine, and only an abort makes sense.
    fn is_awaited(&self) -> bool;

    /// Makes sure that the engine has room to note that the container runs: a copy that it cannot take over is
    /// lost, although others may have heard it.
    ///
    /// # Errors
    /// [`Error::Full`], and [`Error::Work`] if the kernel does not tell.
    fn check_room(&self) -> Result<(), Error>;

    /// Returns the directory in which CRIU works during the restore.
    fn criu_directory(&self) -> PathBuf;

    /// Has the OCI runtime do everything that comes before CRIU, and wait. What it reads of the images itself, a
    /// file of descriptors, must be there. May be left out before [`restore`](Self::restore), which takes the
    /// same arguments.
    ///
    /// # Errors
    /// As [`restore`](Self::restore).
    async fn make_ready(
        &mut self,
        images: &Path,
        criu_config: &Path,
        deadline: Duration,
    ) -> Result<(), Error>;

    /// Restores the processes from `images`, with the CRIU options in `criu_config` (a
    /// [`ConfigDir`](checkpoint::criu::ConfigDir)). The images may be removed afterwards.
    ///
    /// With `lazy_pages` the memory follows: something has to serve it at the socket in
    /// [`criu_directory`](Self::criu_directory) ([`LazyPages`](checkpoint::lazy_pages::LazyPages)).
    ///
    /// A CRIU at work is never killed, so after [`Error::Timeout`] only an abort makes sense, which waits for it.
    ///
    /// # Errors
    /// [`Error::Restore`] with the telling lines of CRIU's log, otherwise [`Error`].
    async fn restore(
        &mut self,
        images: &Path,
        criu_config: &Path,
        lazy_pages: bool,
        deadline: Duration,
    ) -> Result<Restored, Error>;

    /// Tells the process that holds the copy that it is the container from now on: nothing that dies has it
    /// deleted.
    ///
    /// # Errors
    /// [`Error::Order`] before a restore, [`Error::Shim`] when that process is gone.
    async fn keep(&mut self) -> Result<(), Error>;

    /// Returns the cgroup of the restored container, once all of its tasks are frozen. Blocks the calling
    /// thread.
    ///
    /// # Errors
    /// [`Error::Order`] before a restore, [`Error::NotFrozen`] when they run.
    fn frozen_cgroup(&self) -> Result<Cgroup, Error> {
        let StagedContainer { id, name, .. } = self.container();
        let restored = self.restored();
        let restored =
            restored.ok_or_else(|| Error::Order { name: name.clone(), what: "freezing" })?;
        frozen_cgroup(restored.pid, id)
            .map_err(|source| Error::NotFrozen { name: name.clone(), source })
    }

    /// Lets the engine take the restored container over, and waits until it has.
    ///
    /// # Errors
    /// [`Error::Order`] before a restore; [`Error`] when the engine failed in its last step.
    async fn commit(self: Box<Self>) -> Result<Restored, Error>;

    /// Removes the container, restored or not, and everything that was made for it.
    ///
    /// # Errors
    /// [`Error::Remove`] and [`Error::Work`]; call [`Engine::abort_stage`](crate::Engine::abort_stage) later.
    async fn abort(self: Box<Self>) -> Result<(), Error>;
}

/// Returns the cgroup of a restored container, once its tasks are frozen. The error is `None` when they do not
/// freeze in time.
fn frozen_cgroup(pid: i32, id: &str) -> Result<Cgroup, Option<checkpoint::cgroup::Error>> {
    let cgroup = Cgroup::of_pid(pid, id)?;
    // The freeze was requested before it could run, unless its runtime has put it into its cgroup only afterwards.
    let was_requested = cgroup.is_freeze_requested()?;
    cgroup.request_freeze()?;
    let was_requested = cgroup.rejoin_restored_tasks()? || was_requested;
    if !was_requested {
        cgroup.adopt_stragglers(pid)?;
    }
    if !cgroup.await_frozen(Instant::now() + FREEZE)? {
        return Err(None);
    }
    if !was_requested {
        cgroup.rewind_calls();
    }
    Ok(cgroup)
}
