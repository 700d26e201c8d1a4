//! What is to be moved, and what the destination thinks of it.

use std::net::IpAddr;

use engine::description::Description;
use netmig::flow::{Alias, Protocol};
use serde::{Deserialize, Serialize};
use state::blocker::Blocker;

use super::MigrationId;
use state::id::HostId;

/// An image of the engine's store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// The image's ID, 64 hexadecimal digits.
    pub id: String,
    /// The name under which the container refers to it.
    pub name: String,
}

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address of the host that it is published on; `None` for all.
    pub host_address: Option<IpAddr>,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the container.
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

/// A host that leads new connections for a container to its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarder {
    /// The host.
    pub host: HostId,
    /// Addresses by which they come, where these differ from the container's own: each before the one
    /// that it stands for.
    pub readdressed: Vec<(IpAddr, IpAddr)>,
}

/// What is to be moved, and what it needs at the destination.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Offer {
    /// The migration.
    pub migration: MigrationId,
    /// The container's ID, 64 hexadecimal digits.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// Its image.
    pub image: ImageRef,
    /// Whether the source will ship a missing image.
    pub image_shipped: bool,
    /// Name of its OCI runtime.
    pub runtime: String,
    /// Hosts that will lead new connections for it to its new host; the source may be among them.
    pub forwarders: Vec<Forwarder>,
    /// Its networks.
    pub networks: Vec<Network>,
    /// Whether it may get other addresses if one of its own is taken.
    pub any_address: bool,
    /// If its flows are to come without a tunnel: the largest packet, in bytes, that the source's segment
    /// carries.
    pub direct: Option<u32>,
    /// What stands in the tunnel for each of its addresses if it gets another one, and for the gateways of
    /// the source.
    pub aliases: Vec<Alias>,
    /// Its published ports.
    pub ports: Vec<Port>,
    /// Hosts other than the source that are anchors of its flows. The destination may be among them:
    /// then the container comes back.
    pub anchors: Vec<HostId>,
    /// Memory in use, in bytes.
    pub memory: u64,
    /// Bytes of the files that it changed, and of its log.
    pub disk: u64,
    /// All of its settings. The destination judges by this, and builds nothing else.
    pub description: Description,
    /// CRIU's version at the source.
    pub criu: (u32, u32, u32),
    /// Machine architecture, as `uname -m` prints it.
    pub architecture: String,
    /// Processor features that its processes may have come to rely on.
    pub cpu_flags: Vec<String>,
    /// Its mount points in which symbolic links are not followed.
    pub without_symlinks: Vec<String>,
}

/// Images need more room than the memory in use: the kernel's side of each socket takes some
/// kilobytes and its queues up to megabytes. It is a limit on a file system in memory, which takes
/// only what is written to it.
const IMAGE_ROOM: u64 = 1024 * 1024 * 1024;

impl Offer {
    /// Room for checkpoint images, in bytes: no source may ask for more.
    #[must_use]
    pub fn image_room(&self) -> u64 {
        self.memory.saturating_mul(2).saturating_add(IMAGE_ROOM)
    }
}

/// What the destination thinks of an offer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// Everything that is in the way; empty if the container can come.
    pub blockers: Vec<Blocker>,
    /// Whether the image has to be shipped.
    pub image_missing: bool,
    /// The destination's own addresses. Flows with far ends there become local.
    pub addresses: Vec<IpAddr>,
}
