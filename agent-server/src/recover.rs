//! What a former agent-server of this host left, settled before any source is listened to.
//!
//! ```text
//! last record    what is done
//! Arrival        undo: the copy is isolated, nobody hears it; its source hears that none exists
//! Activated      it is the container: podman takes it over, while its shim still waits; a copy
//!                that is gone is undone
//! HandedOver     podman runs it: only memory is left
//! ```
//!
//! A source that asks hears the truth afterwards, and nothing of a copy that could neither be
//! removed nor handed over: such a migration stays in doubt.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use agent_core::cause::{Cause, chain};
use agent_core::identity::{self, HostId};
use agent_core::journal::{self, Journal, Record};
use agent_core::message::MigrationId;
use agent_core::peers;
use checkpoint::stage::{self, Staged};
use netmig::flow::{Conntrack, Direction, Flow};
use netmig::isolation::Port;
use netmig::netns::Namespace;
use netmig::sandbox::Sandbox;

use crate::arrival::{STAGE, tidy};
use crate::session::Host;

/// How long the shim of a copy may take to find us: it tries every 50 ms.
const TAKE_OVER: Duration = Duration::from_secs(2);

/// An arrival as its journal tells of it.
#[derive(Debug)]
struct Arrived {
    migration: MigrationId,
    container: String,
    name: String,
    addresses: Vec<IpAddr>,
    source: HostId,
    activated: bool,
    pid: Option<i32>,
}

/// The container has no such thing.
#[derive(Debug, thiserror::Error)]
#[error("the copy has no {0}")]
struct Lacking(&'static str);

/// Settles every arrival that was left. What cannot be settled is logged, and tried again at the
/// next start.
pub async fn run(host: &Host) -> Result<(), journal::Error> {
    for path in journal::unfinished(&host.directories.state)? {
        if let Err(e) = settle(host, &path).await {
            tracing::error!("cannot settle {}: {}", path.display(), chain(e.as_ref()));
        }
    }
    Ok(())
}

async fn settle(host: &Host, path: &Path) -> Result<(), Cause> {
    let Some((journal, records)) = journal::claim(path)? else { return Ok(()) };
    let Some(arrived) = Arrived::read(&records) else { return Ok(()) };
    let (migration, name) = (arrived.migration, arrived.name.clone());
    // Until it is settled nobody hears that no copy exists.
    host.prepared.stuck(migration);
    if arrived.pid.is_some() {
        tidy(&host.directories.migration(migration))?;
        journal.archive(&host.directories.state)?;
    } else if arrived.activated && arrived.is_here(host).await? {
        arrived.hand_over(host, journal).await?;
        tracing::info!("{migration}: container {name} came before this start and runs here");
    } else {
        tracing::info!("{migration}: removing what is left of container {name}");
        arrived.undo(host).await?;
        journal.end()?;
    }
    host.prepared.ended(migration);
    Ok(())
}

impl Arrived {
    /// What a journal says; `None` if it is that of a departure, which agent-client recovers.
    fn read(records: &[Record]) -> Option<Self> {
        let Some(Record::Arrival { migration, container, name, addresses, peer }) = records.first()
        else {
            return None;
        };
        Some(Self {
            migration: *migration,
            container: container.clone(),
            name: name.clone(),
            addresses: addresses.clone(),
            source: *peer,
            activated: records.contains(&Record::Activated),
            pid: records.iter().find_map(|record| match record {
                Record::HandedOver { pid } => Some(*pid),
                _ => None,
            }),
        })
    }

    /// Whether the activated copy is alive: podman runs it, or its shim waits for us.
    async fn is_here(&self, host: &Host) -> Result<bool, Cause> {
        // First, since the shim's patience is short, and podman keeps a staged container locked.
        let work = host.directories.migration(self.migration).join(STAGE);
        let taken = Staged::resume(host.podman.clone(), &self.container, &self.name, &work, TAKE_OVER);
        match taken.await {
            Ok(staged) => {
                self.connect(&staged)?;
                staged.commit().await?;
                Ok(true)
            }
            // It was handed over by a podman that was told before, or it is gone.
            Err(e) => {
                tracing::debug!("{}: {}", self.migration, chain(&e));
                self.is_podmans(host).await
            }
        }
    }

    async fn is_podmans(&self, host: &Host) -> Result<bool, Cause> {
        if !host.podman.exists(&self.container).await? {
            return Ok(false);
        }
        let (_, container) = host.podman.inspect(&self.container).await?;
        Ok(container.pid > 1)
    }

    /// Makes the copy audible, should that not have happened.
    fn connect(&self, staged: &Staged) -> Result<(), Cause> {
        let path = staged.bundle.netns.as_ref().ok_or(Lacking("network namespace"))?;
        let namespace = Namespace::at_path(path)?;
        let sandbox = Sandbox::open(&namespace)?;
        let interface = sandbox.interfaces().first().ok_or(Lacking("interface"))?;
        Ok(Port::of_container(&namespace, &interface.name)?.unblock()?)
    }

    async fn hand_over(&self, host: &Host, mut journal: Journal) -> Result<(), Cause> {
        let (_, container) = host.podman.inspect(&self.container).await?;
        journal.append(&Record::HandedOver { pid: container.pid })?;
        tidy(&host.directories.migration(self.migration))?;
        Ok(journal.archive(&host.directories.state)?)
    }

    /// Removes the copy and everything made for it.
    async fn undo(&self, host: &Host) -> Result<(), Cause> {
        let work = host.directories.migration(self.migration);
        stage::abort_by_id(&host.podman, &self.container, &work.join(STAGE)).await?;
        let anchor = identity::peer_number(&host.directories.state, self.source)?;
        let mut conntrack = Conntrack::open()?;
        let made: Vec<Flow> = conntrack
            .dump(&self.addresses)?
            .into_iter()
            .filter(|flow| leads_to(flow, &self.addresses, anchor))
            .collect();
        conntrack.delete(&made)?;
        tidy(&work)?;
        peers::release(&host.directories, anchor, self.migration).await
    }
}

/// Whether an entry was made for a copy that came from `anchor`.
fn leads_to(flow: &Flow, container: &[IpAddr], anchor: netmig::peer::PeerNumber) -> bool {
    use netmig::peer::{ORIGINAL_MASK, REPLY_MASK};
    match flow.direction(container) {
        Some(Direction::Inbound) => flow.mark & REPLY_MASK == anchor.reply_mark(),
        Some(Direction::Outbound) => flow.mark & ORIGINAL_MASK == anchor.original_mark(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_tell_how_far_an_arrival_came() {
        let mut records = vec![Record::Arrival {
            migration: MigrationId([1; 16]),
            container: "c".repeat(64),
            name: "web".to_owned(),
            addresses: vec![],
            peer: HostId([2; 16]),
        }];
        assert!(!Arrived::read(&records).unwrap().activated);
        records.push(Record::Activated);
        assert!(Arrived::read(&records).unwrap().activated);
        assert_eq!(Arrived::read(&records).unwrap().pid, None);
        records.push(Record::HandedOver { pid: 7 });
        assert_eq!(Arrived::read(&records).unwrap().pid, Some(7));
        assert!(Arrived::read(&records[1..]).is_none(), "a departure is not ours");
    }
}
