//! The stand-in for conmon and for the OCI runtime, which stops a restore by podman half-way.
//!
//! podman's own restore does everything at once. netmig needs all of it except the last step to be done before the
//! container stops on the source. So podman is started with `--conmon` and the path of a link named `conmon`, which
//! leads to this program. As conmon, this program replaces the runtime in the arguments of a restore by a link of the
//! runtime's name that leads to this program as well, and becomes the real conmon. conmon later calls that link to
//! restore, and this program waits there for a message on a socket. podman does not notice: it records and uses the real
//! runtime, and the environment of the conmon that stays with the container has nothing of netmig's in it.
//!
//! The directory of the links holds: `conmon` and, once known, the runtime's name (links to this program), `real-conmon`
//! and `real-runtime` (links to the real ones), `persist` (link to conmon's directory for the container), `shim.sock`,
//! and in the end `gate`.
//!
//! If the connection breaks before [`messages::Go`], the shim exits with 1, and podman gives up and cleans up. While the
//! runtime is at work nothing disturbs it: a CRIU that is killed leaves broken tasks. The restored tasks are frozen
//! before they run ([`crate::criu_gate`]). If the connection breaks after that, the shim keeps the container and tries to
//! connect again for the length of the lease, so that a process that recovers the migration can still finish or abort
//! it. After the lease it presumes an abort: it kills and deletes the container and exits with 1. Once it has been told
//! that the copy is the container ([`messages::ToShim::Keep`]), it presumes the opposite: it never deletes the container, and
//! exits with 0.

pub mod argv;
pub mod messages;
mod restored_tasks;

use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, io, iter, thread};

use crate::cgroup::Cgroup;
use crate::criu::ConfigDir;
use crate::criu_gate::{self, Gate};
use crate::landlock;
use crate::lazy_pages;
use crate::realtime::RealtimePriority;
use messages::{Ended, FromShim, Go, Hello, ToShim};
use restored_tasks::RestoredTasks;

/// The link that stands in for conmon.
pub const CONMON: &str = "conmon";
/// The link to the real conmon.
pub const REAL_CONMON: &str = "real-conmon";
/// The link to the real OCI runtime.
pub const REAL_RUNTIME: &str = "real-runtime";
/// The link to conmon's directory for the container.
pub const PERSIST: &str = "persist";
/// The socket on which the staging process listens.
pub const SOCKET: &str = "shim.sock";
/// The directory of the gate in front of CRIU ([`crate::criu_gate`]).
const GATE: &str = "gate";
/// Where programs are looked for without `PATH`.
const DEFAULT_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// Carries the value of `TMPDIR` that conmon is to have; without it conmon gets none.
pub const TMPDIR_VARIABLE: &str = "NETMIG_TMPDIR";

/// podman gives a container 240 s to be created (`define.ContainerCreateTimeout`), then it fails
/// and removes the container from the runtime; the shim gives up a little earlier.
pub const LIFETIME: Duration = Duration::from_secs(235);

/// How long a runtime may take to its gate before we say that it is on its way.
const SETTLE: Duration = Duration::from_millis(250);
/// CRIU's log of a restore, in its working directory.
const RESTORE_LOG: &str = "restore.log";
/// How long killed tasks may take to be gone.
const KILLED: Duration = Duration::from_secs(2);
/// Pause between two attempts to connect anew.
const RECONNECT_EVERY: Duration = Duration::from_millis(50);

/// Runs the program with its arguments, name first. Does not return when it becomes another one.
#[must_use]
pub fn run(args: Vec<OsString>) -> ExitCode {
    let started = Instant::now();
    if criu_gate::is_asked_for(args.first()) {
        let outcome = criu_gate::stand_in(args.get(1..).unwrap_or_default());
        return outcome.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS);
    }
    let argv = args.get(1..).unwrap_or_default();
    if lazy_pages::is_asked_for(argv) {
        return lazy_pages::run(argv);
    }
    if landlock::is_asked_for(argv) {
        return landlock::run();
    }
    match Links::of(args.first()) {
        Ok(links) => {
            let result = if links.as_conmon {
                links.conmon(argv)
            } else if argv::is_restore(argv) {
                links.restore(argv, started)
            } else {
                links.real(REAL_RUNTIME).and_then(|mut c| Err(c.args(argv).exec()))
            };
            result.unwrap_or_else(|error| fail(&error))
        }
        Err(error) => fail(&error),
    }
}

