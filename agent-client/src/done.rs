//! What an order has done on this host, and what is left to do on others.

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
