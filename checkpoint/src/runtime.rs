//! The OCI runtime, crun or runc, run directly: one dump of a container whose cgroup is frozen.
//!
//! `podman container checkpoint` costs 300 to 450 ms more than its runtime does, and would end
//! with the original gone. Restoring is not done here: podman on the destination starts it.

mod checkpoint;
mod page_cache;

pub use checkpoint::{Checkpoint, Dumped, Running, Waiting};

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::criu::Reason;

/// What can go wrong with a runtime.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A runtime that we do not know how to ask for a checkpoint.
    #[error("runtime {0} cannot be used; set podman's runtime to crun or runc")]
    Unknown(PathBuf),
    /// The runtime, or a file of the dump, could not be used at all.
    #[error("cannot {action} {path}")]
    Run {
        /// What was tried: "run", "open".
        action: &'static str,
        /// The program or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The dump failed. The container is whole.
    #[error("{runtime} could not dump container {id}: {}{}", reason.advice(), Detail(log))]
    Failed {
        /// crun or runc.
        runtime: Kind,
        /// The container.
        id: String,
        /// What CRIU's log says, where it is recognised.
        reason: Reason,
        /// The last error lines of CRIU's log, then the runtime's own words.
        log: Vec<String>,
        /// Whether the container's cgroup is still frozen; `None` where it was not given.
        frozen: Option<bool>,
    },
    /// The runtime passed the gate before it was opened: a dump that began before the container was
    /// frozen holds what was true at different times.
    #[error(
        "{runtime} began to dump container {id} too early; it has to find criu by PATH, and not at a \
         fixed place"
    )]
    Early {
        /// crun or runc.
        runtime: Kind,
        /// The container.
        id: String,
    },
    /// The dump said that it succeeded, yet left the cgroup thawed: the original went on beside
    /// the images, which must be thrown away.
    #[error("container {id} was running again after its dump; its images are stale")]
    Thawed {
        /// The container.
        id: String,
    },
    /// The cgroup could not be looked at after the dump.
    #[error("cannot tell whether container {id} is still frozen after its dump")]
    Cgroup {
        /// The container.
        id: String,
        /// Why.
        #[source]
        source: cgroup::Error,
    },
    /// The deadline passed. CRIU is still at work and must not be signalled: it would leave its
    /// code in the tasks. Wait on, or leave the cgroup frozen.
    #[error(
        "the dump of container {id} (process {pid}) did not end in time; \
         CRIU is still at work and is not disturbed"
    )]
    Deadline {
        /// The container.
        id: String,
        /// The runtime's process.
        pid: u32,
    },
}

/// The lines of a log behind a message.
struct Detail<'a>(&'a [String]);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// Which runtime it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// crun, written in C.
    Crun,
    /// runc, written in Go.
    Runc,
}

impl Kind {
    /// By the name of the program.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        match path.file_name()?.to_str()? {
            "crun" => Some(Self::Crun),
            "runc" => Some(Self::Runc),
            _ => None,
        }
    }

    /// The runtime's name, as in podman's configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Crun => "crun",
            Self::Runc => "runc",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An OCI runtime on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// crun or runc.
    pub kind: Kind,
    /// The program.
    pub path: PathBuf,
    /// Its state directory (`--root`), where podman gives one.
    pub root: Option<PathBuf>,
}

impl Runtime {
    /// The runtime at `path`, told by its file name.
    ///
    /// # Errors
    /// [`Error::Unknown`] for anything but crun and runc.
    pub fn new(path: &Path, root: Option<PathBuf>) -> Result<Self, Error> {
        let kind = Kind::of(path).ok_or_else(|| Error::Unknown(path.into()))?;
        Ok(Self { kind, path: path.into(), root })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_by_file_name_alone() {
        let runtime = Runtime::new(Path::new("/usr/bin/crun"), None).unwrap();
        assert_eq!(runtime.kind, Kind::Crun);
        for path in ["/usr/bin/youki", "/usr/crun/", "/", "crun.sh"] {
            let kind = Runtime::new(Path::new(path), None).map(|r| r.kind);
            assert!(path == "/usr/crun/" || kind.is_err(), "{path}");
        }
    }

    #[test]
    fn a_failure_tells_reason_and_log() {
        let error = Error::Failed {
            runtime: Kind::Runc,
            id: "abc".into(),
            reason: Reason::GhostFile,
            log: vec!["one".into(), "two".into()],
            frozen: Some(true),
        };
        let text = error.to_string();
        assert!(text.starts_with("runc could not dump container abc: a deleted file"), "{text}");
        assert!(text.ends_with("\n  one\n  two"), "{text}");
    }
}
