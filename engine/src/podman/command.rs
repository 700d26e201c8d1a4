//! Runs podman's commands.

use std::ffi::{OsStr, OsString};
use std::process::Stdio;
use std::time::Duration;
use std::{env, io};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use super::{Error, Podman};
use crate::error::shortened;

/// Most bytes of output that are kept.
const MOST_OUTPUT: usize = 32 << 20;
/// Most bytes of error output that are kept.
const MOST_ERRORS: usize = 64 << 10;

/// What happens to a podman that is still at work when its time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    /// It only looks: kill it.
    Kill,
    /// It changes things: let it finish by itself.
    Leave,
}

/// A podman that ended.
pub(super) struct Output {
    pub(super) status: i32,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: String,
}

/// Returns the variables of our environment that podman is to see. Not more: it hands its environment to
/// conmon, which lives as long as the container; `NOTIFY_SOCKET` or `LISTEN_FDS` of a service
/// would reach the container, and with `INVOCATION_ID` set podman leaves conmon in the cgroup of
/// our service, where it dies when the service stops.
pub(crate) fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        ["PATH", "HOME", "USER", "LOGNAME", "LANG", "TMPDIR", "XDG_RUNTIME_DIR"]
            .contains(&name.as_ref())
            || ["LC_", "CONTAINERS_", "STORAGE_"].iter().any(|prefix| name.starts_with(prefix))
            || name.to_ascii_lowercase().ends_with("_proxy")
    })
}

impl Podman {
    /// Runs podman; an exit status other than 0 is an error.
    pub(super) async fn run<A: AsRef<OsStr>>(
        &self,
        args: &[A],
        deadline: Duration,
        overdue: Overdue,
    ) -> Result<Vec<u8>, Error> {
        let output = self.output(args, deadline, overdue).await?;
        if output.status == 0 {
            return Ok(output.stdout);
        }
        Err(self.failure(args, output.status, &output.stderr))
    }

    /// Runs podman, whatever its exit status.
    pub(super) async fn output<A: AsRef<OsStr>>(
        &self,
        args: &[A],
        deadline: Duration,
        overdue: Overdue,
    ) -> Result<Output, Error> {
        let mut child = self.spawn(args, Stdio::null(), Stdio::piped())?;
        let group = child.id();
        let stdout = child.stdout.take();
        let stderr = child.stderr.take();
        let work = async {
            let (stdout, stderr) =
                tokio::try_join!(read(stdout, MOST_OUTPUT), read(stderr, MOST_ERRORS))?;
            io::Result::Ok((child.wait().await?, stdout, stderr))
        };
        match tokio::time::timeout(deadline, work).await {
            Ok(Ok((status, stdout, stderr))) => {
                if stdout.len() >= MOST_OUTPUT {
                    let command = self.shown(args);
                    return Err(Error::TooMuch { command, limit: MOST_OUTPUT });
                }
                let stderr = String::from_utf8_lossy(&stderr).into_owned();
                Ok(Output { status: status.code().unwrap_or(-1), stdout, stderr })
            }
            Ok(Err(source)) => Err(Error::Pipe { command: self.shown(args), source }),
            Err(_) => {
                if overdue == Overdue::Kill {
                    kill_group(group);
                }
                let seconds = deadline.as_secs();
                Err(Error::Timeout { command: self.shown(args), seconds })
            }
        }
    }

    /// Starts podman with piped error output, in a process group of its own.
    pub(super) fn spawn<A: AsRef<OsStr>>(
        &self,
        args: &[A],
        stdin: Stdio,
        stdout: Stdio,
    ) -> Result<Child, Error> {
        Command::new(&self.program)
            .args(args)
            .env_clear()
            .envs(environment())
            .stdin(stdin)
            .stdout(stdout)
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|source| Error::Spawn { program: self.program.clone(), source })
    }

    pub(super) fn failure<A: AsRef<OsStr>>(&self, args: &[A], status: i32, stderr: &str) -> Error {
        Error::Failed { command: self.shown(args), status, message: last_line(stderr) }
    }

    /// Returns the command, for a message.
    pub(super) fn shown<A: AsRef<OsStr>>(&self, args: &[A]) -> String {
        let mut line = String::from("podman");
        for arg in args {
            line.push(' ');
            line.push_str(&arg.as_ref().to_string_lossy());
        }
        shortened(&line)
    }
}

/// Kills a podman and what it has started, by the group that was made for it.
pub(super) fn kill_group(group: Option<u32>) {
    if let Some(group) = group.and_then(|g| i32::try_from(g).ok()).filter(|g| *g > 1) {
        // The group may be gone already.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}

/// Returns the last line that says something, without podman's prefix.
pub(crate) fn last_line(stderr: &str) -> String {
    let line = stderr.lines().rev().map(str::trim).find(|line| !line.is_empty());
    let line = line.unwrap_or("no message");
    let line = line.strip_prefix("Error: ").unwrap_or(line);
    line.chars().filter(|c| !c.is_control()).take(1000).collect()
}

/// Reads until the end, but keeps no more than `most` bytes.
pub(super) async fn read<R: AsyncRead + Unpin>(
    from: Option<R>,
    most: usize,
) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut from) = from else { return Ok(kept) };
    (&mut from).take(most as u64).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn podman(program: &str) -> Podman {
        Podman::new(program)
    }

    #[tokio::test]
    async fn output_status_and_last_line() {
        let args = ["-c", "echo out; echo 'a warning' >&2; echo 'Error: it is so' >&2; exit 125"];
        let second = Duration::from_secs(10);
        let output = podman("/bin/sh").output(&args, second, Overdue::Kill).await.unwrap();
        assert_eq!((output.status, output.stdout.as_slice()), (125, b"out\n".as_slice()));
        let error = podman("/bin/sh").run(&args, second, Overdue::Kill).await.unwrap_err();
        assert!(error.to_string().ends_with("failed: it is so"), "{error}");
        assert_eq!(last_line("\n \n"), "no message");
    }

    #[tokio::test]
    async fn what_takes_too_long_is_killed() {
        let start = Instant::now();
        let limit = Duration::from_millis(100);
        let run = podman("/bin/sleep").run(&["30"], limit, Overdue::Kill).await;
        assert!(matches!(run, Err(Error::Timeout { .. })));
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let none = podman("/nonexistent/podman");
        let error = none.run(&["x"], Duration::from_secs(1), Overdue::Kill).await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent/podman"));
    }

    #[tokio::test]
    async fn reading_is_bounded() {
        let kept = read(Some([7; 100].as_slice()), 10).await.unwrap();
        assert_eq!(kept, [7; 10]);
    }
}
