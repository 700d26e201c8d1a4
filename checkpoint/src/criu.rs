//! CRIU as the OCI runtimes drive it: its options, its version and its log.
//!
//! crun and runc take only a few of CRIU's options as arguments. The rest comes from configuration files. CRIU reads
//! them in this order, and a later one overrides an earlier one (`criu/config.c`, `criu/cr-service.c`):
//! `/etc/criu/default.conf`, `$HOME/.criu/default.conf`, the file named by `CRIU_CONFIG_FILE`, the runtime's request,
//! and last the file that the runtime names in its request: `/etc/criu/crun.conf` or `/etc/criu/runc.conf`. An
//! administrator's file in that last place would override netmig's. So [`ConfigDir::attach`] mounts a directory of
//! netmig's over `/etc/criu` for that one process. Nothing is written to the host's `/etc`.

mod environment;
mod log;
mod memory_apart;
mod version;

pub use environment::{ConfigDir, Options, has_sys_resource, most_connections, mount_config};
pub use log::{Reason, Span, log_tail, reason, spans};
pub use memory_apart::MemoryApart;
pub use version::{Version, check_kernel, version};

use std::path::PathBuf;

/// What can go wrong around CRIU, apart from a dump itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration file or its directory could not be written.
    #[error("cannot write CRIU's options to {path}; check that the directory is writable")]
    Config {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A log could not be read.
    #[error("cannot read CRIU's log {path}")]
    Log {
        /// The log.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The `criu` program could not be run.
    #[error("cannot run {program} --version; install criu")]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// `criu --version` printed something else.
    #[error("{program} --version printed no version but {output:?}")]
    Unparsable {
        /// The program.
        program: PathBuf,
        /// The start of what it printed.
        output: String,
    },
    /// `criu --version` did not end in time.
    #[error("{program} --version did not answer within {seconds} s")]
    Timeout {
        /// The program.
        program: PathBuf,
        /// The limit, in seconds.
        seconds: u64,
    },
    /// The version cannot do what we need.
    #[error("CRIU {found} is too old for kernel {kernel}: install {needed} or newer")]
    TooOld {
        /// What is installed.
        found: Version,
        /// The least that works.
        needed: Version,
        /// The kernel's release.
        kernel: String,
    },
}
