//! Starts the podman that imports a container, and waits for processes.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::unistd::{Pid, setsid};
use tokio::process::{Child, ChildStdin, Command};

use super::Error;
use super::work_dir::{WorkDir, is_gone};
use crate::Kind;
use crate::podman::{Podman, environment};
use checkpoint::cgroup;
use checkpoint::shim::TMPDIR_VARIABLE;

/// Pause between two looks at a process.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Returns what conmon runs when the container has ended (`podman-container-cleanup(1)`). Newer podman
/// says so itself; older one takes it from the container's configuration, and wants the ID last.
pub(super) fn cleanup(podman: &Podman, id: &str) -> Vec<String> {
    let absolute = std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .map(|dir| dir.join(&podman.program))
        .find(|path| path.is_file());
    let program = absolute.unwrap_or_else(|| podman.program.clone());
    let program = program.to_string_lossy().into_owned();
    [&program, "container", "cleanup", "--stopped-only", id].map(str::to_owned).into()
}

/// Starts podman's import in a session of its own, with none of our files: conmon, which stays
/// with the container, inherits all that podman has. It is started in the cgroup of the process `beside`.
pub(super) fn import(
    podman: &Podman,
    work: &WorkDir,
    fresh_addresses: bool,
    beside: Option<i32>,
) -> Result<Child, Error> {
    spawn(podman, work, fresh_addresses, beside, Stdio::null())
}

/// Starts podman's import as [`import`] does, with a pipe for its standard input.
pub(super) fn import_from_pipe(
    podman: &Podman,
    work: &WorkDir,
) -> Result<(Child, ChildStdin), Error> {
    let mut child = spawn(podman, work, false, None, Stdio::piped())?;
    match child.stdin.take() {
        Some(input) => Ok((child, input)),
        None => Err(work.fail(&work.archive())(io::ErrorKind::BrokenPipe.into())),
    }
}

fn spawn(
    podman: &Podman,
    work: &WorkDir,
    fresh_addresses: bool,
    beside: Option<i32>,
    input: Stdio,
) -> Result<Child, Error> {
    let members = match beside.map(cgroup::members).transpose() {
        Ok(members) => members,
        Err(source) => {
            return Err(work.fail(Path::new("/proc/self/cgroup"))(io::Error::other(source)));
        }
    };
    let path = work.output();
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(work.fail(&path))?;
    let errors = log.try_clone().map_err(work.fail(&path))?;
    let mut command = Command::new(&podman.program);
    command
        // The command line of later commands does not repeat it (CreateExitCommandArgs).
        .arg("--conmon")
        .arg(work.conmon())
        .args(["container", "restore", "--tcp-established", "--ignore-volumes"])
        .args(fresh_addresses.then_some("--ignore-static-ip"))
        .arg("--import")
        .arg(work.archive())
        .env_clear()
        .envs(environment())
        // podman unpacks there; killed, it would leave the pieces.
        .env("TMPDIR", work.tmp())
        .current_dir("/")
        .stdin(input)
        .stdout(log)
        .stderr(errors);
    if let Some(dir) = std::env::var_os("TMPDIR") {
        command.env(TMPDIR_VARIABLE, dir);
    }
    // SAFETY: setsid, write and close_range are single system calls that touch no memory of ours, and
    // so are safe between fork and exec.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            if let Some(mut members) = members.as_ref() {
                // 0 is the process that writes (cgroups(7)).
                members.write_all(b"0")?;
            }
            // Files that were opened without O_CLOEXEC, perhaps by whoever started us.
            let flag = libc::CLOSE_RANGE_CLOEXEC;
            if libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, flag) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command.spawn().map_err(|source| {
        let source = crate::podman::Error::Spawn { program: podman.program.clone(), source };
        Error::Start { engine: Kind::Podman, source: source.into() }
    })
}

/// Waits until a process that need not be our child is gone.
pub(super) async fn wait_gone(pid: Pid, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    while !is_gone(pid) {
        if Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    true
}
