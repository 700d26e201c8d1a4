//! A migration: what the source and the destination do, and what recovers one whose process has died.
//!
//! Whoever orders a move calls [`source::run`] with a [`Request`] and hears of it by [`Event`]s. Nothing
//! here reads a command line, prints, or ends the process.
//!
//! | module | purpose |
//! | --- | --- |
//! | [`request`] | what is to be moved, and how |
//! | [`source`] | one move, step by step |
//! | [`destination`] | conversations with sources, step by step |
//! | [`flow_orders`] | ends flows, or the forwarding of new connections, of containers that have moved |
//! | [`recovery`] | undoes or finishes moves whose process has died |
//! | [`offer`] | what a source offers |
//! | [`convert`] | all of this to and from the protocol's own types |
//! | [`state_stream`] | a container's state on its way: to a peer, to a file and from it |
//! | [`event`] | what is told meanwhile |
//! | [`report`] | what is told at the end |

mod anchor;
pub mod cancel;
pub mod connect;
pub mod context;
pub mod convert;
pub mod destination;
pub mod event;
pub mod flow_orders;
mod kept_volumes;
pub mod offer;
pub mod offered_service;
pub mod offered_volume;
pub mod recovery;
pub mod report;
pub mod request;
pub mod source;
pub mod state_stream;

pub use cancel::Cancel;
pub use context::{Background, Context};
pub use event::Event;
pub use report::{Outcome, Report};
pub use request::Request;
pub use source::Failure;
