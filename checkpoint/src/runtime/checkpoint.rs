//! One run of `crun checkpoint` or `runc checkpoint` that leaves the original container intact.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::process::Child;

use super::{Error, Kind, Runtime};
use crate::cgroup::Cgroup;
use crate::criu::{self, ConfigDir, Reason};
use crate::criu_gate::Gate;

/// Both runtimes tell CRIU to log here, in the work directory.
const LOG: &str = "dump.log";
/// What the runtime itself prints goes here, in the work directory: a file cannot block it.
const OUTPUT: &str = "runtime.log";
/// Lines of each log that go into an error.
const TAIL: usize = 12;

/// What to dump and where to.
#[derive(Debug, Clone, Copy)]
pub struct Checkpoint<'a> {
    /// The container's full ID.
    pub id: &'a str,
    /// Directory for the images, best in memory; holds nothing else.
    pub images: &'a Path,
    /// Directory for logs, beside the images and not in them.
    pub work: &'a Path,
    /// CRIU's options.
    pub config: &'a ConfigDir,
    /// The container's cgroup, if it was frozen by us and has to be so afterwards. CRIU thaws
    /// it once it holds the tasks by ptrace, and freezes it again before it lets them go.
    pub frozen: Option<&'a Cgroup>,
    /// Allow unix sockets to processes outside; their connections are lost.
    pub external_unix: bool,
    /// The container has a session or terminal from outside. Not needed for `podman run -t`,
    /// whose session is its own.
    pub shell_job: bool,
}

/// A dump that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dumped {
    /// From the start of the runtime to its end.
    pub duration: Duration,
    /// CRIU's log, for [`criu::spans`].
    pub log: PathBuf,
}

/// A dump at work. Dropping it does not end it: CRIU must never be signalled at work.
#[derive(Debug)]
#[must_use = "wait for the dump to end"]
pub struct Running<'a> {
    child: Child,
    pid: u32,
    started: Instant,
    kind: Kind,
    request: Checkpoint<'a>,
    /// Is there until the runtime has passed it.
    _gate: Option<Gate>,
}

/// A runtime that waits in front of CRIU, or is on its way there. Dropped, it ends by itself with an
/// error; nothing of the container was touched.
#[derive(Debug)]
#[must_use = "a waiting runtime must be told to go on, or abandoned"]
pub struct Waiting {
    child: Child,
    kind: Kind,
    gate: Gate,
}

impl Runtime {
    /// Returns the command line of a dump. crun 1.x and runc 1.x spell all of these the same.
    fn command(&self, request: &Checkpoint<'_>) -> Command {
        let mut command = Command::new(&self.path);
        if let Some(root) = &self.root {
            command.arg("--root").arg(root);
        }
        command
            .arg("checkpoint")
            .args(["--leave-running", "--tcp-established", "--file-locks"])
            .args(["--manage-cgroups-mode", "ignore"])
            .arg("--image-path")
            .arg(request.images)
            .arg("--work-path")
            .arg(request.work);
        if request.external_unix {
            command.arg("--ext-unix-sk");
        }
        if request.shell_job {
            command.arg("--shell-job");
        }
        command.arg(request.id);
        command
    }

    /// Starts the dump.
    ///
    /// The runtime gets a session and a mount namespace of its own with our options in it.
    ///
    /// # Errors
    /// [`Error::Run`] when the runtime cannot be started.
    pub fn start<'a>(&self, request: Checkpoint<'a>) -> Result<Running<'a>, Error> {
        let started = Instant::now();
        let child = self.spawn(&request, None)?;
        Ok(Running::new(child, started, self.kind, request, None))
    }

    /// Starts a dump that waits in front of CRIU.
    ///
    /// # Errors
    /// As [`Runtime::start`].
    pub fn start_waiting(&self, request: &Checkpoint<'_>, gate: Gate) -> Result<Waiting, Error> {
        let child = self.spawn(request, Some(&gate))?;
        Ok(Waiting { child, kind: self.kind, gate })
    }

    fn spawn(&self, request: &Checkpoint<'_>, gate: Option<&Gate>) -> Result<Child, Error> {
        let path = request.work.join(OUTPUT);
        let open = |source| Error::Run { action: "open", path: path.clone(), source };
        let output = File::create(&path).map_err(open)?;
        let errors = output.try_clone().map_err(open)?;
        let mut command = self.command(request);
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        request.config.attach(&mut command);
        if let Some(gate) = gate {
            gate.attach(&mut command);
        }
        let child = tokio::process::Command::from(command).kill_on_drop(false).spawn();
        child.map_err(|source| Error::Run { action: "run", path: self.path.clone(), source })
    }

    /// Dumps the container and leaves the original frozen as it was. A short form of
    /// [`Runtime::start`] and [`Running::wait`].
    ///
    /// # Errors
    /// See [`Running::wait`]; after [`Error::Deadline`] the dump is still at work, out of reach.
    pub async fn checkpoint(
        &self,
        request: Checkpoint<'_>,
        deadline: Instant,
    ) -> Result<Dumped, Error> {
        self.start(request)?.wait(deadline).await
    }
}

