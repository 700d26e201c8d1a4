//! The tunnel's interface: creation, address, MTU, kernel settings, removal.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use futures::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressScope};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::{Handle, LinkUnspec, LinkWireguard};

use super::{Error, Kind, SourceCheck, lookup, refused, userspace, wrong_way};
use crate::netlink::rtnetlink as rtnl;
use crate::peer_number::{INTERFACE_PREFIX, PeerNumber};

/// Ethernet's MTU, for which most flows have negotiated their segment sizes.
pub(super) const MTU_COMMON: u32 = 1500;
/// The largest IP packet less outer headers and WireGuard's own (80 bytes), in WireGuard's steps of
/// 16.
pub(super) const MTU_MAX: u32 = 65_440;

/// The tunnel's interface.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) kind: Kind,
    /// False when it was created just now.
    pub(super) existed: bool,
    name: String,
    index: u32,
    mtu: u32,
    up: bool,
    received: u64,
}

impl Device {
    /// Returns the number of packets that came out of the tunnel, or in frames for this host alone.
    /// Unlike WireGuard's own byte counter it does not count handshakes, which prove no session.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Returns the device, unless it is a direct tunnel.
    pub(super) fn encrypts(self, interface: &str) -> Result<Self, Error> {
        if self.kind == Kind::Direct { Err(wrong_way(interface, self.kind)) } else { Ok(self) }
    }

    /// Returns the interface's index.
    pub(super) fn index(&self) -> u32 {
        self.index
    }
}

/// Finds the interface. Fails if another kind of interface has its name.
pub(super) async fn find(handle: &Handle, interface: &str) -> Result<Option<Device>, Error> {
    let Some(link) = lookup(handle, interface).await? else { return Ok(None) };
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    let received = link.attributes.iter().find_map(|attribute| match attribute {
        // Multicast frames may come from any host of the segment.
        LinkAttribute::Stats64(count) => Some(count.rx_packets.saturating_sub(count.multicast)),
        _ => None,
    });
    let info = kind_of(&link);
    let kind = tunnel_kind(info).ok_or_else(|| Error::NotOurs {
        interface: interface.to_owned(),
        kind: info.map_or_else(|| "a device".to_owned(), |kind| format!("{kind:?}")),
    })?;
    Ok(Some(Device {
        kind,
        existed: true,
        name: interface.to_owned(),
        index: link.header.index,
        mtu: mtu.unwrap_or(0),
        up: link.header.flags.contains(LinkFlags::Up),
        received: received.unwrap_or(0),
    }))
}

pub(super) fn kind_of(link: &LinkMessage) -> Option<&InfoKind> {
    let infos = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    })
}

pub(super) fn tunnel_kind(kind: Option<&InfoKind>) -> Option<Kind> {
    match kind? {
        InfoKind::Wireguard => Some(Kind::Kernel),
        InfoKind::Tun => Some(Kind::Userspace),
        InfoKind::MacVlan => Some(Kind::Direct),
        _ => None,
    }
}

/// Finds the WireGuard interface or creates it: the kernel's if it can, otherwise with
/// `wireguard-go`.
pub(super) async fn ensure(handle: &Handle, interface: &str) -> Result<Device, Error> {
    if let Some(device) = find(handle, interface).await? {
        return device.encrypts(interface);
    }
    let added = handle.link().add(LinkWireguard::new(interface).build()).execute().await;
    match added.map_err(rtnl::answer) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            tracing::debug!(interface, "no WireGuard in this kernel, starting wireguard-go");
            userspace::start(interface).await?;
        }
        // Another process was quicker; the lookup below tells what it created.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(refused("create", interface)(error)),
    }
    let device = find(handle, interface).await?;
    let device = device.ok_or_else(|| Error::NotKept { interface: interface.to_owned() })?;
    Device { existed: false, ..device }.encrypts(interface)
}

/// Packets that may wait for `wireguard-go`: as many as held ones that are released, and those of
/// streams at 20,000 packets a second while it does not get the processor for half a second. The
/// default is 500.
const QUEUE: u32 = 10_000;

/// Makes the kernel queue enough packets for `wireguard-go`, and cut large TCP packets into
/// segments before they reach it.
///
/// Given several segments at once, it sends them as one UDP packet to be cut on the way out
/// (`UDP_SEGMENT`), and loses all of them where that is refused: connections stall until their
/// retransmission timer sends a single segment. The kernel's own WireGuard cuts them itself.
pub(super) async fn feed_gently(handle: &Handle, device: &Device) -> Result<(), Error> {
    if device.kind == Kind::Kernel {
        return Ok(());
    }
    let mut message = LinkUnspec::new_with_index(device.index).build();
    message.attributes.push(LinkAttribute::GsoMaxSegs(1));
    // What came out of a TUN interface does not tell its number of segments (`SKB_GSO_DODGY`,
    // include/linux/virtio_net.h), but its length.
    message.attributes.push(LinkAttribute::GsoMaxSize(MTU_COMMON));
    message.attributes.push(LinkAttribute::TxQueueLen(QUEUE));
    let set = handle.link().set(message).execute().await;
    set.map_err(rtnl::answer).map_err(refused("configure", &device.name))
}

