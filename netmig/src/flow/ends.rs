//! A flow as its container has it, which is the same on every host but for the container's address.

use std::net::{IpAddr, SocketAddr};

use super::{Direction, Flow, Protocol, Tuple};

/// A flow as its container has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowEnds {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The container's own end. It may have another address on another host.
    pub own: SocketAddr,
    /// The far end.
    pub far: SocketAddr,
}

impl Flow {
    /// Returns the ends of the flow as a container with these addresses has them; `None` if it is not that
    /// container's.
    #[must_use]
    pub fn ends(&self, container: &[IpAddr]) -> Option<FlowEnds> {
        let Tuple { source, source_port, destination, destination_port } =
            match self.direction(container)? {
                Direction::Inbound => self.reply,
                Direction::Outbound => self.original,
            };
        Some(FlowEnds {
            protocol: self.protocol,
            own: SocketAddr::new(source, source_port),
            far: SocketAddr::new(destination, destination_port),
        })
    }
}
