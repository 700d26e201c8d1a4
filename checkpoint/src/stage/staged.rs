//! A container around which everything is made: its restore, and what becomes of it then.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;
use tokio::process::Child;

use super::link::{self, Link};
use super::work::Work;
use super::{Error, abort, abort_by_id, process, refusal};
use crate::bundle::Bundle;
use crate::cgroup::Cgroup;
use crate::criu;
use crate::podman::Podman;
use crate::prime::Primed;
use crate::shim::wire::{Ended, FromShim, Go, ToShim};
use crate::shim::{LIFETIME, argv};

/// How long podman may take from the runtime's success to its own exit.
const TAIL: Duration = Duration::from_secs(30);
/// How long restored tasks may take to be frozen: they are told to before CRIU lets them go.
const FROZEN: Duration = Duration::from_secs(1);
/// How many telling lines of CRIU's log an error carries.
const LOG_LINES: usize = 12;

/// A container that is ready to be restored, or restored and not yet handed to podman.
///
/// End it with [`Staged::commit`] or [`Staged::abort`]. Dropped, the shim sees the connection
/// break: before the restore it gives up at once and podman removes most; [`abort_by_id`] does
/// the rest.
#[derive(Debug)]
#[must_use = "a staged container must be committed or aborted"]
pub struct Staged {
    /// The full ID.
    pub id: String,
    /// The name.
    pub name: String,
    /// The OCI bundle that podman made.
    pub bundle: Bundle,
    /// The writable layer of the root file system.
    pub upper: Option<PathBuf>,
    /// The container's log. conmon has it open for appending.
    pub log: PathBuf,
    /// The OCI runtime that will restore it.
    pub runtime: PathBuf,
    /// When podman will give up.
    pub expires: Instant,
    podman: Podman,
    work: Work,
    lease: Duration,
    link: Link,
    child: Option<Child>,
    restored: Option<Restored>,
    /// Until the restore has ended.
    primed: Option<Primed>,
}

/// A container whose processes run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Its first process, as seen from the host.
    pub pid: i32,
    /// From the runtime's start to its exit.
    pub elapsed: Duration,
}

/// Bytes that podman needs at most to note that a container runs: some pages of its database, and files of
/// conmon's.
const ROOM: u64 = 4 << 20;

impl Staged {
    pub(super) fn new(
        podman: Podman,
        work: Work,
        link: Link,
        child: Option<Child>,
        lease: Duration,
        started: Instant,
        name: &str,
    ) -> Result<Self, Error> {
        let invalid = || Error::Shim {
            name: name.to_owned(),
            source: std::io::Error::other("the runtime was called with unknown arguments"),
        };
        let args = &link.hello.argv;
        let dir = argv::option(args, "--bundle").ok_or_else(invalid)?;
        let id = args.last().and_then(|id| id.to_str()).ok_or_else(invalid)?.to_owned();
        let bundle = Bundle::read(Path::new(dir))
            .map_err(|source| Error::Bundle { name: name.to_owned(), source })?;
        work.note_console(argv::option(args, "--console-socket"))?;
        work.note_pid_file(argv::option(args, "--pid-file"))?;
        work.note_cgroup(bundle.cgroups_path.as_deref())?;
        work.note_shim(link.hello.pid)?;
        let mut staged = Self {
            id,
            name: name.to_owned(),
            upper: bundle.upper(),
            log: bundle.dir.join("ctr.log"),
            runtime: link.hello.runtime.clone(),
            expires: started + LIFETIME,
            bundle,
            podman,
            work,
            lease,
            child,
            restored: None,
            primed: link.hello.ended.is_none().then(Primed::for_restore),
            link,
        };
        if let Some(ended) = staged.link.hello.ended {
            staged.restored = Some(staged.read_pid(ended)?);
        }
        Ok(staged)
    }

    /// Takes over a restored container from a process that has died, while its lease lasts.
    ///
    /// # Errors
    /// [`Error::Timeout`] when no shim answers: there is nothing to take over, and
    /// [`abort_by_id`] removes what is left.
    pub async fn resume(
        podman: Podman,
        id: &str,
        name: &str,
        work: &Path,
        deadline: Duration,
    ) -> Result<Self, Error> {
        let work = Work { dir: work.to_path_buf() };
        if !work.owns(id) {
            return Err(Error::Order { name: name.to_owned(), what: "resuming" });
        }
        let listener = link::listen(&work.socket()).map_err(work.fail(&work.socket()))?;
        let link = tokio::time::timeout(deadline, Link::accept(&listener))
            .await
            .map_err(|_| Error::Timeout {
                name: name.to_owned(),
                what: "taking over",
                seconds: deadline.as_secs(),
            })?
            .map_err(|source| Error::Shim { name: name.to_owned(), source })?;
        Self::new(podman, work, link, None, deadline, Instant::now(), name)
    }

    /// Whether the processes run again.
    #[must_use]
    pub fn restored(&self) -> Option<Restored> {
        self.restored
    }

