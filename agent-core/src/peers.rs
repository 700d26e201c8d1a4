//! What several migrations with one peer share: its tunnel and its steering rules.
//!
//! They are made by the first migration that needs them and stay while flows are steered to the peer,
//! another migration with it is under way, new connections are forwarded to it or from it, or a [`Claim`]
//! says that flows are about to be led to it.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use netmig::flow::{Conntrack, Counted};
use netmig::peer::PeerNumber;
use netmig::table::{Guard, Table};
use netmig::tunnel::{self, Kind};
use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::directories::{Directories, create_private};
use crate::forward;
use crate::identity;
use crate::journal::{self, Record};
use crate::keeper::alone;
use crate::message::{Means, MigrationId, TunnelEnd};
pub use crate::peer_lock::PeerLock;
use crate::private;

/// Directory of claims, below that for volatile things.
const CLAIMS: &str = "claims";
/// Bytes that WireGuard puts around a packet, over IPv6 and with padding (wg(8), MTU).
const TUNNEL_OVERHEAD: u32 = 80;
/// A direct way takes nothing. But a socket that was restored stays at its smallest segment size until the
/// MTU of its route changes, and the interface has this one already.
const DIFFERENCE: u32 = 4;
/// Ethernet's MTU: what the container's own interface has.
const ETHERNET: u32 = 1500;

/// Makes this host's end of the tunnel to `peer`, whose end is known, with the rules that steer into
/// it; gives this end and the largest packet that it carries whole. The caller holds the [`PeerLock`].
pub async fn connect(
    peer: PeerNumber,
    address: IpAddr,
    end: &TunnelEnd,
) -> Result<(TunnelEnd, u32), Cause> {
    let local = prepare(peer, address, end.is_direct()).await?;
    let mtu = complete(peer, address, end).await?;
    Ok((local, mtu))
}

/// Makes this host's end of the tunnel to `peer`, or of a direct way to it. The caller holds the
/// [`PeerLock`].
pub async fn prepare(peer: PeerNumber, address: IpAddr, direct: bool) -> Result<TunnelEnd, Cause> {
    Ok(if direct {
        tunnel::direct::prepare(peer, address).await?.into()
    } else {
        tunnel::prepare(peer).await?.into()
    })
}

/// Connects this host's prepared end of the tunnel to `peer`, with the rules that steer into it;
/// gives the largest packet that it carries whole. The caller holds the [`PeerLock`].
pub async fn complete(peer: PeerNumber, address: IpAddr, end: &TunnelEnd) -> Result<u32, Cause> {
    let mut table = Table::open()?;
    table.install()?;
    let whole = match end.means {
        Means::WireGuard { public_key, port } => {
            let remote = tunnel::RemoteEnd { public_key, endpoint: SocketAddr::new(address, port) };
            tunnel::connect(peer, &remote).await?.underlay.saturating_sub(TUNNEL_OVERHEAD)
        }
        Means::Direct(end) => {
            // Before anything can be steered by it.
            table.admit(peer, end.hardware_address)?;
            let connected = tunnel::direct::connect(peer, address, &end).await?;
            connected.underlay.min(ETHERNET) - DIFFERENCE
        }
    };
    table.steer(peer)?;
    Ok(whole)
}

/// Why the way to `peer`, if there is one already, is not what is asked for.
pub async fn other_way(peer: PeerNumber, direct: bool) -> Result<Option<tunnel::Error>, Cause> {
    let kind = tunnel::kind(peer).await?;
    let other = kind.filter(|kind| (*kind == Kind::Direct) != direct);
    let interface = peer.interface();
    Ok(other.map(|kind| tunnel::Error::OtherWay { interface, kind }))
}

/// A note that flows of a container need the tunnel to a peer of which their marks say nothing. It keeps
/// this tunnel for as long as there are such flows, should nobody take it back.
///
/// An anchor makes one when the container is about to move on: the peer may have become the container's
/// host and answer by this tunnel. The container's new host makes one for the tunnel to the host from
/// which it came: packets pass there until the anchors have been told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The peers to which marks lead these flows now, to the container or to their anchors.
    pub with: Vec<PeerNumber>,
    /// The peer whose tunnel they need.
    pub to: PeerNumber,
    /// The container's addresses.
    pub container: Vec<IpAddr>,
}

