//! Third hosts that will lead flows of the container here. Each has a tunnel of its own to this host.

use std::collections::{BTreeMap, BTreeSet};

use netmig::peer_number::PeerNumber;
use netmig::tunnel;
use state::cause::Cause;
use state::directories::Directories;
use state::id::HostId;
use state::id::MigrationId;
use steering::tunnels;
use tokio::task::JoinSet;

/// The hosts, and what becomes of their tunnels.
#[derive(Debug, Default)]
pub struct Anchors {
    numbers: BTreeMap<HostId, PeerNumber>,
    /// Those to which there is a tunnel.
    connected: BTreeSet<HostId>,
    listening: JoinSet<(HostId, Result<(), tunnel::Error>)>,
}

impl Anchors {
    /// Takes note of a host, before its tunnel is made.
    pub fn add(&mut self, host: HostId, number: PeerNumber) {
        self.numbers.insert(host, number);
    }

    /// Begins to try a host's tunnel, which is made now; that host tries it as well before it says that it is
    /// ready.
    pub fn listen(&mut self, host: HostId) {
        if let Some(number) = self.numbers.get(&host).copied() {
            self.connected.insert(host);
            self.listening.spawn(async move { (host, tunnel::confirm(number).await) });
        }
    }

    /// Forgets the hosts that will not lead their flows here after all, with their tunnels, and those to which
    /// none could be made, whatever the source says.
    pub async fn keep(
        &mut self,
        directories: &Directories,
        migration: MigrationId,
        agreed: &[HostId],
    ) -> Result<(), Cause> {
        let mut left = Vec::new();
        self.numbers.retain(|host, number| {
            let has_agreed = agreed.contains(host) && self.connected.contains(host);
            if !has_agreed {
                left.push(*number);
            }
            has_agreed
        });
        for number in left {
            tunnels::release(directories, number, Some(migration)).await?;
        }
        Ok(())
    }

    /// Waits until all have been heard. Flows of one that is not would be lost.
    pub async fn heard(&mut self) -> Result<(), Cause> {
        while let Some(end) = self.listening.join_next().await {
            let (host, heard) = end?;
            if self.numbers.contains_key(&host) {
                heard?;
            }
        }
        Ok(())
    }

    /// Returns the number of a host that was not forgotten.
    pub fn number(&self, host: HostId) -> Option<PeerNumber> {
        self.numbers.get(&host).copied()
    }

    /// Returns all numbers.
    pub fn numbers(&self) -> impl Iterator<Item = PeerNumber> {
        self.numbers.values().copied()
    }
}
