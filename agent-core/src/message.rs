//! The messages of a migration. `docs/protocol.md` draws their order.
//!
//! Every message has a number that never changes its meaning; 0 is never sent. A number that this
//! version does not know is refused, not skipped: both sides have agreed on
//! [`VERSION`](crate::wire::VERSION) before the first message, so an unknown number means a bug or
//! an attack.
//!
//! ```text
//! source                                    destination
//!   Hello ─────────────────────────────────▶
//!         ◀───────────────────────────────── Hello
//!   Expect ────────────────────────────────▶           may start podman, which waits
//!   Offer ─────────────────────────────────▶           checks, changes nothing
//!         ◀───────────────────────────────── Verdict
//!   TunnelOffer ───────────────────────────▶
//!         ◀───────────────────────────────── TunnelAnswer
//!   [ImageBegin ImageData* ImageEnd ───────▶
//!         ◀───────────────────────────────── ImageStored]
//!   [Anchor ───────────────────────────────▶           a tunnel to each other anchor
//!         ◀───────────────────────────────── TunnelAnswer]
//!   Stage ─────────────────────────────────▶           podman waits in the shim
//!         ◀───────────────────────────────── Staged
//!   LogData* (TreeChange* TreeEnd) per tree ─▶
//!         ◀───────────────────────────────── TreeApplied
//!   AskTurn ───────────────────────────────▶           until it is free
//!         ◀───────────────────────────────── TurnAnswer
//!   Chunks AskTurn ────────────────────────▶           the runtime waits in front of CRIU
//!         ◀───────────────────────────────── TurnAnswer
//!   ── interruption begins ──
//!   Chunks* Flows* LogData* (TreeChange* TreeEnd)* ▶
//!   Restore ───────────────────────────────▶           prepared, isolated copy
//!         ◀───────────────────────────────── Prepared
//!   ── commit record on the source's disk ──
//!   Commit ────────────────────────────────▶           copy audible
//!         ◀───────────────────────────────── Committed
//!   ── interruption ends ──
//!   Finish ────────────────────────────────▶           podman owns the container
//!         ◀───────────────────────────────── Finished
//! ```
//!
//! In place of any answer the destination may send `Failure` and drop all it made; before `Commit`
//! the source may send `Abort`. A source that lost its connection after the commit record dials
//! again, says `Hello` and `Resume`, and goes on with `Commit`.
//!
//! Flows whose anchor is a third host are led from there to the destination without the source in
//! between. The source talks to the agent-server of each such anchor:
//!
//! ```text
//! source                                    anchor
//!   Hello, AnchorOffer ────────────────────▶
//!         ◀───────────────────────────────── Hello, TunnelAnswer
//!   TunnelOffer (the destination's end) ───▶
//!         ◀───────────────────────────────── AnchorReady
//!   ── once the container runs at the destination, over this or a new connection ──
//!   Rehome (or Abort) ─────────────────────▶           marks lead to the destination
//!         ◀───────────────────────────────── Rehomed (or Aborted)
//! ```
//!
//! When all of them have answered, and nothing can be on its way by the source any more, it says `LedPast`
//! to the destination, which keeps the tunnel between the two until then.
//!
//! A host that forwards new connections for a container to its new host, and is told to end that, says
//! so there: `Hello`, `ForwardEnd`; the answers are `Hello`, `ForwardEnded`.

use std::fmt;
use std::net::IpAddr;

use checkpoint::images::{Chunk, Manifest};
use checkpoint::podman::Metadata;
use checkpoint::tree::Record;
use netmig::flow::{Flow, Protocol, StandIn};
use netmig::tunnel::{DirectEnd, Kind, LocalEnd};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::identity::HostId;
use crate::trust::Secret;

/// Random identity of one migration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MigrationId(pub [u8; 16]);

impl MigrationId {
    /// A new one, from the kernel's random source.
    pub fn random() -> std::io::Result<Self> {
        crate::identity::random_id().map(Self)
    }
}

impl fmt::Display for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MigrationId({self})")
    }
}

