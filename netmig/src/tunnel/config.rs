//! Keys, port and peer of a tunnel, through `wireguard-control`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use wireguard_control::{
    Backend, Device, DeviceUpdate, InterfaceName, Key, KeyPair, PeerConfigBuilder, PeerInfo,
};

use super::{Error, Kind, RemoteEnd, Status};

/// Interval at which the port is read. `wireguard-go` opens it when it hears that its interface
/// came up.
const POLL: Duration = Duration::from_millis(5);

fn backend(kind: Kind) -> Backend {
    match kind {
        Kind::Userspace => Backend::Userspace,
        // A direct way has no such settings, and does not come here.
        Kind::Kernel | Kind::Direct => Backend::Kernel,
    }
}

/// Runs a call of the library on a new thread. It blocks, forever if `wireguard-go` hangs; the
/// caller has a deadline, and a plain thread, unlike the runtime's, does not keep a process from
/// ending.
async fn blocking<T: Send + 'static>(
    action: &'static str,
    interface: &str,
    call: impl FnOnce(&InterfaceName) -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let failed = |source| Error::Settings { action, interface: interface.to_owned(), source };
    let name: InterfaceName = interface.parse().map_err(io::Error::from).map_err(failed)?;
    let (sender, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("wireguard".to_owned())
        // The receiver is gone when the deadline has passed.
        .spawn(move || drop(sender.send(call(&name))))
        .map_err(failed)?;
    result.await.unwrap_or_else(|gone| Err(io::Error::other(gone))).map_err(failed)
}

async fn read(interface: &str, kind: Kind) -> Result<Device, Error> {
    blocking("read", interface, move |name| Device::get(name, backend(kind))).await
}

async fn change(interface: &str, kind: Kind, update: DeviceUpdate) -> Result<(), Error> {
    blocking("change", interface, move |name| update.apply(name, backend(kind))).await
}

/// Returns the public key of a device; `None` without a private key, or with one of zeros.
fn public_key(device: &Device) -> Option<Key> {
    let private = device.private_key.as_ref().filter(|key| **key != Key::zero())?;
    Some(private.get_public())
}

/// Gives the interface a key pair unless it has one. Returns the public key and whether it existed
/// before.
pub(super) async fn ensure_key(interface: &str, kind: Kind) -> Result<([u8; 32], bool), Error> {
    if let Some(key) = public_key(&read(interface, kind).await?) {
        return Ok((key.0, true));
    }
    let pair = KeyPair::generate();
    let public = pair.public.0;
    let update = DeviceUpdate::new().set_keypair(pair).randomize_listen_port();
    change(interface, kind, update).await?;
    Ok((public, false))
}

/// Returns the current key and port; `None` without a key.
pub(super) async fn own(interface: &str, kind: Kind) -> Result<Option<(Key, u16)>, Error> {
    let device = read(interface, kind).await?;
    let key = device.private_key.filter(|key| *key != Key::zero());
    Ok(key.map(|key| (key, device.listen_port.unwrap_or(0))))
}

/// Gives the interface the key and port that it had before.
pub(super) async fn set_own(
    interface: &str,
    kind: Kind,
    (key, port): (Key, u16),
) -> Result<(), Error> {
    let update = DeviceUpdate::new().set_private_key(key).set_listen_port(port);
    change(interface, kind, update).await
}

/// Waits until the interface listens; the caller sets the deadline.
pub(super) async fn wait_for_port(interface: &str, kind: Kind) -> Result<u16, Error> {
    loop {
        match read(interface, kind).await?.listen_port {
            Some(port @ 1..) => return Ok(port),
            _ => tokio::time::sleep(POLL).await,
        }
    }
}

/// Refuses what cannot be the other end of a tunnel, and returns the rest in canonical form.
pub(super) fn checked(interface: &str, remote: &RemoteEnd) -> Result<RemoteEnd, Error> {
    let bad = |reason| Err(Error::BadRemote { interface: interface.to_owned(), reason });
    let ip = remote.endpoint.ip().to_canonical();
    if remote.public_key == [0; 32] {
        return bad("its public key is empty");
    }
    if remote.endpoint.port() == 0 {
        return bad("it has no port");
    }
    if let Err(reason) = checked_address(ip) {
        return bad(reason);
    }
    let endpoint = SocketAddr::new(ip, remote.endpoint.port());
    Ok(RemoteEnd { endpoint, ..remote.clone() })
}

/// Refuses what is not the address of a host, with the reason.
pub(super) fn checked_address(ip: IpAddr) -> Result<(), &'static str> {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if ip.is_unspecified() || ip.is_multicast() || broadcast {
        return Err("its address is not that of a host");
    }
    // Such an address needs an interface beside it, which wireguard-go and wireguard-control write
    // differently.
    if matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        return Err("its address is valid on one link only");
    }
    Ok(())
}

