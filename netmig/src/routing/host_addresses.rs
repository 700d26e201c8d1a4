//! The addresses of this host, and of other hosts as the neighbour tables know them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};

use super::Error;
use crate::netlink::rtnetlink as rtnl;

/// Returns the addresses by which other hosts may know this one, without loopback and link-local
/// addresses.
///
/// # Errors
/// [`Error::Socket`], [`Error::Addresses`].
pub async fn host_addresses() -> Result<BTreeSet<IpAddr>, Error> {
    let handle = rtnl::connect().map_err(Error::Socket)?;
    let mut listed = handle.address().get().execute();
    let failed = |e| Error::Addresses(rtnl::answer(e));
    let mut own = BTreeSet::new();
    while let Some(message) = listed.try_next().await.map_err(failed)? {
        // On a point-to-point link IFA_ADDRESS is the other end's.
        let of_this_host = |attribute: &AddressAttribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        };
        let any = |attribute: &AddressAttribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        };
        let attributes = &message.attributes;
        let address = attributes.iter().find_map(of_this_host);
        own.extend(address.or_else(|| attributes.iter().find_map(any)));
    }
    own.retain(|address| is_wide(*address));
    Ok(own)
}

/// Returns whether an address is valid beyond one link.
fn is_wide(address: IpAddr) -> bool {
    let on_link = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !on_link && !address.is_loopback()
}

/// A neighbour's address, and where it is: an interface and a hardware address.
type Entry = (IpAddr, (u32, Vec<u8>));

/// Returns the address of another host and those of the `claimed` addresses that the neighbour
/// tables confirm: they have the same hardware address on the same interface.
///
/// # Errors
/// [`Error::Socket`], [`Error::Addresses`].
pub async fn addresses_of(
    host: IpAddr,
    claimed: &BTreeSet<IpAddr>,
) -> Result<BTreeSet<IpAddr>, Error> {
    let mut its = BTreeSet::from([host]);
    if claimed.iter().all(|address| *address == host) {
        return Ok(its);
    }
    let handle = rtnl::connect().map_err(Error::Socket)?;
    let mut listed = handle.neighbours().get().execute();
    let mut entries = Vec::new();
    let failed = |e| Error::Addresses(rtnl::answer(e));
    while let Some(message) = listed.try_next().await.map_err(failed)? {
        entries.extend(entry(&message));
    }
    let places: Vec<_> = entries.iter().filter(|(ip, _)| *ip == host).map(|(_, at)| at).collect();
    let same = entries.iter().filter(|(ip, at)| claimed.contains(ip) && places.contains(&at));
    its.extend(same.map(|(ip, _)| *ip));
    Ok(its)
}

fn entry(message: &NeighbourMessage) -> Option<Entry> {
    let find = |attribute: &NeighbourAttribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some((*v4).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some((*v6).into()),
        _ => None,
    };
    let address = message.attributes.iter().find_map(find)?;
    let hardware = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) if !bytes.is_empty() => Some(bytes.clone()),
        _ => None,
    })?;
    Some((address, (message.header.ifindex, hardware)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn loopback_is_none_of_them() {
        let own = host_addresses().await.unwrap();
        assert!(own.iter().all(|address| is_wide(*address)), "{own:?}");
        for narrow in ["127.0.0.1", "::1", "fe80::1", "169.254.77.1"] {
            assert!(!is_wide(narrow.parse().unwrap()));
        }
        assert!(is_wide("192.0.2.2".parse().unwrap()) && is_wide("fd00::2".parse().unwrap()));
    }

    #[tokio::test]
    async fn an_address_that_nobody_has_is_not_believed() {
        let host: IpAddr = "192.0.2.77".parse().unwrap();
        let claimed = BTreeSet::from([host, "192.0.2.78".parse().unwrap()]);
        assert_eq!(addresses_of(host, &claimed).await.unwrap(), BTreeSet::from([host]));
    }
}