/// A message could not be put into bytes, or bytes are no message.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The number is unknown to this protocol version.
    #[error("message number {0} is unknown")]
    UnknownKind(u8),
    /// The bytes behind the number are not that message.
    #[error("malformed {kind} message")]
    Malformed {
        /// The message's name.
        kind: &'static str,
        /// What the decoder said.
        #[source]
        source: bincode::error::DecodeError,
    },
    /// There are bytes left behind the message.
    #[error("{0} message is longer than its content")]
    TrailingBytes(&'static str),
    /// The message could not be encoded.
    #[error("cannot encode a {kind} message")]
    Unencodable {
        /// The message's name.
        kind: &'static str,
        /// What the encoder said.
        #[source]
        source: bincode::error::EncodeError,
    },
}

/// One place that ties a message to its number: the enum, its encoder and its decoder.
macro_rules! messages {
    ($($(#[$doc:meta])* $number:literal => $name:ident($body:ty),)*) => {
        /// One frame of the conversation between two agents.
        #[derive(Debug)]
        pub enum Message {
            $($(#[$doc])* $name($body),)*
        }

        impl Message {
            /// The message's number on the wire.
            #[must_use]
            pub fn number(&self) -> u8 {
                match self { $(Self::$name(_) => $number,)* }
            }

            /// The message's name, for errors and logs.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self { $(Self::$name(_) => stringify!($name),)* }
            }

            /// Appends number and body to `out`.
            pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
                out.push(self.number());
                match self {
                    $(Self::$name(body) => encode_body(stringify!($name), body, out),)*
                }
            }

            /// Reads a message from the whole of `bytes`.
            pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
                let (&number, body) = bytes.split_first().ok_or(CodecError::UnknownKind(0))?;
                match number {
                    $($number => decode_body(stringify!($name), body).map(Self::$name),)*
                    unknown => Err(CodecError::UnknownKind(unknown)),
                }
            }
        }
    };
}

messages! {
    /// Who is speaking; the first message of both sides.
    1 => Hello(Hello),
    /// Something failed at the far end; it has undone its part.
    2 => Failure(Failure),
    /// What is to be moved, and what it needs.
    3 => Offer(Box<Offer>),
    /// Whether the destination can take it.
    4 => Verdict(Verdict),
    /// The source's end of the tunnel.
    5 => TunnelOffer(TunnelEnd),
    /// The destination's end of the tunnel.
    6 => TunnelAnswer(TunnelEnd),
    /// An image archive follows.
    7 => ImageBegin(ImageRef),
    /// A piece of the image archive.
    8 => ImageData(Data),
    /// The image archive is complete.
    9 => ImageEnd(()),
    /// The image is in the destination's store under its name.
    10 => ImageStored(()),
    /// Build everything around the offered container, short of its processes. The third hosts that are
    /// ready to lead their flows there; those of others go by the source.
    11 => Stage(Vec<HostId>),
    /// The container is staged. Addresses that it has in place of those that were offered, each after
    /// the one that it replaces.
    12 => Staged(Vec<(IpAddr, IpAddr)>),
    /// A change of a tree.
    13 => TreeChange(TreeChange),
    /// All changes of a tree have been sent.
    14 => TreeEnd(TreeEnd),
    /// The changes of the tree's first pass are applied.
    15 => TreeApplied(Tree),
    /// Pieces of checkpoint images.
    16 => Chunks(Vec<Chunk>),
    /// Flows that the destination has to know before the container speaks.
    17 => Flows(FlowBatch),
    /// All is there: restore, and keep the copy isolated.
    18 => Restore(Manifest),
    /// The copy is restored and isolated.
    19 => Prepared(Prepared),
    /// The copy is now the container.
    20 => Commit(MigrationId),
    /// The copy is audible.
    21 => Committed(()),
    /// Hand the container over to the engine.
    22 => Finish(()),
    /// The engine runs the container.
    23 => Finished(Finished),
    /// Drop everything made for this migration.
    24 => Abort(MigrationId),
    /// Everything made for this migration is gone.
    25 => Aborted(()),
    /// The source is back after a lost connection and wants to commit.
    26 => Resume(MigrationId),
    /// The prepared copy is still there.
    27 => Resumed(()),
    /// The next bytes of the container's log.
    28 => LogData(Data),
    /// The end of a tunnel at a third host, which is the anchor of flows.
    29 => Anchor(AnchorTunnel),
    /// To an anchor: a container whose flows it leads to this source is about to move on.
    30 => AnchorOffer(AnchorOffer),
    /// The anchor and the destination hear each other.
    31 => AnchorReady(()),
    /// To an anchor: the container has moved.
    32 => Rehome(Rehome),
    /// So many flows are led to the container's new host.
    33 => Rehomed(u64),
    /// Somebody who was invited wants to be paired.
    34 => Join(Join),
    /// The hosts are paired.
    35 => Joined(Joined),
    /// May this container be interrupted now, as far as the destination is concerned?
    36 => AskTurn(()),
    /// Whether it may; if so, the destination lets no further one be interrupted meanwhile.
    37 => TurnAnswer(bool),
    /// New connections for the container with this ID are not led to the receiver by the sender any
    /// more.
    38 => ForwardEnd(String),
    /// The receiver has heard it.
    39 => ForwardEnded(()),
    /// To the destination: every anchor leads the container's flows past the sender.
    40 => LedPast(MigrationId),
    /// A container is about to be offered under this number: the destination may make ready.
    41 => Expect(MigrationId),
}

/// Introduction of an agent.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Its host name, to show to people.
    pub name: String,
    /// Version of the software, to show to people.
    pub software: String,
}

