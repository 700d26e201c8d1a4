//! Statements of a rule (matches and actions, nft(8)), and their translation into nf_tables
//! expressions.

use std::ffi::CString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nftnl::expr::{Bitwise, Cmp, CmpOp, Immediate, InterfaceName, Nat, NatType, Register, Verdict};
use nftnl::{ProtoFamily, Rule, nft_expr};

use super::raw_expression::Raw;
use super::{Queueing, TableError, counted_flows};
use crate::flow::Protocol;
use crate::peer_number::INTERFACE_PREFIX;
use crate::tunnel::HardwareAddress;

/// `IP_CT_DIR_ORIGINAL` and `IP_CT_DIR_REPLY`.
pub(super) const ORIGINAL: u8 = 0;
pub(super) const REPLY: u8 = 1;
/// `ct state new` as a bit (`NF_CT_STATE_BIT(IP_CT_NEW)`).
const STATE_NEW: u32 = 1 << 3;
/// `RTN_LOCAL`: an address of this host.
const ADDRESS_LOCAL: u32 = 2;

/// A match or an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Statement {
    /// `ct direction`.
    CtDirection(u8),
    /// `ct original saddr` or `ct reply saddr`.
    CtSource(u8, IpAddr),
    /// `ct original daddr` or `ct reply daddr`.
    CtDestination(u8, IpAddr),
    /// `ct original protocol`, `proto-src` and `proto-dst`.
    CtPorts(Protocol, u16, u16),
    /// `ct state new`.
    CtStateNew,
    /// The packet's source port.
    SourcePort(u16),
    /// `meta nftrace set 1`.
    NfTrace,
    /// Protocol, and first and last destination port.
    DestinationPorts(Protocol, u16, u16),
    /// `fib daddr type local`.
    DestinationIsLocal,
    /// `ct mark and MASK == VALUE`.
    Connmark {
        mask: u32,
        value: u32,
    },
    /// `meta mark set meta mark and not MASK or VALUE`.
    SetMark {
        mask: u32,
        value: u32,
    },
    /// The same for the connmark.
    SetConnmark {
        mask: u32,
        value: u32,
    },
    /// `queue num NUMBER`, with the flag `bypass`.
    Queue {
        number: u16,
        bypass: bool,
        queueing: Queueing,
    },
    Jump {
        chain: String,
    },
    /// `iifname`.
    InputInterface(String),
    /// `ether saddr != `: the frame has another sender.
    NotEtherSource(HardwareAddress),
    /// `iifname "netmig*"`: the packet came by any tunnel.
    InputTunnel,
    /// `oifname "netmig*"`: the packet leaves by any tunnel.
    OutputTunnel,
    /// `oifname`.
    OutputInterface(String),
    /// `oifname !=`.
    NotOutputInterface(String),
    /// `meta nfproto`: the family of this address.
    Family(IpAddr),
    /// `ip daddr` or `ip6 daddr`.
    Destination(IpAddr),
    /// `ip saddr` or `ip6 saddr`.
    Source(IpAddr),
    /// A network of source addresses: any address of it, and the prefix length.
    SourceNetwork(IpAddr, u8),
    /// The same for destination addresses.
    DestinationNetwork(IpAddr, u8),
    /// `notrack`.
    NoTrack,
    /// `dnat`: destination address, and port unless it stays.
    Dnat(IpAddr, Option<u16>),
    /// `snat`: source address.
    Snat(IpAddr),
    /// `ip saddr set`, without conntrack; checksums are updated.
    SetSource(IpAddr),
    /// `ip daddr set`, without conntrack; checksums are updated.
    SetDestination(IpAddr),
    Drop,
    Accept,
    /// `add @SET { ct DIRECTION saddr . daddr . proto-src . proto-dst . protocol counter }`, for flows of the
    /// family of this address.
    CountEach {
        set: String,
        direction: u8,
        family: IpAddr,
    },
}

