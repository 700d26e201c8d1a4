//! Orders that concern flows of containers that have moved: each is carried out here, and told to the hosts that
//! carry the flows as well.

mod end_flows;
mod end_forwarding;

pub use self::end_flows::{FarEnd, FlowChoice, end_flows};
pub use self::end_forwarding::end_forwarding;

/// An order that was carried out on this host.
#[derive(Debug)]
pub struct Done {
    /// What was done, or what was asked for.
    pub told: String,
    /// What another host could not be told of, each a whole sentence with what to do.
    pub left: Vec<String>,
}

impl From<String> for Done {
    fn from(told: String) -> Self {
        Self { told, left: Vec::new() }
    }
}
