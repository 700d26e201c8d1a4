//! Sockets of families and protocols that CRIU cannot dump.
//!
//! The kernel tells a socket's protocol as an extended attribute of its inode (net/socket.c,
//! `sockfs_xattr_get`). This costs one system call a socket, whatever the network namespace.

use super::findings::Found;
use super::process_snapshot::{Descriptor, Process, Processes};
use crate::pidfd::{self, PidFd};

const SOCKET: &str = "socket:[";
const PROTOCOL: &str = "system.sockprotoname";

/// What CRIU 4.2 dumps and restores (criu/sockets.c and `can_dump_ipproto`, criu/sk-inet.c), by the kernel's
/// names.
const MOVABLE: [&str; 16] = [
    "TCP",
    "TCPv6",
    "UDP",
    "UDPv6",
    "UDP-Lite",
    "UDPLITEv6",
    "PING",
    "PINGv6",
    "RAW",
    "RAWv6",
    "UNIX",
    "UNIX-STREAM",
    "NETLINK",
    "PACKET",
    "AF_NETLINK",
    "",
];

pub(super) fn check(processes: &Processes, found: &mut Found<'_>) {
    for (process, descriptor) in processes.descriptors() {
        if !descriptor.target.starts_with(SOCKET) {
            continue;
        }
        let path = process.path(format!("fd/{}", descriptor.number));
        let Ok(Some(name)) = xattr::get_deref(path, PROTOCOL) else { continue };
        let name = String::from_utf8_lossy(&name);
        let name = name.trim_end_matches('\0');
        if name.starts_with("MPTCP") {
            multipath(process, descriptor, found);
        } else if !MOVABLE.contains(&name) {
            found.add(
                process,
                "socket-family",
                format!(
                    "has a socket of the protocol {name} open (descriptor {})",
                    descriptor.number
                ),
                "CRIU cannot save it: close it, or turn it off in the program",
            );
        }
    }
}

fn multipath(process: &Process, descriptor: &Descriptor, found: &mut Found<'_>) {
    let own = PidFd::open(process.pid)
        .and_then(|process| process.descriptor(descriptor.number))
        .ok()
        .and_then(|socket| pidfd::own_address(&socket));
    let port = own.map_or_else(|| "a socket".to_owned(), |own| format!("the socket {own}"));
    found.add(
        process,
        "mptcp",
        format!("uses Multipath TCP for {port}"),
        "CRIU cannot save it: turn it off in the program (for one in Go by the variable \
         GODEBUG=multipathtcp=0)",
    );
}
