//! Multicast groups that sockets have joined.
//!
//! The kernel tells which groups the interfaces of a namespace are members of (`/proc/net/igmp`, `igmp6`),
//! and of a socket whether it is a member of a given one, and of whom it wants to hear (`MCAST_MSFILTER`,
//! RFC 3678). So every socket is asked about every group.

use std::fs;
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use super::option_table::Kind;

/// Most groups of one namespace, and most senders that a filter names.
const MOST: usize = 1024;
/// Senders for which there is room at first: IPv4 allows ten (`net.ipv4.igmp_max_msf`).
const SENDERS_AT_FIRST: usize = 16;
/// Numbers of the options; the same in IPv4 and IPv6 (`linux/in.h`).
const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;
/// Filters of senders (`MCAST_EXCLUDE`, `MCAST_INCLUDE`).
const EXCLUDE: u32 = 0;
/// Bytes of `struct sockaddr_storage`.
const ADDRESS: usize = size_of::<libc::sockaddr_storage>();
/// Where in `struct group_filter` the group, the mode, the number of senders and these stand; the interface is
/// the first.
const GROUP: usize = 8;
const MODE: usize = GROUP + ADDRESS;
const COUNT: usize = MODE + 4;
const SENDERS: usize = COUNT + 4;

/// A group that a socket has joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The interface by its name.
    pub interface: String,
    /// The group.
    pub group: IpAddr,
    /// Whether it hears all but these senders, otherwise these alone.
    pub is_exclusive: bool,
    /// The senders.
    pub senders: Vec<IpAddr>,
}

/// A group that an interface is member of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Joined {
    index: u32,
    interface: String,
    group: IpAddr,
}

/// Returns the groups of the namespace that a thread of this process is in, other than those that the kernel
/// joins for every interface.
pub(super) fn joined() -> Vec<Joined> {
    let read =
        |file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
    let mut all = of_four(&read("igmp"));
    all.extend(of_six(&read("igmp6")));
    all.truncate(MOST);
    all
}

/// A line for each interface, and a line with a tabulator for each of its groups (`igmp_mc_seq_show`). The
/// group is printed as a number of this processor.
fn of_four(text: &str) -> Vec<Joined> {
    let mut all = Vec::new();
    let mut current = None;
    for line in text.lines().skip(1) {
        let mut words = line.split_whitespace();
        if !line.starts_with('\t') {
            let index = words.next().and_then(|word| word.parse::<u32>().ok());
            current = index.zip(words.next().map(|name| name.trim_end_matches(':').to_owned()));
            continue;
        }
        let number = words.next().and_then(|word| u32::from_str_radix(word, 16).ok());
        let group = number.map(|number| Ipv4Addr::from(number.to_ne_bytes()));
        if let (Some((index, interface)), Some(group)) = (&current, group)
            && group != Ipv4Addr::new(224, 0, 0, 1)
        {
            all.push(Joined { index: *index, interface: interface.clone(), group: group.into() });
        }
    }
    all
}

/// Index, interface, group, and more (`igmp6_mc_seq_show`).
fn of_six(text: &str) -> Vec<Joined> {
    let joined = |line: &str| {
        let mut words = line.split_whitespace();
        let (index, interface) = (words.next()?.parse().ok()?, words.next()?.to_owned());
        let group = Ipv6Addr::from(u128::from_str_radix(words.next()?, 16).ok()?);
        let is_of_all = matches!(group.segments(), [0xff01 | 0xff02, 0, 0, 0, 0, 0, 0, 1]);
        (!is_of_all).then(|| Joined { index, interface, group: group.into() })
    };
    text.lines().filter_map(joined).collect()
}

/// Returns which of the groups a socket has joined.
pub(super) fn of_socket(socket: &OwnedFd, kind: &Kind, groups: &[Joined]) -> Vec<Membership> {
    if !is_possible(kind) {
        return Vec::new();
    }
    let of_family = |one: &&Joined| level(one.group) == level_of(kind);
    groups.iter().filter(of_family).filter_map(|one| one.membership(socket)).collect()
}

