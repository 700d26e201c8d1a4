//! What can go wrong with staging.

use std::io;
use std::path::PathBuf;

use checkpoint::oci_bundle;

use crate::Kind;

/// What can go wrong with staging a container.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something on this host is in the way.
    #[error("container {name} cannot be made on this host: {conflict}")]
    Conflict {
        /// The container.
        name: String,
        /// What is in the way.
        conflict: Conflict,
    },
    /// The engine failed for another reason.
    #[error("{engine} could not prepare container {name}: {message}")]
    Engine {
        /// The engine.
        engine: Kind,
        /// The container.
        name: String,
        /// The engine's message.
        message: String,
    },
    /// The engine cannot be started, or does not tell its configuration.
    #[error("{engine} cannot be used to prepare a container")]
    Start {
        /// The engine.
        engine: Kind,
        /// Why.
        #[source]
        source: crate::Error,
    },
    /// A query to the engine failed.
    #[error("cannot ask {engine} about container {name}")]
    Query {
        /// The engine.
        engine: Kind,
        /// The container.
        name: String,
        /// Why.
        #[source]
        source: crate::Error,
    },
    /// What came from the source is not a container's description.
    #[error("the container's description cannot be used")]
    Description(#[source] crate::description::Invalid),
    /// The working directory cannot be used.
    #[error("cannot use {path} to prepare a container")]
    Work {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The working directory was left by another migration.
    #[error("{path} is in use or left over; recover that migration first")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The bundle that the engine wrote cannot be read.
    #[error("cannot read the bundle that {engine} made for container {name}")]
    Bundle {
        /// The engine.
        engine: Kind,
        /// The container.
        name: String,
        /// Why.
        #[source]
        source: oci_bundle::Error,
    },
    /// The engine could not note that the container runs.
    #[error("{path} has no room left, so {engine} could not take container {name} over; make some")]
    Full {
        /// The engine.
        engine: Kind,
        /// The container.
        name: String,
        /// A directory on the file system.
        path: PathBuf,
    },
    /// A step took too long.
    #[error("{what} of container {name} did not end within {seconds} s")]
    Timeout {
        /// The container.
        name: String,
        /// The step.
        what: &'static str,
        /// The limit, in seconds.
        seconds: u64,
    },
    /// The connection to the shim broke.
    #[error("lost the connection to the runtime's stand-in for container {name}")]
    Shim {
        /// The container.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A step was asked for out of order.
    #[error("container {name} is not prepared for {what}")]
    Order {
        /// The container.
        name: String,
        /// The step.
        what: &'static str,
    },
    /// CRIU or the OCI runtime could not restore the container.
    #[error("restoring container {name} failed with status {status}: {log}")]
    Restore {
        /// The container.
        name: String,
        /// The runtime's exit status.
        status: i32,
        /// The telling lines of CRIU's log, or the runtime's own.
        log: String,
    },
    /// A copy runs before it is the container.
    #[error("the processes of the copy of container {name} are not frozen")]
    NotFrozen {
        /// The container.
        name: String,
        /// Why, where the kernel tells.
        #[source]
        source: Option<checkpoint::cgroup::Error>,
    },
    /// The container could not be removed.
    #[error("cannot remove the prepared container {id}; run `{engine} rm -f {id}`")]
    Remove {
        /// The engine.
        engine: Kind,
        /// The container.
        id: String,
        /// Why.
        #[source]
        source: crate::Error,
    },
}

/// What on this host is in the way of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conflict {
    /// Another container has the name.
    Name(String),
    /// A container has the ID.
    Id(String),
    /// Another container has the address.
    Address(String),
    /// Something has the port.
    Port(String),
    /// The image is not here.
    Image(String),
    /// The network is not here, or has another range of addresses.
    Network(String),
}

impl Conflict {
    /// A stable name, in kebab case.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Name(_) => "name-taken",
            Self::Id(_) => "id-taken",
            Self::Address(_) => "address-taken",
            Self::Port(_) => "port-taken",
            Self::Image(_) => "image-missing",
            Self::Network(_) => "network-missing",
        }
    }
}

impl std::fmt::Display for Conflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => write!(f, "the name is taken ({name}); rename or remove it"),
            Self::Id(id) => write!(f, "a container with its ID exists ({id}); remove it"),
            Self::Address(text) => write!(f, "its address is taken ({text})"),
            Self::Port(text) => write!(f, "a port that it publishes is taken ({text})"),
            Self::Image(image) => write!(f, "its image is missing ({image})"),
            Self::Network(text) => write!(f, "its network does not fit ({text})"),
        }
    }
}
