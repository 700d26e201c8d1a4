//! What several migrations with one peer share: its tunnel and its steering rules.
//!
//! They are made by the first migration that needs them and stay while flows are steered to the peer,
//! another migration with it is under way, new connections are forwarded to it or from it, or a [`Claim`]
//! says that flows are about to be led to it.

mod claim;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use netmig::flow::{Conntrack, Counted};
use netmig::peer_number::PeerNumber;
use netmig::table::{Guard, Table};
use netmig::tunnel::{self, Kind};
use ownership::anchor::may_set_key;

use crate::moved_containers;
use crate::opened_firewall;
use crate::peer_numbers::{self, HostId};
use crate::port_forward;
use crate::reconciler::single_instance;
pub use crate::steering_lock::SteeringLock;
pub use crate::tunnel_endpoint::{Transport, TunnelEnd};
use state::cause::Cause;
use state::directories::Directories;
use state::id::MigrationId;
use state::journal::{self, Record};

pub use self::claim::Claim;
use self::claim::{claimed, claims};

/// Directory of claims, below that for volatile things.
const CLAIMS: &str = "claims";
/// Version of their form.
const VERSION: u32 = 1;
/// Bytes that WireGuard puts around a packet, over IPv6 and with padding (wg(8), MTU).
const TUNNEL_OVERHEAD: u32 = 80;
/// A direct way takes nothing. But a socket that was restored stays at its smallest segment size until the
/// MTU of its route changes, and the interface has this one already.
const DIFFERENCE: u32 = 4;
/// Ethernet's MTU: what the container's own interface has.
const ETHERNET: u32 = 1500;

/// Creates this host's end of the tunnel to a peer whose end is known, with the rules that steer into it; returns this
/// end and the largest packet that the tunnel carries whole. The caller holds the [`SteeringLock`].
///
/// # Errors
/// The interface or the rules cannot be created.
pub async fn connect(
    peer: PeerNumber,
    address: IpAddr,
    end: &TunnelEnd,
) -> Result<(TunnelEnd, u32), Cause> {
    let local = prepare(peer, address, end.is_direct()).await?;
    let mtu = complete(peer, address, end).await?;
    Ok((local, mtu))
}

/// Creates this host's end of the tunnel to a peer, or of a direct way to it. The caller holds the [`SteeringLock`].
///
/// # Errors
/// The interface cannot be created.
pub async fn prepare(peer: PeerNumber, address: IpAddr, direct: bool) -> Result<TunnelEnd, Cause> {
    Ok(if direct {
        tunnel::direct::prepare(peer, address).await?.into()
    } else {
        tunnel::prepare(peer).await?.into()
    })
}

/// The end of a tunnel that a third host was said to have is not the one that it has.
#[derive(Debug, thiserror::Error)]
#[error(
    "another host says that the end of tunnel {interface} has another key than it has; only the host at that \
     end can change it"
)]
pub struct KeyPassedOn {
    /// The tunnel's interface.
    pub interface: String,
}

/// Makes this host's end of the tunnel to a third host, whose end another peer has passed on. What is passed
/// on makes a tunnel where none is, or where nothing but this migration needs the one that is there; of
/// another one it changes nothing. The caller holds the [`SteeringLock`].
///
/// # Errors
/// [`KeyPassedOn`]; otherwise as for [`connect`].
pub async fn connect_passed_on(
    directories: &Directories,
    (peer, migration): (PeerNumber, MigrationId),
    address: IpAddr,
    end: &TunnelEnd,
) -> Result<(TunnelEnd, u32), Cause> {
    let local = prepare(peer, address, end.is_direct()).await?;
    let mtu = complete_passed_on(directories, (peer, migration), address, end).await?;
    Ok((local, mtu))
}

/// Does the same as [`complete`] for an end that another peer has passed on.
///
/// # Errors
/// As for [`connect_passed_on`].
pub async fn complete_passed_on(
    directories: &Directories,
    (peer, migration): (PeerNumber, MigrationId),
    address: IpAddr,
    end: &TunnelEnd,
) -> Result<u32, Cause> {
    let is_needed = needed_by_migration(&directories.state, peer, Some(migration))?
        || carry_besides(directories, peer, migration)?;
    let status = tunnel::status(peer).await?;
    let present = status.and_then(|status| status.remote).filter(|_| is_needed);
    let Transport::WireGuard { public_key, .. } = end.transport else {
        return complete(peer, address, end).await;
    };
    if !may_set_key(present.as_ref().map(|remote| remote.public_key), public_key) {
        return Err(KeyPassedOn { interface: peer.interface() }.into());
    }
    match present {
        // Its address is what its own packets have told.
        Some(tunnel::RemoteEnd { public_key, endpoint }) => {
            let transport = Transport::WireGuard { public_key, port: endpoint.port() };
            complete(peer, endpoint.ip(), &TunnelEnd { transport, kind: end.kind.clone() }).await
        }
        None => complete(peer, address, end).await,
    }
}

