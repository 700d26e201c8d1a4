//! The container's addresses, as they were offered and as they are here.

use std::net::IpAddr;

use crate::offer::Offer;

/// Returns all addresses of the offered container.
pub fn addresses(offer: &Offer) -> Vec<IpAddr> {
    offer.networks.iter().flat_map(|network| network.addresses.clone()).collect()
}

/// Addresses and those that replace them: the first one of a family is replaced by the first one of it.
pub fn pairs(old: &[IpAddr], new: &[IpAddr]) -> impl Iterator<Item = (IpAddr, IpAddr)> {
    let of = |all: &[IpAddr], four| -> Vec<IpAddr> {
        all.iter().copied().filter(|ip| ip.is_ipv4() == four).collect()
    };
    [true, false].into_iter().flat_map(move |four| of(old, four).into_iter().zip(of(new, four)))
}
