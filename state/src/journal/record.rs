//! The records of a journal.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::id::{HostId, MigrationId};

/// A running container, as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The process ID of the container's first process.
    pub pid: i32,
    /// The absolute path of its network namespace.
    pub namespace: PathBuf,
    /// The container's side of the veth pair.
    pub interface: String,
    /// When the first process was started, in clock ticks since boot. It distinguishes the process from a later
    /// one with the same ID. 0 in a journal of an earlier version.
    #[serde(default)]
    pub started: u64,
    /// The process ID of the engine's monitor (conmon); 0 if there is none.
    #[serde(default)]
    pub monitor: i32,
}

/// One step that is about to be taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "record")]
pub enum Record {
    /// The source is about to change something for the first time.
    Departure {
        /// The migration.
        migration: MigrationId,
        /// The container's ID.
        container: String,
        /// The container's name, for people.
        name: String,
        /// The container's addresses, by which its flows are found.
        addresses: Vec<IpAddr>,
        /// The destination as the user wrote it, to dial again.
        destination: String,
        /// The destination's identity.
        peer: HostId,
        /// When the migration began, in seconds since 1970.
        #[serde(default)]
        began: u64,
    },
    /// The source is about to hold the container's packets, disconnect it and freeze it.
    Interruption {
        /// The absolute path of the container's cgroup.
        cgroup: PathBuf,
        /// The host's side of the container's veth pair.
        port: String,
        /// What recovery needs to let the container run on without asking its engine.
        process: Process,
    },
    /// The source is about to change how much of the processors the original may use.
    CpuLimit {
        /// The limits as they were, in the form of `cpu.max`: of the container's own cgroup, then of the one above if it
        /// is the container's alone.
        original: Vec<String>,
        /// The limits as they will be.
        set: Vec<String>,
    },
    /// **The commit point.** The copy is prepared. From here on the original never runs again, whatever
    /// crashes.
    Committed {
        /// The time of the decision, in seconds since 1970.
        #[serde(default)]
        at: u64,
    },
    /// Memory goes over after the decision. A source writes it before its commit record, a destination before the copy is
    /// prepared.
    PostCopy,
    /// The destination's engine runs the container, and pages of its memory are still on the source alone.
    PagesOutstanding,
    /// All pages of the memory have arrived at the destination.
    PagesWhole,
    /// The container has ended at the destination before all pages of its memory had arrived: none is wanted any more.
    EndedIncomplete,
    /// The destination has acknowledged; the original is about to be removed.
    Acknowledged,
    /// A person has ordered that the original run again, although the destination has not answered
    /// since the commit record.
    Withdrawn,
    /// The destination is about to make something for the first time.
    Arrival {
        /// The migration.
        migration: MigrationId,
        /// The container's ID.
        container: String,
        /// The container's name, for people.
        name: String,
        /// The container's addresses, by which the entries made for its flows are found.
        addresses: Vec<IpAddr>,
        /// The source's identity.
        peer: HostId,
        /// The source's name or address, for people.
        #[serde(default)]
        source: String,
        /// When the migration began, in seconds since 1970.
        #[serde(default)]
        began: u64,
    },
    /// The container has other addresses at the destination.
    Readdressed {
        /// The addresses, by which the entries made for its flows are found.
        addresses: Vec<IpAddr>,
    },
    /// The destination is about to make a tunnel to a third host, the anchor of some flows.
    Anchor {
        /// The third host's identity.
        peer: HostId,
    },
    /// The source keeps these volumes of the container when the move is decided.
    KeptVolumes {
        /// The volumes' names, each with the time at which it was made, in the engine's words.
        volumes: BTreeMap<String, String>,
    },
    /// The destination is about to receive the files of volumes.
    VolumeFiles {
        /// The absolute path of the directory that is made for them, and for nothing else.
        directory: PathBuf,
    },
    /// The destination is about to make a volume.
    NewVolume {
        /// The volume's name.
        name: String,
        /// Whether it goes with the container that it is made for.
        is_anonymous: bool,
        /// The absolute path of the directory that will have its files.
        data: PathBuf,
    },
    /// The destination has made a volume.
    MadeVolume {
        /// The volume's name.
        name: String,
        /// When it was made, in the engine's words: a later volume of the name differs in it.
        created: String,
    },
    /// The destination is about to replace the files of a volume that an earlier move of the container has left.
    LeftVolume {
        /// The volume's name.
        name: String,
        /// The absolute path of the directory that has its files.
        data: PathBuf,
        /// That directory's inode as it was before.
        inode: u64,
    },
    /// The source is about to keep the systemd unit of the container from starting another one here.
    GuardedUnit {
        /// The unit's name.
        unit: String,
    },
    /// The destination is about to start the systemd unit of the container, without the unit's own command.
    ArrivingUnit {
        /// The unit's name.
        unit: String,
        /// Whether an earlier move has left it guarded, as it is to be again if this one goes back.
        was_guarded: bool,
        /// The absolute paths of the files that are written to make the unit.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        files: Vec<PathBuf>,
    },
    /// The destination is about to activate the copy: it is the container now.
    Activated,
    /// The destination's engine runs the container; the journal is kept as a memory of the migration.
    HandedOver {
        /// The process ID of the container's first process.
        pid: i32,
        /// Addresses of far ends on this host whose flows have become local.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        local: Vec<IpAddr>,
    },
    /// The original's restart policy was changed, so that its engine does not start it: the move is decided and
    /// in doubt, and the host was restarted.
    Disarmed {
        /// The former policy, in the form of the engine's command line.
        policy: String,
    },
    /// The source's engine is about to record the original as paused: the move is decided and in doubt, and the
    /// engine would restart the original otherwise.
    Paused,
    /// The copy was activated, and is gone. What it acknowledged to others is lost with it, so its source may not
    /// go back by itself.
    Lost,
}
