//! A container that podman has staged: its restore, its commit and its abort.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use nix::sys::statvfs::statvfs;
use tokio::process::Child;

use super::conflict::refusal;
use super::shim_socket::{ShimSocket, listen};
use super::work_dir::WorkDir;
use super::{Error, abort_by_id, cleanup, import};
use crate::Kind;
use crate::podman::Podman;
use crate::stage::{Restored, Staged, StagedContainer};
use checkpoint::criu;
use checkpoint::oci_bundle::Bundle;
use checkpoint::rcu_grace_periods::GracePeriods;
use checkpoint::shim::messages::{Ended, FromShim, Go, ToShim};
use checkpoint::shim::{LIFETIME, argv};

/// How long podman may take from the runtime's success to its own exit.
const TAIL: Duration = Duration::from_secs(30);
/// How many telling lines of CRIU's log an error carries.
const LOG_LINES: usize = 12;

/// A container that podman has staged. Dropped, the shim sees the connection
/// break: before the restore it gives up at once and podman removes most; [`abort_by_id`] does
/// the rest.
#[derive(Debug)]
#[must_use = "a staged container must be committed or aborted"]
pub(in crate::podman) struct PodmanStaged {
    container: StagedContainer,
    /// The OCI bundle that podman made.
    bundle: PathBuf,
    podman: Podman,
    work: WorkDir,
    lease: Duration,
    link: ShimSocket,
    child: Option<Child>,
    restored: Option<Restored>,
    /// Until the restore has ended.
    warmup: Option<GracePeriods>,
}

/// Bytes that podman needs at most to note that a container runs: some pages of its database, and files of
/// conmon's.
const ROOM: u64 = 4 << 20;

impl PodmanStaged {
    pub(super) fn new(
        podman: Podman,
        work: WorkDir,
        link: ShimSocket,
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
        let bundle = Bundle::read(Path::new(dir)).map_err(|source| Error::Bundle {
            engine: Kind::Podman,
            name: name.to_owned(),
            source,
        })?;
        work.note_console(argv::option(args, "--console-socket"))?;
        work.note_pid_file(argv::option(args, "--pid-file"))?;
        work.note_cgroup(bundle.cgroups_path.as_deref())?;
        work.note_shim(link.hello.pid)?;
        let container = StagedContainer {
            id,
            name: name.to_owned(),
            upper: bundle.upper(),
            root: bundle.root,
            shm: bundle.shm,
            netns: bundle.netns,
            log: bundle.dir.join("ctr.log"),
            runtime: link.hello.runtime.clone(),
            expires: started + LIFETIME,
        };
        let mut staged = Self {
            container,
            bundle: bundle.dir,
            podman,
            work,
            lease,
            child,
            restored: None,
            warmup: link.hello.ended.is_none().then(GracePeriods::for_restore),
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
    pub(in crate::podman) async fn resume(
        podman: Podman,
        id: &str,
        name: &str,
        work: &Path,
        deadline: Duration,
    ) -> Result<Self, Error> {
        let work = WorkDir { dir: work.to_path_buf() };
        if !work.owns(id) {
            return Err(Error::Order { name: name.to_owned(), what: "resuming" });
        }
        let listener = listen(&work.socket()).map_err(work.fail(&work.socket()))?;
        let link = tokio::time::timeout(deadline, ShimSocket::accept(&listener))
            .await
            .map_err(|_| Error::Timeout {
                name: name.to_owned(),
                what: "taking over",
                seconds: deadline.as_secs(),
            })?
            .map_err(|source| Error::Shim { name: name.to_owned(), source })?;
        Self::new(podman, work, link, None, deadline, Instant::now(), name)
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
                    && !import::wait_gone(pid, TAIL).await
                {
                    return Err(self.timeout("podman's part", TAIL));
                }
                self.work.printed().contains("Error: ")
            }
        };
        if failed { Err(refusal(&self.work, &self.container.name)) } else { Ok(()) }
    }

    fn shim(&self, source: std::io::Error) -> Error {
        Error::Shim { name: self.container.name.clone(), source }
    }

    fn go(&self, images: &Path, criu_config: &Path, lazy_pages: bool) -> Go {
        Go {
            images: images.to_path_buf(),
            work: self.work.criu(),
            criu_config: criu_config.to_path_buf(),
            lease: self.lease,
            lazy_pages,
        }
    }

