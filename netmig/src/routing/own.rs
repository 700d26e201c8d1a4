//! The addresses of this host.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;

use super::Error;
use crate::netlink::rtnetlink as rtnl;

/// Returns the addresses by which other hosts may know this one: none of loopback, and none that means
/// something on one link alone, as those of tunnels do.
///
/// # Errors
/// [`Error::Socket`], [`Error::Addresses`].
pub async fn own_addresses() -> Result<BTreeSet<IpAddr>, Error> {
    let handle = rtnl::connect().map_err(Error::Socket)?;
    let mut listed = handle.address().get().execute();
    let failed = |e| Error::Addresses(rtnl::answer(e));
    let mut own = BTreeSet::new();
    while let Some(message) = listed.try_next().await.map_err(failed)? {
        // On a link to one other host the address of that one is told as well, under another name.
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

/// Whether an address means the same beyond one link.
fn is_wide(address: IpAddr) -> bool {
    let on_link = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !on_link && !address.is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn loopback_is_none_of_them() {
        let own = own_addresses().await.unwrap();
        assert!(own.iter().all(|address| is_wide(*address)), "{own:?}");
        for narrow in ["127.0.0.1", "::1", "fe80::1", "169.254.77.1"] {
            assert!(!is_wide(narrow.parse().unwrap()));
        }
        assert!(is_wide("192.0.2.2".parse().unwrap()) && is_wide("fd00::2".parse().unwrap()));
    }
}
