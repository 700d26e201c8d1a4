//! The messages of a migration. `docs/protocol.md` draws their order.
//!
//! Every message has a number that never changes its meaning; 0 is never sent. A number that this version
//! does not know is refused, not skipped: both sides have agreed on a version before the first message, and a
//! message beyond it is sent only to an agent that names its capability, so an unknown number means a defect
//! or an attack. The body of a message never changes once it is released ([`crate::wire`] has the policy).
//!
//! The types here are the protocol's own and hold plain values. What the agents work with are other types,
//! into which these are converted, and the conversion checks what a peer has sent. Texts for people are
//! [`PeerText`], which is harmless to print whatever a peer has written.
//!
//! ```text
//! source                                    destination
//!   Hello ─────────────────────────────────▶
//!         ◀───────────────────────────────── Hello
//!   Expect ────────────────────────────────▶           may start podman, which waits
//!   [Volumes ──────────────────────────────▶           the volumes that come with the container]
//!   [Service ──────────────────────────────▶           the systemd unit that is to run the container]
//!   Offer ─────────────────────────────────▶           checks, changes nothing
//!         ◀───────────────────────────────── Verdict
//!   [Measure ──────────────────────────────▶           the link's rate, if there is much memory
//!         ◀───────────────────────────────── Measured]*
//!   TunnelOffer ───────────────────────────▶
//!         ◀───────────────────────────────── TunnelAnswer
//!   [ImageBegin ImageData* ImageEnd ───────▶
//!         ◀───────────────────────────────── ImageStored]
//!   [Anchor ───────────────────────────────▶           a tunnel to each other anchor
//!         ◀───────────────────────────────── TunnelAnswer]
//!   LogData* (TreeChange* TreeEnd) per tree ─▶         kept until there is a container
//!         ◀───────────────────────────────── TreeApplied
//!   [(VolumeChange* VolumeEnd ─────────────▶           once or more for each volume, beside the volumes in use
//!         ◀───────────────────────────────── VolumeApplied)*]
//!   NetworkState Stage ────────────────────▶           podman waits in the shim
//!         ◀───────────────────────────────── Staged
//!   [TryPaths ─────────────────────────────▶           packets of flows like those of the container
//!         ◀───────────────────────────────── PathsReady
//!   (AskPaths ─────────────────────────────▶           they were sent; others are sent back
//!         ◀───────────────────────────────── PathsTried)*
//!   EndPaths] ─────────────────────────────▶
//!   AskTurn ───────────────────────────────▶           if it is not free soon: Unstage, and again
//!         ◀───────────────────────────────── TurnAnswer
//!   [CountPackets ─────────────────────────▶           packets of all flows are to be counted]
//!   Chunks AskTurn ────────────────────────▶           the runtime waits in front of CRIU
//!         ◀───────────────────────────────── TurnAnswer
//!   ── interruption begins ──
//!   Chunks* Flows* LogData* (TreeChange* TreeEnd)* (VolumeChange* VolumeEnd)* Settings* ▶
//!   Restore Facts* ────────────────────────▶           copy restored, frozen, disconnected, compared
//!         ◀───────────────────────────────── Prepared
//!   ── commit record on the source's disk ──
//!   Commit ────────────────────────────────▶           copy runs, connected
//!         ◀───────────────────────────────── Committed
//!   ── interruption ends ──
//!   Finish ────────────────────────────────▶           podman owns the container
//!         ◀───────────────────────────────── Finished
//!   [AskSilent ────────────────────────────▶           connections without a packet since the restore
//!         ◀───────────────────────────────── Silent]*
//!   [AskPassage ───────────────────────────▶           packets of each flow
//!         ◀───────────────────────────────── Passage]*
//!   Settled ───────────────────────────────▶           may forget the migration
//! ```
//!
//! In place of any answer the destination may send `Failure` and remove all it made; before `Commit` the source may send `Abort`. A
//! source that lost its connection after the commit record dials again, sends `Hello` and `Resume`, and goes on with `Commit`.
//!
//! Flows whose anchor is a third host are led from there to the destination. The source talks to each such anchor's agent:
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
//! When all have answered, and no packet can be on its way by the source any more, the destination hears `LedPast`.
//!
//! Bulk data (the image, the first pass over files) may come over further connections of the source, each of which
//! begins with `Hello` and `Attach`; the answers are `Hello` and `Attached`.
//!
//! Memory may go over after the decision (post-copy). Before the interruption the source opens two connections, one for pages
//! that a process waits for, and one for the others. `MemoryLater` names these pages during the interruption:
//!
//! ```text
//! source                                    destination
//!   Hello, ServeMemory ────────────────────▶
//!         ◀───────────────────────────────── Hello, ServingMemory
//!   ── once the copy is restored, over this or a new connection ──
//!        [◀───────────────────────────────── MemoryWanted
//!   MemoryPages* MemorySent ───────────────▶]*         or MemoryGone: the copy is ended
//!         ◀───────────────────────────────── MemoryWhole
//! ```
//!
//! A user may end flows (`EndFlows`, `FlowsEnded`), or the forwarding of new connections (`ForwardEnd`, `ForwardEnded`).

