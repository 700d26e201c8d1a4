//! What a host keeps of its migrations on disk, and what its agents share on one machine.
//!
//! ```text
//! directories, private files, notes     (directories, private_file, notes)
//! identities of hosts and migrations    (id)
//! phases of a migration, on disk        (journal)
//! one owner for each container          (container_lock)
//! one interruption at a time            (interrupt_slot)
//! a process that outlives an agent      (guardian)
//! what peers say, fit to be shown       (peer_text, log)
//! ```

pub mod blocker;
pub mod cause;
pub mod container_lock;
pub mod deadline;
pub mod directories;
pub mod guardian;
pub mod host;
pub mod id;
pub mod interrupt_slot;
pub mod journal;
pub mod log;
pub mod notes;
pub mod peer_text;
pub mod private_file;