/// Connects this host's prepared end of the tunnel to a peer, with the rules that steer into it; returns the largest
/// packet that the tunnel carries whole. The caller holds the [`SteeringLock`].
///
/// # Errors
/// The interface cannot be connected, or the kernel refuses the rules.
pub async fn complete(peer: PeerNumber, address: IpAddr, end: &TunnelEnd) -> Result<u32, Cause> {
    let mut table = Table::open()?;
    table.install()?;
    let whole = match end.transport {
        Transport::WireGuard { public_key, port } => {
            let remote = tunnel::RemoteEnd { public_key, endpoint: SocketAddr::new(address, port) };
            tunnel::connect(peer, &remote).await?.underlay.saturating_sub(TUNNEL_OVERHEAD)
        }
        Transport::Direct(end) => {
            // Before anything can be steered by it.
            table.admit_sender(peer, end.hardware_address)?;
            let connected = tunnel::direct::connect(peer, address, &end).await?;
            connected.underlay.min(ETHERNET) - DIFFERENCE
        }
    };
    table.steer(peer)?;
    Ok(whole)
}

/// Returns the reason why an existing way to a peer is not of the kind that is asked for; `None` if it is, or there
/// is none.
///
/// # Errors
/// The interfaces cannot be listed.
pub async fn other_way(peer: PeerNumber, direct: bool) -> Result<Option<tunnel::Error>, Cause> {
    let kind = tunnel::kind(peer).await?;
    let other = kind.filter(|kind| (*kind == Kind::Direct) != direct);
    let interface = peer.interface();
    Ok(other.map(|kind| tunnel::Error::OtherWay { interface, kind }))
}

/// Removes the tunnel, rules and steering by marks of a peer, unless flows, claims, forwarded ports or migrations other
/// than `ended` need them; removes the table with the last peer. Absent means done.
///
/// # Errors
/// The lock cannot be taken, a journal or note cannot be read, or the kernel refuses.
pub async fn release(
    directories: &Directories,
    peer: PeerNumber,
    ended: Option<MigrationId>,
) -> Result<(), Cause> {
    let _lock = SteeringLock::take(&directories.run).await?;
    if needed_by_migration(&directories.state, peer, ended)? || carry(directories, peer)? {
        return Ok(());
    }
    let mut table = Table::open()?;
    table.unsteer(peer)?;
    opened_firewall::close(directories, &mut table, peer)?;
    tunnel::remove(peer).await?;
    if table.read()?.rules.is_empty() {
        table.remove()?;
        // While the reconciler lives it is its own, and goes with it.
        if !single_instance::is_at_work(directories)? {
            Guard::open()?.remove()?;
        }
    }
    Ok(())
}

/// Returns whether flows, claims or forwarded ports need the tunnel to a peer.
///
/// # Errors
/// A note or the conntrack table cannot be read.
pub fn carry(directories: &Directories, peer: PeerNumber) -> Result<bool, Cause> {
    // Of a large table one pass takes milliseconds, however little is in it.
    let marked = Conntrack::open()?.marked()?;
    Ok(marked.iter().any(|counted| counted.flow.is_marked_for(peer))
        || claimed(directories, peer, &marked)?
        || port_forward::need(directories, peer)?)
}

