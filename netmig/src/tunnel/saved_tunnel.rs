//! A tunnel whose `wireguard-go` has died, made again as it was.
//!
//! The interface goes with the process, and with it its routes, its addresses and the private key, which
//! is nowhere else. Whoever wants to make the tunnel again has to have asked for its settings while it
//! was there, and keeps them in memory only.

use std::fmt;

use wireguard_control::Key;

use super::{
    Connected, Error, Kind, RemoteEnd, config, connect, device, existing, in_time, prepare,
};
use crate::netlink::rtnetlink as rtnl;
use crate::peer_number::PeerNumber;

/// All that makes a tunnel of `wireguard-go` what it is.
#[derive(Clone)]
pub struct SavedTunnel {
    own: (Key, u16),
    remote: RemoteEnd,
    loopback: bool,
}

/// Without the private key.
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
    /// Those of the tunnel to `peer`; `None` for one of the kernel's and for a direct way, which
    /// nobody can kill, and for one that is not connected yet.
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

    /// Makes the tunnel to `peer` again, with the same keys and port, so that the other end need not
    /// know. One that is there is made to have these settings.
    ///
    /// # Errors
    /// As [`prepare`] and [`connect`].
    pub async fn restore(&self, peer: PeerNumber) -> Result<Connected, Error> {
        let interface = peer.interface();
        in_time("restore", interface.clone(), async {
            let handle = rtnl::connect().map_err(Error::Socket)?;
            let device = device::ensure(&handle, &interface).await?;
            // Before it comes up, and so opens its port.
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
