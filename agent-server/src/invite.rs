//! Inviting other hosts, and parting with them. Beside a server that runs: it looks at the peers anew
//! for each connection.

use std::fs;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use protocol::trust::list::{Role, list};
use protocol::trust::{Timestamp, Token, Trust, invitation};
use state::cause::Cause;
use state::peer_address::DEFAULT_PORT;
use state::peer_address::Destination;
use state::private_file;

use crate::allow::{NoSuchPeer, allow};
use crate::cli::{Invite, Peers, PeersCommand};

/// Addresses of documentation (RFC 5737, RFC 3849) that no route but the default one leads to.
const ELSEWHERE: [(&str, &str); 2] =
    [("0.0.0.0:0", "203.0.113.1:9"), ("[::]:0", "[2001:db8:ffff::1]:9")];

/// Nobody knows where this host can be reached.
#[derive(Debug, thiserror::Error)]
#[error("this host has no address that others could reach; give one with --address")]
struct NoAddress;

/// Makes a token. It alone goes to standard output; the rest is for the person who asked.
///
/// `port` is that of the server; an address of the request that has another one than the default keeps it.
pub fn invite(state: &Path, request: &Invite, port: u16) -> Result<(String, String), Cause> {
    let address = match &request.address {
        Some(address) if address.port != DEFAULT_PORT => address.clone(),
        Some(address) => Destination { port, ..address.clone() },
        None => own_address(port)?,
    };
    let trust = Trust::open(state)?;
    let expires = Timestamp::now().after(request.expires);
    let uses = if request.once { 1 } else { request.uses };
    let secret = invitation::invite(state, expires, uses)?;
    let fingerprint = trust.identity.fingerprint();
    let token = Token { address, fingerprint, secret };
    let who = if uses == 1 { "one host".to_owned() } else { format!("{uses} hosts") };
    let told = format!(
        "On the host that is to move containers here run: agent-client join TOKEN\n\
         For {who}, until {expires}. It will reach this host at {}, whose fingerprint is\n\
         {fingerprint}. Keep the token to yourself: whoever has it can start\n\
         containers here.",
        token.address
    );
    Ok((token.to_string(), told))
}

/// Lists the sources, or removes one; gives what there is to say.
pub fn peers(state: &Path, request: &Peers) -> Result<String, Cause> {
    let peers = protocol::trust::Peers::new(state);
    match &request.command {
        None => Ok(list(&peers, Role::Source, request.json)?),
        Some(PeersCommand::Allow(request)) => allow(state, request),
        Some(PeersCommand::Remove { name }) => {
            let lock = private_file::lock(state)?;
            if peers.remove_source(&lock, name)? {
                Ok(format!("{name} may not move containers here any more"))
            } else {
                Err(NoSuchPeer(name.clone()).into())
            }
        }
    }
}

/// Returns the address that others most likely know this host by: that of its default route, else the first
/// one of an interface that leads outside.
fn own_address(port: u16) -> Result<Destination, Cause> {
    let routed = ELSEWHERE.iter().find_map(|(from, to)| source_address(from, to).ok());
    let address = match routed {
        Some(address) => address,
        None => first_address()?.ok_or(NoAddress)?,
    };
    Ok(Destination::new(&address.to_string(), port)?)
}

/// Returns which address packets to somewhere would have. Sends none.
fn source_address(from: &str, to: &str) -> io::Result<IpAddr> {
    let socket = UdpSocket::bind(from)?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

fn first_address() -> io::Result<Option<IpAddr>> {
    let inside = InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_POINTOPOINT;
    let mut all: Vec<IpAddr> = getifaddrs()?
        .filter(|interface| !interface.flags.intersects(inside))
        .filter(|interface| !is_bridge(&interface.interface_name))
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .filter(|address| match address {
            IpAddr::V4(v4) => !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        })
        .collect();
    all.sort_by_key(IpAddr::is_ipv6);
    Ok(all.first().copied())
}

/// Returns whether an interface is a bridge. Containers' networks are bridges; nobody outside reaches a host by their addresses.
fn is_bridge(interface: &str) -> bool {
    fs::exists(format!("/sys/class/net/{interface}/bridge")).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn request() -> Invite {
        Invite {
            expires: Duration::from_secs(60),
            once: true,
            uses: 1,
            address: Some("b.example:99".parse().unwrap()),
        }
    }

    #[test]
    fn a_token_leads_to_this_host() {
        let dir = tempfile::tempdir().unwrap();
        let (token, told) = invite(dir.path(), &request(), 9000).unwrap();
        let token: Token = token.parse().unwrap();
        let own = Trust::open(dir.path()).unwrap().identity.fingerprint();
        assert_eq!((token.address.to_string().as_str(), token.fingerprint), ("b.example:99", own));
        assert!(told.contains(&own.to_string()), "{told}");
        let request = Invite { address: Some("b.example".parse().unwrap()), ..request() };
        let (token, _) = invite(dir.path(), &request, 9000).unwrap();
        let token: Token = token.parse().unwrap();
        assert_eq!(token.address.to_string(), "b.example:9000");
    }

    #[test]
    fn a_missing_peer_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let remove = PeersCommand::Remove { name: "b".parse().unwrap() };
        let request = Peers { command: Some(remove), json: false };
        assert!(peers(dir.path(), &request).unwrap_err().to_string().contains("no peer b"));
    }
}
