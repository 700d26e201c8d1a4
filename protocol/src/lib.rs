//! The protocol between two agents, and the pairing of their hosts.
//!
//! ```text
//! TLS ─▶ preamble ─▶ frame ─▶ message   (wire, message)
//! key, peers, join tokens               (trust)
//! what a peer may do here               (permissions)
//! ```

pub mod message;
pub mod permissions;
pub mod trust;
pub mod wire;
