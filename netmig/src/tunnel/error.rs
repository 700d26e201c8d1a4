//! What can go wrong with the way to a peer.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use super::{DEADLINE, Kind};
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
    /// An interface was refused.
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
    /// An interface with the tunnel's name exists, and is something else.
    #[error("interface {interface} is not a tunnel of netmig's ({kind}); rename or remove it")]
    NotOurs {
        /// Name of the interface.
        interface: String,
        /// What it is.
        kind: String,
    },
    /// There is another way to the peer already.
    #[error(
        "the way to the peer, {interface}, is {kind}, and flows may need it; move with --tunnel {}, \
         or wait until the last of them has ended (agent-client flows)",
        kind.option()
    )]
    OtherWay {
        /// Name of the interface.
        interface: String,
        /// What it is.
        kind: Kind,
    },
    /// A peer that is not on a segment of this host's, or not so that packets can be steered to it.
    #[error("{address} cannot be reached directly: {reason}; move with --tunnel wireguard")]
    NotOnLink {
        /// The peer's address.
        address: IpAddr,
        /// Why not.
        reason: String,
    },
    /// The tunnel does not exist.
    #[error("there is no tunnel {interface}; prepare it first")]
    NotPrepared {
        /// Name of the interface.
        interface: String,
    },
    /// Neither the kernel nor `wireguard-go` makes a WireGuard interface.
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
    /// `wireguard-go` gave up.
    #[error("wireguard-go could not make {interface} ({status}): {said}")]
    Userspace {
        /// Name of the interface.
        interface: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it printed.
        said: String,
    },
    /// `wireguard-go` is still there though its interface is gone.
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
    /// Settings were taken and are not there.
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
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The other end is silent.
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
    /// A kernel setting of the interface could not be changed.
    #[error("cannot write {}", path.display())]
    Setting {
        /// The file under `/proc/sys`.
        path: PathBuf,
        /// The file system's answer.
        #[source]
        source: io::Error,
    },
    /// Routing towards the peer failed.
    #[error("cannot route packets into {interface}")]
    Routing {
        /// Name of the interface.
        interface: String,
        /// What went wrong.
        #[source]
        source: routing::Error,
    },
    /// Something did not happen in time.
    #[error("{interface} took longer than {} s to {action}", DEADLINE.as_secs())]
    Deadline {
        /// What was to be done.
        action: &'static str,
        /// Name of the interface.
        interface: String,
    },
}
