//! Maximum durations. Every wait of both agents has one of these.

use std::time::Duration;

/// Resolving a name, opening the TCP connection, TLS, exchanging preambles.
pub const CONNECT: Duration = Duration::from_secs(5);
/// Waiting for other agents of this host that change tunnels or the table: longer than any of them may take for
/// one of these changes.
pub const LOCK: Duration = Duration::from_secs(40);
/// An answer that needs no slow work on the other host.
pub const ANSWER: Duration = Duration::from_secs(20);
/// Sending one frame: the other host has to take the data in this time.
pub const SEND: Duration = Duration::from_secs(20);
/// No packet from the other host: it counts as unreachable after this time.
pub const SILENCE: Duration = Duration::from_secs(30);
/// Loading an image into the destination's engine.
pub const IMAGE: Duration = Duration::from_secs(600);
/// Staging the container at the destination.
pub const STAGE: Duration = Duration::from_secs(60);
/// One pass over the changed files of a container.
pub const TREE: Duration = Duration::from_secs(600);
/// The destination's wait for the next message while the source works through its steps. The longest step is
/// the transfer of an image from a slow disk.
pub const NEXT_MESSAGE: Duration = Duration::from_secs(600);
/// Waiting for other migrations that are interrupted before this one. The staged container waits this long.
pub const TURN: Duration = Duration::from_secs(120);
/// Waiting for other containers that are being staged on the destination; then this one is staged beside them.
pub const PLACE: Duration = Duration::from_secs(15);
/// The delay of removing the original, and of staging, while other containers of the host are interrupted.
pub const GIVE_WAY: Duration = Duration::from_secs(2);
/// Datagram queues of the container that do not get shorter although no more datagrams arrive.
pub const DRAIN: Duration = Duration::from_millis(50);
/// Emptying the container's datagram queues, as long as they get shorter.
pub const DRAIN_ALL: Duration = Duration::from_millis(500);
/// Accepting connections that are being established or wait in a listener's queue. Only new connections are
/// held meanwhile.
pub const BACKLOG: Duration = Duration::from_secs(1);
/// Freezing all tasks of the container.
pub const FREEZE: Duration = Duration::from_secs(2);
/// The interruption as a whole, unless the user says otherwise.
pub const INTERRUPTION: Duration = Duration::from_secs(5);
/// The lease of a prepared copy: how long it waits for the source's decision.
pub const LEASE: Duration = Duration::from_secs(60);
/// How long the source asks for an acknowledgement of its commit before the move counts as in doubt.
pub const COMMIT: Duration = Duration::from_secs(90);
