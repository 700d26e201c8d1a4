//! UserspaceTunnels that a `wireguard-go` carries, made again when that has been killed.

use std::collections::BTreeMap;

use netmig::peer_number::PeerNumber;
use netmig::tunnel::{self, SavedTunnel};

use crate::tunnels;
use state::cause::Cause;
use state::directories::Directories;

/// What is remembered of the tunnels of this host.
#[derive(Debug, Default)]
pub(super) struct UserspaceTunnels {
    settings: BTreeMap<PeerNumber, SavedTunnel>,
}

impl UserspaceTunnels {
    /// Learns of tunnels that are new, or of all of them `anew`.
    pub(super) async fn learn(&mut self, peers: &[PeerNumber], anew: bool) -> Result<(), Cause> {
        for peer in peers {
            if !anew && self.settings.contains_key(peer) {
                continue;
            }
            match SavedTunnel::read(*peer).await? {
                Some(settings) => drop(self.settings.insert(*peer, settings)),
                None => drop(self.settings.remove(peer)),
            }
        }
        Ok(())
    }

    /// Makes the tunnels again that are not among `present` and that flows need, and forgets the others:
    /// an agent has removed them, or goes back because one was lost. The caller holds the
    /// [`tunnels::SteeringLock`]. Gives those made.
    pub(super) async fn revive(
        &mut self,
        directories: &Directories,
        present: &[PeerNumber],
    ) -> Result<Vec<PeerNumber>, Cause> {
        let gone: Vec<_> =
            self.settings.keys().filter(|peer| !present.contains(peer)).copied().collect();
        let mut made = Vec::new();
        for peer in gone {
            if !tunnels::carry(directories, peer)? {
                self.settings.remove(&peer);
            } else if let Some(settings) = self.settings.get(&peer) {
                settings.restore(peer).await?;
                tunnel::check(peer)?;
                made.push(peer);
            }
        }
        Ok(made)
    }
}
