//! The tunnel to a peer: one interface, `netmigP`. It is a WireGuard tunnel or, on request and if
//! both hosts are on one Ethernet segment, a [`direct`] tunnel without encryption.
//!
//! The kernel's WireGuard is used if it exists, otherwise `wireguard-go`, a process that drives a
//! TUN interface and outlives the agent. Both are configured by `wireguard-control`.
//!
//! Two hosts build a tunnel in two steps each: [`prepare`] creates the interface with its key pair
//! and its port, which travel to the other host over the agents' own, authenticated connection;
//! then [`connect`] takes what came from there. Both may be repeated at any time. [`establish`]
//! then starts a session, and [`confirm`] at both ends proves that they receive each other's
//! packets.
//!
//! - Allowed addresses are all: connmarks and [`routing`] alone decide what enters the tunnel.
//! - The interface has the MTU of the underlay, but at least Ethernet's. Moved flows have
//!   negotiated their segment sizes for it, and a far end may never receive an ICMP error; so the
//!   outer packets are fragmented.
//! - The interface has a link-local IPv4 address (169.254.77.P): without any, loose reverse path
//!   filtering drops all IPv4 packets that come out of it (`__fib_validate_source`,
//!   `net/ipv4/fib_frontend.c`).

mod config;
mod device;
pub mod direct;
mod error;
mod handshake;
mod output_trace;
mod saved_tunnel;
mod userspace;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use rtnetlink::Handle;

use crate::netlink::rtnetlink as rtnl;
use crate::peer_number::{INTERFACE_PREFIX, PeerNumber};
use crate::routing;

pub use direct::{DirectEnd, HardwareAddress};
pub use error::Error;
pub use saved_tunnel::SavedTunnel;

/// Longest duration of any call here.
pub const DEADLINE: Duration = Duration::from_secs(15);
/// `wireguard-go` creates its interface milliseconds before its control socket, and removes the
/// socket before the interface. A busy machine makes that longer.
const IN_THE_MAKING: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(5);

/// The kind of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The kernel's WireGuard.
    Kernel,
    /// `wireguard-go`, on a TUN interface.
    Userspace,
    /// No encryption: packets are sent to the peer's hardware address as they are.
    Direct,
}

impl Kind {
    /// Returns the value of `agent-client migrate --tunnel` for this kind.
    #[must_use]
    pub fn option(self) -> &'static str {
        match self {
            Self::Kernel | Self::Userspace => "wireguard",
            Self::Direct => "direct",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kernel => "wireguard",
            Self::Userspace => "wireguard-go",
            Self::Direct => "direct",
        })
    }
}

/// This host's end of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEnd {
    /// Public key; the private one never leaves the interface.
    pub public_key: [u8; 32],
    /// UDP port on which it listens, on all addresses.
    pub port: u16,
    /// The kind of the tunnel.
    pub kind: Kind,
    /// Whether it existed before, with that key.
    pub reused: bool,
}

/// The other host's end of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteEnd {
    /// Its public key.
    pub public_key: [u8; 32],
    /// Address and port on which it listens.
    pub endpoint: SocketAddr,
}

/// How the host checks that a packet's source is reachable by the interface on which it came (RFC
/// 3704).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceCheck {
    /// No check on the tunnel.
    Off,
    /// Loose: `net.ipv4.conf.all.rp_filter` forbids less. Every IPv4 source that arrives by the
    /// tunnel needs some route on this host, or its packets are dropped.
    Loose,
}

/// A connected tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    /// Largest packet that enters the tunnel, in bytes.
    pub mtu: u32,
    /// Largest packet of the tunnel itself that reaches the other host unfragmented, in bytes.
    pub underlay: u32,
    /// How IPv4 sources without a route are treated.
    pub source_check: SourceCheck,
    /// Whether the interface had to be changed.
    pub changed: bool,
}

/// The current state of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The kind of the tunnel.
    pub kind: Kind,
    /// Address of the other host, once connected.
    pub address: Option<IpAddr>,
    /// UDP port on which it listens; 0 when it is down, and without WireGuard.
    pub port: u16,
    /// Public key of this end; all zero when it has none.
    pub public_key: [u8; 32],
    /// The other end of a WireGuard tunnel, once connected.
    pub remote: Option<RemoteEnd>,
    /// Time of the last handshake. One takes place when a packet is to be sent, and about every two
    /// minutes while packets flow.
    pub last_handshake: Option<SystemTime>,
    /// A counter that grows whenever a packet comes from the other end.
    pub heard: u64,
}

