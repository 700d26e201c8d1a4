//! The network half of a migration: tunnel, flows, steering, hold and isolation.
//!
//! Everything here talks to the kernel by netlink and knows nothing of containers' engines or of
//! the agents' protocol.

pub mod configuration;
pub mod container_network;
pub mod events;
pub mod flow;
pub mod fwmark;
pub mod hold;
pub mod isolation;
pub mod netlink;
pub mod netns;
pub mod path_trial;
pub mod peer_number;
pub mod routing;
pub mod siblings;
pub mod sockets;
pub mod sysctl;
pub mod table;
pub mod tunnel;