mod address;
mod codec;
mod counted_flow;
mod data;
pub mod description;
pub mod facts;
mod failure;
pub mod flow;
mod hello;
mod image;
#[cfg(test)]
mod message_tests;
mod offer;
mod pairing;
mod passage;
mod path_trial;
#[cfg(test)]
mod peer_text_tests;
mod service;
mod settings;
mod shared_memory;
mod tree;
mod tunnel;
mod volume;

use std::net::IpAddr;

use state::id::HostId;
use state::peer_text::PeerText;

use self::codec::{decode_body, encode_body};

pub use state::id::MigrationId;

pub use self::codec::{CodecError, FRAME_LIMIT};
pub use self::counted_flow::{CountedFlow, DATAGRAMS, FlowCount, PacketCount};
pub use self::data::{Data, Numbered};
pub use self::facts::{Facts, NetworkState, Prepared};
pub use self::failure::{Failure, FailureCode};
pub use self::flow::{EndFlows, Flow, FlowBatch, FlowEnds, SilentConnection};
pub use self::hello::{
    CAPABILITIES, Hello, Introduction, InvalidHello, LEAN_MEMORY, MEMORY, POST_COPY,
};
pub use self::image::{
    Chunk, EmptyPages, EmptyRun, FileSum, LaterPages, Manifest, MemoryPages, MemoryRun,
    ServeMemory, WANTED_BYTES, WANTED_RANGES, WantedPages,
};
pub use self::offer::{Blocker, Finished, Forwarder, ImageRef, Network, Offer, Port, Verdict};
pub use self::pairing::{Join, Joined};
pub use self::passage::{AskPassage, FlowPassage, PASSAGE};
pub use self::path_trial::{DropRule, Fate, MAX_TRIALS, TriedPath};
pub use self::service::{SERVICES, Service, UnitFile};
pub use self::settings::{
    CgroupSetting, Membership, Settings, SocketOption, SocketSettings, TaskSettings,
};
pub use self::shared_memory::{SHARED_MEMORY, SharedEmpty, SharedPages, SharedSegment};
pub use self::tree::{
    EntryKind, ExtendedAttribute, Metadata, Tree, TreeChange, TreeDigest, TreeEnd, TreeRecord,
};
pub use self::tunnel::{AnchorOffer, AnchorTunnel, Rehome, Transport, TunnelEnd};
pub use self::volume::{VOLUMES, Volume, VolumeChange, VolumeEnd, VolumeMount};

/// The one place that ties a message to its number, and to the capability that it needs, if any: the enum,
/// its encoder and its decoder. A message that needs a capability is written
/// `59 => Name(Body) needs "capability",`.
macro_rules! messages {
    ($($(#[$doc:meta])* $number:literal => $name:ident($body:ty) $(needs $capability:literal)?,)*) => {
        /// One frame of the conversation between two agents.
        #[derive(Debug)]
        pub enum Message {
            $($(#[$doc])* $name($body),)*
        }

        impl Message {
            /// All messages by their numbers and names.
            pub const ALL: &[(u8, &str)] = &[$(($number, stringify!($name)),)*];

            /// Returns the message's number on the wire.
            #[must_use]
            pub fn number(&self) -> u8 {
                match self { $(Self::$name(_) => $number,)* }
            }

            /// Returns the message's name, for errors and logs.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self { $(Self::$name(_) => stringify!($name),)* }
            }

            /// Returns the capability that the receiver has to name; `None` if every agent of a compatible
            /// version knows the message.
            #[must_use]
            pub fn capability(&self) -> Option<&'static str> {
                match self { $(Self::$name(_) => messages!(@ $($capability)?),)* }
            }

            /// Appends number and body to `out`.
            ///
            /// # Errors
            /// [`CodecError::Unencodable`], if the body has no wire form.
            pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
                out.push(self.number());
                match self {
                    $(Self::$name(body) => encode_body(stringify!($name), body, out),)*
                }
            }

            /// Reads a message from the whole of `bytes`.
            ///
            /// # Errors
            /// [`CodecError`], if the number is unknown or the body is not that of the message, decodes into
            /// too much, or is followed by something.
            pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
                let (&number, body) = bytes.split_first().ok_or(CodecError::UnknownKind(0))?;
                match number {
                    $($number => decode_body(stringify!($name), body).map(Self::$name),)*
                    unknown => Err(CodecError::UnknownKind(unknown)),
                }
            }
        }
    };
    (@) => { None };
    (@ $capability:literal) => { Some($capability) };
}