/// Makes `remote` the only peer of the interface. Returns whether that was a change. A session with
/// the same key goes on even if the endpoint changes.
pub(super) async fn set_remote(
    interface: &str,
    kind: Kind,
    remote: &RemoteEnd,
) -> Result<bool, Error> {
    let device = read(interface, kind).await?;
    if public_key(&device).is_some_and(|own| own.0 == remote.public_key) {
        return Err(Error::BadRemote {
            interface: interface.to_owned(),
            reason: "its public key is that of this end",
        });
    }
    if is_only_peer(&device.peers, remote) {
        return Ok(false);
    }
    let key = Key(remote.public_key);
    let strangers = device.peers.iter().filter(|peer| peer.config.public_key != key);
    let update = strangers
        .fold(DeviceUpdate::new(), |update, stranger| {
            update.remove_peer_by_key(&stranger.config.public_key)
        })
        .add_peer(
            PeerConfigBuilder::new(&key)
                .set_endpoint(remote.endpoint)
                .unset_persistent_keepalive()
                .replace_allowed_ips()
                .allow_all_ips(),
        );
    change(interface, kind, update).await?;
    if is_only_peer(&read(interface, kind).await?.peers, remote) {
        Ok(true)
    } else {
        Err(Error::NotKept { interface: interface.to_owned() })
    }
}

/// Makes the interface forget its peer's handshakes, so that it starts a new one.
pub(super) async fn forget_session(
    interface: &str,
    kind: Kind,
    remote: &RemoteEnd,
) -> Result<(), Error> {
    let gone = DeviceUpdate::new().remove_peer_by_key(&Key(remote.public_key));
    change(interface, kind, gone).await?;
    set_remote(interface, kind, remote).await.map(drop)
}

/// Returns whether `remote` is the only peer of an interface, with the settings of [`set_remote`].
fn is_only_peer(peers: &[PeerInfo], remote: &RemoteEnd) -> bool {
    let [peer] = peers else { return false };
    let config = &peer.config;
    let everything = |v4| {
        config.allowed_ips.iter().any(|allowed| {
            allowed.cidr == 0 && allowed.address.is_unspecified() && allowed.address.is_ipv4() == v4
        })
    };
    config.public_key.0 == remote.public_key
        && config.endpoint == Some(remote.endpoint)
        && config.persistent_keepalive_interval.unwrap_or(0) == 0
        && config.allowed_ips.len() == 2
        && everything(true)
        && everything(false)
}

/// Reads the state that [`super::status`] returns.
pub(super) async fn status(interface: &str, kind: Kind) -> Result<Status, Error> {
    let device = read(interface, kind).await?;
    let peer = device.peers.first();
    let remote = peer.and_then(|peer| {
        let endpoint = peer.config.endpoint?;
        Some(RemoteEnd { public_key: peer.config.public_key.0, endpoint })
    });
    Ok(Status {
        kind,
        port: device.listen_port.unwrap_or(0),
        public_key: public_key(&device).map_or([0; 32], |key| key.0),
        address: remote.as_ref().map(|remote: &RemoteEnd| remote.endpoint.ip().to_canonical()),
        remote,
        last_handshake: peer.and_then(|peer| peer.stats.last_handshake_time),
        heard: peer.map_or(0, |peer| peer.stats.rx_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(endpoint: &str) -> RemoteEnd {
        RemoteEnd { public_key: [7; 32], endpoint: endpoint.parse().unwrap() }
    }

    #[test]
    fn hostile_ends_are_refused() {
        for endpoint in [
            "192.0.2.1:0",
            "[fe80::1]:1",
            "0.0.0.0:1",
            "[::]:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "[ff02::1]:1",
        ] {
            assert!(checked("netmig1", &remote(endpoint)).is_err(), "{endpoint}");
        }
        let empty = RemoteEnd { public_key: [0; 32], ..remote("192.0.2.1:1") };
        assert!(checked("netmig1", &empty).is_err());
    }

    #[test]
    fn a_mapped_address_is_written_as_ipv4() {
        let checked = checked("netmig1", &remote("[::ffff:192.0.2.1]:7")).unwrap();
        assert_eq!(checked.endpoint, "192.0.2.1:7".parse().unwrap());
    }

    #[test]
    fn any_difference_of_the_peer_is_seen() {
        let end = remote("192.0.2.1:1");
        let mut peer = PeerInfo::from_public_key(Key(end.public_key));
        peer.config.endpoint = Some(end.endpoint);
        peer.config.allowed_ips = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        assert!(is_only_peer(std::slice::from_ref(&peer), &end));
        assert!(!is_only_peer(&[], &end));
        assert!(!is_only_peer(&[peer.clone(), peer.clone()], &end));
        assert!(!is_only_peer(std::slice::from_ref(&peer), &remote("192.0.2.1:2")));
        let mut narrow = peer.clone();
        narrow.config.allowed_ips[1] = "2001:db8::/32".parse().unwrap();
        assert!(!is_only_peer(&[narrow], &end));
        peer.config.persistent_keepalive_interval = Some(25);
        assert!(!is_only_peer(&[peer], &end));
    }
}
