//! A migration that has left this host, as its journal tells of it.

use std::collections::BTreeMap;
use std::path::Path;

use checkpoint::cgroup::{Cgroup, CpuLimit};
use checkpoint::procfs;
use netmig::peer_number::PeerNumber;
use ownership::source::Departure;
use state::cause::Cause;
use state::id::MigrationId;
use state::journal::{self, Process, Record};
use steering::peer_numbers;

use crate::source::destination_rpc::Peer;

/// A migration as its journal tells of it.
#[derive(Debug)]
pub struct Departed {
    /// The container's ID.
    pub container: String,
    /// Its name, for people.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<std::net::IpAddr>,
    /// The far end.
    pub peer: Peer,
    /// Its number on this host; without one, nothing was made for it.
    pub number: Option<PeerNumber>,
    /// When the migration began, in seconds since 1970; 0 where an earlier version wrote the journal.
    pub began: u64,
    /// How far the migration came.
    pub reached: Departure,
    /// When the move was decided, in seconds since 1970, if the journal says.
    pub decided: Option<u64>,
    /// The container that was interrupted.
    pub process: Option<Process>,
    /// The restart policy that was taken from the original.
    pub disarmed: Option<String>,
    /// Volumes that stay here when the container goes, each with the time at which it was made.
    pub volumes: BTreeMap<String, String>,
    /// The systemd unit that is kept from starting another container here.
    pub unit: Option<String>,
    /// Whether the engine was told to record the original as paused.
    pub paused: bool,
    /// How much of the processors the original might use before that was changed.
    pub cpu_limits: Vec<CpuLimit>,
    /// To what that was changed.
    pub changed_cpu_limits: Vec<Vec<CpuLimit>>,
    /// Whether memory goes over after the decision.
    pub post_copy: bool,
}

impl Departed {
    /// Returns what a journal says; `None` if it is that of an arrival, which agent-server recovers.
    pub(super) fn read(state: &Path, records: &[Record]) -> Result<Option<Self>, Cause> {
        let Some(Record::Departure {
            migration,
            container,
            name,
            addresses,
            destination,
            peer,
            began,
        }) = records.first()
        else {
            return Ok(None);
        };
        let peer = Peer { destination: destination.parse()?, host: *peer, migration: *migration };
        let changes = records.iter().filter_map(|record| match record {
            Record::CpuLimit { original, set } => Some((original, set)),
            _ => None,
        });
        let cpu_limits: Vec<_> = changes.collect();
        let limits = |texts: &Vec<String>| -> Vec<CpuLimit> {
            texts.iter().filter_map(|text| CpuLimit::parse(text)).collect()
        };
        Ok(Some(Self {
            container: container.clone(),
            name: name.clone(),
            addresses: addresses.clone(),
            number: peer_numbers::find_number(state, peer.host)?,
            peer,
            began: *began,
            reached: journal::reached(records),
            decided: records.iter().find_map(|record| match record {
                Record::Committed { at } if *at > 0 => Some(*at),
                _ => None,
            }),
            disarmed: records.iter().find_map(|record| match record {
                Record::Disarmed { policy } => Some(policy.clone()),
                _ => None,
            }),
            volumes: records
                .iter()
                .find_map(|record| match record {
                    Record::KeptVolumes { volumes } => Some(volumes.clone()),
                    _ => None,
                })
                .unwrap_or_default(),
            unit: records.iter().find_map(|record| match record {
                Record::GuardedUnit { unit } => Some(unit.clone()),
                _ => None,
            }),
            paused: records.contains(&Record::Paused),
            cpu_limits: cpu_limits.last().map(|(original, _)| limits(original)).unwrap_or_default(),
            changed_cpu_limits: cpu_limits.iter().map(|(_, set)| limits(set)).collect(),
            post_copy: records.contains(&Record::PostCopy),
            process: records.iter().find_map(|record| match record {
                Record::Interruption { process, .. } => Some(process.clone()),
                _ => None,
            }),
        }))
    }

    /// Returns the migration.
    pub(super) fn migration(&self) -> MigrationId {
        self.peer.migration
    }

    /// Returns the control group of the very container that was interrupted; `None` when its first process is gone,
    /// whatever has its ID or its process' number by now.
    pub(super) fn original(&self) -> Option<Cgroup> {
        let process = self.process.as_ref()?;
        let is_same = process.started == 0
            || procfs::start_time(process.pid).is_some_and(|started| started == process.started);
        is_same.then(|| Cgroup::of_pid(process.pid, &self.container).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use state::id::HostId;

    fn departure() -> Record {
        Record::Departure {
            migration: MigrationId([1; 16]),
            container: "c".repeat(64),
            name: "web".to_owned(),
            addresses: vec![],
            destination: "[2001:db8::2]:7472".to_owned(),
            peer: HostId([2; 16]),
            began: 0,
        }
    }

    #[test]
    fn the_furthest_record_decides() {
        let process = Process {
            pid: 7,
            namespace: "/n".into(),
            interface: "eth0".to_owned(),
            started: 9,
            monitor: 6,
        };
        let interruption =
            Record::Interruption { cgroup: "/c".into(), port: "veth0".to_owned(), process };
        let mut records = vec![departure()];
        assert_eq!(journal::reached(&records), Departure::Preparing);
        records.push(interruption);
        assert_eq!(journal::reached(&records), Departure::Interrupted);
        records.push(Record::Committed { at: 0 });
        assert_eq!(journal::reached(&records), Departure::Committed);
        let mut ordered = records.clone();
        records.push(Record::Acknowledged);
        assert_eq!(journal::reached(&records), Departure::Acknowledged);
        ordered.push(Record::Withdrawn);
        assert_eq!(journal::reached(&ordered), Departure::Withdrawn);
    }
}
