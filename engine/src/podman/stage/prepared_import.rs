//! podman's import, started before it is known what there is to import.
//!
//! podman needs a tenth of a second to start, and as much again for the process in which it unpacks an
//! archive. Neither has to wait for the container's description. Until that is there the archive is a
//! link to podman's standard input: a pipe, into which only the beginning goes that all archives have in
//! common. When the archive is complete, the file takes the link's place, since podman reads it three
//! times; the rest goes into the pipe, which ends.
//!
//! All that podman does until then is to look for the runtime's name in the archive
//! (`cmd/podman/root.go`, `persistentPreRunE`); it opens neither its database nor its store before it has
//! found it. When the process that started it dies, the pipe ends as well, and podman with an error. So
//! nothing is left but files in the working directory.

use std::os::unix::fs::symlink;
use std::path::Path;

use async_trait::async_trait;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin};

use super::cleanup::PATIENCE;
use super::work_dir::WorkDir;
use super::{Error, Staging, import, import_archive};
use crate::podman::{Info, Podman};
use crate::stage::{PreparedStage, Stage, Staged};

/// A file that is the reader's standard input (proc_pid_fd(5)).
const STANDARD_INPUT: &str = "/proc/self/fd/0";

/// A podman that waits for the rest of an archive. Dropped, it ends by itself and leaves its directory.
#[derive(Debug)]
#[must_use = "a podman that waits must be told what for, or ended"]
pub(in crate::podman) struct PreparedImport {
    podman: Podman,
    info: Info,
    pub(super) work: WorkDir,
    pub(super) child: Child,
    pub(super) input: ChildStdin,
}

impl PreparedImport {
    /// Starts podman. `work` is what [`Stage::work`] will be, `shim` what [`Stage::shim`].
    ///
    /// # Errors
    /// [`Error::Work`] and [`Error::InUse`] for the directory, [`Error::Start`] when podman cannot be
    /// started. Nothing is left then.
    pub(in crate::podman) async fn start(
        podman: Podman,
        info: Info,
        work: &Path,
        shim: &Path,
    ) -> Result<Self, Error> {
        let work = WorkDir::create(work)?;
        match Self::launch(&podman, &info, &work, shim).await {
            Ok((child, input)) => Ok(Self { podman, info, work, child, input }),
            Err(error) => {
                if let Err(undo) = work.remove() {
                    tracing::warn!(error = %undo, "a directory stays");
                }
                Err(error)
            }
        }
    }

    async fn launch(
        podman: &Podman,
        info: &Info,
        work: &WorkDir,
        shim: &Path,
    ) -> Result<(Child, ChildStdin), Error> {
        work.link(shim, &info.conmon_path)?;
        let path = work.archive();
        symlink(STANDARD_INPUT, &path).map_err(work.fail(&path))?;
        let (child, mut input) = import::import_from_pipe(podman, work)?;
        if let Some(pid) = child.id() {
            work.note_podman(pid)?;
        }
        let beginning = import_archive::beginning().map_err(work.fail(&path))?;
        input.write_all(&beginning).await.map_err(work.fail(&path))?;
        Ok((child, input))
    }

    /// Ends podman, which has made nothing, and removes its directory.
    pub(super) async fn end(self) {
        let Self { work, mut child, input, .. } = self;
        drop(input);
        // It leads a session of its own, and so a group of that number.
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 1)
        {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if tokio::time::timeout(PATIENCE, child.wait()).await.is_err() {
            tracing::warn!("a podman that was told nothing has not ended");
        }
        if let Err(error) = work.remove() {
            tracing::warn!(%error, "a directory stays");
        }
    }
}

#[async_trait]
impl PreparedStage for PreparedImport {
    async fn stage(self: Box<Self>, stage: Stage) -> Result<Box<dyn Staged>, Error> {
        let staging = Staging::new(self.podman.clone(), self.info.clone(), stage);
        Ok(Box::new(staging.begin(Some(*self)).await?))
    }

    async fn abandon(self: Box<Self>) {
        self.end().await;
    }
}

/// Returns whether a working directory is that of a podman that was told nothing.
pub(in crate::podman) fn is_untold(work: &Path) -> bool {
    WorkDir { dir: work.to_path_buf() }.archive().is_symlink()
}

/// Waits until the podman of a working directory has ended, whose maker is dead; `false` if it does not.
pub(in crate::podman) async fn has_ended(work: &Path) -> bool {
    match (WorkDir { dir: work.to_path_buf() }).podman() {
        Some(pid) => import::wait_gone(pid, PATIENCE).await,
        None => true,
    }
}