fn fail(error: &io::Error) -> ExitCode {
    eprintln!("netmig-shim: {error}");
    ExitCode::FAILURE
}

/// The directory of links that this program was called through.
struct Links {
    dir: PathBuf,
    as_conmon: bool,
}

impl Links {
    fn of(program: Option<&OsString>) -> io::Result<Self> {
        let program = program.map(Path::new).unwrap_or(Path::new(""));
        let dir = program.parent().filter(|dir| dir.is_absolute()).ok_or_else(|| {
            io::Error::other("started by hand; netmig starts it when it stages a container")
        })?;
        let as_conmon = program.file_name().is_some_and(|name| name == CONMON);
        Ok(Self { dir: dir.to_path_buf(), as_conmon })
    }

    /// Returns the program behind one of the links; by its own path, so that it has its own name.
    fn real(&self, link: &str) -> io::Result<Command> {
        fs::read_link(self.dir.join(link)).map(Command::new)
    }

    /// Becomes conmon.
    fn conmon(&self, argv: &[OsString]) -> io::Result<ExitCode> {
        let mut command = self.real(REAL_CONMON)?;
        match argv::restoring_runtime(argv) {
            Some(runtime) => {
                let name = runtime.file_name().ok_or_else(|| io::Error::other("no runtime"))?;
                let stand_in = self.dir.join(name);
                symlink(&runtime, self.dir.join(REAL_RUNTIME))?;
                symlink(fs::read_link(self.dir.join(CONMON))?, &stand_in)?;
                if let Some(persist) = argv::persist_dir(argv) {
                    symlink(persist, self.dir.join(PERSIST))?;
                }
                command.args(argv::with_runtime(argv, &stand_in));
            }
            None => {
                command.args(argv);
            }
        }
        // conmon lives as long as the container and hands its environment to the podman that
        // cleans up after it.
        match env::var_os(TMPDIR_VARIABLE) {
            Some(value) => command.env("TMPDIR", value),
            None => command.env_remove("TMPDIR"),
        };
        Err(command.env_remove(TMPDIR_VARIABLE).exec())
    }