impl Claim {
    /// Notes the claim of a migration.
    pub fn write(&self, directories: &Directories, migration: MigrationId) -> Result<(), Cause> {
        create_private(&directories.run.join(CLAIMS))?;
        Ok(private::replace(&Self::path(directories, migration), &serde_json::to_vec(self)?)?)
    }

    /// Whether a migration has a claim.
    #[must_use]
    pub fn exists(directories: &Directories, migration: MigrationId) -> bool {
        Self::path(directories, migration).exists()
    }

    /// Takes the claim back; gives it if there was one.
    pub fn remove(
        directories: &Directories,
        migration: MigrationId,
    ) -> Result<Option<Self>, Cause> {
        let path = Self::path(directories, migration);
        match fs::read(&path) {
            Ok(text) => {
                fs::remove_file(&path)?;
                Ok(serde_json::from_slice(&text).ok())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether the flows that it speaks of exist, or new ones may come.
    fn holds(&self, directories: &Directories, marked: &[Counted]) -> Result<bool, Cause> {
        for note in forward::all(directories)? {
            if note.addresses.iter().any(|ip| self.container.contains(ip))
                && self.with.contains(&identity::peer_number(&directories.state, note.host)?)
            {
                return Ok(true);
            }
        }
        let next = |Counted { flow, .. }: &Counted| {
            [flow.leads_to(&self.container), flow.anchor(&self.container)]
        };
        Ok(marked.iter().flat_map(next).flatten().any(|peer| self.with.contains(&peer)))
    }

    fn path(directories: &Directories, migration: MigrationId) -> PathBuf {
        directories.run.join(CLAIMS).join(format!("{migration}.json"))
    }
}

/// Removes tunnel, rules and marks' steering of `peer` unless flows, claims, forwarded ports or
/// migrations other than `ended` need them; removes the table with the last peer. Absent means done.
pub async fn release(
    directories: &Directories,
    peer: PeerNumber,
    ended: Option<MigrationId>,
) -> Result<(), Cause> {
    let _lock = PeerLock::take(&directories.run).await?;
    if needed_by_migration(&directories.state, peer, ended)? || carry(directories, peer)? {
        return Ok(());
    }
    let mut table = Table::open()?;
    table.unsteer(peer)?;
    tunnel::remove(peer).await?;
    if table.read()?.rules.is_empty() {
        table.remove()?;
        // While the keeper lives it is its own, and goes with it.
        if !alone::is_at_work(directories)? {
            Guard::open()?.remove()?;
        }
    }
    Ok(())
}

/// Whether flows, claims or forwarded ports need the tunnel to `peer`.
pub fn carry(directories: &Directories, peer: PeerNumber) -> Result<bool, Cause> {
    // Of a large table one pass takes milliseconds, however little is in it.
    let marked = Conntrack::open()?.marked()?;
    Ok(marked.iter().any(|counted| counted.flow.is_marked_for(peer))
        || claimed(directories, peer, &marked)?
        || forward::need(directories, peer)?)
}

/// Whether a claim needs the peer; one whose flows have ended is forgotten.
fn claimed(directories: &Directories, peer: PeerNumber, marked: &[Counted]) -> Result<bool, Cause> {
    let entries = match fs::read_dir(directories.run.join(CLAIMS)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        let claim = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        match claim {
            Some(Claim { to, .. }) if to != peer => {}
            Some(claim) if claim.holds(directories, marked)? => return Ok(true),
            _ => fs::remove_file(&path)?,
        }
    }
    Ok(false)
}

fn needed_by_migration(
    state: &Path,
    peer: PeerNumber,
    ended: Option<MigrationId>,
) -> Result<bool, Cause> {
    for path in journal::unfinished(state)? {
        // A journal that cannot be read might need it.
        let Ok(records) = journal::read(&path) else { return Ok(true) };
        let of_ended = records.iter().any(|record| match record {
            Record::Departure { migration, .. } | Record::Arrival { migration, .. } => {
                Some(*migration) == ended
            }
            _ => false,
        });
        let names_peer = records.iter().any(|record| match record {
            Record::Departure { peer: host, .. }
            | Record::Arrival { peer: host, .. }
            | Record::Anchor { peer: host } => {
                identity::peer_number(state, *host).is_ok_and(|number| number == peer)
            }
            _ => false,
        });
        if names_peer && !of_ended {
            return Ok(true);
        }
    }
    Ok(false)
}