/// Joins a group again.
///
/// # Errors
/// There is no such interface, or the kernel refuses.
pub(super) fn join(socket: &OwnedFd, kind: &Kind, membership: &Membership) -> io::Result<()> {
    let Membership { interface, group, is_exclusive, senders } = membership;
    if level(*group) != level_of(kind) || !is_possible(kind) || senders.len() > MOST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let index = index_of(socket, interface)?;
    let mut request = vec![0; GROUP + ADDRESS];
    request[..4].copy_from_slice(&index.to_ne_bytes());
    put_address(&mut request[GROUP..], *group);
    set(socket, level(*group), MCAST_JOIN_GROUP, &request)?;
    if *is_exclusive && senders.is_empty() {
        return Ok(());
    }
    let mode = if *is_exclusive { EXCLUDE } else { EXCLUDE + 1 };
    let mut filter = vec![0; SENDERS + senders.len() * ADDRESS];
    filter[..request.len()].copy_from_slice(&request);
    filter[MODE..MODE + 4].copy_from_slice(&mode.to_ne_bytes());
    let count = u32::try_from(senders.len()).unwrap_or(u32::MAX);
    filter[COUNT..COUNT + 4].copy_from_slice(&count.to_ne_bytes());
    for (place, sender) in filter[SENDERS..].chunks_mut(ADDRESS).zip(senders) {
        put_address(place, *sender);
    }
    set(socket, level(*group), MCAST_MSFILTER, &filter)
}

impl Joined {
    /// What a socket wants to hear of the group; `None` if it has not joined it.
    fn membership(&self, socket: &OwnedFd) -> Option<Membership> {
        let mut filter = self.filter(socket, SENDERS_AT_FIRST)?;
        let number = |filter: &[u8], at: usize| {
            filter.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
        };
        let count = number(&filter, COUNT)? as usize;
        if count > SENDERS_AT_FIRST {
            filter = self.filter(socket, count.min(MOST))?;
        }
        let senders = filter[SENDERS..].chunks(ADDRESS).take(count).filter_map(address).collect();
        Some(Membership {
            interface: self.interface.clone(),
            group: self.group,
            is_exclusive: number(&filter, MODE)? == EXCLUDE,
            senders,
        })
    }

    /// The socket's `struct group_filter` of the group, with room for so many senders.
    fn filter(&self, socket: &OwnedFd, room: usize) -> Option<Vec<u8>> {
        let mut filter = vec![0; SENDERS + room * ADDRESS];
        filter[..4].copy_from_slice(&self.index.to_ne_bytes());
        put_address(&mut filter[GROUP..], self.group);
        filter[COUNT..COUNT + 4].copy_from_slice(&u32::try_from(room).ok()?.to_ne_bytes());
        get(socket, level(self.group), MCAST_MSFILTER, &mut filter)?;
        Some(filter)
    }
}

/// Whether a socket can have joined groups.
fn is_possible(kind: &Kind) -> bool {
    kind.kind != libc::SOCK_STREAM && matches!(kind.family, libc::AF_INET | libc::AF_INET6)
}

fn level(address: IpAddr) -> i32 {
    if address.is_ipv4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 }
}

fn level_of(kind: &Kind) -> i32 {
    if kind.family == libc::AF_INET { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 }
}

/// Writes an address as `struct sockaddr_in` or `sockaddr_in6`.
fn put_address(place: &mut [u8], address: IpAddr) {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    place[..2].copy_from_slice(&u16::try_from(family).unwrap_or(0).to_ne_bytes());
    match address {
        IpAddr::V4(four) => place[4..8].copy_from_slice(&four.octets()),
        IpAddr::V6(six) => place[8..24].copy_from_slice(&six.octets()),
    }
}