/// Creates this host's end of the tunnel to `peer`, or takes the existing one.
///
/// A new one gets a new key pair; both listen on a port that the kernel chooses.
///
/// # Errors
/// Any except [`Error::BadRemote`] and [`Error::Routing`].
pub async fn prepare(peer: PeerNumber) -> Result<LocalEnd, Error> {
    in_time("prepare", peer.interface(), async {
        let handle = rtnl::connect().map_err(Error::Socket)?;
        let interface = peer.interface();
        let device = device::ensure(&handle, &interface).await?;
        let (public_key, had_key) = config::ensure_key(&interface, device.kind).await?;
        // Only an interface that is up has a port.
        device::set_quiet(&interface)?;
        device::feed_gently(&handle, &device).await?;
        device::bring_up(&handle, &device, None).await?;
        let port = config::wait_for_port(&interface, device.kind).await?;
        Ok(LocalEnd { public_key, port, kind: device.kind, reused: device.existed && had_key })
    })
    .await
}

/// Connects the prepared tunnel to the other host, and routes the peer's marked packets into it.
/// With equal parameters it changes nothing, and a running session goes on.
///
/// # Errors
/// [`Error::NotPrepared`], [`Error::BadRemote`], or those of the changes: [`Error::Settings`],
/// [`Error::Interface`], [`Error::Routing`].
pub async fn connect(peer: PeerNumber, remote: &RemoteEnd) -> Result<Connected, Error> {
    in_time("connect", peer.interface(), async {
        let interface = peer.interface();
        let remote = config::checked(&interface, remote)?;
        let handle = rtnl::connect().map_err(Error::Socket)?;
        let device = device::find(&handle, &interface)
            .await?
            .ok_or_else(|| Error::NotPrepared { interface: interface.clone() })?
            .encrypts(&interface)?;
        let routing_failed = |source| Error::Routing { interface: interface.clone(), source };
        let underlay = routing::route_mtu(remote.endpoint.ip()).await.map_err(routing_failed)?;
        // Packets of flows whose far end knows nothing of a small underlay are as large as anywhere.
        let mtu = underlay.clamp(device::MTU_COMMON, device::MTU_MAX);

        let mut changed = config::set_remote(&interface, device.kind, &remote).await?;
        changed |= device::add_link_address(&handle, &device, link_address(peer)).await?;
        changed |= device::bring_up(&handle, &device, Some(mtu)).await?;
        let source_check = device::relax_source_check(&interface)?;
        routing::install(peer).await.map_err(routing_failed)?;
        Ok(Connected { mtu, underlay, source_check, changed })
    })
    .await
}

/// Waits until the connected ends have a session. This takes some milliseconds unless there is one
/// already; a direct tunnel needs none. Both ends must be connected, or become so meanwhile.
///
/// # Errors
/// [`Error::NoAnswer`], [`Error::NotPrepared`], [`Error::Settings`].
pub async fn establish(peer: PeerNumber) -> Result<(), Error> {
    in_time("establish a session", peer.interface(), async {
        let interface = peer.interface();
        let (_, device) = existing(&interface).await?;
        if device.kind == Kind::Direct {
            return Ok(());
        }
        handshake::establish(&device, &interface).await
    })
    .await
}

/// Waits until packets come through the tunnel in both directions. Both ends call it at the same
/// time; it takes some 20 ms after one of them has [`establish`]ed a session. It keeps sending
/// packets for some seconds afterwards, for the other end to receive.
///
/// # Errors
/// [`Error::NoAnswer`], [`Error::NotPrepared`], [`Error::Settings`].
pub async fn confirm(peer: PeerNumber) -> Result<(), Error> {
    in_time("confirm the session", peer.interface(), async {
        let interface = peer.interface();
        let (handle, device) = existing(&interface).await?;
        handshake::confirm(&handle, &device, &interface).await
    })
    .await
}

async fn existing(interface: &str) -> Result<(Handle, device::Device), Error> {
    let handle = rtnl::connect().map_err(Error::Socket)?;
    let device = device::find(&handle, interface)
        .await?
        .ok_or_else(|| Error::NotPrepared { interface: interface.to_owned() })?;
    Ok((handle, device))
}

/// Removes the tunnel to `peer` with its policy rules, its routing table and, if there is one, its
/// process. What is absent is not an error.
///
/// # Errors
/// The first that occurs; everything else is removed.
pub async fn remove(peer: PeerNumber) -> Result<(), Error> {
    in_time("remove", peer.interface(), async {
        let interface = peer.interface();
        let routes = routing::remove(peer).await;
        let routes =
            routes.map_err(|source| Error::Routing { interface: interface.clone(), source });
        let handle = rtnl::connect().map_err(Error::Socket)?;
        let link = device::remove(&handle, &interface).await;
        let process = match link {
            Ok(()) => userspace::cease(&interface).await,
            Err(_) => Ok(()), // it would go on for the interface that is still there
        };
        routes.and(link).and(process)
    })
    .await
}

