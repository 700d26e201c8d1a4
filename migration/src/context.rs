//! What a host has for every migration.

use std::fmt;
use std::sync::Arc;

use engine::Engine;
use netmig::peer_number::PeerNumber;
use protocol::trust::Trust;
use state::cause::Cause;
use state::directories::Directories;
use state::id::HostId;
use steering::peer_numbers;

use crate::event::Event;

/// Hears of events. It is called in the middle of a move, so it returns at once.
pub type Observer = dyn Fn(Event) + Send + Sync;

/// How this program is started in the background: its own arguments for that.
#[derive(Clone, Copy, Debug)]
pub struct Background {
    /// As the guardian of a migration; the path of its journal follows.
    pub guardian: &'static [&'static str],
    /// As the reconciler of this host's flows.
    pub reconciler: &'static str,
    /// As the process of a systemd unit that only waits, until the unit's container has arrived; none where no container arrives.
    pub unit_holder: Option<&'static str>,
}

/// What every migration of this host needs.
pub struct Context {
    /// Where state is kept.
    pub directories: Directories,
    /// This host's identity and its peers.
    pub trust: Trust,
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// How this program is started in the background.
    pub background: Background,
    observer: Box<Observer>,
}

impl Context {
    /// Makes the directories and reads this host's identity.
    ///
    /// # Errors
    /// The directories cannot be made, or what is in them cannot be read.
    pub fn open(
        directories: Directories,
        engine: Arc<dyn Engine>,
        background: Background,
        observer: Box<Observer>,
    ) -> Result<Self, Cause> {
        directories.create()?;
        let trust = Trust::open(&directories.state)?;
        Ok(Self { directories, trust, engine, background, observer })
    }

    /// Returns the name by which people know a peer: that of its pairing, or else its number on this host.
    pub fn peer_name(&self, number: PeerNumber) -> String {
        let host = peer_numbers::peer_with_number(&self.directories.state, number).ok().flatten();
        host.and_then(|host| self.host_name(host)).unwrap_or_else(|| format!("peer {number}"))
    }

    /// Returns the name of a paired host.
    pub fn host_name(&self, host: HostId) -> Option<String> {
        let peers = self.trust.peers.all().ok()?;
        let peer = peers.into_iter().find(|peer| peer.fingerprint.host() == host)?;
        Some(peer.name.to_string())
    }

    /// Tells the observer of an event.
    pub fn tell(&self, event: impl Into<Event>) {
        (self.observer)(event.into());
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("directories", &self.directories).finish_non_exhaustive()
    }
}
