//! What two hosts tell each other of their ends of a tunnel.

use netmig::tunnel::{DirectEnd, Kind, LocalEnd};
use state::peer_text::PeerText;

/// One end of a tunnel, or of a direct way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelEnd {
    /// How packets reach it.
    pub transport: Transport,
    /// `wireguard` (the kernel's), `wireguard-go` or `direct`, to show to people.
    pub kind: PeerText,
}

/// How packets reach the end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Encrypted, in UDP packets.
    WireGuard {
        /// The public key.
        public_key: [u8; 32],
        /// The UDP port on which this end listens.
        port: u16,
    },
    /// Unencrypted, in frames on a segment that both hosts are on.
    Direct(DirectEnd),
}

impl TunnelEnd {
    /// Returns whether packets go to it without encryption.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        matches!(self.transport, Transport::Direct(_))
    }
}

impl From<LocalEnd> for TunnelEnd {
    fn from(LocalEnd { public_key, port, kind, .. }: LocalEnd) -> Self {
        Self { transport: Transport::WireGuard { public_key, port }, kind: kind.to_string().into() }
    }
}

impl From<DirectEnd> for TunnelEnd {
    fn from(end: DirectEnd) -> Self {
        Self { transport: Transport::Direct(end), kind: Kind::Direct.to_string().into() }
    }
}
