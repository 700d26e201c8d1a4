//! The container's routes as messages that give them another MTU.
//!
//! A route is changed by sending it again with `NLM_F_REPLACE`. What was read is sent back byte for
//! byte, so that attributes this code does not know stay as they were. Layout: rtnetlink(7),
//! `include/uapi/linux/rtnetlink.h`.

use std::io;

use super::{Gateway, Interface};
use crate::netns::link::{NLM_F_DUMP, ip_address};
use crate::netns::message::{Message, attribute, attributes, u32_at, u32_attribute};
use crate::netns::socket::KernelSocket;

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const NLM_F_REPLACE: u16 = 0x100;
/// Bytes of `struct rtmsg`.
const ROUTE_HEADER: usize = 12;
const RTN_UNICAST: u8 = 1;
/// A route the kernel cloned for one destination; not configuration.
const RTM_F_CLONED: u32 = 0x200;
/// The next hop's flags that are configuration (`RTNH_F_PERVASIVE`, `RTNH_F_ONLINK`). The others
/// are state, and refused in a request.
const NEXT_HOP_CONFIGURATION: u32 = 0x02 | 0x04;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_CACHEINFO: u16 = 12;
const RTA_VIA: u16 = 18;
const RTA_ENCAP_TYPE: u16 = 21;
const RTA_ENCAP: u16 = 22;
const RTA_EXPIRES: u16 = 23;
const RTA_NH_ID: u16 = 30;
const RTAX_MTU: u16 = 2;
/// Position of `rta_expires` in `struct rta_cacheinfo`, and its unit per second (`USER_HZ`).
const EXPIRES: usize = 8;
const EXPIRES_PER_SECOND: u32 = 100;

/// All routes as one batch of messages.
#[derive(Debug, Default)]
pub(super) struct Routes {
    batch: Vec<u8>,
    /// Where the MTU of each route is in the batch.
    mtu: Vec<usize>,
    names: Vec<String>,
    gateways: Vec<Gateway>,
}

impl Routes {
    /// Reads the routes that leave through `interfaces`.
    pub(super) fn read(socket: &mut KernelSocket, interfaces: &[Interface]) -> io::Result<Self> {
        let mut routes = Self::default();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut payload = [0; ROUTE_HEADER];
            payload[0] = u8::try_from(family).unwrap_or(0);
            let mut request = Message::new(RTM_GETROUTE, NLM_F_DUMP, &payload).finish();
            let dumped = match socket.dump(&mut request) {
                // A kernel without this family, which refuses it or has no handler for it.
                Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => continue,
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => continue,
                other => other?,
            };
            for payload in dumped {
                // A kernel without IPv6 answers such a dump with the routes of all families.
                if payload.first() == Some(&u8::try_from(family).unwrap_or(0)) {
                    routes.add(&payload, interfaces);
                }
            }
        }
        Ok(routes)
    }

    fn add(&mut self, payload: &[u8], interfaces: &[Interface]) {
        let Some((header, rest)) = payload.split_at_checked(ROUTE_HEADER) else { return };
        let flags = u32_at(header, 8).unwrap_or(0);
        let device = u32_attribute(rest, RTA_OIF)
            .and_then(|index| interfaces.iter().find(|interface| interface.index == index));
        let multipath = attribute(rest, RTA_MULTIPATH).is_some();
        let leaves = device.is_some() || multipath;
        if header[7] != RTN_UNICAST || flags & RTM_F_CLONED != 0 || !leaves {
            return;
        }
        let destination = attribute(rest, RTA_DST).and_then(ip_address);
        if let (None, Some(address), Some(interface)) =
            (destination, attribute(rest, RTA_GATEWAY).and_then(ip_address), device)
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

    /// The default gateways.
    pub(super) fn gateways(&self) -> &[Gateway] {
        &self.gateways
    }

    /// The batch that gives every route this MTU.
    pub(super) fn with_mtu(&mut self, mtu: u32) -> &mut [u8] {
        for position in &self.mtu {
            self.batch[*position..position + 4].copy_from_slice(&mtu.to_ne_bytes());
        }
        &mut self.batch
    }

    /// Destination and device of the route in message `index` of the batch.
    pub(super) fn name(&self, index: usize) -> &str {
        self.names.get(index).map_or("(none)", String::as_str)
    }
}

