//! Removal of a container.

use std::process::Stdio;

use async_trait::async_trait;
use tokio::io::AsyncWriteExt;
use tokio::process::Child;

use super::command::Overdue;
use super::{Error, Podman, exit_file};
use crate::PreparedRemoval;
use crate::inspect::is_full_id;

/// A file that is the reader's standard input (proc_pid_fd(5)).
const STANDARD_INPUT: &str = "/proc/self/fd/0";

impl Podman {
    /// Kills and removes a container, running, frozen or half-made. Absent means done.
    ///
    /// A container frozen in its cgroup dies as well: version 2 of cgroups lets SIGKILL through.
    /// podman marks it as stopped by the user, so that `--restart=always` does not start it
    /// again, and holds its lock from the kill to the removal. When this takes longer than the
    /// deadline podman goes on by itself; calling again is safe.
    ///
    /// # Errors
    /// [`crate::Error::BadId`] unless `id` is a full ID; [`Error`] when podman fails.
    pub(super) async fn remove(&self, id: &str) -> Result<(), crate::Error> {
        if !is_full_id(id) {
            return Err(crate::Error::bad_id(id));
        }
        // --ignore: absent is fine; -t 0: SIGKILL at once.
        let args = ["rm", "--force", "--ignore", "--time", "0", "--", id];
        let removed = self.run(&args, self.deadlines.remove, Overdue::Leave).await;
        let Err(refused @ Error::Failed { .. }) = removed else {
            return removed.map(drop).map_err(Into::into);
        };
        // A container that was paused, and has been killed together with its conmon.
        if !exit_file::write_for_dead(&self.info().await?, id)? {
            return Err(refused.into());
        }
        self.run(&args, self.deadlines.remove, Overdue::Leave).await?;
        Ok(())
    }

    /// Starts a podman that will remove a container and does not know yet which one: it has read its
    /// configuration by the time it is told. It reads the ID from its standard input, as from a file.
    ///
    /// # Errors
    /// [`Error::Spawn`].
    pub(super) fn prepare_removal(&self) -> Result<PodmanRemoval, Error> {
        let args = ["rm", "--force", "--ignore", "--time", "0", "--cidfile", STANDARD_INPUT];
        let child = self.spawn(&args, Stdio::piped(), Stdio::null())?;
        Ok(PodmanRemoval { podman: self.clone(), child })
    }
}

/// A podman that waits to be told what to remove. Dropped, or when its maker dies, it hears of no
/// container and ends with an error; nothing was removed.
#[derive(Debug)]
#[must_use = "nothing is removed until it is told what"]
pub(super) struct PodmanRemoval {
    podman: Podman,
    child: Child,
}

#[async_trait]
impl PreparedRemoval for PodmanRemoval {
    async fn remove(self: Box<Self>, id: &str) -> Result<(), crate::Error> {
        let Self { podman, mut child } = *self;
        if !is_full_id(id) {
            return Err(crate::Error::bad_id(id));
        }
        let word = child.stdin.take();
        let told = async {
            if let Some(mut word) = word {
                word.write_all(id.as_bytes()).await?;
            }
            // podman reads to the end of what it is told.
            child.wait().await
        };
        match tokio::time::timeout(podman.deadlines.remove, told).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            other => {
                tracing::debug!(?other, "a prepared removal failed");
                podman.remove(id).await
            }
        }
    }

    async fn abandon(mut self: Box<Self>) {
        // It has not been told anything, so there is nothing that it could leave half done.
        let _ = self.child.kill().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    /// Returns a stand-in that notes which container it is told to remove, by the file that is named last.
    fn noting(dir: &Path) -> Podman {
        let path = dir.join("podman");
        let (told, late) = (dir.join("told"), "for last; do :; done; sleep 0.1");
        let text = format!("#!/bin/sh\n{late}\ncat \"$last\" > {}\n", told.display());
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        Podman::new(path)
    }

    #[tokio::test]
    async fn a_prepared_removal_hears_which_container_or_of_none() {
        let dir = tempfile::tempdir().unwrap();
        let told = || std::fs::read_to_string(dir.path().join("told")).unwrap();
        let podman = noting(dir.path());
        let id = "a7".repeat(32);
        Box::new(podman.prepare_removal().unwrap()).remove(&id).await.unwrap();
        assert_eq!(told(), id);

        let PodmanRemoval { mut child, .. } = podman.prepare_removal().unwrap();
        drop(child.stdin.take());
        child.wait().await.unwrap();
        assert_eq!(told(), "");

        let refused = Box::new(podman.prepare_removal().unwrap()).remove("a7").await;
        assert!(matches!(refused, Err(crate::Error::BadId { .. })));
        Box::new(podman.prepare_removal().unwrap()).abandon().await;
    }

    #[tokio::test]
    async fn short_ids_are_not_removed() {
        let removed = Podman::new("/nonexistent").remove("a7").await;
        assert!(matches!(removed, Err(crate::Error::BadId { .. })));
    }
}
