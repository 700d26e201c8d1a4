//! What runs in a container, and as whom.

use serde::{Deserialize, Serialize};

/// A container's first process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Program and arguments, without the engine's own init.
    pub args: Vec<String>,
    /// The entry point, as the container's creator or its image gave it.
    pub entrypoint: Vec<String>,
    /// The command, as the container's creator or its image gave it.
    pub command: Vec<String>,
    /// Variables, each `NAME=VALUE`.
    pub env: Vec<String>,
    /// The working directory in the container.
    pub cwd: String,
    /// Whether the engine makes that directory.
    pub creates_cwd: bool,
    /// User and group, as the creator gave them.
    pub user: String,
    /// More groups, as the creator gave them.
    pub groups: Vec<String>,
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// Numbers of more groups.
    pub additional_gids: Vec<u32>,
    /// The mask of new files' modes, in octal digits; empty for the engine's default.
    pub umask: String,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// The terminal's size.
    pub console_size: Option<ConsoleSize>,
    /// Whether its standard input is kept open.
    pub stdin: bool,
    /// Its capabilities.
    pub capabilities: Capabilities,
    /// Its limits.
    pub limits: Vec<Limit>,
    /// Its badness for the killer of processes when memory runs out, in addition to its memory.
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
#[serde(default)]
pub struct ConsoleSize {
    /// Lines.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

/// Sets of capabilities (capabilities(7)), each by its name: `CAP_KILL`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Those that the process may ever have.
    pub bounding: Vec<String>,
    /// Those that it has.
    pub effective: Vec<String>,
    /// Those that a program may give it.
    pub inheritable: Vec<String>,
    /// Those that it may take.
    pub permitted: Vec<String>,
    /// Those that an ordinary program inherits.
    pub ambient: Vec<String>,
}

/// A limit (getrlimit(2)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limit {
    /// Its name: `RLIMIT_NOFILE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The limit that counts.
    pub soft: u64,
    /// As far as the process may raise it.
    pub hard: u64,
}
