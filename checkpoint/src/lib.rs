//! The container half of a migration: OCI runtime, cgroup, CRIU images and the root filesystem.
//!
//! Nothing here opens a socket to a peer host or touches its network.

pub mod blockers;
pub mod cgroup;
pub mod criu;
pub mod criu_gate;
pub mod direct_io;
pub mod entered_processes;
pub mod estimate;
pub mod facts;
pub mod images;
mod injected_call;
pub mod landlock;
pub mod lazy_pages;
pub mod mountinfo;
pub mod oci_bundle;
mod page_ranges;
pub mod pidfd;
pub mod procfs;
mod protobuf;
pub mod rcu_grace_periods;
pub mod realtime;
pub mod runtime;
mod seqpacket;
pub mod shared_memory;
pub mod shim;
pub mod socket_options;
pub mod syscall_restart;
pub mod tasks;
pub mod tree;
pub mod unix_diag;
pub mod unread;
mod userfault;
pub mod write_tracking;