    /// Waits for word, restores, waits again.
    fn restore(&self, argv: &[OsString], started: Instant) -> io::Result<ExitCode> {
        let mut socket = self.connect(argv, None)?;
        socket.set_read_timeout(Some(LIFETIME))?;
        let mut waiting = None;
        let mut realtime = None;
        let go = loop {
            match ToShim::read(&mut socket)? {
                Some(ToShim::Go(go)) => break go,
                Some(ToShim::Ready(go)) if waiting.is_none() => {
                    let mut runtime = self.start_runtime(argv, &go)?;
                    if let Some(ended) = runtime.settle() {
                        messages::send(&mut socket, &FromShim::Ended(ended))?;
                        return Ok(ExitCode::FAILURE);
                    }
                    waiting = Some(runtime);
                    realtime = Some(RealtimePriority::begin());
                    messages::send(&mut socket, &FromShim::Waiting)?;
                }
                _ => return Ok(ExitCode::FAILURE),
            }
        };
        let runtime = match waiting {
            Some(runtime) => runtime,
            None => self.start_runtime(argv, &go)?,
        };
        let ended = runtime.run(go.lazy_pages)?;
        // When nobody listens any more the lease decides, below.
        let _ = messages::send(&mut socket, &FromShim::Ended(ended));
        drop(realtime);
        if ended.status != 0 {
            return Ok(ExitCode::from(u8::try_from(ended.status).unwrap_or(1)));
        }
        let end = started + LIFETIME;
        let cgroup = restored_cgroup(argv);
        if self.verdict(socket, argv, ended, go.lease, end) {
            return Ok(ExitCode::SUCCESS);
        }
        // Before the runtime can thaw what it deletes: nothing of an aborted copy may run.
        if let Some(cgroup) = cgroup {
            let _ = cgroup.kill(Instant::now() + KILLED);
        }
        if let Some(delete) = argv::delete(argv) {
            // podman deletes it once more when we have failed, so the result is not needed.
            let _ = self
                .real(REAL_RUNTIME)?
                .args(delete)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
        Ok(ExitCode::FAILURE)
    }

    fn connect(&self, argv: &[OsString], ended: Option<Ended>) -> io::Result<UnixStream> {
        let mut socket = UnixStream::connect(self.dir.join(SOCKET))?;
        let runtime = fs::read_link(self.dir.join(REAL_RUNTIME))?;
        let hello = Hello { pid: std::process::id(), runtime, argv: argv.to_vec(), ended };
        messages::send(&mut socket, &FromShim::Hello(hello))?;
        Ok(socket)
    }

    /// Starts the runtime, which waits in front of CRIU. Standard input and outputs are passed on
    /// untouched: CRIU connects the container's to them.
    fn start_runtime(&self, argv: &[OsString], go: &Go) -> io::Result<Runtime> {
        let gate = self.dir.join(GATE);
        let criu = find_criu().ok_or_else(|| io::Error::other("criu is not installed"))?;
        let id = argv.last().and_then(|id| id.to_str()).unwrap_or_default().to_owned();
        let log = go.work.join(RESTORE_LOG);
        let tasks = Box::new(RestoredTasks::new(id, log));
        let gate = Gate::relay(&gate, &fs::read_link(self.dir.join(CONMON))?, &criu, tasks)?;
        let mut command = self.real(REAL_RUNTIME)?;
        command.args(argv::redirect(argv, &go.images, &go.work));
        ConfigDir::open(&go.criu_config).map_err(io::Error::other)?.attach(&mut command);
        gate.attach(&mut command);
        Ok(Runtime { child: command.spawn()?, gate: Some(gate) })
    }

    /// Returns whether the restored container is to stay.
    fn verdict(
        &self,
        mut socket: UnixStream,
        argv: &[OsString],
        ended: Ended,
        lease: Duration,
        end: Instant,
    ) -> bool {
        // Whether the copy is the container, as far as was told.
        let mut is_kept = false;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || socket.set_read_timeout(Some(left)).is_err() {
                return is_kept;
            }
            match ToShim::read(&mut socket) {
                Ok(Some(ToShim::Keep)) => {
                    is_kept = true;
                    continue;
                }
                Ok(Some(ToShim::Finish)) => return true,
                Ok(Some(_)) => return false,
                Ok(None) | Err(_) => {}
            }
            let lease_end = end.min(Instant::now() + lease);
            socket = loop {
                if Instant::now() >= lease_end {
                    return is_kept;
                }
                match self.connect(argv, Some(ended)) {
                    Ok(socket) => break socket,
                    Err(_) => thread::sleep(RECONNECT_EVERY),
                }
            };
        }
    }
}

/// Returns an error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Returns the cgroup of what a runtime with these arguments has restored, by the file of its process ID.
fn restored_cgroup(argv: &[OsString]) -> Option<Cgroup> {
    let id = argv.last()?.to_str()?;
    let pid = fs::read_to_string(argv::option(argv, "--pid-file")?).ok()?;
    Cgroup::of_pid(pid.trim().parse().ok()?, id).ok()
}

/// Returns CRIU's program, where the runtimes would find it.
fn find_criu() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    env::split_paths(&path).map(|dir| dir.join("criu")).find(|path| path.is_file())
}

/// A runtime in front of its gate. Dropped, it is ended.
struct Runtime {
    child: Child,
    gate: Option<Gate>,
}

impl Runtime {
    /// Gives it some time to come to its gate; how it ended, if it has instead.
    fn settle(&mut self) -> Option<Ended> {
        let mut status = None;
        let Self { child, gate } = self;
        gate.as_ref()?.await_reached(SETTLE, || {
            status = child.try_wait().ok().flatten();
            status.is_some()
        });
        status.map(|status| Ended { status: number(status), elapsed: Duration::ZERO })
    }

    /// Lets it restore, with memory that follows if `lazy_pages`.
    fn run(mut self, lazy_pages: bool) -> io::Result<Ended> {
        let start = Instant::now();
        if let Some(gate) = &mut self.gate {
            gate.open(lazy_pages)?;
        }
        let status = number(self.child.wait()?);
        Ok(Ended { status, elapsed: start.elapsed() })
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.gate = None;
        // A runtime cannot be left alone: podman takes our end for its own.
        let _ = self.child.wait();
    }
}

/// Returns an exit status, or 128 plus the number of the signal that ended a process.
fn number(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
