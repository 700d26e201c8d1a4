//! Errors of cutting a container off.

use std::io;

use thiserror::Error;

use crate::netns;

/// Why a container could not be cut off, or connected again.
#[derive(Debug, Error)]
pub enum Error {
    /// A network namespace cannot be used.
    #[error("cannot find the host's end of a container's interface")]
    Namespace(#[from] netns::Error),
    /// The kernel refused to list interfaces or addresses.
    #[error("cannot read the interfaces of {name}")]
    Read {
        /// Whose interfaces.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The container has no interface of that name.
    #[error("{container} has no interface {interface}")]
    NoInterface {
        /// What the network namespace belongs to.
        container: String,
        /// Name looked for.
        interface: String,
    },
    /// The container's interface is not one end of a veth pair whose other end is on this host:
    /// host networking, macvlan, pasta.
    #[error(
        "interface {interface} of {container} has no other end on this host; only containers on a \
         bridge network can be moved"
    )]
    NoHostEnd {
        /// What the network namespace belongs to.
        container: String,
        /// The container's interface.
        interface: String,
    },
    /// The host's end is not a port of a bridge.
    #[error(
        "interface {port} is not a port of a bridge; only containers on a bridge network can be moved"
    )]
    NoBridge {
        /// Name of the host's end.
        port: String,
    },
    /// The bridge runs the spanning tree protocol, which sets the states of its ports.
    #[error("bridge of {port} runs the spanning tree protocol; switch it off (stp_state 0)")]
    SpanningTree {
        /// Name of the port.
        port: String,
    },
    /// The port that was blocked is gone, or forwards frames.
    #[error("the container's network was rebuilt meanwhile: port {port} is no longer blocked")]
    Rebuilt {
        /// Name of the port.
        port: String,
    },
    /// The kernel refused the port's new state.
    #[error("cannot {action} port {port}; does the container still exist?")]
    State {
        /// `block` or `unblock`.
        action: &'static str,
        /// Name of the port.
        port: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}
