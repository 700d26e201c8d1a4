//! How a container starts, is watched, and stops.

use serde::{Deserialize, Serialize};

/// How a container starts and stops.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// The restart policy: `no`, `on-failure`, `always`, `unless-stopped`, or empty for the engine's
    /// default.
    pub restart: String,
    /// How often it is restarted after a failure; 0 for always.
    pub restart_retries: u64,
    /// The signal that stops it; 0 for none.
    pub stop_signal: u64,
    /// How long the engine waits after that signal, in seconds.
    pub stop_timeout: u64,
    /// How long it may run, in seconds; 0 for ever.
    pub timeout: u64,
    /// Whether it is removed when it ends.
    pub auto_remove: bool,
    /// Whether the engine's init is its first process.
    pub init: bool,
    /// Which process tells a service manager that it is ready: `container`, `monitor` for the engine's process
    /// beside it, `healthy`, `ignore`, or empty.
    pub readiness: String,
}

/// How a container's health is checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The check.
    pub check: Option<HealthCheck>,
    /// The check before it, until that one succeeds.
    pub startup: Option<StartupCheck>,
    /// What happens to an unhealthy container: 0 nothing, 2 kill, 3 restart, 4 stop.
    pub on_failure: u64,
    /// Where results go: `local`, `events`, or the engine's default.
    pub log: Option<String>,
    /// How many results are kept; 0 for all.
    pub log_count: Option<u64>,
    /// How many characters of each result are kept; 0 for all.
    pub log_size: Option<u64>,
}

/// A command that is run in the container. Times are in nanoseconds, 0 for the engine's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// `CMD` and arguments, `CMD-SHELL` and a command, or `NONE`.
    pub test: Vec<String>,
    /// How long failures do not count after the start.
    pub start_period: i64,
    /// The time between two checks in that period.
    pub start_interval: i64,
    /// The time between two checks.
    pub interval: i64,
    /// How long one check may take.
    pub timeout: i64,
    /// How many failures make the container unhealthy.
    pub retries: i64,
}

/// A check until the container has started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartupCheck {
    /// The check.
    pub check: HealthCheck,
    /// How often it has to succeed.
    pub successes: i64,
}

/// Where a container's output goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// `k8s-file`, `json-file`, `journald`, `none`, or empty for the engine's default.
    pub driver: String,
    /// The tag of each line.
    pub tag: String,
    /// The size at which the file is rotated, in bytes; 0 for never.
    pub max_size: i64,
}
