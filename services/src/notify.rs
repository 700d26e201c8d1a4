//! Tells systemd of a service on behalf of one of its processes (sd_pid_notify(3)).

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, UnixCredentials, sendmsg};

/// systemd's own socket.
const SOCKET: &str = "/run/systemd/notify";

/// Sends assignments in the name of a process, which tells systemd the service that they are about. The kernel lets root
/// name another process than its own (unix(7), `SCM_CREDENTIALS`).
pub(crate) fn send(process: u32, assignments: &str) -> io::Result<()> {
    let pid = i32::try_from(process).map_err(|_| io::ErrorKind::InvalidInput)?;
    let socket = UnixDatagram::unbound()?;
    let credentials = UnixCredentials::from(libc::ucred { pid, uid: 0, gid: 0 });
    let address = UnixAddr::new(SOCKET)?;
    sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(assignments.as_bytes())],
        &[ControlMessage::ScmCredentials(&credentials)],
        MsgFlags::MSG_NOSIGNAL,
        Some(&address),
    )?;
    Ok(())
}
