//! What is done to a migration, and when: the cells of the fault matrix.

use std::fmt;

use super::fault::{Disk, Fault, Part};
use super::stale::Kind;

/// A host of the migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where the container runs at first, with agent-client.
    Source,
    /// Where it is to run, with agent-server.
    Destination,
}

impl Side {
    /// Both of them.
    pub const BOTH: [Self; 2] = [Self::Source, Self::Destination];

    /// The lab host that plays this part.
    pub fn host(self) -> &'static str {
        match self {
            Self::Source => "a",
            Self::Destination => "b",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// How far a migration has come when the fault strikes, in the order in which it comes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// The source has dialled and waits for the destination to introduce itself.
    Connect,
    /// Both look for what is in the way.
    Preflight,
    /// The tunnel is made.
    Tunnel,
    /// podman on the destination imports the container.
    Stage,
    /// Files go over while the container runs.
    Files,
    /// The interruption is written down; packets begin to wait.
    Hold,
    /// The container's tasks are frozen.
    Freeze,
    /// The container is frozen and cut off, and its dump is about to begin.
    Dump,
    /// Images and flows are at the destination, and its restore is about to begin.
    Restore,
    /// The copy runs, cut off, and the source does not know yet.
    Prepared,
    /// The commit record is on disk, and the destination has not heard of it.
    Commit,
    /// The copy is audible, and the source has not heard of it.
    Active,
    /// The destination's podman takes the container over.
    HandOver,
    /// The original is being removed.
    Removal,
}

impl Moment {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Connect,
        Self::Preflight,
        Self::Tunnel,
        Self::Stage,
        Self::Files,
        Self::Hold,
        Self::Freeze,
        Self::Dump,
        Self::Restore,
        Self::Prepared,
        Self::Commit,
        Self::Active,
        Self::HandOver,
        Self::Removal,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Preflight => "preflight",
            Self::Tunnel => "tunnel",
            Self::Stage => "stage",
            Self::Files => "files",
            Self::Hold => "hold",
            Self::Freeze => "freeze",
            Self::Dump => "dump",
            Self::Restore => "restore",
            Self::Prepared => "prepared",
            Self::Commit => "commit",
            Self::Active => "active",
            Self::HandOver => "hand-over",
            Self::Removal => "removal",
        }
    }
}

/// One cell of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// When.
    pub moment: Moment,
    /// What.
    pub fault: Fault,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.moment.name(), self.fault)
    }
}

impl Cell {
    /// The whole matrix.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for moment in Moment::ALL {
            all.extend(
                [
                    Fault::Kill(Side::Source),
                    Fault::Kill(Side::Destination),
                    Fault::Stop(Side::Source),
                    Fault::Stop(Side::Destination),
                    Fault::Cut(Some(1)),
                    Fault::Cut(Some(20)),
                    Fault::Cut(None),
                    Fault::KillBoth,
                    Fault::CutAndKill(Side::Source),
                    Fault::CutAndKill(Side::Destination),
                ]
                .map(|fault| Self { moment, fault }),
            );
        }
        let mut add = |moments: &[Moment], fault| {
            all.extend(moments.iter().map(|moment| Self { moment: *moment, fault }));
        };
        add(&[Moment::Dump], Fault::DumpFails);
        add(&[Moment::Restore], Fault::RestoreFails);
        add(&[Moment::Connect], Fault::DiskFull(Side::Source, Disk::State));
        add(&[Moment::Connect], Fault::DiskFull(Side::Destination, Disk::State));
        add(&[Moment::Stage, Moment::Freeze], Fault::DiskFull(Side::Source, Disk::Run));
        add(&[Moment::Preflight, Moment::Freeze], Fault::DiskFull(Side::Destination, Disk::Run));
        add(&[Moment::Files], Fault::DiskFull(Side::Destination, Disk::Storage));
        add(&[Moment::Stage, Moment::Restore, Moment::Prepared], Fault::ImportKilled);
        for side in Side::BOTH {
            let moments = [Moment::Stage, Moment::Dump, Moment::Prepared];
            add(&moments, Fault::FirewallReloaded(side));
            add(&moments, Fault::TunnelKilled(side));
            add(&[Moment::HandOver, Moment::Removal], Fault::TunnelKilled(side));
        }
        let moments = [Moment::Stage, Moment::Freeze, Moment::Dump, Moment::Prepared];
        add(&moments, Fault::ContainerKilled);
        add(&[Moment::Stage, Moment::Dump], Fault::ContainerExits);
        add(&Moment::ALL, Fault::Rival);
        // At the first moment the destination's agent stands still, and hears nobody.
        add(&Moment::ALL[1..], Fault::Stranger);
        for side in Side::BOTH {
            let moments = [
                Moment::Stage,
                Moment::Dump,
                Moment::Prepared,
                Moment::Commit,
                Moment::Active,
                Moment::HandOver,
            ];
            add(&moments, Fault::Opposite(side));
            add(&Moment::ALL, Fault::Reboot(side));
        }
        for part in Part::ALL {
            add(&[Moment::Dump, Moment::Restore], Fault::GoingBackFails(part));
        }
        for kind in Kind::ALL {
            add(&[Moment::Stage, Moment::Dump], Fault::Stale(kind));
        }
        all
    }

    /// Whether nobody can be reached until a person has seen to the link.
    pub fn is_for_good(&self) -> bool {
        self.fault == Fault::Cut(None)
    }

    /// Whether a copy can be lost that others have heard: what becomes of the original a person decides.
    pub fn may_lose_a_heard_copy(&self) -> bool {
        self.fault == Fault::Reboot(Side::Destination)
            && matches!(self.moment, Moment::Active | Moment::HandOver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_cell_has_a_name_of_its_own() {
        let all = Cell::all();
        let names: BTreeSet<String> = all.iter().map(Cell::to_string).collect();
        assert_eq!(names.len(), all.len());
        assert!(names.contains("commit/cut-20s") && names.contains("dump/fails"));
        let new = ["rival", "stranger", "opposite", "reboot", "going-back", "stale"];
        let count = names.iter().filter(|name| new.iter().any(|word| name.contains(word))).count();
        assert!(count >= 60, "{count}");
        assert!(names.contains("prepared/reboot-destination"));
        assert!(names.contains("dump/stale-acknowledged"));
    }
}
