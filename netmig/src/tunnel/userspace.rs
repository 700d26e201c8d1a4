//! `wireguard-go`, for kernels without WireGuard: starting it, and making sure that it has ended.
//!
//! Started plainly it creates its TUN interface and its control socket, continues in a process of
//! its own and returns 0. So it is ready when it returns; otherwise it prints an error. It ends by
//! itself when its interface is removed.

use std::ffi::CStr;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, setsid, write};
use tokio::process::Command;

use super::Error;

const PROGRAM: &str = "wireguard-go";
/// Its niceness (setpriority(2)).
const NICENESS: i32 = -10;
/// Where the scheduler groups tasks by session (sched(7), autogroup), niceness counts within a
/// session only, and this file is the session's own niceness.
const SESSION_NICENESS: &CStr = c"/proc/self/autogroup";
/// [`NICENESS`], as this file takes it.
const OF_SESSION: &[u8] = b"-10";
/// The directory of its control sockets (wireguard-go, `ipc/uapi_unix.go`).
const SOCKETS: &str = "/var/run/wireguard";
/// The search path when this process has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long it may take to end by itself, and then by SIGKILL.
const FAREWELL: Duration = Duration::from_secs(3);
const FORCED: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(5);
/// How often its threads are listed.
const LOOKS: usize = 100;
/// How often a control socket is tried that is served though its process seems gone.
const SOCKET_ATTEMPTS: usize = 100;
/// Bytes of its error output that are kept, from the end.
const SAID_MAX: usize = 500;

/// Returns one of these processors.
fn only_one(processors: &CpuSet) -> nix::Result<CpuSet> {
    let first = (0..CpuSet::count()).find(|cpu| processors.is_set(*cpu).unwrap_or(false));
    let mut only = CpuSet::new();
    only.set(first.unwrap_or(0))?;
    Ok(only)
}

/// Waits until a program in Go has counted its processors: its runtime does so before it starts its
/// second thread (`runtime/proc.go`, `schedinit` and `main`). The process that stays has only just
/// been forked when the first one returns.
async fn has_counted(pid: i32) -> bool {
    let tasks = format!("/proc/{pid}/task");
    let counted = async {
        while std::fs::read_dir(&tasks).is_ok_and(|tasks| tasks.count() < 2) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(FORCED, counted).await.is_ok()
}

/// Lets a process that was confined to one processor use these.
///
/// A thread inherits the processors of the one that starts it, so no further thread is confined
/// once a listing of all threads finds none that is.
fn unconfine(pid: i32, processors: &CpuSet) -> io::Result<()> {
    for _ in 0..LOOKS {
        let mut is_confined = false;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let Some(thread) = task?.file_name().to_str().and_then(|id| id.parse().ok()) else {
                continue;
            };
            let thread = Pid::from_raw(thread);
            match sched_getaffinity(thread) {
                Ok(own) if own == *processors => {}
                // It has ended.
                Err(Errno::ESRCH) => {}
                _ => {
                    is_confined = true;
                    sched_setaffinity(thread, processors)?;
                }
            }
        }
        if !is_confined {
            return Ok(());
        }
    }
    Ok(())
}

/// Starts it in a session of its own, so that nothing that ends this process ends it too, with one
/// handshake worker, and with a higher priority than others: every packet of a moved connection
/// waits for it, and it drops packets meanwhile. The kernel's own WireGuard does not compete for
/// the processor.
///
/// It starts as many workers as it finds processors. Two of them, at initiations that cross each
/// other, can end with a session in which one end sends under an index that the other does not
/// have: the answer to its own initiation is processed while it answers the far end's
/// (wireguard-go, `device/noise-protocol.go`, `ConsumeMessageResponse` and
/// `CreateMessageResponse`). That direction is dead until WireGuard's next handshake, 15 s later.
/// So it finds one processor when it starts, and may use all of them afterwards.
pub(super) async fn start(interface: &str) -> Result<(), Error> {
    let failed = |source| Error::NoWireGuard { interface: interface.to_owned(), source };
    let processors = sched_getaffinity(Pid::from_raw(0)).map_err(|e| failed(e.into()))?;
    let one = only_one(&processors).map_err(|e| failed(e.into()))?;
    let count = (0..CpuSet::count()).filter(|cpu| processors.is_set(*cpu).unwrap_or(false)).count();
    let mut command = Command::new(PROGRAM);
    command
        .arg(interface)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()))
        // How many threads run at once (Go's runtime), which is otherwise one, too.
        .env("GOMAXPROCS", count.to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        // Errors; the process that stays opens /dev/null instead, unless LOG_LEVEL is set.
        .stdout(Stdio::piped())
        // Nothing but advice to use a kernel with WireGuard.
        .stderr(Stdio::null())
        .kill_on_drop(true);
    // SAFETY: between fork and exec there are only system calls, on constants, and an error number is
    // turned into an error without allocating.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            sched_setaffinity(Pid::from_raw(0), &one)?;
            // Where it is not allowed, and without autogroups, it is only slower.
            let _ = libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS);
            let _ = open(SESSION_NICENESS, OFlag::O_WRONLY, Mode::empty())
                .and_then(|file| write(&file, OF_SESSION));
            Ok(())
        });
    }
    let output = command.output().await.map_err(failed)?;
    if output.status.success() {
        let Some(pid) = process_of(interface) else { return Ok(()) };
        let unconfined = match has_counted(pid).await {
            true => unconfine(pid, &processors),
            false => Err(io::ErrorKind::TimedOut.into()),
        };
        if let Err(error) = unconfined {
            tracing::warn!(interface, pid, %error, "wireguard-go may use one processor only");
        }
        return Ok(());
    }
    let start = output.stdout.len().saturating_sub(SAID_MAX);
    Err(Error::Userspace {
        interface: interface.to_owned(),
        status: output.status,
        said: String::from_utf8_lossy(&output.stdout[start..]).trim().to_owned(),
    })
}

