//! Tunnels between two hosts, and anchors that use them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use state::id::{HostId, MigrationId};
use state::peer_text::PeerText;

/// One end of a tunnel, or of a direct way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelEnd {
    /// How packets reach it.
    pub transport: Transport,
    /// `wireguard` (the kernel's), `wireguard-go` or `direct`, to show to people.
    pub kind: PeerText,
}

/// How packets reach the end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// Encrypted, in UDP packets.
    WireGuard {
        /// The public key.
        public_key: [u8; 32],
        /// The UDP port on which this end listens.
        port: u16,
    },
    /// Unencrypted, in frames on a segment that both hosts are on.
    Direct {
        /// The Ethernet address of this end.
        hardware_address: [u8; 6],
        /// The largest packet of the segment, in bytes.
        mtu: u32,
    },
}

/// A third host's end of a tunnel to the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnchorTunnel {
    /// The third host.
    pub host: HostId,
    /// The third host's address.
    pub address: IpAddr,
    /// The third host's end.
    pub end: TunnelEnd,
}

/// A container that is about to move on, for the anchor of its flows.
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
    /// The container's addresses on the source. The anchor may know it by others.
    pub container: Vec<IpAddr>,
}

/// A container that has moved on, for the anchor of its flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehome {
    /// The migration.
    pub migration: MigrationId,
    /// The container's new host.
    pub host: HostId,
    /// The container's ID.
    pub id: String,
    /// The container's addresses on the source. The anchor may know it by others.
    pub container: Vec<IpAddr>,
}
