//! A service manager that would start a container again where it was.
//!
//! A unit notices that its container has gone, and starts another one beside the one that was moved. The
//! unit is found by podman's label, by the cgroup of conmon, and by that of a `podman run` which is attached to
//! the container: conmon's socket tells who is at its other end (sock_diag(7)).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use crate::container::Container;

/// Label by which podman knows the unit that runs a container (podman-auto-update(1)).
const LABEL: &str = "PODMAN_SYSTEMD_UNIT";
/// Units that run no container: netmig's own and podman's, below which containers are made that stay.
const NOT_ITS_OWN: [&str; 5] = [
    "agent-server.service",
    "netmig-recover.service",
    "podman.service",
    "podman-restart.service",
    "podman-auto-update.service",
];
/// The engine's program.
const PODMAN: &str = "podman";
/// Most bytes of an answer of the kernel.
const ANSWER: usize = 64 << 10;
/// `SOCK_DIAG_BY_FAMILY` (`linux/sock_diag.h`).
const BY_FAMILY: u16 = 20;
/// `UDIAG_SHOW_PEER` (`linux/unix_diag.h`).
const SHOW_PEER: u32 = 4;
/// `UNIX_DIAG_PEER` (`linux/unix_diag.h`).
const PEER: u16 = 2;
/// Bytes of a netlink header, and of `unix_diag_msg` behind it.
const HEADER: usize = 16;
/// See [`HEADER`].
const DIAG: usize = 16;

/// Returns the unit of a service manager that runs a container, if one does.
pub(super) fn unit(container: &Container) -> Option<String> {
    if let Some(unit) = container.labels.get(LABEL).filter(|unit| !unit.is_empty()) {
        return Some(unit.clone());
    }
    unit_of(container.monitor_pid).or_else(|| attached(container.monitor_pid))
}

/// The service in whose cgroup a process is.
fn unit_of(pid: i32) -> Option<String> {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    service(&cgroups)
}

/// The innermost service that the text of a `/proc/PID/cgroup` names.
fn service(cgroups: &str) -> Option<String> {
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let is_one = |name: &&str| name.ends_with(".service") && !name.starts_with("user@");
    let unit = path.split('/').rfind(is_one)?;
    (!NOT_ITS_OWN.contains(&unit)).then(|| unit.to_owned())
}

/// The service of a podman that is attached to the container of this conmon.
fn attached(monitor: i32) -> Option<String> {
    let podmans: Vec<(i32, String)> = fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == PODMAN
        })
        .filter_map(|pid| Some((pid, unit_of(pid)?)))
        .collect();
    if podmans.is_empty() {
        return None;
    }
    let peers = unix_peers().unwrap_or_default();
    let far: Vec<u64> =
        sockets(monitor).into_iter().filter_map(|socket| peers.get(&socket).copied()).collect();
    podmans
        .into_iter()
        .find(|(pid, _)| sockets(*pid).iter().any(|socket| far.contains(socket)))
        .map(|(_, unit)| unit)
}

/// The sockets that a process has open, by their inodes.
fn sockets(pid: i32) -> Vec<u64> {
    let entries = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"));
    entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter_map(|target| {
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        })
        .collect()
}

/// The other end of each connected unix socket of this network namespace, by inode.
fn unix_peers() -> io::Result<BTreeMap<u64, u64>> {
    // SAFETY: socket(2) takes numbers alone.
    let socket = unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_SOCK_DIAG)
    };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // nlmsghdr, then unix_diag_req: family, protocol, padding, states, inode, what to show, cookie.
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut request = Vec::new();
    request.extend(40_u32.to_ne_bytes());
    request.extend(BY_FAMILY.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(0_u32.to_ne_bytes());
    request.extend(SHOW_PEER.to_ne_bytes());
    request.extend([0xff; 8]);
    nix::sys::socket::send(socket.as_raw_fd(), &request, nix::sys::socket::MsgFlags::empty())?;
    let mut peers = BTreeMap::new();
    let mut answer = vec![0; ANSWER];
    loop {
        let flags = nix::sys::socket::MsgFlags::empty();
        let length = nix::sys::socket::recv(socket.as_raw_fd(), &mut answer, flags)?;
        if !read_messages(&answer[..length], &mut peers) {
            return Ok(peers);
        }
    }
}

/// Takes the sockets of one answer; `false` when it was the last one.
fn read_messages(mut rest: &[u8], peers: &mut BTreeMap<u64, u64>) -> bool {
    while let Some(length) = number(rest, 0) {
        let length = length as usize;
        let kind = rest.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
        let Some(message) = rest.get(..length).filter(|message| message.len() >= HEADER) else {
            return false;
        };
        if kind != Some(BY_FAMILY) {
            return false;
        }
        if let Some(inode) = number(message, HEADER + 4)
            && let Some(peer) = peer_attribute(message.get(HEADER + DIAG..).unwrap_or_default())
        {
            peers.insert(u64::from(inode), u64::from(peer));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    rest.is_empty()
}

/// The attribute that names the other end.
fn peer_attribute(mut rest: &[u8]) -> Option<u32> {
    loop {
        let header = rest.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        if u16::from_ne_bytes([header[2], header[3]]) == PEER {
            return number(rest, 4);
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    #[test]
    fn services_are_found_in_cgroups() {
        let found = |path: &str| service(&format!("1:name=x:/y\n0::{path}\n"));
        assert_eq!(found("/system.slice/w.service"), Some("w.service".to_owned()));
        assert_eq!(found("/system.slice/w.service/libpod-payload-1"), Some("w.service".to_owned()));
        let user = "/user.slice/user-0.slice/user@0.service/app.slice/w.service";
        assert_eq!(found(user), Some("w.service".to_owned()));
        for none in [
            "/user.slice/user-0.slice/user@0.service/user.slice/libpod-conmon-1.scope",
            "/machine.slice/libpod-conmon-1.scope",
            "/system.slice/agent-server.service",
            "/system.slice/podman.service",
            "/",
        ] {
            assert_eq!(found(none), None, "{none}");
        }
    }

    #[test]
    fn the_other_end_of_a_socket_is_known() {
        let (one, other) = UnixStream::pair().unwrap();
        let inode = |stream: &UnixStream| {
            let path = format!("/proc/self/fd/{}", stream.as_raw_fd());
            fs::metadata(path).unwrap().ino()
        };
        let peers = unix_peers().unwrap();
        assert_eq!(peers.get(&inode(&one)), Some(&inode(&other)));
        assert_eq!(peers.get(&inode(&other)), Some(&inode(&one)));
    }
}
