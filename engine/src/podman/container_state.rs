//! A container's existence, its last start, and its restart policy.

use super::command::Overdue;
use super::{Error, Info, Podman, state_files};

/// podman's exit status when there is no such container (podman-container-exists(1)).
const ABSENT: i32 = 1;

impl Podman {
    /// Returns whether a container of that name or ID exists. Takes no container's lock.
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

    /// Returns whether a container of that ID or of exactly that name exists, by podman's database where it
    /// can be read.
    ///
    /// # Errors
    /// As [`Podman::exists`].
    pub(super) async fn has_container(
        &self,
        info: &Info,
        id_or_name: &str,
    ) -> Result<bool, crate::Error> {
        match state_files::has_container(info, id_or_name) {
            Some(answer) => Ok(answer),
            None => Ok(self.exists(id_or_name).await?),
        }
    }

    /// Returns whether a container exists that a restore has not finished: one that never ran, or that was
    /// made by an import which began at `since`, in seconds since 1970. podman counts an import as a start
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

    /// Removes mounts and network of a container that has ended (podman-container-cleanup(1), which fails for one that
    /// runs).
    ///
    /// # Errors
    /// [`Error`] when podman fails.
    pub(super) async fn clean_up(&self, id: &str) -> Result<(), Error> {
        if !self.exists(id).await? {
            return Ok(());
        }
        let args = ["container", "cleanup", "--", id];
        self.run(&args, self.deadlines.query, Overdue::Leave).await.map(drop)
    }

    /// Pauses a container (podman-pause(1)). podman refuses to start or restart one that is paused.
    ///
    /// # Errors
    /// [`Error`] when podman fails.
    pub(super) async fn pause(&self, id: &str) -> Result<(), Error> {
        let args = ["container", "pause", "--", id];
        self.run(&args, self.deadlines.query, Overdue::Leave).await.map(drop)
    }

    /// Unpauses a container that is paused.
    ///
    /// # Errors
    /// [`Error`] when podman fails.
    pub(super) async fn unpause(&self, id: &str) -> Result<(), Error> {
        if !self.exists(id).await? {
            return Ok(());
        }
        let args = ["container", "inspect", "--format", "{{.State.Status}}", "--", id];
        let status = self.run(&args, self.deadlines.query, Overdue::Kill).await?;
        if status.trim_ascii() != b"paused" {
            return Ok(());
        }
        let args = ["container", "unpause", "--", id];
        self.run(&args, self.deadlines.query, Overdue::Leave).await.map(drop)
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
}
