//! How long each wait may last. Every wait of both agents has one of these.

use std::time::Duration;

/// Resolving a name, opening the TCP connection, exchanging preambles.
pub const CONNECT: Duration = Duration::from_secs(5);
/// Other agents of this host that are changing tunnels or the table: longer than any of them may
/// take for one of these.
pub const LOCK: Duration = Duration::from_secs(40);
/// The answer to a question that needs no slow work at the far end.
pub const ANSWER: Duration = Duration::from_secs(20);
/// One write of a frame into the connection: the far end must take data in this time.
pub const SEND: Duration = Duration::from_secs(20);
/// No packet at all of a far end: it cannot be reached.
pub const SILENCE: Duration = Duration::from_secs(30);
/// Loading an image into the destination's engine.
pub const IMAGE: Duration = Duration::from_secs(600);
/// Staging the container at the destination.
pub const STAGE: Duration = Duration::from_secs(60);
/// One pass over the changed files of a container.
pub const TREE: Duration = Duration::from_secs(600);
/// How long the destination waits for the next message while the source works through its steps.
/// The longest of these is a transfer of an image out of a slow disk.
pub const NEXT_MESSAGE: Duration = Duration::from_secs(600);
/// Other migrations that are interrupted before this one. What is staged waits so long.
pub const TURN: Duration = Duration::from_secs(120);
/// Other containers that are being staged on the destination, before this one is staged beside them.
pub const PLACE: Duration = Duration::from_secs(15);
/// Removing the original, and staging, while other containers of the host are interrupted.
pub const GIVE_WAY: Duration = Duration::from_secs(2);
/// The container's datagram queues getting shorter, once nothing more arrives.
pub const DRAIN: Duration = Duration::from_millis(50);
/// The same until they are empty, as long as they do get shorter.
pub const DRAIN_ALL: Duration = Duration::from_millis(500);
/// Connections that are being set up, or wait to be accepted, to be accepted by the container. Only new
/// connections wait meanwhile.
pub const BACKLOG: Duration = Duration::from_secs(1);
/// All tasks of the container frozen.
pub const FREEZE: Duration = Duration::from_secs(2);
/// The interruption as a whole, unless the user says otherwise.
pub const INTERRUPTION: Duration = Duration::from_secs(5);
/// How long a prepared copy waits for the source to come back with its decision.
pub const LEASE: Duration = Duration::from_secs(60);
/// How long the source asks for an acknowledgement of its commit before it calls the move in doubt.
pub const COMMIT: Duration = Duration::from_secs(90);
