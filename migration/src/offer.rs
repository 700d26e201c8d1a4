//! What a source offers, and what the destination says to it.

use std::net::IpAddr;

use engine::description::Description;
use netmig::flow::{Alias, Protocol};
use protocol::message::{ImageRef, Network};
use state::blocker::Blocker;
use state::id::{HostId, MigrationId};
use steering::port_forward::Forwarder;

/// Images need more room than the memory in use: the kernel's side of each socket takes some kilobytes and its
/// queues up to megabytes. It is the limit of a filesystem in memory, which takes only what is written to it.
const IMAGE_ROOM: u64 = 1024 * 1024 * 1024;

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// What is to be moved, and what it needs at the destination. The fields are those of
/// [`protocol::message::Offer`], which describes them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the wire form describes the fields")]
pub struct Offer {
    pub migration: MigrationId,
    pub id: String,
    pub name: String,
    pub image: ImageRef,
    pub image_shipped: bool,
    pub runtime: String,
    pub forwarders: Vec<Forwarder>,
    pub networks: Vec<Network>,
    pub any_address: bool,
    pub direct: Option<u32>,
    pub aliases: Vec<Alias>,
    pub ports: Vec<Port>,
    pub anchors: Vec<HostId>,
    pub memory: u64,
    pub disk: u64,
    pub description: Description,
    pub criu: (u32, u32, u32),
    pub architecture: String,
    pub cpu_flags: Vec<String>,
    pub without_symlinks: Vec<String>,
}

impl Offer {
    /// Returns the room for checkpoint images in bytes: no source may ask for more.
    #[must_use]
    pub fn image_room(&self) -> u64 {
        self.memory.saturating_mul(2).saturating_add(IMAGE_ROOM)
    }
}

/// What the destination says to an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Everything that is in the way; empty if the container can come.
    pub blockers: Vec<Blocker>,
    /// Whether the image has to be shipped.
    pub image_missing: bool,
    /// The destination's addresses. Flows whose far ends are there become local.
    pub addresses: Vec<IpAddr>,
}
