//! A gate in front of CRIU: the OCI runtime does everything that comes before its call of CRIU, and waits.
//!
//! crun and runc find CRIU by its name in `PATH` and pass it a socket: `criu swrk FD` (`criu/cr-service.c`). The gate
//! puts a directory first in `PATH`. Its `criu` is a link to `netmig-shim`. The shim looks at the request in the socket
//! without taking it. For a dump or a restore it waits at a FIFO; then it becomes the real CRIU, which finds everything
//! as it would without the gate. Any other request, such as that for CRIU's version, passes at once.
//!
//! So the runtime has started, has looked at the container and knows CRIU's version before a container stops. The
//! container is untouched until the gate is opened. When the process that made the gate drops it, or dies, the shim
//! ends with an error, and so does the runtime.
//!
//! A restore goes through a relay in the process that made the gate: CRIU starts at once, the request waits, and the
//! restored tasks are frozen before CRIU resumes them. A dump has no relay: when the process that made its gate dies,
//! CRIU must finish undisturbed.

mod divert;
mod relay;
mod rpc;

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, iter};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

pub use relay::Attend;
use relay::Relay;

/// The name by which the runtimes call CRIU.
const CRIU: &str = "criu";
/// The link to the real CRIU.
const REAL: &str = "real-criu";
/// The FIFO: a byte opens the gate, the end of its writers closes it for ever.
const GO: &str = "go";
/// Exists once a CRIU waits.
const WAITING: &str = "waiting";
/// The object that is loaded into CRIU for a dump, beside the shim (crate `criu-preload`).
const PRELOAD: &str = "libnetmig_criu.so";
/// The variable by which the dynamic linker loads it (ld.so(8)).
const LD_PRELOAD: &str = "LD_PRELOAD";
/// The file that names shared memory which CRIU is not to dump, and the variable by which that object finds it.
const SHARED_MEMORY: &str = "shared-memory";
const SHARED_MEMORY_VARIABLE: &str = "NETMIG_SHARED_MEMORY";
/// Names the gate's directory.
const VARIABLE: &str = "NETMIG_GATE";

/// How long a process waits at a gate at most: longer than any step that opens one.
const PATIENCE: Duration = Duration::from_secs(240);
/// Between two checks whether the gate still exists, in milliseconds, should the kernel not report it.
const LOOK: u16 = 1000;
/// Between two checks whether a CRIU waits.
const GLANCE: Duration = Duration::from_micros(500);

/// A gate. Dropped, it ends the process that waits.
#[derive(Debug)]
pub struct Gate {
    dir: PathBuf,
    bar: Bar,
}

/// What keeps CRIU waiting.
#[derive(Debug)]
enum Bar {
    /// The start of the program.
    Start(File),
    /// Its request.
    Request(Relay),
}

impl Gate {
    /// Makes a gate in `dir`, which must not be there yet. `shim` is the program `netmig-shim`.
    ///
    /// # Errors
    /// When the directory or what belongs into it cannot be made.
    pub fn create(dir: &Path, shim: &Path, criu: &Path) -> io::Result<Self> {
        make_directory(dir, shim, criu)?;
        let go = dir.join(GO);
        mkfifo(&go, Mode::S_IRUSR | Mode::S_IWUSR)?;
        // Not for writing alone: that would wait for somebody who reads.
        let go = OpenOptions::new().read(true).write(true).open(go)?;
        Ok(Self { dir: dir.to_path_buf(), bar: Bar::Start(go) })
    }

    /// Makes a gate for a restore, which `attend` is to freeze before any restored task runs. The calling
    /// process has to live until the restore has ended.
    ///
    /// # Errors
    /// As for [`Gate::create`].
    pub fn relay(
        dir: &Path,
        shim: &Path,
        criu: &Path,
        attend: Box<dyn Attend>,
    ) -> io::Result<Self> {
        make_directory(dir, shim, criu)?;
        Ok(Self { dir: dir.to_path_buf(), bar: Bar::Request(Relay::start(dir, attend)?) })
    }

    /// Has a runtime find the gate instead of CRIU.
    pub fn attach(&self, command: &mut Command) {
        let path = env::var_os("PATH").unwrap_or_default();
        let dirs = iter::once(self.dir.clone()).chain(env::split_paths(&path));
        // The directory's name is ours and has no colon.
        if let Ok(path) = env::join_paths(dirs) {
            command.env("PATH", path).env(VARIABLE, &self.dir);
        }
    }

