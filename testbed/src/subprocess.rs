//! Runs programs with a deadline and captures their output.
//!
//! Output goes to anonymous files rather than pipes. A daemon that a program leaves behind may keep its descriptors
//! open for ever, and no thread has to read meanwhile.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::error::{Context, Error, Result};
use crate::slowdown;

/// The default time limit of a program.
pub const LIMIT: Duration = Duration::from_secs(60);
/// The longest quotation of a program's output in an error message, in bytes.
const QUOTED: usize = 2000;

/// The result of a program that has ended.
#[derive(Debug)]
pub struct Output {
    /// The command line, for messages.
    pub program: String,
    /// The exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// The time that it ran.
    pub elapsed: Duration,
}

impl Output {
    /// Standard output as text, without the white space at its ends.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Standard error as text, without the white space at its ends.
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_owned()
    }

    /// Returns the output of a program that must have succeeded.
    ///
    /// # Errors
    /// It ended with another code than 0 or by a signal.
    pub fn success(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        let mut stderr = self.error_text();
        if stderr.is_empty() {
            stderr = self.text();
        }
        Err(Error::Program {
            program: self.program,
            status: self.status.to_string(),
            stderr: tail(&stderr),
        })
    }

    /// Returns the output parsed as JSON.
    ///
    /// # Errors
    /// It is not JSON of that shape.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.stdout).map_err(|source| Error::Json {
            program: self.program.clone(),
            output: self.text().chars().take(QUOTED).collect(),
            source,
        })
    }
}

/// Runs a program of this machine to its end; standard input is empty.
///
/// # Errors
/// It could not be started, did not end within `limit`, or failed.
pub fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    command.stdin(Stdio::null());
    capture(command, limit, Command::spawn)?.success()
}

/// Runs a program of this machine to its end, with `input` on its standard input.
///
/// # Errors
/// It could not be started, did not end within `limit`, or failed.
pub fn run_with_input(command: &mut Command, input: &[u8], limit: Duration) -> Result<Output> {
    command.stdin(input_file(input)?);
    capture(command, limit, Command::spawn)?.success()
}

/// Returns a standard input that holds `input`.
pub(crate) fn input_file(input: &[u8]) -> Result<Stdio> {
    let mut file = anonymous_file()?;
    io::Write::write_all(&mut file, input)
        .and_then(|()| file.rewind())
        .context(|| "writing a program's input")?;
    Ok(file.into())
}

/// Starts `command` by `spawn`, waits for its end, and collects its output.
pub(crate) fn capture(
    command: &mut Command,
    limit: Duration,
    spawn: impl FnOnce(&mut Command) -> io::Result<Child>,
) -> Result<Output> {
    let program = line(command);
    let (mut stdout, mut stderr) = (anonymous_file()?, anonymous_file()?);
    let clone = |file: &File| file.try_clone().context(|| "duplicating a descriptor");
    command.stdout(clone(&stdout)?).stderr(clone(&stderr)?);
    let started = Instant::now();
    let mut child = spawn(command).context(|| format!("starting {program}"))?;
    let limit = slowdown::limit(limit);
    let status = wait(&mut child, limit).context(|| format!("waiting for {program}"))?;
    let elapsed = started.elapsed();
    let (stdout, stderr) = (contents(&mut stdout)?, contents(&mut stderr)?);
    let Some(status) = status else {
        let stderr = tail(String::from_utf8_lossy(&stderr).trim());
        return Err(Error::Deadline { program, limit, stderr });
    };
    Ok(Output { program, status, stdout, stderr, elapsed })
}

/// Waits for a process to end. Kills it after `limit` and returns `None`.
///
/// # Errors
/// The kernel refused to wait.
pub fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    if let Some(status) = child.try_wait()? {
        return Ok(Some(status));
    }
    let pidfd = pidfd(child.id() as i32)?;
    if ended_within(&pidfd, limit)? {
        return child.wait().map(Some);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

/// Waits for a process that has been killed. Returns whether it has ended within `limit`.
pub(crate) fn ends_within(child: &mut Child, limit: Duration) -> bool {
    let limit = slowdown::limit(limit);
    let ended = pidfd(child.id() as i32).is_ok_and(|fd| ended_within(&fd, limit).unwrap_or(false));
    ended && child.wait().is_ok()
}

/// Returns whether the process behind `pidfd` has ended within `limit`.
pub(crate) fn ended_within(pidfd: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match nix::poll::poll(&mut polled, timeout) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns a descriptor that refers to a process and never to a later one of the same number.
pub(crate) fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn anonymous_file() -> Result<File> {
    // SAFETY: memfd_create(2) reads a constant C string and returns a new descriptor or -1.
    let fd = unsafe { libc::memfd_create(c"netmig-testbed".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context(|| "creating an anonymous file");
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn contents(file: &mut File) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut all))
        .context(|| "reading a program's output")?;
    Ok(all)
}

/// Returns the end of a program's output, short enough for a message.
pub(crate) fn tail(text: &str) -> String {
    if text.len() <= QUOTED {
        return text.to_owned();
    }
    let cut = text.len() - QUOTED;
    let start = text.char_indices().map(|(at, _)| at).find(|at| *at >= cut).unwrap_or(cut);
    format!("…{}", &text[start..])
}

/// Returns the command line of a program, for messages.
pub(crate) fn line(command: &Command) -> String {
    let mut all = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        all.push(' ');
        all.push_str(&argument.to_string_lossy());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_captured_and_failure_quoted() {
        let output = run(Command::new("echo").arg("hello"), LIMIT).unwrap();
        assert_eq!(output.text(), "hello");
        let error = run(Command::new("ls").arg("/no/such/file"), LIMIT).unwrap_err();
        assert!(error.to_string().contains("No such file"), "{error}");
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let started = Instant::now();
        let error = run(Command::new("sleep").arg("30"), Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_daemon_that_keeps_the_output_open_does_not_delay() {
        let started = Instant::now();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 5 & echo started"]);
        assert_eq!(run(&mut command, LIMIT).unwrap().text(), "started");
        assert!(started.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn input_reaches_the_program() {
        let output = run_with_input(&mut Command::new("cat"), b"over there", LIMIT).unwrap();
        assert_eq!(output.text(), "over there");
    }
}