/// Brings the interface up, with that MTU if one is given. Returns whether that was a change.
pub(super) async fn bring_up(
    handle: &Handle,
    device: &Device,
    mtu: Option<u32>,
) -> Result<bool, Error> {
    let mtu = mtu.filter(|mtu| *mtu != device.mtu);
    if device.up && mtu.is_none() {
        return Ok(false);
    }
    let mut message = LinkUnspec::new_with_index(device.index).up();
    if let Some(mtu) = mtu {
        message = message.mtu(mtu);
    }
    let set = handle.link().set(message.build()).execute().await;
    set.map(|()| true).map_err(rtnl::answer).map_err(refused("configure", &device.name))
}

/// Gives the interface a link-local address. Returns whether that was a change.
pub(super) async fn add_link_address(
    handle: &Handle,
    device: &Device,
    address: IpAddr,
) -> Result<bool, Error> {
    let mut request = handle.address().add(device.index, address, 32);
    let message = request.message_mut();
    message.header.scope = AddressScope::Link;
    message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
    rtnl::unless(request.execute().await, libc::EEXIST)
        .map_err(refused("add an address to", &device.name))
}

/// Keeps IPv6 from giving the interface an address of its own, whose router solicitations would go
/// through the tunnel. The kernel's WireGuard does the same (`wg_open`).
pub(super) fn set_quiet(interface: &str) -> Result<(), Error> {
    const NONE: &str = "1";
    let path = setting("ipv6", interface, "addr_gen_mode");
    if path.exists() { write(&path, NONE) } else { Ok(()) }
}

/// Disables reverse path filtering for the interface, as far as the host's own setting allows: the
/// kernel takes the larger of `all` and the interface's (ip-sysctl.rst, `rp_filter`).
pub(super) fn relax_source_check(interface: &str) -> Result<SourceCheck, Error> {
    let all = setting("ipv4", "all", "rp_filter");
    let all = std::fs::read_to_string(&all)
        .map_err(|source| Error::Setting { path: all.clone(), source })?;
    let (value, check) = match all.trim() {
        "0" => ("0", SourceCheck::Off),
        _ => ("2", SourceCheck::Loose),
    };
    write(&setting("ipv4", interface, "rp_filter"), value)?;
    Ok(check)
}

/// Lets packets with a loopback source leave by the interface.
pub(super) fn carry_loopback(interface: &str) -> Result<(), Error> {
    write(&setting("ipv4", interface, "route_localnet"), "1")
}

/// Returns whether [`carry_loopback`] was called for the interface.
pub(super) fn carries_loopback(interface: &str) -> bool {
    let value = std::fs::read_to_string(setting("ipv4", interface, "route_localnet"));
    value.is_ok_and(|value| value.trim() == "1")
}

fn setting(family: &str, interface: &str, name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(family).join("conf").join(interface).join(name)
}

fn write(path: &Path, value: &str) -> Result<(), Error> {
    let written: io::Result<()> = std::fs::write(path, value);
    written.map_err(|source| Error::Setting { path: path.to_owned(), source })
}

/// Removes the interface; an absent one is not an error.
pub(super) async fn remove(handle: &Handle, interface: &str) -> Result<(), Error> {
    let Some(device) = find(handle, interface).await? else { return Ok(()) };
    rtnl::unless(handle.link().del(device.index).execute().await, libc::ENODEV)
        .map(drop)
        .map_err(refused("remove", interface))
}

/// Returns the peers whose tunnel interfaces exist.
pub(super) async fn list(handle: &Handle) -> Result<Vec<PeerNumber>, Error> {
    let links: Vec<LinkMessage> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(rtnl::answer)
        .map_err(refused("look up", INTERFACE_PREFIX))?;
    let mut peers: Vec<_> = links
        .iter()
        .filter(|link| tunnel_kind(kind_of(link)).is_some())
        .flat_map(|link| &link.attributes)
        .filter_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => PeerNumber::of_interface(name),
            _ => None,
        })
        .collect();
    peers.sort_unstable();
    Ok(peers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_names_are_tunnels() {
        assert_eq!(PeerNumber::of_interface("netmig255"), PeerNumber::new(255));
        for foreign in ["netmig", "netmig0", "netmig256", "netmig03", "netmig+3", "eth0", "wg3"] {
            assert_eq!(PeerNumber::of_interface(foreign), None, "{foreign}");
        }
    }
}
