//! What runs in a container, and as which user.

use serde::{Deserialize, Serialize};

/// A container's first process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments, without the engine's init.
    pub args: Vec<String>,
    /// The entry point, as the container's creator or its image gave it.
    pub entrypoint: Vec<String>,
    /// The command, as the container's creator or its image gave it.
    pub command: Vec<String>,
    /// Environment variables, each `NAME=VALUE`.
    pub env: Vec<String>,
    /// The working directory in the container.
    pub cwd: String,
    /// Whether the engine creates that directory.
    pub creates_cwd: bool,
    /// User and group, as the creator gave them.
    pub user: String,
    /// Additional groups, as the creator gave them.
    pub groups: Vec<String>,
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// Numbers of additional groups.
    pub additional_gids: Vec<u32>,
    /// The umask in octal digits; empty for the engine's default.
    pub umask: String,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// The terminal's size.
    pub console_size: Option<ConsoleSize>,
    /// Whether its standard input is kept open.
    pub stdin: bool,
    /// Capabilities.
    pub capabilities: Capabilities,
    /// Resource limits.
    pub limits: Vec<Limit>,
    /// The adjustment of the OOM killer's badness (proc_pid_oom_score_adj(5)).
    pub oom_score_adj: Option<i32>,
    /// Whether the engine keeps the container's `passwd` and `group` up to date; `None` for its default.
    pub keeps_accounts: Option<bool>,
    /// A line for the container's `passwd`.
    pub passwd_entry: String,
    /// A line for the container's `group`.
    pub group_entry: String,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleSize {
    /// Lines.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

/// Sets of capabilities (capabilities(7)), each by its name: `CAP_KILL`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The bounding set.
    pub bounding: Vec<String>,
    /// The effective set.
    pub effective: Vec<String>,
    /// The inheritable set.
    pub inheritable: Vec<String>,
    /// The permitted set.
    pub permitted: Vec<String>,
    /// The ambient set.
    pub ambient: Vec<String>,
}

/// A resource limit (getrlimit(2)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// The name: `RLIMIT_NOFILE`.
    pub kind: String,
    /// The soft limit.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
}
