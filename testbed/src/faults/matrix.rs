//! The fault matrix: each cell is a fault and the injection point at which it is injected.

use std::fmt;

use super::fault::{Disk, Fault, RollbackStep};
use super::injection_point::InjectionPoint;
use super::stale_journal::LastRecord;

/// One of the two hosts of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The host on which the container runs at first, with agent-client.
    Source,
    /// The host to which the container moves, with agent-server.
    Destination,
}

impl Side {
    /// Both hosts.
    pub const BOTH: [Self; 2] = [Self::Source, Self::Destination];

    /// Returns the name of the lab host in this role.
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

/// How the memory of a cell's container moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Memory {
    /// It is little, and goes with the dump.
    Little,
    /// It is much, and goes in rounds while the container runs. The copy gets its pages while it runs.
    PreCopy,
    /// It is much, and goes over after the decision. The copy runs while pages are still at the source.
    PostCopy,
}

impl Memory {
    /// Returns the mode of `agent-client migrate --memory`, where it is ordered.
    pub(super) fn mode(self) -> Option<&'static str> {
        match self {
            Self::Little => None,
            Self::PreCopy => Some("pre-copy"),
            Self::PostCopy => Some("post-copy"),
        }
    }
}

impl fmt::Display for Memory {
    /// Writes the beginning of a cell's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mode().map_or(Ok(()), |mode| write!(f, "{mode}/"))
    }
}

/// One cell of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// How the memory moves.
    pub memory: Memory,
    /// When the fault is injected.
    pub point: InjectionPoint,
    /// What is injected.
    pub fault: Fault,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}/{}", self.memory, self.point.name(), self.fault)
    }
}