/// What an invited host presents.
#[derive(Debug, Serialize, Deserialize)]
pub struct Join {
    /// The token's secret.
    pub secret: Secret,
    /// The host's name, from which the server makes one for it.
    pub name: String,
}

/// The answer to a valid [`Join`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Joined {
    /// The server's host name, from which the client makes one for it.
    pub name: String,
    /// What the server calls the client.
    pub called: String,
}

/// Classes of failures, for exit codes and for what the source does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureCode {
    /// Something unexpected.
    Internal,
    /// A message that does not belong here, or nonsense in one.
    Protocol,
    /// A step failed: the engine, the runtime, CRIU or the kernel refused.
    Step,
    /// A name, address or port is taken.
    Conflict,
    /// A wait ran out.
    Deadline,
    /// The migration that is spoken of does not exist here; no copy of it does.
    Unknown,
    /// The agent is stopping.
    Stopping,
    /// The agent has too much to do already.
    Busy,
    /// The far end is paired with this host, but may not do that.
    NotAllowed,
    /// The token is not, or no longer, one with which this host may join.
    Token,
}

/// Why the far end gave up. Its copy of the container, if it had one, no longer exists.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// The class.
    pub code: FailureCode,
    /// A whole sentence for people, with the tail of CRIU's log where that helps.
    pub message: String,
}

/// An image of the engine's store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// The image's ID, 64 hexadecimal digits.
    pub id: String,
    /// The name under which the container refers to it.
    pub name: String,
}

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address of the host that it is published on; `None` for all.
    pub host_address: Option<IpAddr>,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the container.
    pub container_port: u16,
}

/// A network of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The engine's name for it.
    pub name: String,
    /// The container's addresses in it.
    pub addresses: Vec<IpAddr>,
}

/// What podman needs to build the container anew. The destination judges by this, and builds
/// nothing else.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Description {
    /// podman's own configuration of the container, JSON.
    #[serde(with = "serde_bytes")]
    pub config: Vec<u8>,
    /// The OCI runtime specification, JSON.
    #[serde(with = "serde_bytes")]
    pub spec: Vec<u8>,
    /// The network status, JSON: it keeps addresses and MACs.
    #[serde(with = "serde_bytes")]
    pub network_status: Vec<u8>,
}

impl From<Description> for Metadata {
    fn from(Description { config, spec, network_status }: Description) -> Self {
        Self { config, spec, network_status }
    }
}

impl From<Metadata> for Description {
    fn from(Metadata { config, spec, network_status }: Metadata) -> Self {
        Self { config, spec, network_status }
    }
}

/// A host that leads new connections for a container to its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarder {
    /// The host.
    pub host: HostId,
    /// Addresses by which they come, where these differ from the container's own: each before the one
    /// that it stands for.
    pub readdressed: Vec<(IpAddr, IpAddr)>,
}

