//! Runs programs on a host, to their end or in the background with their output in log files.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Host;
use crate::error::{Context, Error, Result};
use crate::slowdown;
use crate::subprocess::{self, Output};

/// The search path of a host. The product's and the testbed's programs are in `/usr/local/bin`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The time between two reads of a log while a line is awaited.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// A command for a host. It runs by `run`, `output` or `spawn`.
#[must_use = "nothing runs until run, output or spawn is called"]
pub struct HostCommand<'a> {
    host: &'a Host,
    command: Command,
    program: String,
    input: Vec<u8>,
    limit: Duration,
}

impl<'a> HostCommand<'a> {
    pub(super) fn new(host: &'a Host, program: &str) -> Self {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", PATH).env("HOME", "/root").env("TERM", "xterm");
        Self {
            host,
            command,
            program: program.to_owned(),
            input: Vec::new(),
            limit: subprocess::LIMIT,
        }
    }

    /// Adds arguments.
    pub fn args<S: AsRef<str>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets the contents of standard input, which is empty otherwise.
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Sets the time limit.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    fn line(&self) -> String {
        format!("{} on host {}", subprocess::line(&self.command), self.host.name)
    }

    /// Runs the program to its end. A failure of the program is not an error.
    ///
    /// # Errors
    /// The program could not be started, or did not end in time and was killed.
    pub fn output(mut self) -> Result<Output> {
        let program = self.line();
        let stdin = if self.input.is_empty() {
            Stdio::null()
        } else {
            subprocess::input_file(&self.input)?
        };
        self.command.stdin(stdin);
        let namespaces = self.host.namespaces();
        let captured =
            subprocess::capture(&mut self.command, self.limit, |command| namespaces.spawn(command));
        match captured {
            Ok(output) => Ok(Output { program, ..output }),
            Err(Error::Deadline { limit, stderr, .. }) => {
                Err(Error::Deadline { program, limit, stderr })
            }
            Err(Error::Io { source, .. }) => {
                Err(Error::Io { action: format!("running {program}"), source })
            }
            Err(other) => Err(other),
        }
    }

    /// Runs the program to its end. It must succeed.
    ///
    /// # Errors
    /// As for [`HostCommand::output`], or the program failed.
    pub fn run(self) -> Result<Output> {
        self.output()?.success()
    }

    /// Runs the program with the standard input, output and error of this program, and without time limit.
    ///
    /// # Errors
    /// The program could not be started.
    pub fn attached(mut self) -> Result<ExitStatus> {
        let program = self.line();
        let mut child = self
            .host
            .namespaces()
            .spawn(&mut self.command)
            .context(|| format!("running {program}"))?;
        child.wait().context(|| format!("waiting for {program}"))
    }

    /// Starts the program in the background on a terminal, which becomes its standard input, output and error, and its
    /// controlling terminal in a session of its own.
    ///
    /// # Errors
    /// The program could not be started.
    pub fn spawn_on(mut self, terminal: &OwnedFd) -> Result<HostProcess> {
        let program = self.line();
        let what = || format!("starting {program}");
        let end = || terminal.try_clone().context(what);
        self.command.stdin(end()?).stdout(end()?).stderr(end()?);
        // SAFETY: the closure runs in the child between fork and exec and makes two system calls;
        // its standard input is the terminal.
        unsafe {
            self.command.pre_exec(|| {
                nix::unistd::setsid()?;
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let child = self.host.namespaces().spawn(&mut self.command).context(what)?;
        // Dropping the command closes its descriptors of the terminal. Then only the program has them.
        let none = PathBuf::new();
        Ok(HostProcess {
            child,
            stdin: None,
            stdout_path: none.clone(),
            stderr_path: none,
            program,
        })
    }

    /// Starts the program in the background, with an open standard input and its output in log files.
    ///
    /// # Errors
    /// The program could not be started.
    pub fn spawn(mut self) -> Result<HostProcess> {
        let program = self.line();
        let stdout_path = self.host.log_path(&self.program, "out");
        let stderr_path = self.host.log_path(&self.program, "err");
        let create = |path: &PathBuf| {
            File::create(path).context(|| format!("creating the log {}", path.display()))
        };
        self.command
            .stdin(Stdio::piped())
            .stdout(create(&stdout_path)?)
            .stderr(create(&stderr_path)?);
        let mut child = self
            .host
            .namespaces()
            .spawn(&mut self.command)
            .context(|| format!("starting {program}"))?;
        Ok(HostProcess { program, stdin: child.stdin.take(), child, stdout_path, stderr_path })
    }
}

/// A program in the background. Dropping it kills the program.
#[derive(Debug)]
pub struct HostProcess {
    program: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout_path: PathBuf,
    stderr_path: PathBuf,
}

impl HostProcess {
    /// Returns the standard output so far.
    pub fn stdout(&self) -> String {
        fs::read_to_string(&self.stdout_path).unwrap_or_default()
    }

    /// Returns the standard error so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr_path).unwrap_or_default()
    }

    /// Returns the process ID in this machine's PID namespace.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Returns whether the program still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until standard output or standard error contains `text`.
    ///
    /// # Errors
    /// The program ended before, or `limit` passed.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        let limit = slowdown::limit(limit);
        let deadline = Instant::now() + limit;
        loop {
            let running = self.is_running();
            if self.stderr().contains(text) || self.stdout().contains(text) {
                return Ok(());
            }
            if !running {
                return Err(Error::Program {
                    program: self.program.clone(),
                    status: format!("ended before it said {text:?}"),
                    stderr: subprocess::tail(self.stderr().trim()),
                });
            }
            if Instant::now() >= deadline {
                return Err(Error::Deadline {
                    program: format!("{} saying {text:?}", self.program),
                    limit,
                    stderr: subprocess::tail(self.stderr().trim()),
                });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Closes standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal. A process that has ended is not an error.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        kill(Pid::from_raw(self.pid()), signal)
            .context(|| format!("sending {signal} to {}", self.program))
    }

    /// Waits for the end of the program.
    ///
    /// # Errors
    /// The program did not end within `limit`.
    pub fn await_end(&mut self, limit: Duration) -> Result<()> {
        let limit = slowdown::limit(limit);
        let deadline = Instant::now() + limit;
        while self.is_running() {
            if Instant::now() >= deadline {
                return Err(Error::Deadline {
                    program: self.program.clone(),
                    limit,
                    stderr: subprocess::tail(self.stderr().trim()),
                });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Waits for the end of the program and returns its status and its output.
    ///
    /// # Errors
    /// The program did not end within `limit` and was killed.
    pub fn wait(mut self, limit: Duration) -> Result<Output> {
        let limit = slowdown::limit(limit);
        let started = Instant::now();
        let program = self.program.clone();
        let status = subprocess::wait(&mut self.child, limit)
            .context(|| format!("waiting for {program}"))?;
        let Some(status) = status else {
            let stderr = subprocess::tail(self.stderr().trim());
            return Err(Error::Deadline { program, limit, stderr });
        };
        Ok(Output {
            program,
            status,
            stdout: self.stdout().into_bytes(),
            stderr: self.stderr().into_bytes(),
            elapsed: started.elapsed(),
        })
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