/// Checks that the tunnel's interface still exists: that of a killed `wireguard-go` does not. One
/// system call, fit for the interruption.
///
/// # Errors
/// [`Error::Lost`] when it does not.
pub fn check(peer: PeerNumber) -> Result<(), Error> {
    let interface = peer.interface();
    match nix::net::if_::if_nametoindex(interface.as_str()) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Lost { interface }),
    }
}

/// Sends one packet through the tunnel that the other end ignores, but for its [`Status::heard`].
/// If the other end exists and uses WireGuard, it answers within ten seconds, if only by an empty
/// packet (KEEPALIVE_TIMEOUT of the WireGuard protocol), so that the counter grows here too.
///
/// # Errors
/// [`Error::Settings`] when it cannot be sent.
pub fn knock(peer: PeerNumber) -> Result<(), Error> {
    handshake::greet(&peer.interface())
}

/// Lets this host's own packets with a loopback source leave by the tunnel, where they get another
/// source (`route_localnet`, ip-sysctl.rst). Ends with the interface.
///
/// # Errors
/// [`Error::Setting`] when the setting cannot be written.
pub fn carry_loopback(peer: PeerNumber) -> Result<(), Error> {
    device::carry_loopback(&peer.interface())
}

/// Returns the peers to which this host has a tunnel, in order of their numbers.
///
/// # Errors
/// [`Error::Socket`], [`Error::Interface`].
pub async fn list() -> Result<Vec<PeerNumber>, Error> {
    in_time("list", format!("{INTERFACE_PREFIX}*"), async {
        let handle = rtnl::connect().map_err(Error::Socket)?;
        device::list(&handle).await
    })
    .await
}

/// Returns the kind of the tunnel to `peer`; `None` when there is none. A tunnel that is still
/// being set up is not an error.
///
/// # Errors
/// [`Error::Interface`], [`Error::NotOurs`].
pub async fn kind(peer: PeerNumber) -> Result<Option<Kind>, Error> {
    in_time("tell what it is", peer.interface(), async {
        let handle = rtnl::connect().map_err(Error::Socket)?;
        Ok(device::find(&handle, &peer.interface()).await?.map(|device| device.kind))
    })
    .await
}

/// Returns the state of the tunnel to `peer`; `None` when there is none. Waits for a `wireguard-go`
/// that another process has only just started, or that is about to end.
///
/// # Errors
/// [`Error::Interface`], [`Error::Settings`], [`Error::NotOurs`].
pub async fn status(peer: PeerNumber) -> Result<Option<Status>, Error> {
    in_time("tell its status", peer.interface(), async {
        let handle = rtnl::connect().map_err(Error::Socket)?;
        let interface = peer.interface();
        let give_up = Instant::now() + IN_THE_MAKING;
        loop {
            let Some(device) = device::find(&handle, &interface).await? else { return Ok(None) };
            if device.kind == Kind::Direct {
                let link = lookup(&handle, &interface).await?;
                return Ok(Some(Status {
                    kind: device.kind,
                    address: link.as_ref().and_then(direct::remote_of).map(|end| end.address),
                    port: 0,
                    public_key: [0; 32],
                    remote: None,
                    last_handshake: None,
                    heard: device.received(),
                }));
            }
            match config::status(&interface, device.kind).await {
                Err(Error::Settings { .. }) if Instant::now() < give_up => {
                    tokio::time::sleep(POLL).await;
                }
                status => return status.map(Some),
            }
        }
    })
    .await
}

/// Returns the address of the tunnel's interface. No packet is ever sent to it, so both hosts may
/// choose the same.
fn link_address(peer: PeerNumber) -> IpAddr {
    Ipv4Addr::new(169, 254, 77, peer.get()).into()
}

async fn in_time<T>(
    action: &'static str,
    interface: String,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(DEADLINE, work)
        .await
        .unwrap_or_else(|_| Err(Error::Deadline { action, interface }))
}

/// Returns the error of a tunnel of another kind than expected.
fn wrong_way(interface: &str, kind: Kind) -> Error {
    Error::OtherWay { interface: interface.to_owned(), kind }
}

/// Maps the kernel's refusal of an operation on an interface.
fn refused(action: &'static str, interface: &str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Interface { action, interface: interface.to_owned(), source }
}

/// Looks an interface up by name.
async fn lookup(
    handle: &Handle,
    interface: &str,
) -> Result<Option<rtnetlink::packet_route::link::LinkMessage>, Error> {
    rtnl::link_by_name(handle, interface).await.map_err(refused("look up", interface))
}
