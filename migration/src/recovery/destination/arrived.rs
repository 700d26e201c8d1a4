//! What a journal tells of an arrival.

use std::net::IpAddr;

use state::id::{HostId, MigrationId};
use state::journal::Record;

use crate::destination::service::ServiceNote;
use crate::destination::volumes::Notes;

/// An arrival as its journal tells of it.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) migration: MigrationId,
    pub(super) container: String,
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) source: HostId,
    pub(super) anchors: Vec<HostId>,
    pub(super) activated: bool,
    pub(super) volumes: Notes,
    pub(super) service: Option<ServiceNote>,
    /// When it began, in seconds since 1970; `None` where an earlier version has not noted it.
    pub(super) began: Option<u64>,
}

fn anchor(record: &Record) -> Option<HostId> {
    if let Record::Anchor { peer } = record { Some(*peer) } else { None }
}

/// Returns the addresses that a container has got in place of its own.
fn readdressed(record: &Record) -> Option<&Vec<IpAddr>> {
    if let Record::Readdressed { addresses } = record { Some(addresses) } else { None }
}

impl Arrived {
    /// Returns what a journal says; `None` if it is that of a departure, which agent-client recovers.
    pub(super) fn read(records: &[Record]) -> Option<Self> {
        let Some(Record::Arrival { migration, container, name, addresses, peer, began, .. }) =
            records.first()
        else {
            return None;
        };
        Some(Self {
            migration: *migration,
            container: container.clone(),
            name: name.clone(),
            addresses: records.iter().find_map(readdressed).unwrap_or(addresses).clone(),
            source: *peer,
            anchors: records.iter().filter_map(anchor).collect(),
            volumes: Notes::read(records),
            service: ServiceNote::read(records),
            activated: records.contains(&Record::Activated),
            began: Some(*began).filter(|began| *began > 0),
        })
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
            source: "a".to_owned(),
            began: 0,
        }];
        assert!(!Arrived::read(&records).unwrap().activated);
        records.push(Record::Activated);
        assert!(Arrived::read(&records).unwrap().activated);
        assert!(Arrived::read(&records[1..]).is_none(), "a departure is not ours");
    }
}