/// Does the same, except for the claim of a migration.
fn carry_besides(
    directories: &Directories,
    peer: PeerNumber,
    migration: MigrationId,
) -> Result<bool, Cause> {
    let marked = Conntrack::open()?.marked()?;
    if marked.iter().any(|counted| counted.flow.is_marked_for(peer))
        || port_forward::need(directories, peer)?
    {
        return Ok(true);
    }
    let own = Claim::path(directories, migration);
    for (path, claim) in claims(directories)? {
        if path != own && claim.to == peer && claim.holds(directories, &marked)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the number of a host for which something is about to be created. If all numbers are taken, the host gets
/// the number of one that has no tunnel to this host, no flows, and no note or journal.
///
/// # Errors
/// The peers' file cannot be read or written, no number is free, or notes, journals or kernel state cannot be read.
pub async fn allot(directories: &Directories, host: HostId) -> Result<PeerNumber, Cause> {
    match peer_numbers::allot(&directories.state, host) {
        Err(peer_numbers::Error::TooManyPeers { .. }) => {}
        other => return Ok(other?),
    }
    let _lock = SteeringLock::take(&directories.run).await?;
    let mut needed: BTreeSet<PeerNumber> = tunnel::list().await?.into_iter().collect();
    for Counted { flow, .. } in Conntrack::open()?.marked()? {
        needed.extend(PeerNumber::of_original(flow.mark));
        needed.extend(PeerNumber::of_reply(flow.mark));
    }
    needed.extend(noted(directories)?);
    Ok(peer_numbers::take_over(&directories.state, host, &needed)?)
}

/// Returns the peers that a journal or a note speaks of.
fn noted(directories: &Directories) -> Result<BTreeSet<PeerNumber>, Cause> {
    let mut numbers = BTreeSet::new();
    for (_, claim) in claims(directories)? {
        numbers.extend(claim.with);
        numbers.insert(claim.to);
    }
    for note in moved_containers::all(directories)? {
        numbers.extend(note.exchange.passing.iter().map(|(peer, _)| *peer));
        numbers.extend(note.exchange.passing_ends.iter().map(|(peer, ..)| *peer));
    }
    let mut hosts: Vec<HostId> =
        port_forward::all(directories)?.iter().map(|note| note.host).collect();
    for path in journal::unfinished(&directories.state)? {
        hosts.extend(journal::read(&path)?.iter().filter_map(host_in));
    }
    for host in hosts {
        numbers.extend(peer_numbers::find_number(&directories.state, host)?);
    }
    Ok(numbers)
}

/// Returns the host of which a journal's record tells.
fn host_in(record: &Record) -> Option<HostId> {
    match record {
        Record::Departure { peer, .. } | Record::Arrival { peer, .. } | Record::Anchor { peer } => {
            Some(*peer)
        }
        _ => None,
    }
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
        let names_peer = records.iter().filter_map(host_in).any(|host| {
            // A host whose number cannot be read might be it.
            peer_numbers::find_number(state, host).map_or(true, |number| number == Some(peer))
        });
        if names_peer && !of_ended {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use state::journal::Journal;

    #[tokio::test]
    async fn numbers_that_notes_and_journals_speak_of_are_needed() {
        let directory = tempfile::tempdir().unwrap();
        let (state, run) = (directory.path().join("s"), directory.path().join("r"));
        let directories = Directories { state, run };
        directories.create().unwrap();
        let [a, b, c, d, e] = [1, 2, 3, 4, 5]
            .map(|n| peer_numbers::allot(&directories.state, HostId([n; 16])).unwrap());
        assert_eq!(noted(&directories).unwrap(), BTreeSet::new());
        let migration = MigrationId([7; 16]);
        let claim = Claim { with: vec![a], to: b, container: vec![] };
        let lock = SteeringLock::take(&directories.run).await.unwrap();
        claim.write(&directories, migration, &lock).unwrap();
        drop(lock);
        let address = "10.88.0.2".parse().unwrap();
        let passing = vec![(c, netmig::flow::Alias { here: address, address })];
        let exchange = netmig::flow::TunnelNat { passing, ..Default::default() };
        let carried =
            moved_containers::MovedContainer::new(&"c".repeat(64), "web", &[address], exchange);
        carried.note(&directories).await.unwrap();
        let record = Record::Anchor { peer: HostId([4; 16]) };
        let _journal = Journal::begin(&directories.state, migration, &record).unwrap();
        assert_eq!(noted(&directories).unwrap(), BTreeSet::from([a, b, c, d]));
        let strange = PeerNumber::new(200).unwrap();
        assert!(needed_by_migration(&directories.state, d, None).unwrap());
        assert!(!needed_by_migration(&directories.state, e, None).unwrap());
        assert!(!needed_by_migration(&directories.state, strange, None).unwrap());
        assert_eq!(Claim::remove(&directories, migration).unwrap(), Some(claim));
        assert_eq!(Claim::remove(&directories, migration).unwrap(), None);
    }
}
