//! Neighbour entries of our own: permanent, and told from others' by their protocol number
//! (`NDA_PROTOCOL`, Linux 5.0). `ip neigh show proto 78` lists them.

use std::io;
use std::net::IpAddr;

use super::link::{
    NDA_DST, NDA_LLADDR, NLM_F_CREATE, NLM_F_REPLACE, RTM_NEWNEIGH, family, ip_bytes,
};
use super::message::{Message, attribute};
use super::socket::KernelSocket;
use crate::routing::PROTOCOL;

const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
const NDA_PROTOCOL: u16 = 12;
const NUD_PERMANENT: u16 = 0x80;
/// Bytes of `struct ndmsg`.
const HEADER: usize = 12;

fn header(interface: u32, address: IpAddr, state: u16) -> [u8; HEADER] {
    let mut payload = [0; HEADER];
    payload[0] = family(address);
    payload[4..8].copy_from_slice(&interface.to_ne_bytes());
    payload[8..10].copy_from_slice(&state.to_ne_bytes());
    payload
}

/// The request for an entry that stays until it is removed, in place of one that was learnt.
pub(crate) fn permanent(interface: u32, address: IpAddr, mac: [u8; 6]) -> Vec<u8> {
    let payload = header(interface, address, NUD_PERMANENT);
    let mut message = Message::new(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &payload);
    message.attribute(NDA_DST, &ip_bytes(address));
    message.attribute(NDA_LLADDR, &mac);
    message.attribute(NDA_PROTOCOL, &[PROTOCOL]);
    message.finish()
}

/// Removes the entry if it is one of ours; whether it was there.
pub(crate) fn remove(
    socket: &mut KernelSocket,
    interface: u32,
    address: IpAddr,
) -> io::Result<bool> {
    let request = |kind| {
        let mut message = Message::new(kind, 0, &header(interface, address, 0));
        message.attribute(NDA_DST, &ip_bytes(address));
        message.finish()
    };
    let mut ours = false;
    let found = socket.answer(&mut request(RTM_GETNEIGH), |answer| {
        let rest = answer.payload.get(HEADER..).unwrap_or_default();
        ours = attribute(rest, NDA_PROTOCOL) == Some(&[PROTOCOL]);
    });
    match found.map_err(|refused| refused.source) {
        // No such entry, or no such interface any more.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(false),
        Err(e) => Err(e),
        Ok(()) if !ours => Ok(false),
        Ok(()) => match socket.execute(&mut request(RTM_DELNEIGH)) {
            Err(refused) if refused.source.raw_os_error() != Some(libc::ENOENT) => {
                Err(refused.source)
            }
            _ => Ok(true),
        },
    }
}
