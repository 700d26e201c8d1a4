//! Sockets of a container's processes, and options of theirs that CRIU does not restore.
//!
//! A socket of another process is looked at by a descriptor of our own for it (pidfd_getfd(2)), which works
//! for a frozen process, too. [`SocketSettings::read`] reads what is not at its default from the frozen
//! original, and [`SocketSettings::apply`] sets it on the frozen copy.

pub mod borrow;
mod defaults;
mod groups;
mod options;
mod settings;
pub mod unix_diag;

pub use groups::Membership;
pub use options::{Kind, OPTIONS, SocketOption};
pub use settings::{Error, SocketSettings, Value};
