//! The container's routes as requests that give them another MTU.
//!
//! A route is changed by sending it again with `NLM_F_REPLACE`. What was read is sent back byte for
//! byte, so that attributes unknown to this code stay as they were. Layout: rtnetlink(7),
//! `include/uapi/linux/rtnetlink.h`.

use libc::{
    RTA_CACHEINFO, RTA_DST, RTA_ENCAP, RTA_ENCAP_TYPE, RTA_EXPIRES, RTA_GATEWAY, RTA_METRICS,
    RTA_MULTIPATH, RTA_OIF, RTA_VIA, RTM_F_CLONED, RTN_UNICAST,
};

use super::{Gateway, Interface};
use crate::netlink::attribute::{attributes, find, find_u32, ip_address, nest, put, u32_at};
use crate::netlink::message::{REPLACE, request};
use crate::netlink::route::{NEXT_HOP_CONFIGURATION, ROUTE_HEADER, RTA_NH_ID, RTAX_MTU, list};
use crate::netlink::{Connection, SocketError};

/// Position of `rta_expires` in `struct rta_cacheinfo`, and its units per second (`USER_HZ`).
const EXPIRES: usize = 8;
const EXPIRES_PER_SECOND: u32 = 100;

/// All routes as one batch of requests.
#[derive(Debug, Default)]
pub(super) struct Routes {
    batch: Vec<u8>,
    /// Position of the MTU of each route in the batch.
    mtu: Vec<usize>,
    names: Vec<String>,
    gateways: Vec<Gateway>,
}

impl Routes {
    /// Reads the routes that leave through `interfaces`.
    pub(super) fn read(
        socket: &mut Connection,
        interfaces: &[Interface],
    ) -> Result<Self, SocketError> {
        let mut routes = Self::default();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut fixed = [0; ROUTE_HEADER];
            fixed[0] = family.to_le_bytes()[0];
            for payload in list(socket, libc::RTM_GETROUTE, &fixed)? {
                // A kernel without IPv6 answers such a dump with the routes of all families.
                if payload.first() == fixed.first() {
                    routes.add(&payload, interfaces);
                }
            }
        }
        Ok(routes)
    }

    fn add(&mut self, payload: &[u8], interfaces: &[Interface]) {
        let Some((header, rest)) = payload.split_at_checked(ROUTE_HEADER) else { return };
        let flags = u32_at(header, 8).unwrap_or(0);
        let device = find_u32(rest, RTA_OIF)
            .and_then(|index| interfaces.iter().find(|interface| interface.index == index));
        let multipath = find(rest, RTA_MULTIPATH).is_some();
        let leaves = device.is_some() || multipath;
        if header[7] != RTN_UNICAST || flags & RTM_F_CLONED != 0 || !leaves {
            return;
        }
        let destination = find(rest, RTA_DST).and_then(ip_address);
        if let (None, Some(address), Some(interface)) =
            (destination, find(rest, RTA_GATEWAY).and_then(ip_address), device)
        {
            self.gateways.push(Gateway { address, interface: interface.index });
        }
        let (message, mtu) = replacement(header, rest);
        self.mtu.push(self.batch.len() + mtu);
        self.batch.extend(message);
        let destination = destination
            .map_or_else(|| "default".to_owned(), |address| format!("{address}/{}", header[1]));
        let device = device.map_or("several devices", |interface| &interface.name);
        self.names.push(format!("{destination} through {device}"));
    }

    /// Returns the default gateways.
    pub(super) fn gateways(&self) -> &[Gateway] {
        &self.gateways
    }

    /// Returns the batch that gives every route this MTU.
    pub(super) fn with_mtu(&mut self, mtu: u32) -> &mut [u8] {
        for position in &self.mtu {
            self.batch[*position..position + 4].copy_from_slice(&mtu.to_ne_bytes());
        }
        &mut self.batch
    }

    /// Returns destination and device of the route in request `index` of the batch.
    pub(super) fn name(&self, index: usize) -> &str {
        self.names.get(index).map_or("(none)", String::as_str)
    }
}