impl Waiting {
    /// Gives the runtime some time to come to its gate. Whether it has is no matter: it finds the gate
    /// open then.
    ///
    /// # Errors
    /// [`Error::Failed`] when it has ended instead.
    pub fn settle(&mut self, request: &Checkpoint<'_>, limit: Duration) -> Result<bool, Error> {
        let mut ended = None;
        let Self { child, gate, kind } = self;
        let reached = gate.await_reached(limit, || {
            ended = child.try_wait().ok().flatten();
            ended.is_some()
        });
        match ended {
            Some(status) => Err(failure(*kind, request, status, None)),
            None => Ok(reached),
        }
    }

    /// Has CRIU leave out the pages of shared memory ([`Gate::leave_shared_memory_out`]).
    ///
    /// # Errors
    /// [`Error::Run`] when the file cannot be written.
    pub fn leave_shared_memory_out(&self, device: u64, inodes: &[u32]) -> Result<(), Error> {
        self.gate.leave_shared_memory_out(device, inodes).map_err(|source| Error::Run {
            action: "write a file for",
            path: self.kind.name().into(),
            source,
        })
    }

    /// Lets it go on, the container being frozen by now. The request is the one that it was started
    /// with.
    ///
    /// # Errors
    /// [`Error::Early`] when CRIU was called in another way than by the gate, [`Error::Run`] when the
    /// gate cannot be opened.
    pub fn go<'a>(mut self, request: Checkpoint<'a>) -> Result<Running<'a>, Error> {
        let started = Instant::now();
        if request.work.join(LOG).exists() {
            return Err(Error::Early { runtime: self.kind, id: request.id.to_owned() });
        }
        let path = request.work.to_path_buf();
        self.gate.open(false).map_err(|source| Error::Run {
            action: "open a gate in",
            path,
            source,
        })?;
        Ok(Running::new(self.child, started, self.kind, request, Some(self.gate)))
    }

    /// Ends it; it is gone afterwards, unless it took longer than `limit`.
    pub async fn abandon(self, limit: Duration) {
        let Self { mut child, gate, .. } = self;
        drop(gate);
        if tokio::time::timeout(limit, child.wait()).await.is_err() {
            tracing::warn!("the runtime still waits in front of CRIU; it will end by itself");
        }
    }
}

impl<'a> Running<'a> {
    fn new(
        child: Child,
        started: Instant,
        kind: Kind,
        request: Checkpoint<'a>,
        gate: Option<Gate>,
    ) -> Self {
        // None only after the child was waited for.
        let pid = child.id().unwrap_or_default();
        Self { child, pid, started, kind, request, _gate: gate }
    }

    /// Returns the runtime's process. It must not be signalled.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the dump to end.
    ///
    /// # Errors
    /// [`Error::Failed`] with the reason and the end of CRIU's log; the tasks are whole and as
    /// frozen as before. [`Error::Thawed`] when the original went on. [`Error::Deadline`] when
    /// the dump is still at work: nothing was done to it, and this may be called again.
    pub async fn wait(&mut self, deadline: Instant) -> Result<Dumped, Error> {
        let id = || self.request.id.to_owned();
        let status = match tokio::time::timeout_at(deadline.into(), self.child.wait()).await {
            Err(_) => return Err(Error::Deadline { id: id(), pid: self.pid }),
            Ok(Err(source)) => {
                return Err(Error::Run {
                    action: "wait for",
                    path: self.kind.name().into(),
                    source,
                });
            }
            Ok(Ok(status)) => status,
        };
        let duration = self.started.elapsed();
        let frozen = match self.request.frozen.map(Cgroup::is_frozen).transpose() {
            Ok(frozen) => frozen,
            Err(source) => return Err(Error::Cgroup { id: id(), source }),
        };
        if !status.success() {
            return Err(failure(self.kind, &self.request, status, frozen));
        }
        if frozen == Some(false) {
            return Err(Error::Thawed { id: id() });
        }
        Ok(Dumped { duration, log: self.request.work.join(LOG) })
    }
}