/// The request that puts a route in its own place, and where its MTU stands in it.
fn replacement(header: &[u8], attributes_read: &[u8]) -> (Vec<u8>, usize) {
    let mut header = header.to_vec();
    let flags = u32_at(&header, 8).unwrap_or(0) & NEXT_HOP_CONFIGURATION;
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    let mut message = Message::new(RTM_NEWROUTE, NLM_F_REPLACE, &header);
    // A route through a next hop object names the object alone; the rest is read-only.
    let object = attribute(attributes_read, RTA_NH_ID).is_some();
    for (kind, value) in attributes(attributes_read) {
        match kind {
            RTA_METRICS => {}
            RTA_CACHEINFO => {
                let left = u32_at(value, EXPIRES).unwrap_or(0).cast_signed();
                if let Ok(left @ 1..) = u32::try_from(left) {
                    let seconds = left.div_ceil(EXPIRES_PER_SECOND);
                    message.attribute(RTA_EXPIRES, &seconds.to_ne_bytes());
                }
            }
            RTA_OIF | RTA_GATEWAY | RTA_VIA | RTA_MULTIPATH | RTA_ENCAP | RTA_ENCAP_TYPE
                if object => {}
            _ => {
                message.attribute(kind, value);
            }
        }
    }
    let mut mtu = 0;
    message.nested(RTA_METRICS, |metrics| {
        for (kind, value) in attributes(attribute(attributes_read, RTA_METRICS).unwrap_or_default())
        {
            if kind != RTAX_MTU {
                metrics.attribute(kind, value);
            }
        }
        mtu = metrics.attribute(RTAX_MTU, &[0; 4]);
    });
    (message.finish(), mtu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::message::messages;

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

    /// A default route as the kernel sends it, with a window metric and an unknown attribute.
    fn default_route(kind: u8, flags: u32) -> Vec<u8> {
        let mut header = [0; ROUTE_HEADER];
        header[0] = 2;
        header[7] = kind;
        header[8..].copy_from_slice(&flags.to_ne_bytes());
        let mut message = Message::new(RTM_NEWROUTE, 0, &header);
        message.attribute(RTA_OIF, &2_u32.to_ne_bytes());
        message.attribute(RTA_GATEWAY, &[10, 88, 0, 1]);
        message.attribute(99, b"kept");
        message.attribute(RTA_CACHEINFO, &[0; 32]);
        message.nested(RTA_METRICS, |metrics| {
            metrics.attribute(RTAX_MTU, &1400_u32.to_ne_bytes());
            metrics.attribute(3, &77_u32.to_ne_bytes());
        });
        message.finish()[16..].to_vec()
    }

    #[test]
    fn everything_but_the_mtu_is_kept() {
        const LINK_DOWN_AND_ONLINK: u32 = 0x10 | 0x04;
        let mut routes = Routes::default();
        routes.add(&default_route(RTN_UNICAST, LINK_DOWN_AND_ONLINK), &[interface()]);
        for mtu in [1420, 1500] {
            let batch = routes.with_mtu(mtu).to_vec();
            let message = messages(&batch).next().unwrap();
            assert_eq!(u32_at(message.payload, 8), Some(0x04), "state is not configuration");
            let rest = &message.payload[ROUTE_HEADER..];
            let metrics = attribute(rest, RTA_METRICS).unwrap();
            assert_eq!(u32_attribute(metrics, RTAX_MTU), Some(mtu));
            assert_eq!(u32_attribute(metrics, 3), Some(77));
            assert_eq!(attribute(rest, 99), Some(&b"kept"[..]));
            assert_eq!(attribute(rest, RTA_CACHEINFO), None);
            assert_eq!(attribute(rest, RTA_EXPIRES), None, "it did not expire before");
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
