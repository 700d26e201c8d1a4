//! Labs of hosts on one machine, traffic that checks itself, and the tests, the demo and the benchmarks that drive the
//! product in a lab as a user does.
//!
//! A host is a process 1 in its own namespaces on an overlay of a small Debian, with podman, CRIU and the workspace's
//! programs. [`lab::Lab`] starts hosts and removes them completely. Everything needs root.

pub mod bench;
pub mod blocked;
pub mod cache;
pub mod cases;
pub mod demo;
pub mod error;
pub mod faults;
pub mod host;
pub mod install;
pub mod interrupt;
pub mod lab;
pub mod latency_chart;
pub mod prepare;
pub mod probe;
pub mod programs;
pub mod rootfs;
pub mod runner;
pub mod scenario;
pub mod slowdown;
pub mod snapshot;
pub mod subprocess;
pub mod switch;
pub mod test_images;
pub mod traffic;
pub mod vm;

pub use error::{Error, Result};
pub use host::Host;
pub use lab::{Lab, LabBuilder, Runtime};
