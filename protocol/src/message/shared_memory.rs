//! Memory that processes share without a file.

use serde::{Deserialize, Serialize};

use super::{EmptyRun, MemoryRun};

/// The capability to take shared memory apart from CRIU's images.
pub const SHARED_MEMORY: &str = "shared-memory";

/// Pages of a segment of shared memory. They may come several times: the last content counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedPages {
    /// The number that the segment has in CRIU's images.
    pub segment: u32,
    /// Its pages, with their places in the segment.
    pub runs: Vec<MemoryRun>,
}

/// Pages of a segment of shared memory that have nothing but zeros, in place of what came before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedEmpty {
    /// The number that the segment has in CRIU's images.
    pub segment: u32,
    /// Its empty pages, with their places in the segment.
    pub runs: Vec<EmptyRun>,
}

/// What a segment of shared memory has once the container is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedSegment {
    /// The number that the segment has in CRIU's images.
    pub segment: u32,
    /// Number of its pages that have something else than zeros. All of them have come.
    pub pages: u64,
    /// Whether a process has it mapped. Another one need not be in the images.
    pub is_mapped: bool,
}
