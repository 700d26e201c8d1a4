//! Whether a port can be published on this host.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use netmig::flow::Protocol;
use netmig::table::ForwardedPort;
use steering::port_forward::Note;

use crate::offer::{Offer, Port};

/// Returns code and message of a port that cannot be published here.
pub(super) fn unpublishable(here: &str, port: &Port, error: &io::Error) -> (&'static str, String) {
    let Port { protocol, host_port, .. } = port;
    match (error.kind(), port.host_address) {
        (io::ErrorKind::AddrInUse, _) => (
            "port-taken",
            format!(
                "{protocol} port {host_port} of {here} is taken: {error}; publish another (--publish)"
            ),
        ),
        (io::ErrorKind::AddrNotAvailable, Some(address)) => (
            "address-missing",
            format!(
                "{here} has no address {address}, at which {protocol} port {host_port} is published; \
                 publish it at another one (--publish)"
            ),
        ),
        _ => (
            "port-taken",
            format!("{protocol} port {host_port} cannot be published on {here}: {error}"),
        ),
    }
}

/// Tries whether a port can be published here. Binding it for a moment asks the kernel itself; a port that the engine
/// forwards is bound by a process of the engine.
pub(super) fn try_port(port: &Port) -> io::Result<()> {
    let address = port.host_address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let socket = SocketAddr::new(address, port.host_port);
    match port.protocol {
        Protocol::Tcp => TcpListener::bind(socket).map(drop),
        Protocol::Udp => UdpSocket::bind(socket).map(drop),
    }
}

/// Returns the ports of an offer's container that lead from this host to other containers, with the notes of these.
pub(super) fn forwarded<'a>(
    notes: &'a [Note],
    offer: &Offer,
) -> Vec<(&'a ForwardedPort, &'a Note)> {
    let is_same = |forwarded: &ForwardedPort, port: &Port| {
        let addresses = forwarded.address.zip(port.host_address);
        forwarded.protocol == port.protocol
            && forwarded.port == port.host_port
            && addresses.is_none_or(|(theirs, own)| theirs == own)
    };
    let others = notes.iter().filter(|note| note.id != offer.id);
    let in_force =
        others.filter_map(|note| Some((note, note.away().filter(|away| away.in_force)?)));
    in_force
        .filter_map(|(note, away)| {
            let is_wanted = |of: &&ForwardedPort| offer.ports.iter().any(|port| is_same(of, port));
            Some((away.ports.iter().find(is_wanted)?, note))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_port_is_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = Port {
            protocol: Protocol::Tcp,
            host_address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            host_port: listener.local_addr().unwrap().port(),
            container_port: 80,
        };
        let error = try_port(&port).unwrap_err();
        assert_eq!(unpublishable("b", &port, &error).0, "port-taken");
        drop(listener);
        assert!(try_port(&port).is_ok());
        let elsewhere = Port { host_address: Some("192.0.2.77".parse().unwrap()), ..port };
        let error = try_port(&elsewhere).unwrap_err();
        let (code, message) = unpublishable("b", &elsewhere, &error);
        assert_eq!(code, "address-missing");
        assert!(message.starts_with("b has no address 192.0.2.77"), "{message}");
    }
}
