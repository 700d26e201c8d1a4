//! The container half of a migration: engine, OCI runtime, cgroup, CRIU images, staging and the
//! root filesystem.
//!
//! Nothing here opens a socket to a peer host or touches its network.

pub mod cgroup;
pub mod criu;
pub mod images;
pub mod podman;
pub mod runtime;
pub mod stage;
pub mod tree;