impl Statement {
    /// Appends the expressions of this statement to a rule.
    pub(super) fn add_to(&self, rule: &mut Rule<'_>) -> Result<(), TableError> {
        match *self {
            Self::CtDirection(direction) => {
                rule.add_expr(&Raw::conntrack(libc::NFT_CT_DIRECTION));
                rule.add_expr(&nft_expr!(cmp == direction));
            }
            Self::CtSource(direction, address) => {
                // These keys match only flows of their own family.
                let key = match address {
                    IpAddr::V4(_) => libc::NFT_CT_SRC_IP,
                    IpAddr::V6(_) => libc::NFT_CT_SRC_IP6,
                };
                rule.add_expr(&Raw::conntrack_of(key, direction));
                rule.add_expr(&nft_expr!(cmp == address));
            }
            Self::CtDestination(direction, address) => {
                let key = match address {
                    IpAddr::V4(_) => libc::NFT_CT_DST_IP,
                    IpAddr::V6(_) => libc::NFT_CT_DST_IP6,
                };
                rule.add_expr(&Raw::conntrack_of(key, direction));
                rule.add_expr(&nft_expr!(cmp == address));
            }
            Self::CtPorts(protocol, source, destination) => {
                rule.add_expr(&Raw::conntrack_of(libc::NFT_CT_PROTOCOL, ORIGINAL));
                rule.add_expr(&nft_expr!(cmp == protocol.number()));
                for (key, port) in
                    [(libc::NFT_CT_PROTO_SRC, source), (libc::NFT_CT_PROTO_DST, destination)]
                {
                    rule.add_expr(&Raw::conntrack_of(key, ORIGINAL));
                    rule.add_expr(&nft_expr!(cmp == port.to_be()));
                }
            }
            Self::SourcePort(port) => {
                rule.add_expr(&nft_expr!(payload tcp sport));
                rule.add_expr(&nft_expr!(cmp == port.to_be()));
            }
            Self::CountEach { ref set, direction, family } => {
                for (key, register) in counted_flows::key(family) {
                    rule.add_expr(&Raw::conntrack_into(key, direction, register));
                }
                rule.add_expr(&Raw::count_in(CString::new(set.as_str())?));
            }
            Self::NfTrace => {
                rule.add_expr(&Immediate::new(1u8, Register::Reg1));
                rule.add_expr(&Raw::trace());
            }
            Self::CtStateNew => {
                rule.add_expr(&nft_expr!(ct state));
                rule.add_expr(&Bitwise::new(STATE_NEW, 0u32));
                rule.add_expr(&nft_expr!(cmp != 0u32));
            }
            Self::DestinationPorts(protocol, first, last) => {
                rule.add_expr(&nft_expr!(meta l4proto));
                rule.add_expr(&nft_expr!(cmp == protocol.number()));
                // The port is at the same offset in both headers. Registers hold it in network
                // byte order, in which the bytes compare as the number does.
                rule.add_expr(&nft_expr!(payload tcp dport));
                if first == last {
                    rule.add_expr(&nft_expr!(cmp == first.to_be()));
                } else {
                    rule.add_expr(&Cmp::new(CmpOp::Gte, first.to_be()));
                    rule.add_expr(&Cmp::new(CmpOp::Lte, last.to_be()));
                }
            }
            Self::DestinationIsLocal => {
                rule.add_expr(&Raw::destination_type());
                rule.add_expr(&nft_expr!(cmp == ADDRESS_LOCAL));
            }
            Self::Connmark { mask, value } => {
                rule.add_expr(&nft_expr!(ct mark));
                rule.add_expr(&Bitwise::new(mask, 0u32));
                rule.add_expr(&nft_expr!(cmp == value));
            }
            Self::SetMark { mask, value } => {
                rule.add_expr(&nft_expr!(meta mark));
                rule.add_expr(&Bitwise::new(!mask, value));
                rule.add_expr(&nft_expr!(meta mark set));
            }
            Self::SetConnmark { mask, value } => {
                rule.add_expr(&nft_expr!(ct mark));
                rule.add_expr(&Bitwise::new(!mask, value));
                rule.add_expr(&nft_expr!(ct mark set));
            }
            Self::Queue { number, bypass, queueing } => {
                rule.add_expr(&match queueing {
                    Queueing::Native => Raw::queue(number, bypass),
                    Queueing::Compat => Raw::xt_nfqueue(number, bypass),
                });
            }
            Self::Jump { ref chain } => {
                rule.add_expr(&Verdict::Jump { chain: CString::new(chain.as_str())? });
            }
            Self::InputInterface(ref interface) => {
                let name = InterfaceName::Exact(CString::new(interface.as_str())?);
                rule.add_expr(&nft_expr!(meta iifname));
                rule.add_expr(&Cmp::new(CmpOp::Eq, name));
            }
            Self::NotEtherSource(HardwareAddress(ref bytes)) => {
                rule.add_expr(&nft_expr!(payload ethernet saddr));
                rule.add_expr(&Cmp::new(CmpOp::Neq, &bytes[..]));
            }
            Self::InputTunnel => {
                rule.add_expr(&nft_expr!(meta iifname));
                rule.add_expr(&Cmp::new(CmpOp::Eq, tunnels()?));
            }
            Self::OutputTunnel => {
                rule.add_expr(&nft_expr!(meta oifname));
                rule.add_expr(&Cmp::new(CmpOp::Eq, tunnels()?));
            }
            Self::Source(address) => {
                Self::SourceNetwork(address, if address.is_ipv4() { 32 } else { 128 })
                    .add_to(rule)?;
            }
            Self::OutputInterface(ref interface) => {
                let name = InterfaceName::Exact(CString::new(interface.as_str())?);
                rule.add_expr(&nft_expr!(meta oifname));
                rule.add_expr(&Cmp::new(CmpOp::Eq, name));
            }
            Self::NotOutputInterface(ref interface) => {
                let name = InterfaceName::Exact(CString::new(interface.as_str())?);
                rule.add_expr(&nft_expr!(meta oifname));
                rule.add_expr(&Cmp::new(CmpOp::Neq, name));
            }
            Self::Family(address) => {
                let family =
                    if address.is_ipv4() { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 };
                rule.add_expr(&nft_expr!(meta nfproto));
                rule.add_expr(&nft_expr!(cmp == family as u8));
            }
            Self::Destination(address) => {
                Self::Family(address).add_to(rule)?;
                match address {
                    IpAddr::V4(_) => rule.add_expr(&nft_expr!(payload ipv4 daddr)),
                    IpAddr::V6(_) => rule.add_expr(&nft_expr!(payload ipv6 daddr)),
                }
                rule.add_expr(&nft_expr!(cmp == address));
            }
            Self::SourceNetwork(address, length) => {
                Self::Family(address).add_to(rule)?;
                match address {
                    IpAddr::V4(_) => rule.add_expr(&nft_expr!(payload ipv4 saddr)),
                    IpAddr::V6(_) => rule.add_expr(&nft_expr!(payload ipv6 saddr)),
                }
                add_prefix(rule, address, length);
            }
            Self::DestinationNetwork(address, length) => {
                Self::Family(address).add_to(rule)?;
                match address {
                    IpAddr::V4(_) => rule.add_expr(&nft_expr!(payload ipv4 daddr)),
                    IpAddr::V6(_) => rule.add_expr(&nft_expr!(payload ipv6 daddr)),
                }
                add_prefix(rule, address, length);
            }
            Self::NoTrack => rule.add_expr(&Raw::notrack()),
            Self::Dnat(address, port) => add_translation(rule, NatType::DNat, address, port),
            Self::Snat(address) => add_translation(rule, NatType::SNat, address, None),
            Self::SetSource(address) => add_write(rule, address, [12, 8]),
            Self::SetDestination(address) => add_write(rule, address, [16, 24]),
            Self::Drop => rule.add_expr(&Verdict::Drop),
            Self::Accept => rule.add_expr(&Verdict::Accept),
        }
        Ok(())
    }
}

