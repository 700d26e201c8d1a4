//! How packets get from host to host.

use std::net::{IpAddr, SocketAddr};

use netmig::flow::Protocol;
use netmig::tunnel::{DirectEnd, Kind, LocalEnd};
use serde::{Deserialize, Serialize};

use super::MigrationId;
use state::id::HostId;
use state::peer_text::PeerText;

/// One end of a tunnel, or of a direct way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelEnd {
    /// How the other end reaches it.
    pub means: Means,
    /// `wireguard` (the kernel's), `wireguard-go` or `direct`, to show to people.
    pub kind: PeerText,
}

/// How packets reach the end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Means {
    /// Encrypted, in UDP packets.
    WireGuard {
        /// Public key.
        public_key: [u8; 32],
        /// UDP port it listens on.
        port: u16,
    },
    /// As they are, in frames on a segment that both hosts are on.
    Direct(DirectEnd),
}

impl TunnelEnd {
    /// Whether packets go to it without encryption.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        matches!(self.means, Means::Direct(_))
    }
}

impl From<LocalEnd> for TunnelEnd {
    fn from(LocalEnd { public_key, port, kind, .. }: LocalEnd) -> Self {
        Self { means: Means::WireGuard { public_key, port }, kind: kind.to_string().into() }
    }
}

impl From<DirectEnd> for TunnelEnd {
    fn from(end: DirectEnd) -> Self {
        Self { means: Means::Direct(end), kind: Kind::Direct.to_string().into() }
    }
}

/// A third host's end of a tunnel to the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnchorTunnel {
    /// The third host.
    pub host: HostId,
    /// Its address.
    pub address: IpAddr,
    /// Its end.
    pub end: TunnelEnd,
}

/// A container that moves on, for the anchor of its flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnchorOffer {
    /// The migration.
    pub migration: MigrationId,
    /// The destination.
    pub host: HostId,
    /// The destination's address.
    pub address: IpAddr,
    /// The container's ID.
    pub id: String,
    /// The container's addresses, which may be others than it had on the anchor.
    pub container: Vec<IpAddr>,
}

/// A container that has moved on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehome {
    /// The migration.
    pub migration: MigrationId,
    /// The container's host now.
    pub host: HostId,
    /// The container's ID.
    pub id: String,
    /// The container's addresses, which may be others than it had on the anchor.
    pub container: Vec<IpAddr>,
}

/// Flows of a container that a user ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndFlows {
    /// The container's ID.
    pub id: String,
    /// The flows.
    pub flows: Vec<FlowEnds>,
}

/// A flow as its container has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowEnds {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The container's own end. It may have another address on another host.
    pub own: SocketAddr,
    /// The far end.
    pub far: SocketAddr,
}
