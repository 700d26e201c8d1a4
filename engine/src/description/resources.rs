//! How much of its host a container may use, in the terms of the OCI runtime specification
//! (<https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#control-groups>).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Limits of a control group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Resources {
    /// Memory.
    pub memory: Memory,
    /// Processor time.
    pub cpu: Cpu,
    /// Processes.
    pub pids: Option<Pids>,
    /// Disks.
    #[serde(rename = "blockIO")]
    pub block_io: BlockIo,
    /// Large pages.
    pub hugepage_limits: Vec<HugePages>,
    /// Files of the control group (version 2) and what is written to them.
    pub unified: BTreeMap<String, String>,
    /// The control group in which the engine makes the container's: names of groups that are no container's,
    /// each after a slash. Empty for the engine's own.
    pub parent: String,
}

/// Limits of memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Memory {
    /// Most memory.
    pub limit: Option<i64>,
    /// Memory that others do not take from it.
    pub reservation: Option<i64>,
    /// Most memory and swap.
    pub swap: Option<i64>,
    /// How readily its memory is swapped, in percent.
    pub swappiness: Option<u64>,
}

/// Limits of processor time; times are in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Cpu {
    /// Its part among others.
    pub shares: Option<u64>,
    /// Most time in a period.
    pub quota: Option<i64>,
    /// Time that it may have saved.
    pub burst: Option<u64>,
    /// The period.
    pub period: Option<u64>,
    /// Most time of real-time tasks.
    pub realtime_runtime: Option<i64>,
    /// The period for that.
    pub realtime_period: Option<u64>,
    /// Processors, as `0-2,4`.
    pub cpus: String,
    /// Memory nodes, as `0`.
    pub mems: String,
    /// Whether it runs only when no other process wants to (`cpu.idle`).
    pub idle: Option<i64>,
}

/// A limit of processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pids {
    /// Most processes; -1 for no limit.
    pub limit: i64,
}

/// Its part of the disks' time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockIo {
    /// From 10 to 1000.
    pub weight: Option<u16>,
}

/// A limit of large pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HugePages {
    /// Their size, as `2MB`.
    #[serde(rename = "pageSize")]
    pub page_size: String,
    /// Most of them, in bytes.
    pub limit: u64,
}
