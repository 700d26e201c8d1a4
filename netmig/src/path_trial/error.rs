//! Errors of path trials.

use std::io;

use crate::flow::FlowError;
use crate::netlink::SocketError;
use crate::routing;
use crate::table::TableError;

/// Why a trial failed. This says nothing about the paths.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The rules that catch the packets could not be added.
    #[error("cannot add the rules of a path trial")]
    Table(#[from] TableError),
    /// The twins' conntrack entries could not be created.
    #[error("cannot create conntrack entries for a path trial")]
    Flows(#[from] FlowError),
    /// A twin exists already as a real flow.
    #[error("flow {0} exists already, so its path cannot be tried")]
    Taken(String),
    /// The trace of the packets could not be read.
    #[error("cannot read the trace of the packets of a path trial")]
    Trace(#[from] SocketError),
    /// An interface could not be found.
    #[error("cannot find the interface by which packets of a flow come")]
    Interface(#[source] io::Error),
    /// The route to a far end could not be looked up.
    #[error(transparent)]
    Route(#[from] routing::Error),
    /// A packet could not be injected into an interface.
    #[error("cannot inject a test packet into {interface} (bpf)")]
    Inject {
        /// The interface.
        interface: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}