/// Waits until the process of a removed interface has ended, kills it if it stays, and removes the
/// control socket that a killed one leaves behind.
pub(super) async fn cease(interface: &str) -> Result<(), Error> {
    if let Some(pid) = gone_within(FAREWELL, interface).await {
        tracing::warn!(interface, pid, "wireguard-go did not end by itself, killing it");
        // It may have ended meanwhile.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        if let Some(pid) = gone_within(FORCED, interface).await {
            return Err(Error::Lingers { interface: interface.to_owned(), pid });
        }
    }
    remove_abandoned(&control_socket(interface)).await
}

/// Removes a control socket that no process serves any more. One that is served belongs to another
/// network namespace that shares the file system, and stays.
async fn remove_abandoned(socket: &Path) -> Result<(), Error> {
    // A killed process loses its command line somewhat before its sockets.
    for _ in 0..SOCKET_ATTEMPTS {
        match UnixStream::connect(socket).map_err(|error| error.kind()) {
            Ok(_) => tokio::time::sleep(POLL).await,
            Err(io::ErrorKind::ConnectionRefused) => {
                return match std::fs::remove_file(socket) {
                    Err(source) if source.kind() != io::ErrorKind::NotFound => {
                        Err(Error::Setting { path: socket.to_owned(), source })
                    }
                    _ => Ok(()),
                };
            }
            Err(_) => break,
        }
    }
    Ok(())
}

fn control_socket(interface: &str) -> PathBuf {
    Path::new(SOCKETS).join(format!("{interface}.sock"))
}

/// Waits for the end of the interface's process; returns the process if it is still running.
async fn gone_within(time: Duration, interface: &str) -> Option<i32> {
    let waited = tokio::time::timeout(time, async {
        while process_of(interface).is_some() {
            tokio::time::sleep(POLL).await;
        }
    });
    if waited.await.is_ok() { None } else { process_of(interface) }
}

/// Returns the `wireguard-go` of that interface in this network namespace.
fn process_of(interface: &str) -> Option<i32> {
    let own = std::fs::read_link("/proc/self/ns/net").ok()?;
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        // Ended but not yet waited for, it has no command line.
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        let here = || std::fs::read_link(entry.path().join("ns/net")).is_ok_and(|net| net == own);
        (is_command_of(interface, &command) && here()).then_some(pid)
    })
}

/// Returns whether a command line, with its arguments ended by NUL, is `wireguard-go INTERFACE`.
fn is_command_of(interface: &str, command: &[u8]) -> bool {
    let mut arguments = command.split(|byte| *byte == 0);
    let program = arguments.next().unwrap_or_default();
    program.rsplit(|byte| *byte == b'/').next() == Some(PROGRAM.as_bytes())
        && arguments.next() == Some(interface.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_finds_one_processor_and_may_use_all_afterwards() {
        let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let one = only_one(&all).unwrap();
        let set = |cpus: &CpuSet| (0..CpuSet::count()).filter(|c| cpus.is_set(*c).unwrap()).count();
        assert_eq!(set(&one), 1);
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        sched_setaffinity(Pid::from_raw(pid), &one).unwrap();
        unconfine(pid, &all).unwrap();
        assert_eq!(sched_getaffinity(Pid::from_raw(pid)).unwrap(), all);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_is_told_by_its_whole_interface_name() {
        assert!(is_command_of("netmig1", b"wireguard-go\0netmig1\0"));
        assert!(is_command_of("netmig1", b"/usr/bin/wireguard-go\0netmig1\0"));
        for other in [
            &b"wireguard-go\0netmig12\0"[..],
            b"vim\0netmig1\0",
            b"grep\0wireguard-go\0netmig1\0",
            b"wireguard-go\0",
            b"",
        ] {
            assert!(!is_command_of("netmig1", other), "{}", String::from_utf8_lossy(other));
        }
    }
}
