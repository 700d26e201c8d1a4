//! A direct tunnel: frames to a peer on the same Ethernet segment, without encapsulation.
//!
//! `netmigP` is then a macvlan interface (`drivers/net/macvlan.c`) on the interface that is on the
//! segment. Each end tells the other its hardware address, and packets for the peer go there as to
//! the next router ([`routing`]). Nothing is added to them, so they are as large as anywhere on the
//! segment; and nothing is encrypted.
//!
//! - The interface does not resolve addresses (IFF_NOARP): it would answer for the addresses of the
//!   segment's own interface. Permanent neighbour entries hold the peer's hardware address.
//! - Its mode is *private*. Mode *source*, which accepts only the frames of given senders, clones
//!   each frame and cost more than half of the throughput; a rule drops what comes from others
//!   instead ([`crate::table::Table::admit_sender`]).
//! - The interface's alias records the other end, so that any process finds it.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;

use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkLayerType, LinkMessage, MacVlanMode,
};
use rtnetlink::{Handle, LinkMacVlan, LinkUnspec};
use serde::{Deserialize, Serialize};

use super::device::{self, Device, MTU_COMMON};
use super::{
    Connected, Error, Kind, config, in_time, link_address, lookup, refused, routing, wrong_way,
};
use crate::netlink::rtnetlink as rtnl;
use crate::peer_number::PeerNumber;

/// Prefix of the alias of an interface that is connected.
const ALIAS: &str = "netmig direct";

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HardwareAddress(pub [u8; 6]);

impl HardwareAddress {
    /// Returns whether an interface can have this address: it is neither empty nor a group's.
    #[must_use]
    pub fn is_of_one_host(self) -> bool {
        self.0 != [0; 6] && self.0[0] & 1 == 0
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self).filter(|address| address.is_of_one_host())
    }
}

impl fmt::Display for HardwareAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for HardwareAddress {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let bytes: Option<Vec<u8>> = text
            .split(':')
            .map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten())
            .collect();
        bytes.and_then(|bytes| Self::of(&bytes)).ok_or(())
    }
}

/// One end of a direct tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectEnd {
    /// Hardware address of its interface.
    pub hardware_address: HardwareAddress,
    /// MTU of its segment, in bytes.
    pub mtu: u32,
}

/// The other end of a direct tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    /// The host's address on the segment.
    pub(crate) address: IpAddr,
    /// Hardware address of its interface.
    pub(crate) hardware_address: HardwareAddress,
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ALIAS} {} {}", self.address, self.hardware_address)
    }
}

impl FromStr for Remote {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, hardware) =
            text.strip_prefix(ALIAS).and_then(|rest| rest.trim().split_once(' ')).ok_or(())?;
        let address = address.parse().map_err(|_| ())?;
        Ok(Self { address, hardware_address: hardware.parse()? })
    }
}

/// Returns the other end of a direct tunnel's interface; `None` before it is connected.
pub(crate) fn remote_of(link: &LinkMessage) -> Option<Remote> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => alias.parse().ok(),
        _ => None,
    })
}

/// Returns whether a link is a direct tunnel's.
pub(crate) fn is_direct(link: &LinkMessage) -> bool {
    device::tunnel_kind(device::kind_of(link)) == Some(Kind::Direct)
}

/// An interface to an Ethernet segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its name.
    pub interface: String,
    /// Largest packet, in bytes.
    pub mtu: u32,
    index: u32,
}

/// Returns the segment on which `address` is a neighbour of this host, if packets can be steered to
/// it there.
///
/// # Errors
/// [`Error::NotOnLink`] when they cannot; [`Error::Socket`], [`Error::Interface`],
/// [`Error::Routing`].
pub async fn segment(address: IpAddr) -> Result<Segment, Error> {
    in_time("look up the segment of", address.to_string(), async {
        let handle = rtnl::connect().map_err(Error::Socket)?;
        find(&handle, address.to_canonical()).await
    })
    .await
}

async fn find(handle: &Handle, address: IpAddr) -> Result<Segment, Error> {
    let not = |reason: String| Error::NotOnLink { address, reason };
    let route = routing::route_to(handle, address)
        .await
        .map_err(|source| Error::Routing { interface: address.to_string(), source })?;
    let index = routing::neighbour_interface(&route)
        .ok_or_else(|| not("a router is in between, or it is this host".to_owned()))?;
    let link = rtnl::link_by_index(handle, index)
        .await
        .map_err(refused("look up", &format!("number {index}")))?
        .ok_or_else(|| not("the interface to it has just been removed".to_owned()))?;
    let (mut interface, mut mtu, mut ethernet) = (String::new(), 0, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.clone_from(name),
            LinkAttribute::Mtu(of) => mtu = *of,
            LinkAttribute::Address(bytes) => ethernet = HardwareAddress::of(bytes).is_some(),
            _ => {}
        }
    }
    if link.header.link_layer_type != LinkLayerType::Ether || !ethernet {
        return Err(not(format!(
            "{interface}, by which it is reached, is not an Ethernet interface"
        )));
    }
    let system = Path::new("/sys/class/net").join(&interface);
    if system.join("wireless").exists() || system.join("phy80211").exists() {
        return Err(not(format!("{interface} is wireless and carries one hardware address only")));
    }
    // With bridge-nf-call-iptables its frames would pass the rules before they reach our interface.
    if device::kind_of(&link) == Some(&InfoKind::Bridge) {
        return Err(not(format!("{interface} is a bridge of this host")));
    }
    if mtu < MTU_COMMON {
        return Err(not(format!(
            "packets on {interface} have at most {mtu} bytes, and flows may have larger ones"
        )));
    }
    Ok(Segment { interface, mtu, index })
}

