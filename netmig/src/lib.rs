//! The network half of a migration: tunnel, flows, steering, hold and isolation.
//!
//! Everything here talks to the kernel by netlink and knows nothing of containers' engines or of
//! the agents' protocol.

pub mod beside;
pub mod configuration;
pub mod events;
pub mod flow;
pub mod hold;
pub mod isolation;
pub mod marks;
pub mod netlink;
pub mod netns;
pub mod parameters;
pub mod path;
pub mod peer;
pub mod routing;
pub mod sandbox;
pub mod sockets;
pub mod table;
pub mod tunnel;