/// What is to be moved, and what it needs at the destination.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Offer {
    /// The migration.
    pub migration: MigrationId,
    /// The container's ID, 64 hexadecimal digits.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// Its image.
    pub image: ImageRef,
    /// Whether the source will ship a missing image.
    pub image_shipped: bool,
    /// Name of its OCI runtime.
    pub runtime: String,
    /// Hosts that will lead new connections for it to its new host; the source may be among them.
    pub forwarders: Vec<Forwarder>,
    /// Its networks.
    pub networks: Vec<Network>,
    /// Whether it may get other addresses if one of its own is taken.
    pub any_address: bool,
    /// If its flows are to come without a tunnel: the largest packet, in bytes, that the source's segment
    /// carries.
    pub direct: Option<u32>,
    /// Its published ports.
    pub ports: Vec<Port>,
    /// Hosts other than the source that are anchors of its flows. The destination may be among them:
    /// then the container comes back.
    pub anchors: Vec<HostId>,
    /// Memory in use, in bytes.
    pub memory: u64,
    /// Bytes of the files that it changed.
    pub disk: u64,
    /// What podman builds it from.
    pub description: Description,
    /// CRIU's version at the source.
    pub criu: (u32, u32, u32),
    /// Machine architecture, as `uname -m` prints it.
    pub architecture: String,
    /// Processor features that its processes may have come to rely on.
    pub cpu_flags: Vec<String>,
}

/// Images need more room than the memory in use: the kernel's side of each socket takes some
/// kilobytes and its queues up to megabytes. It is a limit on a file system in memory, which takes
/// only what is written to it.
const IMAGE_ROOM: u64 = 1024 * 1024 * 1024;

impl Offer {
    /// Room for checkpoint images, in bytes: no source may ask for more.
    #[must_use]
    pub fn image_room(&self) -> u64 {
        self.memory.saturating_mul(2).saturating_add(IMAGE_ROOM)
    }
}

/// One reason against a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// Stable short name in kebab case.
    pub code: String,
    /// A whole sentence: what is in the way, and what to do.
    pub message: String,
}

/// What the destination thinks of an offer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// Everything that is in the way; empty if the container can come.
    pub blockers: Vec<Blocker>,
    /// Whether the image has to be shipped.
    pub image_missing: bool,
}

/// One end of a tunnel, or of a direct way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelEnd {
    /// How the other end reaches it.
    pub means: Means,
    /// `wireguard` (the kernel's), `wireguard-go` or `direct`, to show to people.
    pub kind: String,
}

/// How packets reach the end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Means {
    /// Encrypted, in UDP packets.
    WireGuard {
        /// Public key.
        public_key: [u8; 32],
        /// UDP port it listens on.
        port: u16,
    },
    /// As they are, in frames on a segment that both hosts are on.
    Direct(DirectEnd),
}

impl TunnelEnd {
    /// Whether packets go to it without encryption.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        matches!(self.means, Means::Direct(_))
    }
}

impl From<LocalEnd> for TunnelEnd {
    fn from(LocalEnd { public_key, port, kind, .. }: LocalEnd) -> Self {
        Self { means: Means::WireGuard { public_key, port }, kind: kind.to_string() }
    }
}

impl From<DirectEnd> for TunnelEnd {
    fn from(end: DirectEnd) -> Self {
        Self { means: Means::Direct(end), kind: Kind::Direct.to_string() }
    }
}

/// A third host's end of a tunnel to the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnchorTunnel {
    /// The third host.
    pub host: HostId,
    /// Its address.
    pub address: IpAddr,
    /// Its end.
    pub end: TunnelEnd,
}

/// A container that moves on, for the anchor of its flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnchorOffer {
    /// The migration.
    pub migration: MigrationId,
    /// The destination.
    pub host: HostId,
    /// The destination's address.
    pub address: IpAddr,
    /// The container's ID.
    pub id: String,
    /// The container's addresses, which may be others than it had on the anchor.
    pub container: Vec<IpAddr>,
}

