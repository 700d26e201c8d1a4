//! What the destination does: it serves the conversations of paired hosts.
//!
//! ```text
//! conversation ─▶ offer ─▶ admission ─▶ Arrival (tunnel, image, stage, receive) ─▶ Copy ─▶ the container
//!                          │            │                                           │
//!                          refused      undone                                      removed by Abort or lease
//! ```

mod addresses;
mod admission;
mod anchor_role;
mod anchors;
mod arrival;
mod claimed_flows;
mod comparison;
mod conversation;
mod copy;
mod decision;
mod end_flows;
mod host;
mod image_import;
mod incoming;
mod lease;
mod offer;
mod permission_check;
pub(crate) mod prepared_stage;
mod receive_buffers;
mod refusal;
mod silent_connections;
pub(crate) mod spool;
mod streams;
pub(crate) mod work_directory;

pub use conversation::converse;
pub use host::Host;
pub use lease::Copies;