    /// Whether podman is still there to take the container over. Without it a restored container is
    /// nobody's, and only an abort makes sense.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.work.podman().is_some()
    }

    /// Makes sure that podman has room to note that the container runs: a copy that podman cannot take over is
    /// lost, although others may have heard it.
    ///
    /// # Errors
    /// [`Error::Full`], and [`Error::Work`] if the kernel does not tell.
    pub fn check_room(&self) -> Result<(), Error> {
        let path = &self.bundle.dir;
        let source =
            |errno: nix::errno::Errno| Error::Work { path: path.clone(), source: errno.into() };
        let room = statvfs(path).map_err(source)?;
        if room.blocks_available().saturating_mul(room.fragment_size()) < ROOM {
            return Err(Error::Full { name: self.name.clone(), path: path.clone() });
        }
        Ok(())
    }

    /// Has the runtime do everything that comes before CRIU, and wait: what it reads of the images
    /// itself, a file of descriptors, must be there. May be left out before [`Staged::restore`], which
    /// takes the same arguments.
    ///
    /// # Errors
    /// As [`Staged::restore`].
    pub async fn make_ready(
        &mut self,
        images: &Path,
        criu_config: &Path,
        deadline: Duration,
    ) -> Result<(), Error> {
        // It may have been staged long ago.
        self.primed = Some(Primed::for_restore());
        let ready = ToShim::Ready(self.go(images, criu_config));
        let exchange = async {
            self.link.send(&ready).await?;
            self.link.receive().await
        };
        match tokio::time::timeout(deadline, exchange).await {
            Ok(Ok(FromShim::Waiting)) => Ok(()),
            Ok(Ok(FromShim::Ended(ended))) => Err(self.failed(ended)),
            Ok(Ok(FromShim::Hello(_))) => Err(self.order("another greeting")),
            Ok(Err(source)) => Err(Error::Shim { name: self.name.clone(), source }),
            Err(_) => Err(self.timeout("starting the runtime", deadline)),
        }
    }

    /// Restores the processes from `images`, with the CRIU options in `criu_config` (a
    /// [`criu::ConfigDir`]). The images may be removed afterwards.
    ///
    /// A CRIU at work is never killed, so after [`Error::Timeout`] only an abort makes sense,
    /// which waits for it.
    ///
    /// # Errors
    /// [`Error::Restore`] with the telling lines of CRIU's log, otherwise [`Error`].
    pub async fn restore(
        &mut self,
        images: &Path,
        criu_config: &Path,
        deadline: Duration,
    ) -> Result<Restored, Error> {
        if self.restored.is_some() {
            return Err(self.order("a second restore"));
        }
        let go = ToShim::Go(self.go(images, criu_config));
        let exchange = async {
            self.link.send(&go).await?;
            self.link.receive().await
        };
        let ended = tokio::time::timeout(deadline, exchange).await;
        self.primed = None;
        let ended = match ended {
            Ok(Ok(FromShim::Ended(ended))) => ended,
            Ok(Ok(_)) => return Err(self.order("another greeting")),
            Ok(Err(source)) => return Err(Error::Shim { name: self.name.clone(), source }),
            Err(_) => return Err(self.timeout("restoring", deadline)),
        };
        if ended.status != 0 {
            return Err(self.failed(ended));
        }
        let restored = self.read_pid(ended)?;
        self.restored = Some(restored);
        Ok(restored)
    }

    /// Tells the shim that the copy is the container from now on: whatever dies, it is not deleted.
    ///
    /// # Errors
    /// [`Error::Order`] before a restore, [`Error::Shim`] when the shim is gone.
    pub async fn keep(&mut self) -> Result<(), Error> {
        if self.restored.is_none() {
            return Err(self.order("the activation"));
        }
        let told = self.link.send(&ToShim::Keep).await;
        told.map_err(|source| Error::Shim { name: self.name.clone(), source })
    }

    /// Returns the cgroup of the restored container, once all of its tasks are frozen.
    ///
    /// # Errors
    /// [`Error::Order`] before a restore, [`Error::NotFrozen`] when they run.
    pub fn frozen_cgroup(&self) -> Result<Cgroup, Error> {
        let restored = self.restored.ok_or_else(|| self.order("freezing"))?;
        let running = |source| Error::NotFrozen { name: self.name.clone(), source };
        let cgroup = Cgroup::of_pid(restored.pid, &self.id).map_err(|e| running(Some(e)))?;
        // It was told before it could run, unless its runtime has put it into its cgroup only afterwards.
        let was_told = cgroup.is_told_to_freeze().map_err(|e| running(Some(e)))?;
        cgroup.tell_to_freeze().map_err(|e| running(Some(e)))?;
        let was_told = cgroup.rejoin().map_err(|e| running(Some(e)))? || was_told;
        if !was_told {
            cgroup.gather(restored.pid).map_err(|e| running(Some(e)))?;
        }
        match cgroup.await_frozen(Instant::now() + FROZEN) {
            Ok(true) => {
                if !was_told {
                    cgroup.rewind_calls();
                }
                Ok(cgroup)
            }
            Ok(false) => Err(running(None)),
            Err(e) => Err(running(Some(e))),
        }
    }

    /// Lets podman take the restored container over, and waits until it has.
    ///
    /// # Errors
    /// [`Error::Order`] before a restore; [`Error`] when podman failed in its last step.
    pub async fn commit(mut self) -> Result<Restored, Error> {
        let Some(restored) = self.restored else { return Err(self.order("the commit")) };
        self.link
            .send(&ToShim::Finish)
            .await
            .map_err(|source| Error::Shim { name: self.name.clone(), source })?;
        self.wait_podman().await?;
        self.work.remove()?;
        Ok(restored)
    }

    async fn wait_podman(&mut self) -> Result<(), Error> {
        let failed = match &mut self.child {
            Some(child) => match tokio::time::timeout(TAIL, child.wait()).await {
                Ok(status) => !status.is_ok_and(|status| status.success()),
                Err(_) => return Err(self.timeout("podman's part", TAIL)),
            },
            // The podman of another process: its exit status is lost, its words are not.
            None => {
                if let Some(pid) = self.work.podman()
                    && !process::wait_gone(pid, TAIL).await
                {
                    return Err(self.timeout("podman's part", TAIL));
                }
                self.work.printed().contains("Error: ")
            }
        };
        if failed { Err(refusal(&self.work, &self.name)) } else { Ok(()) }
    }

    /// Removes the container, restored or not, and everything that was made for it.
    ///
    /// # Errors
    /// [`Error::Remove`] and [`Error::Work`]; call [`abort_by_id`] again later.
    pub async fn abort(mut self) -> Result<(), Error> {
        self.primed = None;
        // A shim that is gone already needs no telling.
        let _ = self.link.send(&ToShim::Abort).await;
        if let Some(child) = &mut self.child {
            // podman cleans up after the failed restore; abort_by_id ends it when it hangs.
            let _ = tokio::time::timeout(abort::PATIENCE, child.wait()).await;
        }
        drop(self.link);
        abort_by_id(&self.podman, &self.id, &self.work.dir, None).await
    }

    fn go(&self, images: &Path, criu_config: &Path) -> Go {
        Go {
            images: images.to_path_buf(),
            work: self.work.criu(),
            criu_config: criu_config.to_path_buf(),
            lease: self.lease,
        }
    }

    fn failed(&self, ended: Ended) -> Error {
        Error::Restore { name: self.name.clone(), status: ended.status, log: self.restore_log() }
    }

    fn read_pid(&self, ended: Ended) -> Result<Restored, Error> {
        let path = argv::option(&self.link.hello.argv, "--pid-file").map(PathBuf::from);
        let path = path.ok_or_else(|| self.order("reading its process ID"))?;
        let text = std::fs::read_to_string(&path).map_err(self.work.fail(&path))?;
        let pid = text.trim().parse().ok().filter(|pid| *pid > 1);
        let pid =
            pid.ok_or_else(|| self.work.fail(&path)(std::io::ErrorKind::InvalidData.into()))?;
        Ok(Restored { pid, elapsed: ended.elapsed })
    }

    /// CRIU's telling lines, and where it left none the runtime's.
    fn restore_log(&self) -> String {
        let log = self.work.criu().join("restore.log");
        let lines = criu::log_tail(&log, LOG_LINES).unwrap_or_default();
        if !lines.is_empty() {
            return lines.join("; ");
        }
        let runtime = argv::option(&self.link.hello.argv, "--log").map(PathBuf::from);
        let text = runtime.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        runtime_message(&text).unwrap_or_else(|| "no log".to_owned())
    }

    fn order(&self, what: &'static str) -> Error {
        Error::Order { name: self.name.clone(), what }
    }

    fn timeout(&self, what: &'static str, after: Duration) -> Error {
        Error::Timeout { name: self.name.clone(), what, seconds: after.as_secs() }
    }
}

/// The last message of a runtime's log in JSON: one object after the other, crun's spread over
/// several lines.
fn runtime_message(log: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Entry {
        msg: String,
    }
    let entries = serde_json::Deserializer::from_str(log).into_iter::<Entry>();
    entries.map_while(Result::ok).last().map(|entry| entry.msg.chars().take(1000).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtimes_last_message_is_found() {
        let crun = "{\n  \"msg\": \"open `/x`: No such file\",\n  \"level\": \"error\"\n}\n";
        assert_eq!(runtime_message(crun).unwrap(), "open `/x`: No such file");
        let runc = "{\"level\":\"warning\",\"msg\":\"a\"}\n{\"level\":\"error\",\"msg\":\"b\"}\n";
        assert_eq!(runtime_message(runc).unwrap(), "b");
        for log in ["", "}", "{", "text", "{\"level\":1}"] {
            assert_eq!(runtime_message(log), None);
        }
    }
}
