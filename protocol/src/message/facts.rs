//! What the destination compares the copy with.
//!
//! Facts are texts below the name of a kind, so that a new kind changes no form. A receiver refuses a kind
//! that it does not know: an agent sends one only to an agent that names the kind's capability, and compares
//! only kinds that both read.

use serde::{Deserialize, Serialize};
use state::peer_text::PeerText;

/// A part of what the kernel tells of the frozen original.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The facts by their kinds, such as `limits`.
    pub kinds: Vec<FactsOfKind>,
    /// Whether this is the last part.
    pub is_last: bool,
}

/// Facts of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactsOfKind {
    /// The kind's name.
    pub kind: String,
    /// The facts, in the order of their objects.
    pub facts: Vec<Fact>,
}

/// A fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// What the fact is about, such as `Max open files of process 7`.
    pub object: String,
    /// The value.
    pub value: String,
}

/// A fact in which the copy differs from the original.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The kind's name.
    pub kind: String,
    /// What the fact is about.
    pub object: PeerText,
    /// The original's value; `None` where only the copy has the fact.
    pub original: Option<PeerText>,
    /// The copy's value; `None` where only the original has the fact.
    pub copy: Option<PeerText>,
}

/// The configuration of a container's network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// What has to be equal, by its kinds, such as `network-route`.
    pub configuration: Vec<NetworkFactsOfKind>,
    /// Kernel parameters, which the destination sets.
    pub parameters: Vec<Parameter>,
}

/// Facts about a network namespace, of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkFactsOfKind {
    /// The kind's name.
    pub kind: String,
    /// The facts.
    pub facts: Vec<NetworkFact>,
}

/// A fact about a network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkFact {
    /// Whether no engine makes such an object.
    pub is_own: bool,
    /// The object with all of its properties.
    pub text: String,
}

/// A kernel parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameter {
    /// The file below `/proc/sys/net`.
    pub name: String,
    /// The value.
    pub value: String,
    /// Whether the value differs from that of a fresh namespace on the source.
    pub is_changed: bool,
}

/// The destination's part of the interruption. Times are in microseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// From the `Restore` message to the order to the runtime.
    pub entries_us: u64,
    /// From the order to the runtime until it exited.
    pub restore_us: u64,
    /// Setting what CRIU does not restore, and comparing the copy with the original.
    pub compare_us: u64,
    /// In what the copy differs from the original.
    pub differences: Vec<Difference>,
}
