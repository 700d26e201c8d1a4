//! What is done to a migration.

use std::fmt;

use super::cell::Side;
use super::stale::Kind;

/// What has no room left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// The directory of journals.
    State,
    /// The directory of what is volatile.
    Run,
    /// podman's storage.
    Storage,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL of the agent. One on the destination is started again, as a service manager does.
    Kill(Side),
    /// SIGSTOP of the agent, and SIGCONT after 10 s.
    Stop(Side),
    /// No packet passes between the hosts for some seconds; `None`: until nobody tries any more.
    Cut(Option<u64>),
    /// SIGKILL of both agents.
    KillBoth,
    /// The link is cut for 5 s, and an agent killed while it is.
    CutAndKill(Side),
    /// CRIU refuses in the middle of the dump.
    DumpFails,
    /// CRIU fails in the middle of the restore: an image is damaged.
    RestoreFails,
    /// Nothing more can be written to a disk.
    DiskFull(Side, Disk),
    /// SIGKILL of the podman that imports the container.
    ImportKilled,
    /// SIGKILL of the program that makes the tunnel.
    TunnelKilled(Side),
    /// `podman network reload --all`.
    FirewallReloaded(Side),
    /// The original's first process gets SIGKILL, as from the kernel that is out of memory.
    ContainerKilled,
    /// The original ends by itself.
    ContainerExits,
    /// Another order moves the container to a third host.
    Rival,
    /// Another container moves the other way meanwhile, and SIGKILL of an agent.
    Opposite(Side),
    /// A third paired host sends every message out of turn and in another's name.
    Stranger,
    /// The dump or the restore fails, and then a part of going back does.
    GoingBackFails(Part),
    /// A journal of an earlier move lies beside the container, which has come home, and is settled.
    Stale(Kind),
    /// A host is restarted, and starts its containers again as their policy says.
    Reboot(Side),
}

/// A part of going back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The container cannot be thawed.
    Thaw,
    /// Its port cannot be let through again.
    Reconnect,
    /// The agent can open nothing any more, neither files nor sockets.
    Everything,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Thaw, Self::Reconnect, Self::Everything];

    fn name(self) -> &'static str {
        match self {
            Self::Thaw => "thaw",
            Self::Reconnect => "reconnect",
            Self::Everything => "everything",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(side) => write!(f, "kill-{}", side.name()),
            Self::Stop(side) => write!(f, "stop-{}", side.name()),
            Self::Cut(Some(seconds)) => write!(f, "cut-{seconds}s"),
            Self::Cut(None) => f.write_str("cut-for-good"),
            Self::KillBoth => f.write_str("kill-both"),
            Self::CutAndKill(side) => write!(f, "cut-and-kill-{}", side.name()),
            Self::DumpFails => f.write_str("fails"),
            Self::RestoreFails => f.write_str("fails"),
            Self::DiskFull(side, disk) => {
                let disk = match disk {
                    Disk::State => "journals",
                    Disk::Run => "run",
                    Disk::Storage => "storage",
                };
                write!(f, "{disk}-full-{}", side.name())
            }
            Self::ImportKilled => f.write_str("import-killed"),
            Self::TunnelKilled(side) => write!(f, "tunnel-killed-{}", side.name()),
            Self::FirewallReloaded(side) => write!(f, "firewall-reloaded-{}", side.name()),
            Self::ContainerKilled => f.write_str("container-killed"),
            Self::ContainerExits => f.write_str("container-exits"),
            Self::Rival => f.write_str("rival"),
            Self::Opposite(side) => write!(f, "opposite-kill-{}", side.name()),
            Self::Stranger => f.write_str("stranger"),
            Self::GoingBackFails(part) => write!(f, "going-back-fails-{}", part.name()),
            Self::Stale(kind) => write!(f, "stale-{kind}"),
            Self::Reboot(side) => write!(f, "reboot-{}", side.name()),
        }
    }
}

impl Fault {
    /// Whether the container may be gone afterwards, by its own doing.
    pub fn may_end(self) -> bool {
        matches!(self, Self::ContainerKilled | Self::ContainerExits)
    }

    /// Whether a host is not fit for another cell afterwards.
    pub fn spoils_the_lab(self) -> bool {
        matches!(self, Self::DiskFull(..) | Self::Reboot(_) | Self::Stale(_))
    }

    /// Whether an agent is killed, which then says nothing.
    pub fn silences(self) -> bool {
        matches!(
            self,
            Self::Kill(_)
                | Self::KillBoth
                | Self::CutAndKill(_)
                | Self::Opposite(_)
                | Self::Reboot(_)
                | Self::GoingBackFails(Part::Thaw)
        )
    }

    /// Whether the hosts can be compared with what they were before if nothing has moved.
    pub(super) fn is_comparable(self) -> bool {
        !matches!(
            self,
            // A reload makes every interface anew.
            Self::FirewallReloaded(_)
                | Self::Rival
                | Self::Opposite(_)
                | Self::Stale(_)
                | Self::Reboot(_)
        )
    }

    /// Whether it needs its time while the container is interrupted.
    pub(super) fn takes_time(self) -> bool {
        matches!(self, Self::Rival | Self::Opposite(_) | Self::Stranger | Self::Stale(_))
    }
}
