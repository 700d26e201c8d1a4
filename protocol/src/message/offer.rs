//! What is to be moved, and what the destination says to it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use state::id::{HostId, MigrationId};
use state::peer_text::PeerText;

use super::description::Description;
use super::flow::{Alias, Protocol};

/// An image of the engine's store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// The image's ID, 64 hexadecimal digits.
    pub id: String,
    /// The name by which the container refers to it.
    pub name: String,
}

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The address of the host on which it is published; `None` for all.
    pub host_address: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
    /// The container's port.
    pub container_port: u16,
}

/// A network of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The engine's name for it.
    pub name: String,
    /// The container's addresses in it.
    pub addresses: Vec<IpAddr>,
}

/// A host that leads new connections for a container to the container's host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarder {
    /// The host.
    pub host: HostId,
    /// Addresses by which the connections come, where these differ from the container's own: each before the
    /// one that it stands for.
    pub readdressed: Vec<(IpAddr, IpAddr)>,
}

/// What is to be moved, and what it needs at the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The migration.
    pub migration: MigrationId,
    /// The container's ID, 64 hexadecimal digits.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// The container's image.
    pub image: ImageRef,
    /// Whether the source will ship a missing image.
    pub image_shipped: bool,
    /// The name of the OCI runtime.
    pub runtime: String,
    /// Hosts that will lead new connections for the container to its new host; the source may be among
    /// them.
    pub forwarders: Vec<Forwarder>,
    /// The container's networks.
    pub networks: Vec<Network>,
    /// Whether the container may get other addresses if one of its own is taken.
    pub any_address: bool,
    /// The largest packet that the source's segment carries, in bytes, if the flows are to come without a
    /// tunnel.
    pub direct: Option<u32>,
    /// What stands in the tunnel for each of the container's addresses if it gets another one, and for the
    /// source's gateways.
    pub aliases: Vec<Alias>,
    /// The container's published ports.
    pub ports: Vec<Port>,
    /// Hosts other than the source that are anchors of the container's flows. If the destination is among
    /// them, the container comes back.
    pub anchors: Vec<HostId>,
    /// Memory in use, in bytes.
    pub memory: u64,
    /// Bytes of the files that the container changed, and of its log.
    pub disk: u64,
    /// All settings of the container. The destination judges by these, and builds nothing else.
    pub description: Description,
    /// CRIU's version at the source: major, minor, patch.
    pub criu: (u32, u32, u32),
    /// The machine's architecture, as `uname -m` prints it.
    pub architecture: String,
    /// Processor features on which the container's processes may rely.
    pub cpu_flags: Vec<String>,
    /// Mount points in which symbolic links are not followed.
    pub without_symlinks: Vec<String>,
}

/// A reason against a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// A stable short name in kebab case.
    pub code: PeerText,
    /// A whole sentence: what is in the way, and what to do.
    pub message: PeerText,
}

/// What the destination says to an offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Everything that is in the way; empty if the container can come.
    pub blockers: Vec<Blocker>,
    /// Whether the image has to be shipped.
    pub image_missing: bool,
    /// The destination's addresses. Flows whose far ends are there become local.
    pub addresses: Vec<IpAddr>,
}

/// The end of a migration, as the destination sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// The process ID of the container's first process on the destination. When the end is told again, 0 says that
    /// the destination does not run the container any more.
    pub pid: i32,
    /// Datagrams for which the sockets' buffers had no room so far.
    pub full_buffers: u64,
    /// Addresses of the destination that are far ends of flows which became local there: the source's
    /// entries of these are not needed any more.
    pub local: Vec<IpAddr>,
}
