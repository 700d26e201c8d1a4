//! How much of its host a container may use, in the words of the OCI runtime specification
//! (<https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#control-groups>).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Limits of a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Memory.
    pub memory: Memory,
    /// Processor time.
    pub cpu: Cpu,
    /// Processes.
    pub pids: Option<Pids>,
    /// Disks.
    pub block_io: BlockIo,
    /// Huge pages.
    pub hugepage_limits: Vec<HugePages>,
    /// Files of the cgroup (version 2) and what is written to them.
    pub unified: BTreeMap<String, String>,
    /// The cgroup in which the engine creates the container's; empty for the engine's own.
    pub parent: String,
}

/// Limits of memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Most memory.
    pub limit: Option<i64>,
    /// Memory that is not reclaimed for others.
    pub reservation: Option<i64>,
    /// Most memory and swap.
    pub swap: Option<i64>,
    /// How readily its memory is swapped, in percent.
    pub swappiness: Option<u64>,
}

/// Limits of processor time. Times are in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// The share among others.
    pub shares: Option<u64>,
    /// Most time in a period.
    pub quota: Option<i64>,
    /// Unused time that may be accumulated.
    pub burst: Option<u64>,
    /// The period.
    pub period: Option<u64>,
    /// Most time of real-time tasks.
    pub realtime_runtime: Option<i64>,
    /// The period of real-time tasks.
    pub realtime_period: Option<u64>,
    /// Processors, as `0-2,4`.
    pub cpus: String,
    /// Memory nodes, as `0`.
    pub mems: String,
    /// Whether it runs only when no other task wants to.
    pub idle: Option<i64>,
}

/// A limit of processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pids {
    /// Most processes; -1 for no limit.
    pub limit: i64,
}

/// The share of the disks' time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockIo {
    /// The weight, from 10 to 1000.
    pub weight: Option<u16>,
}

/// A limit of huge pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugePages {
    /// The size of a page, as `2MB`.
    pub page_size: String,
    /// Most memory in such pages, in bytes.
    pub limit: u64,
}
