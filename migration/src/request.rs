//! What is to be moved, and how.

pub mod publish;
mod volume_policies;

use std::num::NonZeroUsize;
use std::time::Duration;

use protocol::wire::BulkOptions;
use state::peer_address::Destination;

pub use publish::Publish;
pub use volume_policies::{VolumePolicies, VolumePolicy};

/// An order to move a container.
#[derive(Clone, Debug)]
pub struct Request {
    /// Name or ID of a running container on this host.
    pub container: String,
    /// Where agent-server runs.
    pub destination: Destination,
    /// How to go about it.
    pub options: Options,
}

/// How a migration goes about it.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to do if the destination lacks the container's image.
    pub image: ImagePolicy,
    /// The longest interruption. A move that would take longer is refused or goes back.
    pub max_interruption: Duration,
    /// Whether this host goes on leading new connections to its published ports to the container.
    pub forward: bool,
    /// Whether chains of others that drop packets of its flows get rules that let these pass.
    pub open_firewall: bool,
    /// What to publish at the destination, in place of what is published here; nothing for the same.
    pub publish: Vec<Publish>,
    /// Which address it gets on its network at the destination.
    pub address: AddressPolicy,
    /// How packets of its flows get from this host to the destination.
    pub tunnel: TunnelChoice,
    /// What may be lost, where nobody can tell beforehand whether there is any.
    pub accepted_losses: Vec<Loss>,
    /// What becomes of the container's volumes.
    pub volumes: VolumePolicies,
    /// What becomes of the systemd unit that runs the container.
    pub unit: UnitPolicy,
    /// How memory gets to the destination.
    pub memory: MemoryMode,
    /// How long memory may take that goes over once the container is frozen.
    pub downtime_limit: Duration,
    /// What follows if it would take longer.
    pub non_converging: NonConverging,
    /// How the image, the first pass over files and the rounds of memory are sent.
    pub bulk: BulkOptions,
    /// Over how many connections these are sent.
    pub streams: NonZeroUsize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            image: ImagePolicy::Send,
            max_interruption: state::deadline::INTERRUPTION,
            forward: false,
            open_firewall: false,
            publish: Vec::new(),
            address: AddressPolicy::Keep,
            tunnel: TunnelChoice::WireGuard,
            accepted_losses: Vec::new(),
            volumes: VolumePolicies::default(),
            unit: UnitPolicy::Found,
            memory: MemoryMode::Auto,
            downtime_limit: DOWNTIME,
            non_converging: NonConverging::GoOn,
            bulk: BulkOptions::default(),
            streams: NonZeroUsize::MIN,
        }
    }
}

/// What to do if the destination lacks the container's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePolicy {
    /// Ship it while the container runs.
    Send,
    /// Refuse to move.
    Require,
}

/// How long memory may take that goes over once the container is frozen, unless the user says otherwise: what hypervisors
/// allow.
pub const DOWNTIME: Duration = Duration::from_millis(300);

/// What follows if a container writes its memory faster than it goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonConverging {
    /// The rest goes over once the container is frozen, however long that takes.
    GoOn,
    /// The move goes back.
    GoBack,
    /// The container is slowed down, step by step, until the rest is small. The move goes back if that does not help.
    Throttle,
    /// The rest goes over after the decision, while the copy runs.
    PostCopy,
}

/// How memory gets to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryMode {
    /// While the container runs, if there is much of it and both hosts can.
    Auto,
    /// While the container is frozen.
    Stop,
    /// While the container runs. The move is refused where that cannot be.
    PreCopy,
    /// After the decision, while the copy runs: page by page as it needs them, and the others in order. The source is needed
    /// until all have arrived. The move is refused where that cannot be.
    PostCopy,
    /// Once while the container runs, and what it writes meanwhile after the decision, as by `PostCopy`.
    Hybrid,
}

/// What becomes of the systemd unit that runs the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitPolicy {
    /// The destination's unit of that name runs the container from then on. The move is refused if it has none.
    Found,
    /// The same, and a destination that has none gets the files of this host's, if it allows that.
    Carry,
    /// A container that a unit runs is not moved.
    Refuse,
}

/// How packets get to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelChoice {
    /// Encrypted, over any network.
    WireGuard,
    /// As they are, unencrypted, to a host on the same Ethernet segment, which has to allow it.
    Direct,
}

/// Which address the container gets at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressPolicy {
    /// Its own; the move is refused if that is taken.
    Keep,
    /// Another one if its own is taken; its connections go on.
    Any,
}

/// What a container may lose without anybody being able to tell beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Restrictions by Landlock (landlock(7)) that processes have put themselves under.
    Landlock,
}