/// Creates this host's end of the direct tunnel to `peer`, which is at `address`, or takes the
/// existing one.
///
/// # Errors
/// [`Error::NotOnLink`], [`Error::OtherWay`], or those of the changes: [`Error::Interface`],
/// [`Error::Setting`], [`Error::NotKept`].
pub async fn prepare(peer: PeerNumber, address: IpAddr) -> Result<DirectEnd, Error> {
    in_time("prepare", peer.interface(), async {
        let handle = rtnl::connect().map_err(Error::Socket)?;
        let interface = peer.interface();
        let segment = find(&handle, address.to_canonical()).await?;
        if device::find(&handle, &interface).await?.is_none() {
            let link = LinkMacVlan::new(&interface, segment.index, MacVlanMode::Private).build();
            let made = handle.link().add(link).execute().await;
            // Another process was quicker; the lookup below tells what it created.
            rtnl::unless(made, libc::EEXIST).map_err(refused("create", &interface))?;
        }
        let device = device_of(&handle, &interface).await?;
        device::set_quiet(&interface)?;
        silence(&handle, &device, &interface).await?;
        let link = lookup(&handle, &interface).await?;
        let own = link.iter().flat_map(|link| &link.attributes).find_map(|attribute| {
            let LinkAttribute::Address(bytes) = attribute else { return None };
            HardwareAddress::of(bytes)
        });
        let hardware_address =
            own.ok_or_else(|| Error::NotKept { interface: interface.clone() })?;
        Ok(DirectEnd { hardware_address, mtu: segment.mtu })
    })
    .await
}

/// Brings the interface up without address resolution.
async fn silence(handle: &Handle, device: &Device, interface: &str) -> Result<(), Error> {
    let mut message = LinkUnspec::new_with_index(device.index()).up().build();
    message.header.flags |= LinkFlags::Noarp;
    message.header.change_mask |= LinkFlags::Noarp;
    let set = handle.link().set(message).execute().await;
    set.map_err(rtnl::answer).map_err(refused("configure", interface))
}

/// Connects the prepared end to the other host, and routes the peer's marked packets there. With
/// equal parameters it changes nothing.
///
/// # Errors
/// [`Error::NotPrepared`], [`Error::OtherWay`], [`Error::BadRemote`], or those of the changes:
/// [`Error::Interface`], [`Error::Setting`], [`Error::Routing`].
pub async fn connect(
    peer: PeerNumber,
    address: IpAddr,
    end: &DirectEnd,
) -> Result<Connected, Error> {
    in_time("connect", peer.interface(), async {
        let interface = peer.interface();
        let handle = rtnl::connect().map_err(Error::Socket)?;
        let address = address.to_canonical();
        let device = device_of(&handle, &interface).await?;
        let segment = find(&handle, address).await?;
        let bad = |reason| Error::BadRemote { interface: interface.clone(), reason };
        if !end.hardware_address.is_of_one_host() {
            return Err(bad("its hardware address is not that of a host"));
        }
        if end.mtu != segment.mtu {
            return Err(bad("the two hosts' interfaces to the segment have different MTUs"));
        }
        config::checked_address(address).map_err(bad)?;
        let link = lookup(&handle, &interface).await?;
        let remote = Remote { address, hardware_address: end.hardware_address };
        let mut changed = link.as_ref().and_then(remote_of) != Some(remote);
        if changed {
            let mut message = LinkUnspec::new_with_index(device.index()).build();
            message.attributes.push(LinkAttribute::IfAlias(remote.to_string()));
            let set = handle.link().set(message).execute().await;
            set.map_err(rtnl::answer).map_err(refused("configure", &interface))?;
        }
        changed |= device::add_link_address(&handle, &device, link_address(peer)).await?;
        let source_check = device::relax_source_check(&interface)?;
        routing::install(peer)
            .await
            .map_err(|source| Error::Routing { interface: interface.clone(), source })?;
        let mtu = segment.mtu;
        Ok(Connected { mtu, underlay: mtu, source_check, changed })
    })
    .await
}

/// Returns the peer's hardware address, if the tunnel to it is a connected direct one.
///
/// # Errors
/// [`Error::Socket`], [`Error::Interface`].
pub async fn hardware_address(peer: PeerNumber) -> Result<Option<HardwareAddress>, Error> {
    in_time("look up", peer.interface(), async {
        let handle = rtnl::connect().map_err(Error::Socket)?;
        let link = lookup(&handle, &peer.interface()).await?;
        let remote = link.filter(is_direct).and_then(|link| remote_of(&link));
        Ok(remote.map(|remote| remote.hardware_address))
    })
    .await
}

/// Returns the interface, which must be a direct tunnel's.
async fn device_of(handle: &Handle, interface: &str) -> Result<Device, Error> {
    let device = device::find(handle, interface)
        .await?
        .ok_or_else(|| Error::NotPrepared { interface: interface.to_owned() })?;
    if device.kind == Kind::Direct { Ok(device) } else { Err(wrong_way(interface, device.kind)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_tells_the_other_end_and_others_are_not_ours() {
        for address in ["192.0.2.7", "2001:db8::7"] {
            let remote = Remote {
                address: address.parse().unwrap(),
                hardware_address: HardwareAddress([2, 0, 0xab, 1, 0, 255]),
            };
            assert_eq!(remote.to_string().parse(), Ok(remote));
        }
        for text in [
            "",
            "netmig direct",
            "netmig direct 192.0.2.7",
            "netmig direct 192.0.2.7 01:00:5e:00:00:01",
            "netmig direct 192.0.2.7 00:00:00:00:00:00",
            "netmig direct 192.0.2.7 02:00:00:00:00",
            "netmig direct x 02:00:00:00:00:01",
            "uplink",
        ] {
            assert_eq!(text.parse::<Remote>(), Err(()), "{text:?}");
        }
    }
}
