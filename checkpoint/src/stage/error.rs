//! What can go wrong with staging, and what podman's words mean.

use std::io;
use std::path::PathBuf;

use crate::{bundle, podman};

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
    /// podman failed for another reason.
    #[error("podman could not prepare container {name}: {message}")]
    Podman {
        /// The container.
        name: String,
        /// podman's words.
        message: String,
    },
    /// A query to podman failed.
    #[error("cannot ask podman about container {name}")]
    Query {
        /// The container.
        name: String,
        /// Why.
        #[source]
        source: podman::Error,
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
    /// The bundle that podman wrote cannot be read.
    #[error("cannot read the bundle that podman made for container {name}")]
    Bundle {
        /// The container.
        name: String,
        /// Why.
        #[source]
        source: bundle::Error,
    },
    /// podman could not note that the container runs.
    #[error("{path} has no room left, so podman could not take container {name} over; make some")]
    Full {
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
        source: Option<crate::cgroup::Error>,
    },
    /// The container could not be removed.
    #[error("cannot remove the prepared container {id}; run `podman rm -f {id}`")]
    Remove {
        /// The container.
        id: String,
        /// Why.
        #[source]
        source: podman::Error,
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

    /// What podman's message means, if it is one of these.
    ///
    /// The wording is podman's `libpod/sqlite_state_internal.go` and `libpod/oci_util.go`,
    /// netavark's and its IPAM's in `go.podman.io/common/libnetwork/netavark/ipam.go`.
    pub(super) fn from_message(message: &str) -> Option<Self> {
        let text = message.to_owned();
        let has = |words: &[&str]| words.iter().all(|word| message.contains(word));
        if has(&["requested ip address", "already allocated"]) {
            Some(Self::Address(text))
        } else if has(&["address already in use"]) || has(&["cannot listen on the"]) {
            Some(Self::Port(text))
        } else if has(&["name", "already in use"]) {
            Some(Self::Name(text))
        } else if has(&["ID", "already in use"]) || has(&["container already exists"]) {
            Some(Self::Id(text))
        } else if has(&["image not known"])
            || has(&["identifier is not an image"])
            || has(&["initializing source"])
            || has(&["unable to copy from source"])
            || has(&["short-name"])
        {
            Some(Self::Image(text))
        } else if has(&["network not found"])
            || has(&["unable to find network"])
            || has(&["requested static ip", "not in any subnet"])
        {
            Some(Self::Network(text))
        } else {
            None
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podmans_refusals_are_understood() {
        let cases = [
            (
                "IPAM error: requested ip address 10.88.0.2 is already allocated to container ID 46",
                "address-taken",
            ),
            (
                "cannot listen on the TCP port: listen tcp4 :7000: bind: address already in use",
                "port-taken",
            ),
            (
                "creating container storage: the container name \"echo\" is already in use by 8a. \
                 You have to remove that container to be able to reuse that name: that name is \
                 already in use",
                "name-taken",
            ),
            ("localhost/probe:1: image not known", "image-missing"),
            ("unable to find network with name or ID n6: network not found", "network-missing"),
        ];
        for (message, code) in cases {
            assert_eq!(Conflict::from_message(message).map(|c| c.code()), Some(code), "{message}");
        }
        for message in ["", "container creation timeout: internal libpod error", "no space left"] {
            assert_eq!(Conflict::from_message(message), None);
        }
    }
}
