//! Removing a container.

use std::process::Stdio;

use async_trait::async_trait;
use tokio::io::AsyncWriteExt;
use tokio::process::Child;

use super::command::Overdue;
use super::{Error, Info, Podman, files};
use crate::PreparedRemoval;
use crate::container::is_full_id;

/// A file that is the reader's standard input (proc_pid_fd(5)).
const STANDARD_INPUT: &str = "/proc/self/fd/0";
/// podman's exit status when there is no such container (podman-container-exists(1)).
const ABSENT: i32 = 1;

impl Podman {
    /// Whether a container of that name or ID exists. Takes no container's lock.
    ///
    /// # Errors
    /// [`Error`] when podman cannot tell.
    pub async fn exists(&self, name_or_id: &str) -> Result<bool, Error> {
        let args = ["container", "exists", "--", name_or_id];
        let output = self.output(&args, self.deadlines.query, Overdue::Kill).await?;
        match output.status {
            0 => Ok(true),
            ABSENT => Ok(false),
            status => Err(self.failure(&args, status, &output.stderr)),
        }
    }

    /// Whether a container of that ID or of exactly that name exists, by podman's database where it
    /// can be read.
    ///
    /// # Errors
    /// As [`Podman::exists`].
    pub(super) async fn has_container(
        &self,
        info: &Info,
        id_or_name: &str,
    ) -> Result<bool, crate::Error> {
        match files::has_container(info, id_or_name) {
            Some(answer) => Ok(answer),
            None => Ok(self.exists(id_or_name).await?),
        }
    }

    /// Whether a container exists that a restore has not finished: one that never ran, or that was made by an
    /// import which began at `since`, in seconds since 1970. podman counts an import as a start
    /// (`libpod/runtime_ctr.go`: `RestoreContainer`), and notes the restore when it is done.
    pub(crate) async fn is_half_restored(
        &self,
        id: &str,
        since: Option<u64>,
    ) -> Result<bool, crate::Error> {
        if !self.exists(id).await? {
            return Ok(false);
        }
        Ok(self.times(id).await?.is_some_and(|times| times.is_half_restored(since)))
    }

    /// Returns whether a container exists whose restore podman has finished, running or not.
    ///
    /// # Errors
    /// [`Error`] when podman cannot tell.
    pub async fn is_restored(&self, id: &str) -> Result<bool, Error> {
        if !self.exists(id).await? {
            return Ok(false);
        }
        Ok(self.times(id).await?.is_some_and(|times| times.restored > 0))
    }

    async fn times(&self, id: &str) -> Result<Option<Times>, Error> {
        let format = "{{.State.Status}} {{.State.StartedAt.Unix}} {{.State.RestoredAt.Unix}}";
        let args = ["container", "inspect", "--format", format, "--", id];
        let text = self.run(&args, self.deadlines.query, Overdue::Kill).await?;
        Ok(Times::read(&String::from_utf8_lossy(&text)))
    }

    /// Returns when a container was last started or restored, in seconds since 1970; 0 if never.
    ///
    /// # Errors
    /// [`Error`] when podman cannot tell.
    pub async fn started_at(&self, id: &str) -> Result<u64, Error> {
        let times = self.times(id).await?;
        let last = times.map_or(0, |times| times.started.max(times.restored));
        // Go's zero time is negative.
        Ok(u64::try_from(last).unwrap_or(0))
    }

    /// Sets a container's restart policy, such as `no` or `on-failure:3` (podman-update(1)).
    ///
    /// # Errors
    /// [`Error`] when podman fails; it can since its version 5.1.
    pub async fn set_restart_policy(&self, id: &str, policy: &str) -> Result<(), Error> {
        let args = ["container", "update", "--restart", policy, "--", id];
        self.run(&args, self.deadlines.query, Overdue::Kill).await.map(drop)
    }

    /// Kills and removes a container, running, frozen or half-made. Absent means done.
    ///
    /// A container frozen in its cgroup dies as well: version 2 of cgroups lets SIGKILL through.
    /// podman marks it as stopped by the user, so that `--restart=always` does not start it
    /// again, and holds its lock from the kill to the removal. When this takes longer than the
    /// deadline podman goes on by itself; calling again is safe.
    ///
    /// # Errors
    /// [`Error::BadId`] unless `id` is a full ID; [`Error`] when podman fails.
    pub(super) async fn remove(&self, id: &str) -> Result<(), crate::Error> {
        if !is_full_id(id) {
            return Err(crate::Error::bad_id(id));
        }
        // --ignore: absent is fine; -t 0: SIGKILL at once.
        let args = ["rm", "--force", "--ignore", "--time", "0", "--", id];
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

/// What podman tells of a container's state. Times are in seconds since 1970; Go's zero time is long before.
#[derive(Debug, PartialEq, Eq)]
struct Times {
    is_created: bool,
    started: i64,
    restored: i64,
}

/// How long after its beginning a migration can have an import begin, in seconds: longer than all that comes
/// before together.
const IMPORT: u64 = 3600;

impl Times {
    fn read(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let is_created = matches!(words.next()?, "created" | "configured");
        let mut time = || words.next()?.parse().ok();
        Some(Self { is_created, started: time()?, restored: time()? })
    }

    fn is_half_restored(&self, since: Option<u64>) -> bool {
        let was_imported = |since: u64| {
            u64::try_from(self.started).is_ok_and(|at| (since..since + IMPORT).contains(&at))
        };
        self.is_created
            && self.restored <= 0
            && (self.started <= 0 || since.is_some_and(was_imported))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    #[test]
    fn only_a_container_that_never_ran_counts_as_half_restored() {
        const ZERO: &str = "-62135596800";
        let is = |text: &str, since| Times::read(text).is_some_and(|t| t.is_half_restored(since));
        for since in [None, Some(1_795_225_000)] {
            assert!(is(&format!("created {ZERO} {ZERO}\n"), since));
            assert!(!is(&format!("exited {ZERO} {ZERO}"), since));
            assert!(!is(&format!("created {ZERO} 1795225026"), since), "it was restored");
            assert!(!is("created 1795225026 1795225027", since), "it was restored");
            assert!(!is(&format!("exited 1795225026 {ZERO}"), since));
        }
        let imported = format!("created 1795225026 {ZERO}");
        assert!(is(&imported, Some(1_795_225_000)));
        assert!(!is(&imported, None), "it may be one that a reboot has stopped");
        for another_time in [1_795_225_027, 1_795_221_000, 0] {
            assert!(!is(&imported, Some(another_time)), "since {another_time}");
        }
        for text in ["", "created", "created x y"] {
            assert_eq!(Times::read(text), None);
        }
    }

    /// A stand-in that notes which container it is told to remove, by the file that is named last.
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
