//! What the destination does: it serves the conversations of paired hosts.
//!
//! ```text
//! conversation ─▶ incoming_migration ─▶ admission ─▶ Arrival (tunnel, image, stage, receive) ─▶ Copy ─▶ the container
//!                                       │            │                                           │
//!                                       refused      undone                                      removed by Abort or lease
//! ```

mod addresses;
mod admission;
mod anchors;
mod arrival;
mod available_memory;
mod claimed_flows;
mod conversation;
mod copy;
mod counted_flows;
mod decision;
mod end_flows;
pub(crate) mod following_memory;
mod image_import;
mod incoming_migration;
mod lease;
pub(crate) mod outstanding_pages;
mod page_relay;
mod permission_check;
pub(crate) mod prepared_stage;
mod receive_buffers;
mod received_state;
pub(crate) mod refusal;
pub(crate) mod server_context;
pub(crate) mod service;
mod settlement;
mod silent_connections;
pub(crate) mod spool;
mod streams;
mod verify_copy;
pub(crate) mod volumes;
pub(crate) mod work_directory;

pub use conversation::converse;
pub use lease::Copies;
pub use outstanding_pages::watch_all;
pub use server_context::ServerContext;
