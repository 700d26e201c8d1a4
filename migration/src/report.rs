//! What is told of a migration that reached its end.

use std::net::IpAddr;

use netmig::flow::Readdressed;
use serde::Serialize;

use crate::event::Step;

/// The parts of an interruption, in milliseconds; together they are the whole of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Parts {
    /// Putting the hold's rule in.
    pub hold: f64,
    /// Waiting for the container's datagram queues to run empty.
    pub drain: f64,
    /// Freezing its tasks.
    pub freeze: f64,
    /// Cutting its interface off.
    pub block: f64,
    /// The runtime's checkpoint.
    pub dump: f64,
    /// What of images, files and flows arrived after the dump had ended.
    pub transfer: f64,
    /// The destination's last preparations before the restore.
    pub entries: f64,
    /// The runtime's restore.
    pub restore: f64,
    /// Setting on the copy what CRIU does not restore, and comparing it with the original.
    pub compare: f64,
    /// Commit record, order and acknowledgement.
    pub commit: f64,
    /// Until the first held packets went on.
    pub release: f64,
}

impl Parts {
    /// Returns the parts by name, in order.
    #[must_use]
    pub fn rows(&self) -> [(&'static str, f64); 11] {
        [
            ("hold", self.hold),
            ("drain", self.drain),
            ("freeze", self.freeze),
            ("block", self.block),
            ("dump", self.dump),
            ("transfer", self.transfer),
            ("entries", self.entries),
            ("restore", self.restore),
            ("compare", self.compare),
            ("commit", self.commit),
            ("release", self.release),
        ]
    }

    /// Returns the parts rounded to microseconds: sums of milliseconds have digits that mean nothing.
    #[must_use]
    pub fn rounded(mut self) -> Self {
        for ms in [
            &mut self.hold,
            &mut self.drain,
            &mut self.freeze,
            &mut self.block,
            &mut self.dump,
            &mut self.transfer,
            &mut self.entries,
            &mut self.restore,
            &mut self.compare,
            &mut self.commit,
            &mut self.release,
        ] {
            *ms = (*ms * 1e3).round() / 1e3;
        }
        self
    }
}

/// Flows that were moved.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct FlowCount {
    /// TCP connections.
    pub tcp: usize,
    /// UDP flows.
    pub udp: usize,
}

/// How memory got to the destination.
#[derive(Clone, Debug, Default, Serialize)]
pub struct MemoryReport {
    /// `pre-copy`: in rounds while the container ran. `stop`: with the checkpoint. `post-copy`: after the decision, but for the
    /// rounds before.
    pub mode: &'static str,
    /// Bytes of each round.
    pub rounds: Vec<u64>,
    /// Bytes that went over once it was frozen.
    pub rest: u64,
    /// The longest time for which it stood still in a round, so that the kernel could tell what it had written. 0 where the
    /// kernel tells of a container that runs.
    pub longest_stop_ms: f64,
    /// The fewest processors that it was left so that it would write less, by the part, if it was slowed down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub least_processors: Option<f64>,
    /// Bytes that were outstanding when the move was decided.
    pub outstanding: u64,
    /// Bytes of them for which a process of the container waited, with what is beside them.
    pub waited_for: u64,
    /// How long after the decision the last of them had arrived, in milliseconds; 0 if none was outstanding.
    pub arrived_after_ms: f64,
}

/// An address that the container has in place of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NewAddress {
    /// The one that it had.
    pub from: IpAddr,
    /// The one that it has.
    pub to: IpAddr,
}

impl From<&Readdressed> for NewAddress {
    fn from(Readdressed { old, new, .. }: &Readdressed) -> Self {
        Self { from: *old, to: *new }
    }
}

/// A container, for people.
#[derive(Clone, Debug, Serialize)]
pub struct ContainerName {
    /// Its ID.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// How a migration that reached its end did so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The container runs at the destination; nothing is left behind here.
    Moved,
    /// The container runs at the destination, but something could not be cleaned up here.
    MovedWithLeftovers,
    /// The container runs at the destination, but something that is named did not survive the move.
    MovedWithLosses,
    /// The container runs at the destination, and nothing is known to be lost; but of something that is named it is not
    /// known whether it has survived the move.
    MovedUnverified,
}

/// A migration that reached its end.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// The migration's identity, as it stands in logs.
    pub migration: String,
    /// What was moved.
    pub container: ContainerName,
    /// Where to.
    pub destination: String,
    /// From the start to the end.
    pub total_ms: f64,
    /// From the first held packet to the first released one.
    pub interruption_ms: f64,
    /// What was expected of that before.
    pub forecast_ms: f64,
    /// The steps in order.
    pub steps: Vec<Step>,
    /// The parts of the interruption.
    pub parts_ms: Parts,
    /// Flows moved.
    pub flows: FlowCount,
    /// Bytes of checkpoint images.
    pub checkpoint_bytes: u64,
    /// Memory.
    pub memory: MemoryReport,
    /// Packets that waited in the hold.
    pub held_packets: u64,
    /// `wireguard` (the kernel's) or `wireguard-go`.
    pub tunnel: String,
    /// `native` or `compat`: how packets were queued.
    pub queue: &'static str,
    /// Addresses that are others at the destination.
    pub readdressed: Vec<NewAddress>,
    /// What did not survive the move, each a whole sentence.
    pub lost: Vec<String>,
    /// What may not have survived it, each with the reason why that is not known.
    pub unverified: Vec<String>,
    /// What is left to be done, or was not kept.
    pub warnings: Vec<String>,
}