    /// Returns whether a CRIU waits at the gate.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        match &self.bar {
            Bar::Start(_) => self.dir.join(WAITING).exists(),
            Bar::Request(relay) => relay.is_reached(),
        }
    }

    /// Waits until a CRIU waits at the gate; `false` when that took too long, which is no error: a gate that is
    /// opened before lets a later CRIU pass. `ended` tells whether no CRIU will come any more.
    pub fn await_reached(&self, limit: Duration, mut ended: impl FnMut() -> bool) -> bool {
        if let Bar::Request(relay) = &self.bar {
            return relay.await_reached(limit, GLANCE, ended);
        }
        let end = Instant::now() + limit;
        loop {
            if self.is_reached() {
                return true;
            }
            if Instant::now() >= end || ended() {
                return false;
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Has a dump leave out the pages of segments of shared memory: files of this device with these inode numbers. Their content
    /// has to come another way. A dump into which the object of the crate `criu-preload` is not loaded has the pages all the same.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn leave_shared_memory_out(&self, device: u64, inodes: &[u32]) -> io::Result<()> {
        let numbers = iter::once(device).chain(inodes.iter().map(|inode| u64::from(*inode)));
        let lines: String = numbers.map(|number| format!("{number}\n")).collect();
        std::fs::write(self.dir.join(SHARED_MEMORY), lines)
    }

    /// Opens the gate. Keep it until the runtime has ended. With `lazy_pages`, what the runtime asks CRIU to restore is
    /// restored with memory that follows, whichever option the runtime has for that ([`crate::lazy_pages`]).
    ///
    /// # Errors
    /// Those of writing to a FIFO; a gate that holds the start of CRIU back cannot change what it is asked for.
    pub fn open(&mut self, lazy_pages: bool) -> io::Result<()> {
        match &mut self.bar {
            Bar::Start(_) if lazy_pages => Err(io::ErrorKind::Unsupported.into()),
            Bar::Start(go) => go.write_all(&[1]),
            Bar::Request(relay) => {
                relay.open(lazy_pages);
                Ok(())
            }
        }
    }
}

fn make_directory(dir: &Path, shim: &Path, criu: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(dir)?;
    symlink(shim, dir.join(CRIU))?;
    symlink(criu, dir.join(REAL))
}

/// Returns whether a program was called as the stand-in for CRIU.
#[must_use]
pub fn is_asked_for(program: Option<&OsString>) -> bool {
    program.is_some_and(|name| name == CRIU) && env::var_os(VARIABLE).is_some()
}

/// Runs as the stand-in for CRIU: waits if the request is a dump or a restore, and becomes CRIU.
///
/// # Errors
/// When the gate is gone, or CRIU cannot be started. It does not return otherwise.
pub fn stand_in(args: &[OsString]) -> io::Result<()> {
    let dir = PathBuf::from(env::var_os(VARIABLE).unwrap_or_default());
    let mut preload = None;
    if let Some(socket) = socket(args) {
        if dir.join(relay::SOCKET).exists() {
            divert::divert(&dir, socket)?;
        } else if has_to_wait(socket)? {
            wait(&dir)?;
            preload = preloaded();
        }
    }
    let mut command = Command::new(fs::read_link(dir.join(REAL))?);
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(env::split_paths(&path).filter(|entry| *entry != dir));
    command.arg0(CRIU).args(args).env_remove(VARIABLE).env("PATH", path.unwrap_or_default());
    if let Some(preload) = preload {
        command.env(LD_PRELOAD, preload);
        let left_out = dir.join(SHARED_MEMORY);
        if left_out.exists() {
            command.env(SHARED_MEMORY_VARIABLE, left_out);
        }
    }
    Err(command.exec())
}

/// Returns what the dynamic linker is to load into CRIU for a dump: the object beside the shim, if it is there, after what
/// is loaded anyway. CRIU dumps without it as well, only slower.
fn preloaded() -> Option<OsString> {
    let object = env::current_exe().ok()?.with_file_name(PRELOAD);
    if !object.is_file() {
        return None;
    }
    let mut all = env::var_os(LD_PRELOAD).filter(|others| !others.is_empty()).unwrap_or_default();
    if !all.is_empty() {
        all.push(":");
    }
    all.push(object);
    Some(all)
}

/// Returns the socket of a CRIU that is to serve one request.
fn socket(args: &[OsString]) -> Option<RawFd> {
    let [command, socket] = args else { return None };
    if command != "swrk" {
        return None;
    }
    OsStr::to_str(socket)?.parse().ok()
}

/// Returns whether the request that comes is a dump or a restore. It stays where it is.
fn has_to_wait(socket: RawFd) -> io::Result<bool> {
    let mut head = [0; 2];
    let length = loop {
        match recv(socket, &mut head, MsgFlags::MSG_PEEK) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    Ok(rpc::is_operation(&head[..length]))
}

/// Waits until the gate is opened.
fn wait(dir: &Path) -> io::Result<()> {
    // An open that waits would do so for ever where the gate is gone.
    let mut options = OpenOptions::new();
    let mut go = options.read(true).custom_flags(libc::O_NONBLOCK).open(dir.join(GO))?;
    File::create(dir.join(WAITING))?;
    let end = Instant::now() + PATIENCE;
    loop {
        match go.read(&mut [0; 1]) {
            Ok(0) => return Err(io::Error::other("nobody opens the gate any more")),
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() >= end {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                let mut fds = [PollFd::new(go.as_fd(), PollFlags::POLLIN)];
                match poll(&mut fds, PollTimeout::from(LOOK)) {
                    Err(Errno::EINTR) => {}
                    other => other.map(drop)?,
                }
            }
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, send, socketpair};
    use std::os::fd::AsRawFd;

    fn gate() -> (tempfile::TempDir, Gate) {
        let parent = tempfile::tempdir().unwrap();
        let gate = Gate::create(&parent.path().join("gate"), Path::new("/s"), Path::new("/c"));
        (parent, gate.unwrap())
    }

    #[test]
    fn an_opened_gate_lets_pass_who_waits_and_who_comes_later() {
        let (_parent, mut gate) = gate();
        let dir = gate.dir.clone();
        let waiting = std::thread::spawn(move || wait(&dir));
        assert!(gate.await_reached(Duration::from_secs(10), || false));
        assert!(!waiting.is_finished());
        gate.open(false).unwrap();
        waiting.join().unwrap().unwrap();
        gate.open(false).unwrap();
        wait(&gate.dir).unwrap();
    }

    #[test]
    fn a_gate_that_is_gone_ends_who_waits_and_who_comes_later() {
        let (_parent, gate) = gate();
        let dir = gate.dir.clone();
        let waiting = std::thread::spawn(move || wait(&dir));
        assert!(gate.await_reached(Duration::from_secs(10), || false));
        let dir = gate.dir.clone();
        drop(gate);
        assert!(waiting.join().unwrap().is_err());
        assert!(wait(&dir).is_err());
    }

    #[test]
    fn nobody_comes() {
        let (_parent, gate) = gate();
        assert!(!gate.await_reached(Duration::from_millis(5), || false));
        assert!(!gate.await_reached(Duration::from_secs(3600), || true));
    }

    #[test]
    fn only_dumps_and_restores_wait_and_the_request_stays() {
        for (request, waits) in [
            (&[0x08, 1, 0x12, 0][..], true),
            (&[0x08, 2, 0x12, 0][..], true),
            (&[0x08, 10][..], false),
            (&[0x12, 1][..], false),
            (&[0x08][..], false),
        ] {
            let (a, b) =
                socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                    .unwrap();
            send(a.as_raw_fd(), request, MsgFlags::empty()).unwrap();
            assert_eq!(has_to_wait(b.as_raw_fd()).unwrap(), waits, "{request:?}");
            let mut whole = [0; 8];
            assert_eq!(recv(b.as_raw_fd(), &mut whole, MsgFlags::empty()).unwrap(), request.len());
        }
    }

    #[test]
    fn requests_come_by_a_socket() {
        let args = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(socket(&args("swrk 7")), Some(7));
        for line in ["--version", "swrk", "swrk x", "dump -t 7"] {
            assert_eq!(socket(&args(line)), None, "{line}");
        }
    }
}