/// A container that has moved on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehome {
    /// The migration.
    pub migration: MigrationId,
    /// The container's host now.
    pub host: HostId,
    /// The container's ID.
    pub id: String,
    /// The container's addresses, which may be others than it had on the anchor.
    pub container: Vec<IpAddr>,
}

/// Flows of one anchor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowBatch {
    /// The anchor, or the next host on the way there; `None` for the source itself.
    pub anchor: Option<HostId>,
    /// The source's entries.
    pub flows: Vec<Flow>,
    /// What the source's gateways are in the tunnel, as far as they are the other end of a flow.
    pub stand_ins: Vec<StandIn>,
}

/// Bytes of an archive.
#[derive(Debug, Serialize, Deserialize)]
pub struct Data(#[serde(with = "serde_bytes")] pub Vec<u8>);

/// A directory tree that is carried beside the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Tree {
    /// What the container changed in its root filesystem.
    Root,
    /// Its `/dev/shm`.
    SharedMemory,
}

/// A change of a tree.
#[derive(Debug, Serialize, Deserialize)]
pub struct TreeChange {
    /// Which tree.
    pub tree: Tree,
    /// What changed.
    pub record: Record,
}

/// The end of a pass over a tree.
#[derive(Debug, Serialize, Deserialize)]
pub struct TreeEnd {
    /// Which tree.
    pub tree: Tree,
    /// [Hash](checkpoint::tree::Digest) of all changes of this pass.
    pub digest: [u8; 16],
}

/// The destination's part of the interruption, in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// From the `Restore` message to the order to the runtime.
    pub entries_us: u64,
    /// From the order to the runtime until it exited.
    pub restore_us: u64,
}

/// The end of a migration, as the destination sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finished {
    /// Process ID of the container's first process on the destination.
    pub pid: i32,
    /// Datagrams that its sockets' buffers could not take so far.
    pub full_buffers: u64,
}

/// No message may decode into more than this; collections are checked against it before they are
/// allocated.
const DECODE_LIMIT: usize = crate::wire::FRAME_LIMIT * 2;

fn encode_body<T: Serialize>(
    kind: &'static str,
    body: &T,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    bincode::serde::encode_into_std_write(body, out, bincode::config::standard())
        .map(drop)
        .map_err(|source| CodecError::Unencodable { kind, source })
}

fn decode_body<T: DeserializeOwned>(kind: &'static str, body: &[u8]) -> Result<T, CodecError> {
    let config = bincode::config::standard().with_limit::<DECODE_LIMIT>();
    let (value, read) = bincode::serde::decode_from_slice(body, config)
        .map_err(|source| CodecError::Malformed { kind, source })?;
    if read == body.len() { Ok(value) } else { Err(CodecError::TrailingBytes(kind)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(message: &Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn messages_come_back_as_they_were_sent() {
        let id = MigrationId([7; 16]);
        let bytes = encoded(&Message::Commit(id));
        assert_eq!(bytes[0], 20);
        assert!(matches!(Message::decode(&bytes), Ok(Message::Commit(back)) if back == id));
    }

    #[test]
    fn unknown_numbers_are_refused() {
        for number in [0, 42, 200, 255] {
            let refused = Message::decode(&[number, 0, 0]);
            assert!(matches!(refused, Err(CodecError::UnknownKind(n)) if n == number));
        }
        assert!(matches!(Message::decode(&[]), Err(CodecError::UnknownKind(0))));
    }

    #[test]
    fn truncated_and_padded_messages_are_refused() {
        let mut bytes = encoded(&Message::Commit(MigrationId([7; 16])));
        assert!(Message::decode(&bytes[..bytes.len() - 1]).is_err());
        bytes.push(0);
        assert!(matches!(Message::decode(&bytes), Err(CodecError::TrailingBytes("Commit"))));
    }

    #[test]
    fn a_claimed_length_is_not_believed() {
        // ImageData whose byte count claims 2^60: refused before anything is allocated.
        let mut bytes = vec![8, 253];
        bytes.extend((1u64 << 60).to_le_bytes());
        assert!(matches!(Message::decode(&bytes), Err(CodecError::Malformed { .. })));
    }
}
