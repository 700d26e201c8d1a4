//! Options of a container's sockets that CRIU does not restore.
//!
//! This process looks at a socket of another process by a descriptor of its own for it ([`crate::pidfd`]), which works
//! for a frozen process, too. [`SocketSettings::read`] reads the options of the frozen original that are not at their
//! defaults, and [`SocketSettings::apply`] sets them on the frozen copy.

mod defaults;
mod echo_socket;
mod multicast_groups;
mod option_table;
mod socket_settings;

pub use multicast_groups::Membership;
pub use option_table::{Kind, OPTIONS, SocketOption};
pub use socket_settings::{Error, Looked, SocketSettings, Value};