/// Puts the two logs together. Either may be absent: CRIU may not have been reached.
fn failure(
    runtime: Kind,
    request: &Checkpoint<'_>,
    status: ExitStatus,
    frozen: Option<bool>,
) -> Error {
    let tail = |name| criu::log_tail(&request.work.join(name), TAIL).unwrap_or_default();
    let mut log: Vec<String> = tail(LOG);
    let words = tail(OUTPUT);
    let reason = match criu::reason(&log) {
        Reason::Other => criu::reason(&words),
        known => known,
    };
    // Both runtimes repeat CRIU's errors.
    let told = !log.is_empty();
    log.extend(words.into_iter().filter(|line| !told || !line.contains("Error (")));
    log.push(format!("{runtime} ended with {status}"));
    Error::Failed { runtime, id: request.id.to_owned(), reason, log, frozen }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criu::Options;
    use std::os::unix::fs::PermissionsExt;

    /// Returns a stand-in for a runtime: a script named crun.
    fn fake(dir: &Path, script: &str) -> Runtime {
        let path = dir.join("crun");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        Runtime::new(&path, Some(dir.join("root"))).unwrap()
    }

    fn request<'a>(dir: &'a Path, config: &'a ConfigDir) -> Checkpoint<'a> {
        Checkpoint {
            id: "abc",
            images: dir,
            work: dir,
            config,
            frozen: None,
            external_unix: false,
            shell_job: true,
        }
    }

    #[test]
    fn command_line_leaves_the_original_running() {
        let dir = tempfile::tempdir().unwrap();
        let config = ConfigDir::create(&dir.path().join("c"), &Options::dump()).unwrap();
        let command = fake(dir.path(), "").command(&request(dir.path(), &config));
        let args: Vec<_> = command.get_args().map(|a| a.to_str().unwrap()).collect();
        assert_eq!(args[0], "--root");
        assert_eq!(args[2], "checkpoint");
        for flag in ["--leave-running", "--tcp-established", "--shell-job", "--file-locks"] {
            assert!(args.contains(&flag), "{flag}");
        }
        assert!(!args.contains(&"--ext-unix-sk"));
        assert_eq!(args.last(), Some(&"abc"));
    }

    /// Needs CAP_SYS_ADMIN for the mount namespace; says so where it has none.
    #[tokio::test]
    async fn failure_and_deadline_are_told_apart_and_nothing_is_killed() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let config = ConfigDir::create(&dir.path().join("c"), &Options::dump()).unwrap();
        let log = "(00.1) Error (criu/sk-unix.c:1): unix: External socket is used. Consider";
        std::fs::write(dir.path().join(LOG), log).unwrap();
        let soon = || Instant::now() + Duration::from_secs(5);
        let runtime = fake(dir.path(), "echo own words >&2; exit 3");
        match runtime.checkpoint(request(dir.path(), &config), soon()).await {
            Err(Error::Failed { reason, log, .. }) => {
                assert_eq!(reason, Reason::ExternalUnixSocket);
                assert!(log.iter().any(|l| l == "own words"), "{log:?}");
            }
            other => panic!("{other:?}"),
        }
        let runtime = fake(dir.path(), "sleep 0.3");
        let mut running = runtime.start(request(dir.path(), &config)).unwrap();
        let early = running.wait(Instant::now() + Duration::from_millis(20)).await;
        assert!(matches!(early, Err(Error::Deadline { .. })), "{early:?}");
        let dumped = running.wait(soon()).await.unwrap();
        assert!(dumped.duration >= Duration::from_millis(300));
    }

    /// Needs CAP_SYS_ADMIN for the mount namespace; says so where it has none.
    #[tokio::test]
    async fn a_dump_that_did_not_wait_is_refused() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let config = ConfigDir::create(&dir.path().join("c"), &Options::dump()).unwrap();
        let runtime = fake(dir.path(), "sleep 0.1");
        let start = |name: &str| {
            let gate = Gate::create(&dir.path().join(name), Path::new("/s"), Path::new("/c"));
            runtime.start_waiting(&request(dir.path(), &config), gate.unwrap()).unwrap()
        };
        let running = start("one").go(request(dir.path(), &config)).unwrap();
        drop(running);
        let waiting = start("two");
        std::fs::write(dir.path().join(LOG), "").unwrap();
        let early = waiting.go(request(dir.path(), &config)).err();
        assert!(matches!(early, Some(Error::Early { .. })), "{early:?}");
    }
}
