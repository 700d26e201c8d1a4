//! How a container starts, how its health is checked, and how it stops.

use serde::{Deserialize, Serialize};

/// How a container begins and ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// `no`, `on-failure`, `always`, `unless-stopped`, or empty for the engine's default.
    pub restart: String,
    /// Maximum number of restarts after a failure; 0 for no limit.
    pub restart_retries: u64,
    /// The signal that stops it; 0 for none.
    pub stop_signal: u64,
    /// How long it is waited for then, in seconds.
    pub stop_timeout: u64,
    /// How long it may run, in seconds; 0 for ever.
    pub timeout: u64,
    /// Whether it is removed when it ends.
    pub auto_remove: bool,
    /// Whether the engine's init is its first process.
    pub init: bool,
    /// Which process tells a service manager that it is ready: `container`, `monitor` for the
    /// engine's process beside it, `healthy`, `ignore`, or empty.
    pub readiness: String,
}

/// How a container's health is checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The check.
    pub check: Option<HealthCheck>,
    /// Another one, before it, until it succeeds.
    pub startup: Option<StartupCheck>,
    /// What happens to an unhealthy container: 0 nothing, 2 kill, 3 restart, 4 stop.
    pub on_failure: u64,
    /// Where its results go: `local`, `events`, or the engine's default.
    pub log: Option<String>,
    /// How many results are kept; 0 for all.
    pub log_count: Option<u64>,
    /// How many characters of each are kept; 0 for all.
    pub log_size: Option<u64>,
}

/// A command that is run in the container. Times are in nanoseconds, 0 for the engine's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HealthCheck {
    /// `CMD` and arguments, `CMD-SHELL` and a command, or `NONE`.
    pub test: Vec<String>,
    /// How long failures do not count after the start.
    pub start_period: i64,
    /// Time between two checks in that period.
    pub start_interval: i64,
    /// Time between two checks.
    pub interval: i64,
    /// How long one may take.
    pub timeout: i64,
    /// How many failures make the container unhealthy.
    pub retries: i64,
}

/// A check until the container has started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartupCheck {
    /// The check.
    pub check: HealthCheck,
    /// How often it has to succeed.
    pub successes: i64,
}

/// Where a container's output goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// `k8s-file`, `json-file`, `journald`, `none`, or empty for the engine's default. A file is the engine's own.
    pub driver: String,
    /// The tag of its lines.
    pub tag: String,
    /// Size of the file at which it begins anew, in bytes; 0 for none.
    pub max_size: i64,
}