messages! {
    /// The sender introduces itself; the first message of both sides.
    1 => Hello(Hello),
    /// Something failed on the other host; it has undone its part.
    2 => Failure(Failure),
    /// What is to be moved, and what it needs.
    3 => Offer(Box<Offer>),
    /// Whether the destination can take the container.
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
    /// Builds everything around the offered container, without its processes. Names the third hosts that are
    /// ready to lead their flows to the destination; the flows of other hosts go by the source.
    11 => Stage(Vec<HostId>),
    /// The container is staged. Names the addresses that it has in place of offered ones, each after the
    /// one that it replaces.
    12 => Staged(Vec<(IpAddr, IpAddr)>),
    /// A change of a tree.
    13 => TreeChange(TreeChange),
    /// All changes of a tree have been sent.
    14 => TreeEnd(TreeEnd),
    /// All changes of the tree's first pass have arrived.
    15 => TreeApplied(Tree),
    /// Pieces of checkpoint images.
    16 => Chunks(Vec<Chunk>),
    /// Flows that the destination has to know before the container sends anything.
    17 => Flows(FlowBatch),
    /// Everything was sent: restores the copy and keeps it isolated.
    18 => Restore(Manifest),
    /// The copy is restored and isolated.
    19 => Prepared(Prepared),
    /// The decision: the copy is now the container.
    20 => Commit(MigrationId),
    /// The copy runs and is connected.
    21 => Committed(()),
    /// Hands the container over to the engine.
    22 => Finish(()),
    /// The engine runs the container.
    23 => Finished(Finished),
    /// Removes everything made for this migration.
    24 => Abort(MigrationId),
    /// Everything made for this migration is removed.
    25 => Aborted(()),
    /// The source is back after a lost connection, to commit.
    26 => Resume(MigrationId),
    /// The prepared copy is still there.
    27 => Resumed(()),
    /// The next bytes of the container's log.
    28 => LogData(Data),
    /// A third host's end of a tunnel to the destination. The third host is the anchor of flows.
    29 => Anchor(AnchorTunnel),
    /// To an anchor: a container whose flows the anchor leads to the sender is about to move on.
    30 => AnchorOffer(AnchorOffer),
    /// The anchor and the destination hear each other.
    31 => AnchorReady(()),
    /// To an anchor: the container has moved.
    32 => Rehome(Rehome),
    /// The number of flows that are led to the container's new host now.
    33 => Rehomed(u64),
    /// An invited host asks to be paired.
    34 => Join(Join),
    /// The hosts are paired.
    35 => Joined(Joined),
    /// Asks whether the destination has a turn for interrupting this container now.
    36 => AskTurn(()),
    /// Whether it has. If so, the turn is this container's until its migration ends.
    37 => TurnAnswer(bool),
    /// The sender does not lead new connections for the container with this ID to the receiver any more.
    38 => ForwardEnd(String),
    /// The receiver has taken note of it.
    39 => ForwardEnded(()),
    /// To the destination: no anchor leads flows of the container by way of the sender any more.
    40 => LedPast(MigrationId),
    /// A container is about to be offered in this migration: the destination may get ready.
    41 => Expect(MigrationId),
    /// To the destination: removes what was staged and keeps the rest, because the container cannot be
    /// interrupted yet and the engine holds the container's lock while it is staged.
    42 => Unstage(()),
    /// Nothing is staged.
    43 => Unstaged(()),
    /// To the destination: the sender will not ask about this migration any more.
    44 => Settled(MigrationId),
    /// Settings that CRIU does not restore and that the destination sets on the copy.
    45 => Settings(Settings),
    /// Ends flows that the receiver and the sender carry together.
    46 => EndFlows(EndFlows),
    /// The number of flows that were ended.
    47 => FlowsEnded(u64),
    /// What the kernel tells of the frozen original; the copy has to be equal.
    48 => Facts(Facts),
    /// The configuration of the original's network namespace; the staged one has to be equal.
    49 => NetworkState(NetworkState),
    /// To the destination, once the engine runs the container: asks for connections that are silent.
    50 => AskSilent(MigrationId),
    /// The container's connections on which nothing was received since the restore.
    51 => Silent(Vec<SilentConnection>),
    /// To the destination, once the container is staged: packets of flows like these are about to come, to try
    /// their ways. The entries are those of the source.
    52 => TryPaths(Vec<Flow>),
    /// The destination is ready for them, or the reason why it cannot be.
    53 => PathsReady(Option<PeerText>),
    /// The packets were sent: the destination sends others back, and tells what became of both.
    54 => AskPaths(()),
    /// What became of them, in the order of the flows.
    55 => PathsTried(Vec<TriedPath>),
    /// No more of these packets come.
    56 => EndPaths(()),
    /// To the destination, after its verdict: bytes without meaning, to measure the link's rate.
    57 => Measure(Data),
    /// The bytes have arrived.
    58 => Measured(()),
    /// Another message, number and body, as one zstd frame. Any message may come in this form.
    59 => Compressed(Data) needs "zstd",
    /// Makes this connection a further one of the conversation about this migration, for bulk data.
    60 => Attach(MigrationId) needs "streams",
    /// It is one.
    61 => Attached(()) needs "streams",
    /// The message with this number comes next, over a further connection.
    62 => Elsewhere(u64) needs "streams",
    /// Another message, with its number. Only over a further connection.
    63 => Numbered(Numbered) needs "streams",
    /// To the destination, once the container is staged: counts packets of these flows until the conversation ends.
    64 => CountFlows(Vec<CountedFlow>) needs "datagrams",
    /// To the destination, once the engine runs the container: asks how many packets there were.
    65 => AskCounts(MigrationId) needs "datagrams",
    /// The packets of each flow, in the order of the flows; `None` if that is not known.
    66 => FlowCounts(Option<Vec<FlowCount>>) needs "datagrams",
    /// Memory of the container, while it runs and once it is frozen.
    67 => MemoryPages(MemoryPages) needs "memory",
    /// Memory of the container that has nothing but zeros, as `MemoryPages`.
    80 => EmptyPages(EmptyPages) needs "lean-memory",
    /// Memory of the frozen container that is sent once the destination asks for it.
    85 => MemoryLater(LaterPages) needs "post-copy",
    /// The first message of a connection over which the destination asks for such memory.
    86 => ServeMemory(ServeMemory) needs "post-copy",
    /// To the source: asks for pages. `MemoryPages` with all of them follow, then `MemorySent`.
    87 => MemoryWanted(Vec<WantedPages>) needs "post-copy",
    /// All pages that were asked for have been sent, as far as they are there.
    88 => MemorySent(()) needs "post-copy",
    /// To the destination: the original does not stand still any more, so its memory cannot be had.
    89 => MemoryGone(()) needs "post-copy",
    /// To the source: no page is wanted any more. Whether all have arrived; otherwise the container has ended before.
    90 => MemoryWhole(bool) needs "post-copy",
    /// To the source: this host can put pages in place later, and asks for them over this connection.
    91 => ServingMemory(()) needs "post-copy",
    /// Before the offer: the volumes that come with the container.
    95 => Volumes(Vec<Volume>) needs "volumes",
    /// A change of a volume's files.
    96 => VolumeChange(VolumeChange) needs "volumes",
    /// All changes of a pass over a volume have been sent.
    97 => VolumeEnd(VolumeEnd) needs "volumes",
    /// All changes of a pass over this volume have arrived, and are on the disk.
    98 => VolumeApplied(u16) needs "volumes",
    /// To the destination, after `Staged` or `Finished`: counts packets of all flows of the container with these addresses.
    110 => CountPackets(Vec<IpAddr>) needs "passage",
    /// To the destination, after `Finished`: asks how many packets of flows there were.
    111 => AskPassage(AskPassage) needs "passage",
    /// The packets of each flow, in the order of the flows; `None` if that is not known.
    112 => Passage(Option<Vec<FlowPassage>>) needs "passage",
    /// Shared memory of the container, while it runs and once it is frozen.
    123 => SharedPages(SharedPages) needs "shared-memory",
    /// Shared memory of the container that has nothing but zeros, as `SharedPages`.
    124 => SharedEmpty(SharedEmpty) needs "shared-memory",
    /// What the segments of which such pages came have in the end. Comes once, when the container is frozen.
    125 => SharedEnd(Vec<SharedSegment>) needs "shared-memory",
    /// Before the offer: the systemd unit that runs the container, and is to run it at the destination.
    130 => Service(Service) needs "services",
}
