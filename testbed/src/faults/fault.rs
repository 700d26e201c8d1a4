//! The faults that can be injected into a migration.

use std::fmt;

use super::matrix::Side;
use super::stale_journal::LastRecord;

/// A file system that becomes full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// The directory of journals.
    State,
    /// `/run`.
    Run,
    /// podman's storage.
    Storage,
}

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL of the agent. The destination's agent is restarted, as by a service manager.
    Kill(Side),
    /// SIGSTOP of the agent, and SIGCONT after 10 s.
    Stop(Side),
    /// The link between the hosts is down for some seconds; `None`: until both agents have given up.
    Cut(Option<u64>),
    /// SIGKILL of both agents.
    KillBoth,
    /// The link is down for 5 s, and an agent is killed meanwhile.
    CutAndKill(Side),
    /// CRIU refuses in the middle of the dump.
    DumpFails,
    /// CRIU fails in the middle of the restore: an image is damaged.
    RestoreFails,
    /// A file system is full.
    DiskFull(Side, Disk),
    /// SIGKILL of the podman that imports the container.
    ImportKilled,
    /// SIGKILL of what puts pages of memory in place at the destination.
    PageServerKilled,
    /// SIGKILL of the process that takes its place when it dies.
    PageHolderKilled,
    /// SIGKILL of wireguard-go.
    TunnelKilled(Side),
    /// `podman network reload --all`.
    FirewallReloaded(Side),
    /// SIGKILL of the original's first process, as by the kernel's out-of-memory killer.
    ContainerKilled,
    /// The original ends by itself.
    ContainerExits,
    /// A second agent-client migrates the container to a third host.
    Rival,
    /// SIGKILL of an agent while another container migrates in the opposite direction.
    Opposite(Side),
    /// A third, paired host sends every message out of turn, and orders for a migration that is not its own.
    Stranger,
    /// The dump or the restore fails, and then a step of the rollback.
    RollbackFails(RollbackStep),
    /// A journal of an earlier migration appears after the container has come home, and is recovered.
    Stale(LastRecord),
    /// A host is restarted and starts its containers by their restart policies.
    Reboot(Side),
}

/// A step of a rollback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RollbackStep {
    /// The container cannot be thawed.
    Thaw,
    /// The container's bridge port cannot be enabled again.
    Reconnect,
    /// The agent can open no more files and sockets.
    Everything,
}

impl RollbackStep {
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
            Self::PageServerKilled => f.write_str("page-server-killed"),
            Self::PageHolderKilled => f.write_str("page-holder-killed"),
            Self::TunnelKilled(side) => write!(f, "tunnel-killed-{}", side.name()),
            Self::FirewallReloaded(side) => write!(f, "firewall-reloaded-{}", side.name()),
            Self::ContainerKilled => f.write_str("container-killed"),
            Self::ContainerExits => f.write_str("container-exits"),
            Self::Rival => f.write_str("rival"),
            Self::Opposite(side) => write!(f, "opposite-kill-{}", side.name()),
            Self::Stranger => f.write_str("stranger"),
            Self::RollbackFails(part) => write!(f, "going-back-fails-{}", part.name()),
            Self::Stale(kind) => write!(f, "stale-{kind}"),
            Self::Reboot(side) => write!(f, "reboot-{}", side.name()),
        }
    }
}

impl Fault {
    /// Returns whether the container may have ended by the fault.
    pub fn may_end_container(self) -> bool {
        matches!(self, Self::ContainerKilled | Self::ContainerExits)
    }

    /// Returns whether the lab cannot be used for another cell afterwards.
    pub fn needs_fresh_lab(self) -> bool {
        matches!(self, Self::DiskFull(..) | Self::Reboot(_) | Self::Stale(_))
    }

    /// Returns whether an agent is killed and so reports nothing.
    pub fn kills_agent(self) -> bool {
        matches!(
            self,
            Self::Kill(_)
                | Self::KillBoth
                | Self::CutAndKill(_)
                | Self::Opposite(_)
                | Self::Reboot(_)
                | Self::RollbackFails(RollbackStep::Thaw)
        )
    }

    /// Returns whether the hosts must be exactly as before if the container has not moved.
    pub(super) fn is_comparable(self) -> bool {
        !matches!(
            self,
            // A reload creates every interface again.
            Self::FirewallReloaded(_)
                | Self::Rival
                | Self::Opposite(_)
                | Self::Stale(_)
                | Self::Reboot(_)
        )
    }

    /// Returns whether the fault takes time while the container is interrupted.
    pub(super) fn lengthens_interruption(self) -> bool {
        matches!(self, Self::Rival | Self::Opposite(_) | Self::Stranger | Self::Stale(_))
    }
}
