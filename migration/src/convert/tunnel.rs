//! Ends of tunnels.

use netmig::tunnel::{DirectEnd, HardwareAddress};
use protocol::message as wire;
use steering::tunnels::{Transport, TunnelEnd};

use super::{Refused, Wire};

/// Longest name of a kind of tunnel, in bytes.
const MAX_KIND: usize = 32;

impl Wire for TunnelEnd {
    type Form = wire::TunnelEnd;

    fn into_wire(self) -> wire::TunnelEnd {
        let transport = match self.transport {
            Transport::WireGuard { public_key, port } => {
                wire::Transport::WireGuard { public_key, port }
            }
            Transport::Direct(DirectEnd { hardware_address, mtu }) => {
                wire::Transport::Direct { hardware_address: hardware_address.0, mtu }
            }
        };
        wire::TunnelEnd { transport, kind: self.kind.into() }
    }

    fn from_wire(form: wire::TunnelEnd) -> Result<Self, Refused> {
        if form.kind.len() > MAX_KIND {
            return Err(Refused::Impossible("a kind of tunnel"));
        }
        let transport = match form.transport {
            wire::Transport::WireGuard { port: 0, .. } => {
                return Err(Refused::Impossible("a port"));
            }
            wire::Transport::WireGuard { public_key, port } => {
                Transport::WireGuard { public_key, port }
            }
            wire::Transport::Direct { hardware_address, mtu } => {
                let hardware_address = HardwareAddress(hardware_address);
                if !hardware_address.is_of_one_host() {
                    return Err(Refused::Impossible("a hardware address"));
                }
                Transport::Direct(DirectEnd { hardware_address, mtu })
            }
        };
        Ok(Self { transport, kind: form.kind.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::comes_back;

    #[test]
    fn ends_of_tunnels_come_back() {
        let transport = Transport::WireGuard { public_key: [3; 32], port: 51_820 };
        comes_back(&TunnelEnd { transport, kind: "wireguard".to_owned() });
        let hardware_address = HardwareAddress([2, 0, 0, 0, 0, 1]);
        comes_back(&TunnelEnd::from(DirectEnd { hardware_address, mtu: 1500 }));
    }

    #[test]
    fn ends_that_no_interface_has_are_refused() {
        let direct = |hardware_address| wire::Transport::Direct { hardware_address, mtu: 1500 };
        for transport in [
            direct([0; 6]),
            direct([0xff; 6]),
            wire::Transport::WireGuard { public_key: [3; 32], port: 0 },
        ] {
            let end = wire::TunnelEnd { transport, kind: "wireguard".into() };
            assert!(TunnelEnd::from_wire(end).is_err(), "{transport:?}");
        }
        let transport = wire::Transport::WireGuard { public_key: [3; 32], port: 1 };
        let end = wire::TunnelEnd { transport, kind: "x".repeat(MAX_KIND + 1).into() };
        assert!(TunnelEnd::from_wire(end).is_err());
    }
}
