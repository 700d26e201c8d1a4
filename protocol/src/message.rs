//! The messages of a migration. `docs/protocol.md` draws their order.
//!
//! Every message has a number that never changes its meaning; 0 is never sent. A number that this
//! version does not know is refused, not skipped: both sides have agreed on
//! [`VERSION`](crate::wire::VERSION) before the first message, so an unknown number means a bug or
//! an attack. Texts for people are [`PeerText`], which is harmless to print whoever has written it.
//!
//! ```text
//! source                                    destination
//!   Hello ─────────────────────────────────▶
//!         ◀───────────────────────────────── Hello
//!   Expect ────────────────────────────────▶           may start podman, which waits
//!   Offer ─────────────────────────────────▶           checks, changes nothing
//!         ◀───────────────────────────────── Verdict
//!   [Measure ──────────────────────────────▶           how fast the link is, if there is much memory
//!         ◀───────────────────────────────── Measured]*
//!   TunnelOffer ───────────────────────────▶
//!         ◀───────────────────────────────── TunnelAnswer
//!   [ImageBegin ImageData* ImageEnd ───────▶
//!         ◀───────────────────────────────── ImageStored]
//!   [Anchor ───────────────────────────────▶           a tunnel to each other anchor
//!         ◀───────────────────────────────── TunnelAnswer]
//!   LogData* (TreeChange* TreeEnd) per tree ─▶         kept until there is a container
//!         ◀───────────────────────────────── TreeApplied
//!   NetworkState Stage ────────────────────▶           podman waits in the shim
//!         ◀───────────────────────────────── Staged
//!   [TryPaths ─────────────────────────────▶           packets of flows like those of the container
//!         ◀───────────────────────────────── PathsReady
//!   (AskPaths ─────────────────────────────▶           they have come, and others go back
//!         ◀───────────────────────────────── PathsTried)*
//!   EndPaths] ─────────────────────────────▶
//!   AskTurn ───────────────────────────────▶           if it is not free soon: Unstage, and again
//!         ◀───────────────────────────────── TurnAnswer
//!   Chunks AskTurn ────────────────────────▶           the runtime waits in front of CRIU
//!         ◀───────────────────────────────── TurnAnswer
//!   ── interruption begins ──
//!   Chunks* Flows* LogData* (TreeChange* TreeEnd)* Settings* ▶
//!   Restore Facts* ────────────────────────▶           prepared copy, frozen, cut off, and compared
//!         ◀───────────────────────────────── Prepared
//!   ── commit record on the source's disk ──
//!   Commit ────────────────────────────────▶           copy audible
//!         ◀───────────────────────────────── Committed
//!   ── interruption ends ──
//!   Finish ────────────────────────────────▶           podman owns the container
//!         ◀───────────────────────────────── Finished
//!   [AskSilent ────────────────────────────▶           far ends that the container has not heard
//!         ◀───────────────────────────────── Silent]*
//!   Settled ───────────────────────────────▶           may forget the migration
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
//! to the destination, which keeps the tunnel between the two until then. `Settled` comes last.
//!
//! A user may end flows: `Hello`, `EndFlows`; the answers are `Hello`, `FlowsEnded`.
//!
//! A host that forwards new connections for a container to its new host, and is told to end that, says
//! so there: `Hello`, `ForwardEnd`; the answers are `Hello`, `ForwardEnded`.

mod codec;
mod offer;
mod paths;
mod text;
mod ways;

use std::net::{IpAddr, SocketAddr};

use checkpoint::cgroup::CgroupSetting;
use checkpoint::fingerprint::{Difference, Fingerprint};
use checkpoint::images::{Chunk, Manifest};
use checkpoint::sockets::SocketSettings;
use checkpoint::tasks::TaskSettings;
use checkpoint::tree::Record;
use netmig::configuration::Configuration;
use netmig::flow::{Alias, Flow};
use netmig::sysctl::Parameters;
use serde::{Deserialize, Serialize};

use self::codec::{decode_body, encode_body};
use crate::trust::Secret;
use state::id::HostId;
pub use state::id::MigrationId;
use state::peer_text::PeerText;

