//! The container half of a migration: OCI runtime, cgroup, CRIU images and the root filesystem.
//!
//! Nothing here opens a socket to a peer host or touches its network.

pub mod blockers;
pub mod bundle;
pub mod cgroup;
pub mod criu;
pub mod estimate;
pub mod fingerprint;
pub mod gate;
pub mod images;
pub mod interrupted;
pub mod mounts;
pub mod prime;
pub mod process;
pub mod runtime;
pub mod shim;
pub mod sockets;
pub mod tasks;
pub mod tree;
pub mod urgency;