/// Returns the names of all tunnel interfaces.
fn tunnels() -> Result<InterfaceName, TableError> {
    Ok(InterfaceName::StartingWith(CString::new(INTERFACE_PREFIX)?))
}

/// Writes an address into the IP header, at one of two offsets by its family.
fn add_write(rule: &mut Rule<'_>, address: IpAddr, offsets: [u32; 2]) {
    match address {
        IpAddr::V4(v4) => {
            rule.add_expr(&Immediate::new(v4.octets(), Register::Reg1));
            rule.add_expr(&Raw::write_v4(offsets[0]));
        }
        IpAddr::V6(v6) => {
            rule.add_expr(&Immediate::new(v6.octets(), Register::Reg1));
            rule.add_expr(&Raw::write_v6(offsets[1]));
        }
    }
}

fn add_translation(rule: &mut Rule<'_>, nat_type: NatType, address: IpAddr, port: Option<u16>) {
    let family = match address {
        IpAddr::V4(v4) => {
            rule.add_expr(&Immediate::new(v4.octets(), Register::Reg1));
            ProtoFamily::Ipv4
        }
        IpAddr::V6(v6) => {
            rule.add_expr(&Immediate::new(v6.octets(), Register::Reg1));
            ProtoFamily::Ipv6
        }
    };
    if let Some(port) = port {
        rule.add_expr(&Immediate::new(port.to_be_bytes(), Register::Reg2));
    }
    let port_register = port.map(|_| Register::Reg2);
    rule.add_expr(&Nat { nat_type, family, ip_register: Register::Reg1, port_register });
}

/// Compares an address that is in the register with a network.
fn add_prefix(rule: &mut Rule<'_>, address: IpAddr, length: u8) {
    let (mask, network) = prefix(address, length);
    let none: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    rule.add_expr(&Bitwise::new(mask, none));
    rule.add_expr(&nft_expr!(cmp == network));
}

/// Returns mask and first address of the network to which an address belongs.
fn prefix(address: IpAddr, length: u8) -> (IpAddr, IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
            (Ipv4Addr::from(mask).into(), Ipv4Addr::from(v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
            (Ipv6Addr::from(mask).into(), Ipv6Addr::from(v6.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_cut_at_their_prefix() {
        let cut = |text: &str, length| {
            let (mask, network) = prefix(text.parse().unwrap(), length);
            (mask.to_string(), network.to_string())
        };
        let both = |mask: &str, network: &str| (mask.to_owned(), network.to_owned());
        assert_eq!(cut("10.88.3.7", 16), both("255.255.0.0", "10.88.0.0"));
        assert_eq!(cut("10.88.3.7", 0), both("0.0.0.0", "0.0.0.0"));
        assert_eq!(cut("10.88.3.7", 99), both("255.255.255.255", "10.88.3.7"));
        assert_eq!(cut("fd77::12:3", 64), both("ffff:ffff:ffff:ffff::", "fd77::"));
    }
}
