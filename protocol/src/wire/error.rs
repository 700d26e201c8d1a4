//! Errors of the conversation between two agents.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::{OLDEST, VERSION};
use crate::message::{CodecError, Failure, InvalidHello};
use crate::trust::Fingerprint;
use state::cause::Cause;

/// The conversation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name has no address.
    #[error("cannot resolve {host}; check the name, or give an IP address")]
    Resolve {
        /// As the user wrote it.
        host: String,
        /// The resolver's answer.
        #[source]
        source: io::Error,
    },
    /// No server answers at the address.
    #[error("cannot connect to {address}; is agent-server running there, and the port open?")]
    Connect {
        /// Address and port.
        address: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The server's certificate is not that of a paired host.
    #[error(
        "this host is not paired with {peer}: run agent-server invite there, and agent-client join TOKEN here (it shows the fingerprint {shown})"
    )]
    NotPaired {
        /// Address and port.
        peer: SocketAddr,
        /// The fingerprint of its certificate.
        shown: Fingerprint,
    },
    /// The server does not know this host, or does not know it any more.
    #[error(
        "this host is not paired with {peer}, which refuses it (this host's fingerprint is {ours}): run agent-server invite there, and agent-client join TOKEN here"
    )]
    NotKnown {
        /// Address and port.
        peer: SocketAddr,
        /// The fingerprint of this host's certificate.
        ours: Fingerprint,
    },
    /// Another host answers than the expected one.
    #[error(
        "REFUSED: {peer} IS NOT THE HOST IT SHOULD BE. Expected fingerprint {expected}, but it shows {shown}. Somebody may be answering in its place, or it was installed anew; then pair with it again. Nothing was sent to it"
    )]
    OtherHost {
        /// Address and port.
        peer: SocketAddr,
        /// The fingerprint of the expected host's certificate.
        expected: Fingerprint,
        /// The fingerprint of its certificate.
        shown: Fingerprint,
    },
    /// The other host is this host itself.
    #[error("{peer} is this host itself; give the address of another one")]
    SameHost {
        /// Address and port.
        peer: SocketAddr,
    },
    /// The client is not paired with this host.
    #[error("{peer} was refused: it is not paired with this host; its fingerprint is {shown}")]
    Stranger {
        /// Address and port.
        peer: SocketAddr,
        /// The fingerprint of its certificate.
        shown: Fingerprint,
    },
    /// The other host does not accept this host's certificate.
    #[error("{peer} ended the handshake: it does not accept this host's certificate ({alert})")]
    Rejected {
        /// Address and port.
        peer: SocketAddr,
        /// The name of the TLS alert.
        alert: String,
    },
    /// The handshake failed.
    #[error("{peer} was refused: it does not speak TLS 1.3 as a paired agent does")]
    Handshake {
        /// Address and port.
        peer: SocketAddr,
        /// The error of the TLS session.
        #[source]
        source: io::Error,
    },
    /// This host's own key or peers cannot be used.
    #[error("this host's identity or its peers cannot be used")]
    Trust(#[source] Cause),
    /// The server is not an agent.
    #[error("{peer} does not speak netmig's protocol; is that the port of agent-server?")]
    NotAnAgent {
        /// Address and port.
        peer: SocketAddr,
    },
    /// The other host's agent is of an incompatible version.
    #[error(
        "{peer} speaks {} of the protocol, this agent speaks {}; install the same release of netmig on both hosts",
        spoken(*oldest, *newest),
        spoken(OLDEST, VERSION)
    )]
    Version {
        /// Address and port.
        peer: SocketAddr,
        /// The oldest version that it speaks.
        oldest: u16,
        /// The latest version that it speaks.
        newest: u16,
    },
    /// The other host's introduction is not one that an agent sends.
    #[error("{peer} introduced itself in a way that no agent does")]
    Introduction {
        /// Address and port.
        peer: SocketAddr,
        /// What is wrong with the introduction.
        #[source]
        source: InvalidHello,
    },
    /// The other host's agent does not understand a message that this one was about to send.
    #[error(
        "the agent on {peer} does not understand {message} ({capability}); install the same release of netmig on both hosts"
    )]
    NotUnderstood {
        /// Address and port.
        peer: SocketAddr,
        /// The message's name.
        message: &'static str,
        /// The capability that the other host's agent did not name.
        capability: &'static str,
    },
    /// A wait exceeded its deadline.
    #[error("{peer} did not {what} within {} s", limit.as_secs_f32())]
    Deadline {
        /// Address and port.
        peer: SocketAddr,
        /// What the other host did not do.
        what: &'static str,
        /// The deadline.
        limit: Duration,
    },
    /// The other host closed the connection.
    #[error("{peer} closed the connection")]
    Closed {
        /// Address and port.
        peer: SocketAddr,
    },
    /// The kernel reports an error of the connection.
    #[error("the connection to {peer} failed")]
    Io {
        /// Address and port.
        peer: SocketAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A frame is empty, or longer than any agent sends.
    #[error("{peer} sent a frame of {length} bytes, which is too large")]
    FrameLength {
        /// Address and port.
        peer: SocketAddr,
        /// The claimed length.
        length: usize,
    },
    /// A frame is not a message.
    #[error("{peer} sent something that is not a message")]
    Codec {
        /// Address and port.
        peer: SocketAddr,
        /// What is wrong with it.
        #[source]
        source: CodecError,
    },
    /// The other host sent a message that does not belong here.
    #[error("{peer} sent {got} where {wanted} belongs")]
    Unexpected {
        /// Address and port.
        peer: SocketAddr,
        /// The message that came.
        got: &'static str,
        /// The message that belongs here.
        wanted: &'static str,
    },
    /// The other host gave up and says why. What it calls "this host" is itself.
    #[error("{host} says: {}", .failure.message)]
    Failure {
        /// Its name as it was dialled, or its address.
        host: String,
        /// What it said.
        failure: Failure,
    },
}

/// Names the versions that an agent speaks.
fn spoken(oldest: u16, newest: u16) -> String {
    if oldest == newest {
        format!("version {newest}")
    } else {
        format!("versions {oldest} to {newest}")
    }
}
