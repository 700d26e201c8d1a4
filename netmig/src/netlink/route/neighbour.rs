//! Neighbour entries: as if learnt, or permanent and netmig's own.
//!
//! Permanent ones carry netmig's protocol number (`NDA_PROTOCOL`, Linux 5.0), which distinguishes them
//! from others': `ip neigh show proto 78` lists them.

use std::net::IpAddr;

use nix::errno::Errno;

use super::{NDA_PROTOCOL, NEIGHBOUR_HEADER, PROTOCOL};
use crate::netlink::attribute::{family, find, put, put_address};
use crate::netlink::message::{CREATE, REPLACE, request};
use crate::netlink::{Connection, SocketError};

fn header(interface: u32, address: IpAddr, state: u16) -> [u8; NEIGHBOUR_HEADER] {
    let mut fixed = [0; NEIGHBOUR_HEADER];
    fixed[0] = family(address);
    fixed[4..8].copy_from_slice(&interface.to_ne_bytes());
    fixed[8..10].copy_from_slice(&state.to_ne_bytes());
    fixed
}

fn add(
    interface: u32,
    address: IpAddr,
    mac: [u8; 6],
    state: u16,
    more: impl FnOnce(&mut Vec<u8>),
) -> Vec<u8> {
    let fixed = header(interface, address, state);
    request(libc::RTM_NEWNEIGH, CREATE | REPLACE, &fixed, |body| {
        put_address(body, libc::NDA_DST, address);
        put(body, libc::NDA_LLADDR, &mac);
        more(body);
    })
}

/// Returns the request for an entry as if it had just been confirmed: the kernel does not resolve the
/// address for some 15 to 45 seconds, and then the entry ages like any other.
pub(crate) fn reachable(interface: u32, address: IpAddr, mac: [u8; 6]) -> Vec<u8> {
    add(interface, address, mac, libc::NUD_REACHABLE, |_| ())
}

/// Returns the request for an entry that stays until it is removed, and replaces one that was learnt.
pub(crate) fn permanent(interface: u32, address: IpAddr, mac: [u8; 6]) -> Vec<u8> {
    add(interface, address, mac, libc::NUD_PERMANENT, |body| {
        put(body, NDA_PROTOCOL, &[PROTOCOL]);
    })
}

/// Removes the entry if it is one of netmig's. Returns whether it was there.
pub(crate) fn remove_permanent(
    connection: &mut Connection,
    interface: u32,
    address: IpAddr,
) -> Result<bool, SocketError> {
    let asked = |kind| {
        let fixed = header(interface, address, 0);
        request(kind, 0, &fixed, |body| put_address(body, libc::NDA_DST, address))
    };
    let mut ours = false;
    let found = connection.answer(&mut asked(libc::RTM_GETNEIGH), |payload| {
        let rest = payload.get(NEIGHBOUR_HEADER..).unwrap_or_default();
        ours = find(rest, NDA_PROTOCOL) == Some(&[PROTOCOL]);
    });
    match found {
        // There is no such entry, or no such interface any more.
        Err(refused) if matches!(refused.refusal(), Some(Errno::ENOENT | Errno::ENODEV)) => {
            Ok(false)
        }
        Err(refused) => Err(refused.source),
        Ok(()) if !ours => Ok(false),
        Ok(()) => match connection.execute(&mut asked(libc::RTM_DELNEIGH)) {
            Err(refused) if refused.refusal() != Some(Errno::ENOENT) => Err(refused.source),
            _ => Ok(true),
        },
    }
}