pub use self::codec::{CodecError, FRAME_LIMIT};
pub use self::offer::{Forwarder, ImageRef, Network, Offer, Port, Verdict};
pub use self::paths::{MOST_TRIALS, TriedPath};
pub use self::ways::{AnchorOffer, AnchorTunnel, EndFlows, FlowEnds, Means, Rehome, TunnelEnd};

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
    /// The changes of the tree's first pass have arrived whole.
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
    /// To the destination: drop what was staged and keep the rest, since the container cannot be interrupted
    /// yet. Meanwhile the engine there holds a lock.
    42 => Unstage(()),
    /// Nothing is staged.
    43 => Unstaged(()),
    /// To the destination: the sender needs no answer about this migration any more.
    44 => Settled(MigrationId),
    /// What CRIU does not restore and the destination sets on the copy.
    45 => Settings(Settings),
    /// Flows that the receiver carries with the sender are to end.
    46 => EndFlows(EndFlows),
    /// So many have ended.
    47 => FlowsEnded(u64),
    /// What the kernel tells of the frozen original; the copy has to be equal.
    48 => Facts(Facts),
    /// How the original's network namespace is configured; the staged one has to be equal.
    49 => NetworkState(NetworkState),
    /// To the destination, after the engine runs the container: whose far ends has it not heard yet?
    50 => AskSilent(MigrationId),
    /// The container's connections on which nothing came since it was restored.
    51 => Silent(Vec<SilentConnection>),
    /// To the destination, once the container is staged: packets of flows like these are about to come, to try
    /// their ways. The entries are those of the source.
    52 => TryPaths(Vec<Flow>),
    /// It is ready for them, or why it cannot be.
    53 => PathsReady(Option<PeerText>),
    /// They have been sent: what has become of them, and of such as the destination sends back?
    54 => AskPaths(()),
    /// What has, in the order of the flows.
    55 => PathsTried(Vec<TriedPath>),
    /// No more of them come.
    56 => EndPaths(()),
    /// To the destination, after its verdict: bytes of no meaning, to learn how fast they get there.
    57 => Measure(Data),
    /// They are here.
    58 => Measured(()),
}

/// Introduction of an agent.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Its host name, to show to people.
    pub name: PeerText,
    /// Version of the software, to show to people.
    pub software: PeerText,
}

/// What an invited host presents.
#[derive(Debug, Serialize, Deserialize)]
pub struct Join {
    /// The token's secret.
    pub secret: Secret,
    /// The host's name, from which the server makes one for it.
    pub name: PeerText,
}

/// The answer to a valid [`Join`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Joined {
    /// The server's host name, from which the client makes one for it.
    pub name: PeerText,
    /// What the server calls the client.
    pub called: PeerText,
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
    /// No copy of the migration that is spoken of exists here, and none was ever heard.
    Unknown,
    /// The agent is stopping.
    Stopping,
    /// The agent has too much to do already.
    Busy,
    /// The far end is paired with this host, but may not do that.
    NotAllowed,
    /// The token is not, or no longer, one with which this host may join.
    Token,
    /// The copy was heard, and is gone. What it acknowledged to others is lost with it.
    Lost,
}

/// Why the far end gave up. Its copy of the container, if it had one, no longer exists.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// The class.
    pub code: FailureCode,
    /// A whole sentence for people, with the tail of CRIU's log where that helps.
    pub message: PeerText,
}

/// Flows of one anchor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowBatch {
    /// The anchor, or the next host on the way there; `None` for the source itself.
    pub anchor: Option<HostId>,
    /// The source's entries.
    pub flows: Vec<Flow>,
    /// What the source's gateways are in the tunnel, as far as they are the other end of a flow; and
    /// addresses of the destination, if they are.
    pub stand_ins: Vec<Alias>,
    /// Addresses of the destination that are the other end of a flow: such flows become local there.
    pub at_destination: Vec<IpAddr>,
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

/// Settings that are not at their defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Of sockets.
    pub sockets: Vec<SocketSettings>,
    /// Of threads.
    pub tasks: Vec<TaskSettings>,
    /// Of the container's cgroup.
    pub cgroup: Vec<CgroupSetting>,
}

/// The destination's part of the interruption, in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// From the `Restore` message to the order to the runtime.
    pub entries_us: u64,
    /// From the order to the runtime until it exited.
    pub restore_us: u64,
    /// How long the copy's settings and its comparison with the original took, in microseconds.
    pub compare_us: u64,
    /// In what the copy differs from the original, as far as the source has told what that is.
    #[serde(deserialize_with = "text::differences")]
    pub differences: Vec<Difference>,
}

/// How a container's network namespace is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// What has to be equal.
    pub configuration: Configuration,
    /// Kernel parameters, which are set at the destination.
    pub parameters: Parameters,
}

/// A part of an original's fingerprint.
#[derive(Debug, Serialize, Deserialize)]
pub struct Facts {
    /// The part.
    pub part: Fingerprint,
    /// Whether no further one comes.
    pub is_last: bool,
}

/// A connection of a moved container on which nothing came since it was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SilentConnection {
    /// The container's own end.
    pub own: SocketAddr,
    /// The far end, as the container sees it.
    pub far: SocketAddr,
    /// Whether the container has sent something that is not acknowledged.
    pub awaits_answer: bool,
}

/// The end of a migration, as the destination sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finished {
    /// Process ID of the container's first process on the destination.
    pub pid: i32,
    /// Datagrams that its sockets' buffers could not take so far.
    pub full_buffers: u64,
    /// Addresses of the destination, far ends of flows that became local there: the source's entries of
    /// these are needed no more.
    pub local: Vec<IpAddr>,
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
        for number in [0, 59, 200, 255] {
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
