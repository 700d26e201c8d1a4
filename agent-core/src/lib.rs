//! What both agents share: the wire protocol, identities, the journal and the directories.
//!
//! ```text
//! TLS ─▶ preamble ─▶ frame ─▶ message   (wire, message)
//! key, peers, join tokens               (trust)
//! host ID, peer numbers                 (id, identity)
//! phases of a migration, on disk        (journal)
//! one owner for each container          (container_lock)
//! what a peer may do here              (permissions)
//! flows while no agent is at work       (keeper, carried, forward)
//! ```

pub mod aliases;
pub mod carried;
pub mod cause;
pub mod container_lock;
pub mod deadline;
pub mod destination;
pub mod directories;
pub mod ended;
pub mod forward;
pub mod guardian;
pub mod host;
pub mod id;
pub mod identity;
pub mod journal;
pub mod keeper;
pub mod log;
pub mod marks;
pub mod message;
pub mod notes;
pub mod opened;
pub mod peer_lock;
pub mod peers;
pub mod permissions;
pub mod private;
pub mod trust;
pub mod turn;
pub mod wire;
