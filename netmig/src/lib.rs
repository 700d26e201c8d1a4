//! The network half of a migration: tunnel, flows, steering, hold and isolation.
//!
//! This crate talks to the kernel by netlink. It knows neither container engines nor the agents'
//! protocol.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`flow`] | the container's conntrack entries: read, mark, create; what becomes of them when it moves |
//! | [`table`] | the nftables table `inet netmig`: steering, holds, forwarded ports, NAT at the tunnels |
//! | [`hold`] | packets for the container wait in an NFQUEUE during the interruption |
//! | [`tunnel`], [`routing`] | one interface per peer host, and the policy routing into it |
//! | [`peer_number`], [`fwmark`] | connmarks, packet marks, tables and names derived from a peer's number |
//! | [`path_trial`] | test packets that show whether a firewall would drop those of a moved flow |
//! | [`bridge_port`] | cutting the container off at its bridge port |
//! | [`container_network`], [`detour`] | the container's network namespace, and other containers on its bridge |
//! | [`sockets`] | the container's TCP and UDP sockets, by sock_diag |
//! | [`configuration`], [`sysctl`] | what differs in a network namespace from what the engine sets up |
//! | [`events`] | multicast notifications: flows, rules, tunnels |
//! | [`netlink`], [`netns`] | sockets and messages; network namespaces |

pub mod bridge_port;
pub mod configuration;
pub mod container_network;
pub mod detour;
pub mod events;
pub mod flow;
pub mod fwmark;
pub mod hold;
pub mod netlink;
pub mod netns;
pub mod path_trial;
pub mod peer_number;
pub mod routing;
pub mod sockets;
pub mod sysctl;
pub mod table;
pub mod tunnel;
