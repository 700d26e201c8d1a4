//! The settings of a `wireguard-go` tunnel, to recreate it when the process has died.
//!
//! The interface goes with the process, and with it its routes, its addresses and the private key,
//! which exists nowhere else. So the settings have to be read while the tunnel exists; they are
//! kept in memory only.

use std::fmt;

use wireguard_control::Key;

use super::{
    Connected, Error, Kind, RemoteEnd, config, connect, device, existing, in_time, prepare,
};
use crate::netlink::rtnetlink as rtnl;
use crate::peer_number::PeerNumber;

/// The settings of a `wireguard-go` tunnel.
#[derive(Clone)]
pub struct SavedTunnel {
    own: (Key, u16),
    remote: RemoteEnd,
    loopback: bool,
}

/// Leaves the private key out.
impl fmt::Debug for SavedTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { own: (_, port), remote, loopback } = self;
        f.debug_struct("SavedTunnel")
            .field("port", port)
            .field("remote", remote)
            .field("loopback", loopback)
            .finish_non_exhaustive()
    }
}

impl SavedTunnel {
    /// Reads the settings of the tunnel to `peer`. `None` for the kernel's tunnels and direct ones,
    /// which no process carries, and for one that is not connected yet.
    ///
    /// # Errors
    /// [`Error::NotPrepared`], [`Error::Settings`], [`Error::Interface`].
    pub async fn read(peer: PeerNumber) -> Result<Option<Self>, Error> {
        in_time("tell its settings", peer.interface(), async {
            let interface = peer.interface();
            let (_, device) = existing(&interface).await?;
            if device.kind != Kind::Userspace {
                return Ok(None);
            }
            let remote = config::status(&interface, device.kind).await?.remote;
            let own = config::own(&interface, device.kind).await?;
            let loopback = device::carries_loopback(&interface);
            Ok(own.zip(remote).map(|(own, remote)| Self { own, remote, loopback }))
        })
        .await
    }

    /// Recreates the tunnel to `peer` with the same keys and port, so that the other end need not
    /// know. An existing one gets these settings.
    ///
    /// # Errors
    /// As [`prepare`] and [`connect`].
    pub async fn restore(&self, peer: PeerNumber) -> Result<Connected, Error> {
        let interface = peer.interface();
        in_time("restore", interface.clone(), async {
            let handle = rtnl::connect().map_err(Error::Socket)?;
            let device = device::ensure(&handle, &interface).await?;
            // Before the interface comes up and opens its port.
            config::set_own(&interface, device.kind, self.own.clone()).await
        })
        .await?;
        prepare(peer).await?;
        let connected = connect(peer, &self.remote).await?;
        if self.loopback {
            device::carry_loopback(&interface)?;
        }
        Ok(connected)
    }
}
