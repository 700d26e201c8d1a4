//! Errors of the tunnel to a peer.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use super::{DEADLINE, Kind};
use crate::path_trial::DropRule;
use crate::routing;

/// Why a tunnel could not be built, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The interface has gone.
    #[error("the tunnel {interface} has gone; was wireguard-go killed, or the interface removed?")]
    Lost {
        /// Its name.
        interface: String,
    },
    /// A netlink socket could not be opened.
    #[error("cannot open a netlink socket for interfaces")]
    Socket(#[source] io::Error),
    /// The kernel refused an operation on an interface.
    #[error("cannot {action} interface {interface}")]
    Interface {
        /// `look up`, `create`, `configure`, `remove`.
        action: &'static str,
        /// Name of the interface.
        interface: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// An interface has the tunnel's name and is something else.
    #[error("interface {interface} is not a tunnel of netmig ({kind}); rename or remove it")]
    NotOurs {
        /// Name of the interface.
        interface: String,
        /// Its kind.
        kind: String,
    },
    /// There is a tunnel of another kind to the peer.
    #[error(
        "the tunnel to the peer, {interface}, is {kind}, and flows may need it; move with --tunnel {}, \
         or wait until the last of them has ended (agent-client flows)",
        kind.option()
    )]
    OtherWay {
        /// Name of the interface.
        interface: String,
        /// What it is.
        kind: Kind,
    },
    /// The peer is not on a segment of this host, or packets cannot be steered to it there.
    #[error("{address} cannot be reached directly: {reason}; move with --tunnel wireguard")]
    NotOnLink {
        /// The peer's address.
        address: IpAddr,
        /// The reason.
        reason: String,
    },
    /// The tunnel does not exist.
    #[error("there is no tunnel {interface}; prepare it first")]
    NotPrepared {
        /// Name of the interface.
        interface: String,
    },
    /// Neither the kernel nor `wireguard-go` provides a WireGuard interface.
    #[error(
        "cannot run wireguard-go for {interface}, and the kernel has no WireGuard; load the \
         wireguard module or install wireguard-go"
    )]
    NoWireGuard {
        /// Name of the interface.
        interface: String,
        /// Why `wireguard-go` did not start.
        #[source]
        source: io::Error,
    },
    /// `wireguard-go` failed.
    #[error("wireguard-go could not make {interface} ({status}): {said}")]
    Userspace {
        /// Name of the interface.
        interface: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of its output.
        said: String,
    },
    /// `wireguard-go` is still running though its interface is gone.
    #[error("process {pid} (wireguard-go of {interface}) does not end; kill it")]
    Lingers {
        /// Name of the interface.
        interface: String,
        /// The process.
        pid: i32,
    },
    /// Keys, port or peer could not be set or read.
    #[error("cannot {action} the WireGuard settings of {interface}")]
    Settings {
        /// What was to be done with them.
        action: &'static str,
        /// Name of the interface.
        interface: String,
        /// The answer of the kernel or of `wireguard-go`.
        #[source]
        source: io::Error,
    },
    /// Settings were accepted and are gone.
    #[error("{interface} did not keep its WireGuard settings; is something else changing it?")]
    NotKept {
        /// Name of the interface.
        interface: String,
    },
    /// What the other host sent cannot be a tunnel's end.
    #[error("the other end of {interface} is not usable: {reason}")]
    BadRemote {
        /// Name of the interface.
        interface: String,
        /// The reason.
        reason: &'static str,
    },
    /// No packet comes from the other end.
    #[error(
        "no answer through {interface}; {}",
        if *kind == Kind::Direct {
            "does a switch or hypervisor between the hosts let each have one hardware address only?"
        } else {
            "does a firewall between the hosts drop UDP to the port that either end chose?"
        }
    )]
    NoAnswer {
        /// Name of the interface.
        interface: String,
        /// What it is.
        kind: Kind,
    },
    /// A firewall of this host drops what it sends to the other end.
    #[error(
        "{} drops what is sent to the other end of the tunnel {interface}; let it accept what leaves by \
         interfaces netmig* and UDP packets for that host",
        rule.as_ref().map_or_else(
            || "a firewall in the output hook (legacy iptables, or a chain of a priority below -150)".to_owned(),
            ToString::to_string
        )
    )]
    OutputBlocked {
        /// Name of the interface.
        interface: String,
        /// The rule or policy, where it is known.
        rule: Option<DropRule>,
    },
    /// A kernel setting of the interface could not be changed.
    #[error("cannot write {}", path.display())]
    Setting {
        /// The file under `/proc/sys`.
        path: PathBuf,
        /// The file system's answer.
        #[source]
        source: io::Error,
    },
    /// The routes to the peer could not be set up.
    #[error("cannot route packets into {interface}")]
    Routing {
        /// Name of the interface.
        interface: String,
        /// What went wrong.
        #[source]
        source: routing::Error,
    },
    /// An operation took too long.
    #[error("{interface} took longer than {} s to {action}", DEADLINE.as_secs())]
    Deadline {
        /// What was to be done.
        action: &'static str,
        /// Name of the interface.
        interface: String,
    },
}

impl Error {
    /// Returns whether packets to or from the other end do not come through, though the tunnel is
    /// as it should be.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        matches!(self, Self::NoAnswer { .. } | Self::OutputBlocked { .. })
    }
}
