//! A test host: a process 1 in its own mount, network, UTS, IPC, PID and cgroup namespaces, on an overlay of the root
//! file system.

pub mod host_process;
pub mod init;
pub mod namespaces;

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Context, Error, Result};
use host_process::HostCommand;
use namespaces::Namespaces;

/// The longest name of a host. An interface of the switch is named `v` and the name.
const NAME_MAX: usize = 12;

/// A running test host.
#[derive(Debug)]
pub struct Host {
    name: String,
    number: u8,
    init: i32,
    namespaces: Namespaces,
    logs: PathBuf,
    started: AtomicU32,
}

impl Host {
    pub(crate) fn new(
        name: &str,
        number: u8,
        init: i32,
        cgroup: &Path,
        logs: &Path,
    ) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            number,
            init,
            namespaces: Namespaces::of(init, &cgroup.join(init::LEAF))
                .context(|| format!("opening the namespaces of host {name}"))?,
            logs: logs.to_owned(),
            started: AtomicU32::new(0),
        })
    }

    /// Returns the name, which is also the host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the IPv4 address on the lab's network.
    pub fn address(&self) -> Ipv4Addr {
        address(self.number)
    }

    /// Returns the IPv6 address on the lab's network.
    pub fn address6(&self) -> Ipv6Addr {
        address6(self.number)
    }

    /// Returns the socket address of a port at the host's IPv4 address.
    pub fn port(&self, port: u16) -> SocketAddr {
        (self.address(), port).into()
    }

    /// Returns the process ID of process 1 in this machine's PID namespace.
    pub fn init(&self) -> i32 {
        self.init
    }

    pub(crate) fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// Returns the path by which this machine reaches a path of the host.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        PathBuf::from(format!("/proc/{}/root", self.init))
            .join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Reads a file of the host.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<String> {
        let path = path.as_ref();
        fs::read_to_string(self.path(path))
            .context(|| format!("reading {} on host {}", path.display(), self.name))
    }

    /// Writes a file of the host and creates the directories above it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> Result<()> {
        let path = path.as_ref();
        let what = || format!("writing {} on host {}", path.display(), self.name);
        let outside = self.path(path);
        if let Some(parent) = outside.parent() {
            fs::create_dir_all(parent).context(what)?;
        }
        fs::write(outside, contents).context(what)
    }

    /// Sets a kernel parameter of the host, such as `net/ipv4/ip_forward` (proc_sys(5)). Only programs in the host's
    /// network namespace reach its parameters; [`Host::write`] would change those of this machine.
    ///
    /// # Errors
    /// The kernel has no such parameter, or refuses the value.
    pub fn set_parameter(&self, name: &str, value: &str) -> Result<()> {
        self.command("tee").args([format!("/proc/sys/{name}")]).input(value).run().map(drop)
    }

    /// Prepares a command for the host, in its namespaces and its cgroup.
    pub fn command(&self, program: &str) -> HostCommand<'_> {
        HostCommand::new(self, program)
    }

    /// Runs a command line to its end and returns its standard output.
    ///
    /// # Errors
    /// The program could not be started, failed, or did not end within the default limit.
    pub fn run<S: AsRef<str>>(&self, line: impl IntoIterator<Item = S>) -> Result<String> {
        let mut words = line.into_iter();
        let Some(program) = words.next() else {
            return Err(Error::Refused("an empty command line".to_owned()));
        };
        Ok(self.command(program.as_ref()).args(words).run()?.text())
    }

    /// Runs podman to its end and returns its standard output.
    ///
    /// # Errors
    /// As for [`Host::run`].
    pub fn podman<S: AsRef<str>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        Ok(self.command("podman").args(arguments).run()?.text())
    }

    /// Returns a path for the log of a program that is about to be started.
    pub(crate) fn log_path(&self, program: &str, stream: &str) -> PathBuf {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let base = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
        self.logs.join(format!("{}-{number:03}-{base}.{stream}", self.name))
    }
}

/// Returns the IPv4 address of the host with this number (from 1), in the block for documentation (RFC 5737).
pub fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

/// Returns the IPv6 address of the host with this number (from 1), in the block for documentation (RFC 3849).
pub fn address6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number))
}

/// Checks the name of a host or of a lab.
///
/// # Errors
/// The name is not one to twelve characters of `a-z`, `0-9` and inner `-`.
pub fn check_name(name: &str) -> Result<()> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good = (1..=NAME_MAX).contains(&name.len())
        && name.chars().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if good {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "the name {name:?} is not 1 to {NAME_MAX} letters a-z, digits and inner hyphens"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_fit_an_interface_name() {
        for good in ["a", "b2", "left-1", "twelve-chars"] {
            check_name(good).unwrap();
        }
        for bad in ["", "-a", "a-", "A", "a b", "a/b", "thirteen-char"] {
            check_name(bad).unwrap_err();
        }
    }
}
