//! Settings that CRIU does not restore, and that the destination sets on the copy.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Settings that are not at their defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Settings of sockets.
    pub sockets: Vec<SocketSettings>,
    /// Settings of threads.
    pub tasks: Vec<TaskSettings>,
    /// Settings of the container's cgroup.
    pub cgroup: Vec<CgroupSetting>,
}

/// Settings of a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketSettings {
    /// A process that has the socket open, by its number inside the container.
    pub process: i32,
    /// The socket's descriptor in that process.
    pub descriptor: i32,
    /// Options that are not at their defaults.
    pub options: Vec<SocketOption>,
    /// Multicast groups that the socket has joined.
    pub groups: Vec<Membership>,
}

/// A socket option.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption {
    /// The option's name, such as `TCP_SYNCNT`.
    pub name: String,
    /// The value, as getsockopt(2) returns it.
    pub value: Vec<u8>,
}

/// A multicast group that a socket has joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The interface's name.
    pub interface: String,
    /// The group.
    pub group: IpAddr,
    /// Whether the socket hears all senders but those named; otherwise it hears those named alone.
    pub is_exclusive: bool,
    /// The senders.
    pub senders: Vec<IpAddr>,
}

/// Settings of a thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSettings {
    /// The thread, by its number inside the container.
    pub thread: i32,
    /// The processors that it may use (sched_setaffinity(2)).
    pub processors: Option<Vec<u32>>,
    /// The I/O priority (ioprio_set(2)).
    pub io_priority: Option<i32>,
    /// The timer slack in nanoseconds (`PR_SET_TIMERSLACK`).
    pub timer_slack: Option<u64>,
    /// The parts of its memory that a core dump holds (core(5)).
    pub coredump_filter: Option<u32>,
}

/// A setting of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupSetting {
    /// The file's name.
    pub file: String,
    /// The file's content.
    pub value: String,
}