/// Returns the request that replaces a route by itself, and the position of its MTU.
fn replacement(header: &[u8], attributes_read: &[u8]) -> (Vec<u8>, usize) {
    let mut header = header.to_vec();
    let flags = u32_at(&header, 8).unwrap_or(0) & NEXT_HOP_CONFIGURATION;
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    // A route through a next hop object names the object alone; the rest is read-only.
    let object = find(attributes_read, RTA_NH_ID).is_some();
    let mut mtu = 0;
    let message = request(libc::RTM_NEWROUTE, REPLACE, &header, |body| {
        for (kind, value) in attributes(attributes_read) {
            match kind {
                RTA_METRICS => {}
                RTA_CACHEINFO => {
                    let left = u32_at(value, EXPIRES).unwrap_or(0).cast_signed();
                    if let Ok(left @ 1..) = u32::try_from(left) {
                        let seconds = left.div_ceil(EXPIRES_PER_SECOND);
                        put(body, RTA_EXPIRES, &seconds.to_ne_bytes());
                    }
                }
                RTA_OIF | RTA_GATEWAY | RTA_VIA | RTA_MULTIPATH | RTA_ENCAP | RTA_ENCAP_TYPE
                    if object => {}
                _ => {
                    put(body, kind, value);
                }
            }
        }
        nest(body, RTA_METRICS, |metrics| {
            let old = find(attributes_read, RTA_METRICS).unwrap_or_default();
            for (kind, value) in attributes(old).filter(|(kind, _)| *kind != RTAX_MTU) {
                put(metrics, kind, value);
            }
            mtu = put(metrics, RTAX_MTU, &[0; 4]);
        });
    });
    (message, mtu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::message::HEADER;

    fn interface() -> Interface {
        Interface {
            name: "eth0".to_owned(),
            index: 2,
            mac: None,
            peer_index: None,
            mtu: 1500,
            addresses: vec![],
            link_addresses: vec![],
        }
    }

    /// Returns a default route as the kernel sends it, with a window metric and an unknown attribute.
    fn default_route(kind: u8, flags: u32) -> Vec<u8> {
        let mut header = [0; ROUTE_HEADER];
        header[0] = 2;
        header[7] = kind;
        header[8..].copy_from_slice(&flags.to_ne_bytes());
        let mut payload = header.to_vec();
        put(&mut payload, RTA_OIF, &2_u32.to_ne_bytes());
        put(&mut payload, RTA_GATEWAY, &[10, 88, 0, 1]);
        put(&mut payload, 99, b"kept");
        put(&mut payload, RTA_CACHEINFO, &[0; 32]);
        nest(&mut payload, RTA_METRICS, |metrics| {
            put(metrics, RTAX_MTU, &1400_u32.to_ne_bytes());
            put(metrics, 3, &77_u32.to_ne_bytes());
        });
        payload
    }

    #[test]
    fn everything_but_the_mtu_is_kept() {
        const LINK_DOWN_AND_ONLINK: u32 = 0x10 | 0x04;
        let mut routes = Routes::default();
        routes.add(&default_route(RTN_UNICAST, LINK_DOWN_AND_ONLINK), &[interface()]);
        for mtu in [1420, 1500] {
            let payload = &routes.with_mtu(mtu)[HEADER..];
            assert_eq!(u32_at(payload, 8), Some(0x04), "state is not configuration");
            let rest = &payload[ROUTE_HEADER..];
            let metrics = find(rest, RTA_METRICS).unwrap();
            assert_eq!(find_u32(metrics, RTAX_MTU), Some(mtu));
            assert_eq!(find_u32(metrics, 3), Some(77));
            assert_eq!(find(rest, 99), Some(&b"kept"[..]));
            assert_eq!(find(rest, RTA_CACHEINFO), None);
            assert_eq!(find(rest, RTA_EXPIRES), None, "it did not expire before");
        }
        assert_eq!(routes.name(0), "default through eth0");
        let gateway = Gateway { address: [10, 88, 0, 1].into(), interface: 2 };
        assert_eq!(routes.gateways(), [gateway]);
    }

    #[test]
    fn local_cloned_and_foreign_routes_are_left_alone() {
        const RTN_LOCAL: u8 = 2;
        let mut routes = Routes::default();
        routes.add(&default_route(RTN_LOCAL, 0), &[interface()]);
        routes.add(&default_route(RTN_UNICAST, RTM_F_CLONED), &[interface()]);
        routes.add(&default_route(RTN_UNICAST, 0), &[]);
        routes.add(&[0; 3], &[interface()]);
        assert!(routes.with_mtu(1500).is_empty());
    }
}
