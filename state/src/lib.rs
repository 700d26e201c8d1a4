//! A host's files about its migrations, and what its agents share on one machine.
//!
//! ```text
//! directories and files in them         (directories, private_file, versioned_file, notes)
//! identities of hosts and migrations    (id)
//! phases of a migration, on disk        (journal)
//! one owner for each container          (container_lock)
//! whose rules in the kernel are in use   (migration_lock)
//! one interruption at a time            (interrupt_slot)
//! a process that outlives an agent      (guardian)
//! addresses of other agents             (peer_address)
//! what peers say, fit to be shown       (peer_text, log)
//! ```

pub mod blocker;
mod byte_lock;
pub mod cause;
pub mod container_lock;
pub mod deadline;
pub mod directories;
pub mod guardian;
pub mod host;
pub mod id;
pub mod interrupt_slot;
pub mod journal;
pub mod json_files;
mod lock_holder;
pub mod log;
pub mod migration_lock;
pub mod peer_address;
pub mod peer_text;
pub mod private_file;
pub mod versioned_file;