/// Reads such an address.
fn address(place: &[u8]) -> Option<IpAddr> {
    match i32::from(u16::from_ne_bytes(place.get(..2)?.try_into().ok()?)) {
        libc::AF_INET => Some(<[u8; 4]>::try_from(place.get(4..8)?).ok()?.into()),
        libc::AF_INET6 => Some(<[u8; 16]>::try_from(place.get(8..24)?).ok()?.into()),
        _ => None,
    }
}

/// The number of an interface in the socket's namespace (netdevice(7)).
fn index_of(socket: &OwnedFd, interface: &str) -> io::Result<u32> {
    let mut request = [0_u8; size_of::<libc::ifreq>()];
    let name = interface.as_bytes();
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request[..name.len()].copy_from_slice(name);
    // SAFETY: the buffer has the size of struct ifreq, and the name ends with a zero.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, request.as_mut_ptr()) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let index = request[libc::IFNAMSIZ..].first_chunk().copied().unwrap_or_default();
    Ok(u32::from_ne_bytes(index))
}

fn get(socket: &OwnedFd, level: i32, option: i32, buffer: &mut [u8]) -> Option<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).ok()?;
    // SAFETY: the kernel reads and writes no more bytes of the buffer than its length says.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (done == 0).then_some(())
}

fn set(socket: &OwnedFd, level: i32, option: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads as many bytes as the slice has.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), length)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn groups_are_read_but_for_those_of_every_interface() {
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\
                    2\teth0      :     2      V3\n\t\t\t\t4D4DFFEF     1 0:00000000\t\t0\n\
                    \t\t\t\t010000E0     1 0:00000000\t\t0\n";
        let [one] = &of_four(text)[..] else { panic!("{:?}", of_four(text)) };
        assert_eq!((one.index, one.interface.as_str()), (2, "eth0"));
        assert_eq!(one.group, IpAddr::from([239, 255, 77, 77]));
        let text = "2    eth0  ff020000000000000000000000000001     1 0000000C 0\n\
                    2    eth0  ff150000000000000000000000000077     1 00000004 0\n";
        assert_eq!(of_six(text)[0].group, "ff15::77".parse::<IpAddr>().unwrap());
        assert_eq!(of_six(text).len(), 1);
        assert!(of_four("nonsense\n\t\tzz\n").is_empty() && of_six("x y\n").is_empty());
    }

    #[test]
    fn a_group_with_its_senders_is_joined_again() {
        let [first, second, plain] =
            [0; 3].map(|_| OwnedFd::from(UdpSocket::bind("0.0.0.0:0").unwrap()));
        let kind = Kind::of(&first).unwrap();
        let senders = vec!["192.0.2.1".parse().unwrap()];
        for (is_exclusive, senders) in [(true, vec![]), (true, senders.clone()), (false, senders)] {
            let group =
                IpAddr::from([239, 255, 77, 70 + u8::from(is_exclusive) + senders.len() as u8]);
            let wanted = Membership { interface: "lo".to_owned(), group, is_exclusive, senders };
            if let Err(error) = join(&first, &kind, &wanted) {
                return println!("skipped: {error}");
            }
            let of = |socket| {
                let mut all = of_socket(socket, &kind, &joined());
                all.retain(|one| one.group == group);
                all
            };
            assert_eq!(of(&first), std::slice::from_ref(&wanted));
            assert!(of(&plain).is_empty());
            join(&second, &kind, &of(&first)[0]).unwrap();
            assert_eq!(of(&second), [wanted]);
        }
        let nowhere = Membership {
            interface: "none7".to_owned(),
            group: [239, 255, 77, 79].into(),
            is_exclusive: true,
            senders: vec![],
        };
        assert!(join(&first, &kind, &nowhere).is_err());
        let mixed = Membership { group: "ff15::77".parse().unwrap(), ..nowhere };
        assert!(join(&first, &kind, &mixed).is_err());
    }
}