    fn failed(&self, ended: Ended) -> Error {
        Error::Restore {
            name: self.container.name.clone(),
            status: ended.status,
            log: self.restore_log(),
        }
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

    /// Returns the error lines of CRIU's log, or the runtime's message where CRIU left none.
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
        Error::Order { name: self.container.name.clone(), what }
    }

    fn timeout(&self, what: &'static str, after: Duration) -> Error {
        Error::Timeout { name: self.container.name.clone(), what, seconds: after.as_secs() }
    }
}

#[async_trait]
impl Staged for PodmanStaged {
    fn container(&self) -> &StagedContainer {
        &self.container
    }

    fn restored(&self) -> Option<Restored> {
        self.restored
    }

    fn is_awaited(&self) -> bool {
        self.work.podman().is_some()
    }

    fn check_room(&self) -> Result<(), Error> {
        let path = &self.bundle;
        let source =
            |errno: nix::errno::Errno| Error::Work { path: path.clone(), source: errno.into() };
        let room = statvfs(path).map_err(source)?;
        if room.blocks_available().saturating_mul(room.fragment_size()) < ROOM {
            let name = self.container.name.clone();
            return Err(Error::Full { engine: Kind::Podman, name, path: path.clone() });
        }
        Ok(())
    }

    fn criu_directory(&self) -> PathBuf {
        self.work.criu()
    }

    async fn make_ready(
        &mut self,
        images: &Path,
        criu_config: &Path,
        deadline: Duration,
    ) -> Result<(), Error> {
        // It may have been staged long ago.
        self.warmup = Some(GracePeriods::for_restore());
        let ready = ToShim::Ready(self.go(images, criu_config, false));
        let exchange = async {
            self.link.send(&ready).await?;
            self.link.receive().await
        };
        match tokio::time::timeout(deadline, exchange).await {
            Ok(Ok(FromShim::Waiting)) => Ok(()),
            Ok(Ok(FromShim::Ended(ended))) => Err(self.failed(ended)),
            Ok(Ok(FromShim::Hello(_))) => Err(self.order("another greeting")),
            Ok(Err(source)) => Err(self.shim(source)),
            Err(_) => Err(self.timeout("starting the runtime", deadline)),
        }
    }

    async fn restore(
        &mut self,
        images: &Path,
        criu_config: &Path,
        lazy_pages: bool,
        deadline: Duration,
    ) -> Result<Restored, Error> {
        if self.restored.is_some() {
            return Err(self.order("a second restore"));
        }
        let go = ToShim::Go(self.go(images, criu_config, lazy_pages));
        let exchange = async {
            self.link.send(&go).await?;
            self.link.receive().await
        };
        let ended = tokio::time::timeout(deadline, exchange).await;
        self.warmup = None;
        let ended = match ended {
            Ok(Ok(FromShim::Ended(ended))) => ended,
            Ok(Ok(_)) => return Err(self.order("another greeting")),
            Ok(Err(source)) => return Err(self.shim(source)),
            Err(_) => return Err(self.timeout("restoring", deadline)),
        };
        if ended.status != 0 {
            return Err(self.failed(ended));
        }
        let restored = self.read_pid(ended)?;
        self.restored = Some(restored);
        Ok(restored)
    }

    async fn keep(&mut self) -> Result<(), Error> {
        if self.restored.is_none() {
            return Err(self.order("the activation"));
        }
        let told = self.link.send(&ToShim::Keep).await;
        told.map_err(|source| self.shim(source))
    }

    async fn commit(mut self: Box<Self>) -> Result<Restored, Error> {
        let Some(restored) = self.restored else { return Err(self.order("the commit")) };
        let told = self.link.send(&ToShim::Finish).await;
        told.map_err(|source| self.shim(source))?;
        self.wait_podman().await?;
        self.work.remove()?;
        Ok(restored)
    }

    async fn abort(mut self: Box<Self>) -> Result<(), Error> {
        self.warmup = None;
        // A shim that is gone already needs no telling.
        let _ = self.link.send(&ToShim::Abort).await;
        if let Some(child) = &mut self.child {
            // podman cleans up after the failed restore; abort_by_id ends it when it hangs.
            let _ = tokio::time::timeout(cleanup::PATIENCE, child.wait()).await;
        }
        let Self { container, podman, work, link, .. } = *self;
        drop(link);
        abort_by_id(&podman, &container.id, &work.dir, None).await
    }
}

/// Returns the last message of a runtime's log in JSON: one object after the other, crun's spread over
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