impl Cell {
    /// Returns all cells of the matrix.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for point in InjectionPoint::ALL {
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
                .map(|fault| Self { memory: Memory::Little, point, fault }),
            );
        }
        let mut add = |points: &[InjectionPoint], fault| {
            let cell =
                |point: &InjectionPoint| Self { memory: Memory::Little, point: *point, fault };
            all.extend(points.iter().map(cell));
        };
        add(&[InjectionPoint::Dump], Fault::DumpFails);
        add(&[InjectionPoint::Restore], Fault::RestoreFails);
        add(&[InjectionPoint::Connect], Fault::DiskFull(Side::Source, Disk::State));
        add(&[InjectionPoint::Connect], Fault::DiskFull(Side::Destination, Disk::State));
        add(
            &[InjectionPoint::Stage, InjectionPoint::Freeze],
            Fault::DiskFull(Side::Source, Disk::Run),
        );
        add(
            &[InjectionPoint::Preflight, InjectionPoint::Freeze],
            Fault::DiskFull(Side::Destination, Disk::Run),
        );
        add(&[InjectionPoint::Files], Fault::DiskFull(Side::Destination, Disk::Storage));
        add(
            &[InjectionPoint::Stage, InjectionPoint::Restore, InjectionPoint::Prepared],
            Fault::ImportKilled,
        );
        for side in Side::BOTH {
            let points = [InjectionPoint::Stage, InjectionPoint::Dump, InjectionPoint::Prepared];
            add(&points, Fault::FirewallReloaded(side));
            add(&points, Fault::TunnelKilled(side));
            add(&[InjectionPoint::HandOver, InjectionPoint::Removal], Fault::TunnelKilled(side));
        }
        let points = [
            InjectionPoint::Stage,
            InjectionPoint::Freeze,
            InjectionPoint::Dump,
            InjectionPoint::Prepared,
        ];
        add(&points, Fault::ContainerKilled);
        add(&[InjectionPoint::Stage, InjectionPoint::Dump], Fault::ContainerExits);
        add(&InjectionPoint::ALL, Fault::Rival);
        // At the first injection point the destination's agent is stopped and answers no other host.
        add(&InjectionPoint::ALL[1..], Fault::Stranger);
        for side in Side::BOTH {
            let points = [
                InjectionPoint::Stage,
                InjectionPoint::Dump,
                InjectionPoint::Prepared,
                InjectionPoint::Commit,
                InjectionPoint::Active,
                InjectionPoint::HandOver,
            ];
            add(&points, Fault::Opposite(side));
            add(&InjectionPoint::ALL, Fault::Reboot(side));
        }
        for part in RollbackStep::ALL {
            add(&[InjectionPoint::Dump, InjectionPoint::Restore], Fault::RollbackFails(part));
        }
        for kind in LastRecord::ALL {
            add(&[InjectionPoint::Stage, InjectionPoint::Dump], Fault::Stale(kind));
        }
        all.extend(Self::with_much_memory());
        all.extend(Self::with_pages_outstanding());
        all
    }

    /// Returns the cells whose container has much memory. At `Rounds` its memory is sent, at `HandOver` the copy gets
    /// its pages.
    fn with_much_memory() -> impl Iterator<Item = Self> {
        let points = [
            InjectionPoint::Rounds,
            InjectionPoint::Dump,
            InjectionPoint::Restore,
            InjectionPoint::Prepared,
            InjectionPoint::Active,
            InjectionPoint::HandOver,
        ];
        let faults = [
            Fault::Kill(Side::Source),
            Fault::Kill(Side::Destination),
            Fault::Cut(Some(20)),
            Fault::KillBoth,
            Fault::CutAndKill(Side::Destination),
            Fault::Reboot(Side::Source),
            Fault::Reboot(Side::Destination),
        ];
        let at_most = [
            (InjectionPoint::Rounds, Fault::Stop(Side::Source)),
            (InjectionPoint::Rounds, Fault::Cut(None)),
            (InjectionPoint::Rounds, Fault::ContainerKilled),
            (InjectionPoint::Rounds, Fault::DiskFull(Side::Destination, Disk::Run)),
            (InjectionPoint::Rounds, Fault::Rival),
            (InjectionPoint::Dump, Fault::DumpFails),
            (InjectionPoint::Restore, Fault::RestoreFails),
        ];
        let everywhere =
            points.into_iter().flat_map(move |point| faults.map(|fault| (point, fault)));
        let all = everywhere.chain(at_most);
        all.map(|(point, fault)| Self { memory: Memory::PreCopy, point, fault })
    }

    /// Returns the cells whose container has much memory of which pages are at the source alone.
    fn with_pages_outstanding() -> impl Iterator<Item = Self> {
        let faults = [
            Fault::Kill(Side::Source),
            Fault::Kill(Side::Destination),
            Fault::Cut(Some(20)),
            Fault::KillBoth,
            Fault::CutAndKill(Side::Source),
            Fault::CutAndKill(Side::Destination),
            Fault::Reboot(Side::Source),
            Fault::Reboot(Side::Destination),
            Fault::PageServerKilled,
            Fault::PageHolderKilled,
        ];
        let points = [InjectionPoint::HandOver, InjectionPoint::Outstanding];
        let all = points.into_iter().flat_map(move |point| faults.map(|fault| (point, fault)));
        all.map(|(point, fault)| Self { memory: Memory::PostCopy, point, fault })
    }

    /// Returns whether the link stays down until an operator repairs it.
    pub fn is_permanent_cut(&self) -> bool {
        self.fault == Fault::Cut(None)
    }

    /// Returns whether copy and original can both be lost: the copy lacks pages that only the original had, which ends with its
    /// host.
    pub fn may_lose_both(&self) -> bool {
        self.memory == Memory::PostCopy && self.fault == Fault::Reboot(Side::Source)
    }

    /// Returns whether an active copy can be lost. The operator decides then whether the original runs again.
    pub fn may_lose_an_active_copy(&self) -> bool {
        match (self.memory, self.fault) {
            // Neither host alone has all of the memory.
            (Memory::PostCopy, Fault::Reboot(_)) => true,
            (_, Fault::Reboot(Side::Destination)) => {
                matches!(self.point, InjectionPoint::Active | InjectionPoint::HandOver)
            }
            _ => false,
        }
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
        assert!(names.contains("pre-copy/rounds/kill-source"));
        assert!(names.contains("post-copy/outstanding/page-server-killed"));
    }
}
