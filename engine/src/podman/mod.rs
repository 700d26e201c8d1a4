//! podman, driven as a program: argument lists in, JSON out.
//!
//! Every command has a deadline and runs in a process group of its own, so that a Ctrl-C on the
//! terminal does not reach it. A podman that waits for a container's lock (a container is locked
//! while it is staged) looks like a hang; the deadline ends the wait.

mod command;
mod config_cache;
mod conmon;
mod container_image;
mod container_state;
mod database;
mod engine;
mod exit_file;
mod host_info;
mod inspect;
mod inspect_from_database;
mod networks;
mod ps;
mod records;
mod remove;
mod stage;
mod state_files;
mod systemd_unit;
mod volumes;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use command::{environment, last_line};
use host_info::Info;

/// podman on this host.
#[derive(Debug, Clone)]
pub struct Podman {
    /// The program, found in `PATH` when it has no slash.
    pub program: PathBuf,
    /// How long its commands may take.
    pub deadlines: Deadlines,
    /// The file in which its configuration is cached.
    cache: Option<PathBuf>,
    /// Its configuration, once it is to be kept.
    kept: Arc<OnceLock<Info>>,
}

/// How long podman's commands may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Those that only look; they are killed afterwards.
    pub query: Duration,
    /// Removal of a container; it is left to finish by itself afterwards.
    pub remove: Duration,
    /// Saving and loading an image; they are killed afterwards.
    pub image: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            query: Duration::from_secs(20),
            remove: Duration::from_secs(60),
            image: Duration::from_secs(3600),
        }
    }
}

impl Default for Podman {
    fn default() -> Self {
        Self::new("podman")
    }
}

impl Podman {
    /// Returns podman at that path, or by that name in `PATH`, with the usual deadlines.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            deadlines: Deadlines::default(),
            cache: None,
            kept: Arc::default(),
        }
    }

    /// Returns the same podman with its configuration cached in a file of the caller's. podman is asked again when
    /// the program, one of its configuration files or a variable has changed. The file's directory must be the
    /// caller's alone, and not outlive a boot.
    #[must_use]
    pub(crate) fn with_cache(self, file: PathBuf) -> Self {
        Self { cache: Some(file), ..self }
    }
}

/// What can go wrong with podman.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program cannot be started.
    #[error("cannot run {program}; install podman")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Talking to the running program failed.
    #[error("lost the connection to `{command}`")]
    Pipe {
        /// The command.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program ended with an error.
    #[error("`{command}` failed: {message}")]
    Failed {
        /// The command.
        command: String,
        /// Its exit status.
        status: i32,
        /// The last line of its error output.
        message: String,
    },
    /// The program took too long.
    #[error(
        "`{command}` did not end within {seconds} s; another podman may hold the container's lock"
    )]
    Timeout {
        /// The command.
        command: String,
        /// The limit, in seconds.
        seconds: u64,
    },
    /// The program printed more than is believable.
    #[error("`{command}` printed more than {limit} bytes")]
    TooMuch {
        /// The command.
        command: String,
        /// The limit.
        limit: usize,
    },
    /// The program's output has another form than expected.
    #[error("cannot understand {what}; is this version of podman supported?")]
    Parse {
        /// What was read.
        what: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// podman's database is of a kind that is not read here.
    #[error("podman keeps its state in {kind}, not in SQLite; run `podman system migrate`")]
    DatabaseKind {
        /// The kind.
        kind: String,
    },
    /// The database could not be read.
    #[error("cannot read podman's database {path}")]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// None of the places where podman may keep its database has the container.
    #[error("container {id} is in none of podman's databases ({tried:?})")]
    NotInDatabase {
        /// The container.
        id: String,
        /// Files that were looked at.
        tried: Vec<PathBuf>,
    },
    /// A file of the container could not be read.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the container is larger than is believable.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// What was read.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// The container's OCI bundle cannot be read.
    #[error("cannot read the bundle of container {name}")]
    Bundle {
        /// The container.
        name: String,
        /// Why.
        #[source]
        source: checkpoint::oci_bundle::Error,
    },
}

/// Reads a text as each of podman's answers and files; tells how many it could be. A NUL ends the
/// container's configuration, behind which its OCI configuration comes. What podman's records say of a
/// container is judged and written again, too. For tests with arbitrary bytes.
#[doc(hidden)]
#[must_use]
pub fn understood(text: &[u8]) -> usize {
    let mut parts = text.splitn(2, |byte| *byte == 0);
    let mut part = || parts.next().unwrap_or_default();
    let info = Info::default();
    let records = records::Records::parse(part(), part(), b"{}");
    let place = records::Place::of(&info, "", Vec::new());
    let answers = [
        checkpoint::oci_bundle::Bundle::parse(std::path::Path::new("/b"), text).is_ok(),
        records.is_ok_and(|records| records.describe(&place).is_ok()),
        host_info::parse_info(text).is_ok(),
        inspect::describe(text, &info).is_ok(),
        inspect::parse_networks(text).is_ok(),
        ps::parse(text).is_ok(),
        container_image::parse_names(text).is_ok(),
    ];
    answers.into_iter().filter(|understood| *understood).count()
}
