//! Sockets of a container's processes, and options of theirs that CRIU does not restore.
//!
//! A socket of another process is looked at by a descriptor of our own for it (pidfd_getfd(2)), which works
//! for a frozen process, too. [`SocketSettings::read`] reads what is not at its default from the frozen
//! original, and [`SocketSettings::apply`] sets it on the frozen copy.

mod defaults;
mod multicast_groups;
mod option_table;
mod settings;

pub use multicast_groups::Membership;
pub use option_table::{Kind, OPTIONS, SocketOption};
pub use settings::{Error, SocketSettings, Value};
