//! Network namespaces, and netlink sockets opened inside them.
//!
//! A netlink socket belongs forever to the network namespace of the thread that opened it. So work
//! in a container's namespace needs only one short visit: a new thread joins the namespace, opens
//! the socket and ends. No thread that serves other tasks changes its namespace. See setns(2) and
//! network_namespaces(7).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use rtnetlink::Handle;
use thiserror::Error;

use crate::netlink::{Connection, Protocol};

/// Why a network namespace could not be used.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no such namespace, or this process may not see it.
    #[error("cannot open the network namespace of {name}; is it still running?")]
    Open {
        /// What the namespace belongs to.
        name: String,
        /// The file system's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to let a thread in: the process is not root, or the file is not a network
    /// namespace.
    #[error("cannot enter the network namespace of {name}; netmig needs CAP_SYS_ADMIN for it")]
    Enter {
        /// What the namespace belongs to.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// No thread could be started for the visit.
    #[error("cannot start a thread for the network namespace of {name}")]
    Thread {
        /// What the namespace belongs to.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A netlink socket could not be opened inside the namespace.
    #[error("cannot open a netlink socket in the network namespace of {name}")]
    Socket {
        /// What the namespace belongs to.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// A network namespace, held open: it exists at least as long as this value.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    name: String,
}

impl Namespace {
    /// Opens the network namespace of process `pid`.
    ///
    /// # Errors
    /// [`Error::Open`] when there is no such process.
    pub fn of_pid(pid: i32) -> Result<Self, Error> {
        Self::open(Path::new(&format!("/proc/{pid}/ns/net")), format!("process {pid}"))
    }

    /// Opens the network namespace that is mounted at `path`, as podman and `ip netns` do.
    ///
    /// # Errors
    /// [`Error::Open`] when there is no such file. A file that is not a network namespace is
    /// noticed only when it is entered.
    pub fn at_path(path: &Path) -> Result<Self, Error> {
        Self::open(path, path.display().to_string())
    }

    /// Opens the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Open`] when `/proc` is not mounted.
    pub fn current() -> Result<Self, Error> {
        Self::open(Path::new("/proc/thread-self/ns/net"), "this process".to_owned())
    }

    fn open(path: &Path, name: String) -> Result<Self, Error> {
        match File::open(path) {
            Ok(file) => Ok(Self { fd: file.into(), name }),
            Err(source) => Err(Error::Open { name, source }),
        }
    }

    /// Returns a description of the namespace, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `visit` inside the namespace, on a new thread, and waits for it.
    ///
    /// Visits should be short, since the calling thread waits; the thread itself takes some 50 µs.
    /// Only the network namespace changes; files are those of the caller.
    ///
    /// # Errors
    /// [`Error::Thread`] or [`Error::Enter`]. A panic in `visit` continues in the caller.
    pub fn run<T: Send>(&self, visit: impl FnOnce() -> T + Send) -> Result<T, Error> {
        std::thread::scope(|scope| {
            let visitor = std::thread::Builder::new()
                .name("netns-visit".to_owned())
                .spawn_scoped(scope, || setns(&self.fd, CloneFlags::CLONE_NEWNET).map(|()| visit()))
                .map_err(|source| Error::Thread { name: self.name.clone(), source })?;
            match visitor.join() {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(errno)) => {
                    Err(Error::Enter { name: self.name.clone(), source: errno.into() })
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Opens an rtnetlink connection whose socket is inside the namespace; it may be used from
    /// anywhere. It ends with the last clone of the handle.
    ///
    /// # Errors
    /// [`Error::Socket`], also when called outside a tokio runtime, and those of [`Self::run`].
    pub fn route_handle(&self) -> Result<Handle, Error> {
        let failed = |source| Error::Socket { name: self.name.clone(), source };
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| failed(io::Error::other(error)))?;
        let (connection, handle, _) = self
            .run(|| {
                let _inside = runtime.enter();
                rtnetlink::new_connection()
            })?
            .map_err(failed)?;
        runtime.spawn(connection);
        Ok(handle)
    }

    /// Opens a blocking netlink socket inside the namespace, for work that must not wait for a scheduler.
    pub(crate) fn netlink(&self, protocol: Protocol) -> Result<Connection, Error> {
        self.run(|| Connection::open(protocol))?
            .map_err(|error| Error::Socket { name: self.name.clone(), source: error.into() })
    }
}

impl std::os::fd::AsFd for Namespace {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_gone_is_named() {
        let error = Namespace::of_pid(i32::MAX).unwrap_err();
        assert!(error.to_string().contains(&i32::MAX.to_string()), "{error}");
    }

    #[test]
    fn a_file_that_is_no_namespace_cannot_be_entered() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let namespace = Namespace::at_path(file.path()).unwrap();
        assert!(matches!(namespace.run(|| ()), Err(Error::Enter { .. })));
    }
}
